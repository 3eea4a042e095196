"""What a trained direct method has to know of its contrasts beside its weights, measured on subjects it never saw."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from apt_monai.data.slice_cache import CachedStudy
from apt_monai.distributed import is_lead
from apt_monai.engines import to_device
from apt_monai.methods import INTERVAL, Calibration, Method

logger = logging.getLogger(__name__)

ENOUGH = 20  # subjects, below which the widths are rough
VOXELS = 20_000  # of each subject, for each contrast and number of sources


def calibrate(method: Method, studies: Sequence[CachedStudy], slices: int = 8) -> Calibration:
    """Measure a method on calibration subjects.

    What its half widths must be multiplied by so that 90 % of the brain's voxels are within, for each contrast and
    number of acquired contrasts; each subject weighs the same, and so does each subset of sources. And how spread each
    contrast's volumes are.

    Args:
        method: the method, without a calibration.
        studies: of the calibration subjects, with every contrast, in the slice cache of the method's preprocessing.
        slices: how many slices of each are synthesised, evenly spread.

    Raises:
        ValueError: there is no study.
    """
    names = method.contrasts.names
    if not studies:
        raise ValueError("there are no subjects to calibrate on: give the split validation subjects")
    if len(studies) < ENOUGH:
        logger.warning(
            "calibrated on %d subjects only (validation_subjects): with fewer than %d the uncertainty is rough",
            len(studies),
            ENOUGH,
        )
    ratios: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)  # of each subject, equally many
    spreads: dict[str, list[float]] = defaultdict(list)
    for study in tqdm(studies, "calibration", unit="study", disable=not is_lead()):
        for (name, sources), found in _ratios(method, study, slices).items():
            ratios[name, sources].append(found)
        for name, (low, high) in zip(names, study.intensity_range.tolist(), strict=True):
            deviations = method.preprocessing.scale.deviations or 1.0
            median = (low + high) / 2
            if median > 0:
                spreads[name].append((high - low) / 2 / deviations / median)
    widths = {
        name: tuple(float(np.quantile(np.concatenate(ratios[name, n]), INTERVAL)) for n in range(1, len(names)))
        for name in names
    }
    deviation = {name: float(np.median(spreads[name])) if spreads[name] else 1.0 for name in names}
    return Calibration(widths, deviation, len(studies))


@torch.no_grad()
def _ratios(method: Method, study: CachedStudy, slices: int) -> dict[tuple[str, int], np.ndarray]:
    """By target and number of sources, a sample of one subject's absolute errors over the half widths."""
    names = method.contrasts.names
    rows = np.unique(np.linspace(0, len(study) - 1, min(slices, len(study))).round().astype(int))
    batch = to_device(study.batch(rows.tolist()), method.device)
    image, inside = batch["image"], batch["region"][:, 0] > 0  # (n, C, H, W), (n, H, W)
    found: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    generator = np.random.default_rng(0)
    for acquired in sorted(method.contrasts.subsets(), key=len):
        available = torch.tensor(method.contrasts.mask(acquired), device=method.device).expand(len(rows), -1)
        result = method(batch, available)
        for target, name in enumerate(names):
            if name not in acquired:
                error = (result["image"][:, target] - image[:, target]).abs()[inside]
                ratio = (error / result["uncertainty"][:, target][inside].clamp(min=1e-6)).cpu().numpy()
                found[name, len(acquired)].append(generator.choice(ratio, VOXELS // len(names)))
    return {key: np.concatenate(each) for key, each in found.items()}
