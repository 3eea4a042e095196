"""What a trained direct method has to know of its contrasts beside its weights, measured on subjects it never saw."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
FOR_EACH_LEFT_OUT = 1_000  # of those, where a factor is found anew for each subject


@dataclass(frozen=True)
class Errors:
    """What calibration subjects show of a method.

    Args:
        ratios: by target and number of sources, for each subject a sample of its voxels' absolute errors over the half
            widths of the method without a calibration; equally many of each subject and subset of sources.
        deviation: by contrast, the robust standard deviation of the brain's intensities over their median.

    Example::

        >>> errors = Errors({("t1", 1): [np.array([0.1, 0.9]), np.array([0.5, 1.5])]}, {"t1": 0.2})
        >>> round(errors.half_width("t1", 1), 2), errors.covered("t1", 1, 1.0).tolist()
        (1.32, [1.0, 0.5])
    """

    ratios: Mapping[tuple[str, int], Sequence[np.ndarray]]
    deviation: Mapping[str, float]

    def half_width(self, target: str, sources: int) -> float:
        """What half widths are multiplied by so that 90 % of the voxels are within."""
        return float(np.quantile(np.concatenate(self.ratios[target, sources]), INTERVAL))

    def covered(self, target: str, sources: int, half_width: float) -> np.ndarray:
        """The share of each subject's voxels that are within, if half widths are multiplied by this."""
        return np.array([np.mean(each <= half_width) for each in self.ratios[target, sources]])

    def covered_left_out(self, target: str, sources: int) -> np.ndarray:
        """The same for each subject with the factor that all the others give: as on a subject to come."""
        ratios = [each[:: max(1, len(each) // FOR_EACH_LEFT_OUT)] for each in self.ratios[target, sources]]
        if len(ratios) < 2:
            return np.array([np.nan])
        factors = [np.quantile(np.concatenate(ratios[:i] + ratios[i + 1 :]), INTERVAL) for i in range(len(ratios))]
        return np.array([np.mean(own <= factor) for own, factor in zip(ratios, factors, strict=True)])

    def calibration(self) -> Calibration:
        """The factors of all targets and numbers of sources."""
        numbers = sorted({sources for _, sources in self.ratios})
        widths = {name: tuple(self.half_width(name, n) for n in numbers) for name in self.deviation}
        return Calibration(widths, self.deviation, len(next(iter(self.ratios.values()))))


def find_errors(method: Method, studies: Sequence[CachedStudy], slices: int = 8) -> Errors:
    """Synthesise calibration subjects' slices from each subset of their contrasts, and compare.

    Each subject weighs the same, and so does each subset of sources.

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
    ratios: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    spreads: dict[str, list[float]] = defaultdict(list)
    for study in tqdm(studies, "calibration", unit="study", disable=not is_lead()):
        for (name, sources), found in _ratios(method, study, slices).items():
            ratios[name, sources].append(found)
        for name, (low, high) in zip(names, study.intensity_range.tolist(), strict=True):
            deviations = method.preprocessing.scale.deviations or 1.0
            median = (low + high) / 2
            if median > 0:
                spreads[name].append((high - low) / 2 / deviations / median)
    deviation = {name: float(np.median(spreads[name])) if spreads[name] else 1.0 for name in names}
    return Errors(ratios, deviation)


def calibrate(method: Method, studies: Sequence[CachedStudy], slices: int = 8) -> Calibration:
    """What a direct method keeps of :func:`find_errors`."""
    return find_errors(method, studies, slices).calibration()


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
