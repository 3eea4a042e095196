"""The brain mask: by filters, by deepbet, or the user's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.preprocessing.scan import Matrix, Scan, otsu_thresholds, shrink
from apt_monai.preprocessing.settings import PreprocessingSettings
from apt_monai.preprocessing.t1_like import t1_like

NO_DEEPBET = (
    "mask 'deepbet' needs the package deepbet: pip install 'apt_monai[preprocess]'; "
    "or use mask 'itk', or masks of your own"
)
_MASKS_OF_YOUR_OWN = "give masks of your own (--mask 'masks/{subject}_mask.nii.gz')"
_FILTERS_ERR = "filters know no anatomy, and take scalp and neck along where these are no brighter than the brain"

NEAR_SURFACE_MM = 20.0
"""How deep from the head's surface the filters look for fat."""
FAT = 1.4
"""What is near the surface and so many times as bright as tissue deeper in the head is fat, for the filters."""

STEADY = 0.95
"""How much the masks of an image that is no T1 and of its mirror image agree, at least (Dice).

On raw phantoms and a real study it was 0.966 to 0.989 for good masks. With parts of the head blacked out, stripes,
heavy noise, axes exchanged or inverted intensities it fell as the Dice with the truth did: masks with less than 0.9
had 0.67 to 0.95, but for one that had more than 2,000 ml.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrainMask:
    """A brain mask, 0 to 1, in the space of one of the study's scans, and in words what it was made by."""

    scan: Scan
    space: str
    origin: str

    @property
    def ml(self) -> float:
        voxels = np.count_nonzero(self.scan.volume > 0.5)
        return round(float(voxels * abs(np.linalg.det(self.scan.affine[:3, :3])) / 1000), 1)


def find_brain_mask(
    subject: str,
    scans: Mapping[str, Scan],
    contrasts: ContrastSet,
    settings: PreprocessingSettings,
    own: str | None,
    matrices: Mapping[str, Matrix],
) -> BrainMask:
    """The mask of a study: the user's own where there is one, else by the tool that the settings name.

    deepbet's network is for T1; a study without a T1-weighted scan gives it FLAIR or PD less T2 (:func:`t1_like`).
    Against the true masks of raw phantoms (3 mm; the settings were chosen on the same heads; deepbet's T1 mask has
    0.968 to 0.975) the Dice was 0.974 to 0.975 by FLAIR (3 heads) and 0.960 to 0.969 by PD and T2 (4); against
    deepbet's T1 mask of a real glioma patient 0.963 by FLAIR. T2 alone had 0.931 to 0.970 (8) and 0.939, PD alone 0.92
    to 0.95: less than 0.95 for some heads, without a sign of it. Both are refused, as is a mask that is not that of the
    mirror image (:data:`STEADY`).

    Args:
        subject: the study's name.
        scans: by contrast, bias corrected.
        contrasts: says which scan shows the brain best.
        settings: the tool, and the volumes in ml that a brain can have.
        own: the path of the user's own mask.
        matrices: 4×4, mm of output space to mm of each scan's.

    Raises:
        StudyError: the user's own mask cannot be used; the tool fails, its mask has a volume that no brain has or
            is not that of the mirror image; none of the scans is one in which deepbet finds the brain.
        ImportError: deepbet is not installed.
    """
    if own is not None:
        mask = _mask_of_the_user(own, scans)
        logger.info("%s: brain mask by %s", subject, mask.origin)
        return mask
    sources = [name for name in contrasts.mask_sources or contrasts.names if name in scans]
    if settings.mask == "itk":
        image, source, what, find = scans[sources[0]], sources[0], sources[0], mask_by_filters
    else:
        found = t1_like(scans, contrasts, matrices)
        if found is None:
            raise StudyError(
                f"study {subject!r}: no good brain mask can be made of {', '.join(sources)} alone: deepbet needs a "
                f"T1-weighted scan, FLAIR, or PD with T2; add one of these, {_MASKS_OF_YOUR_OWN}, or look at what "
                "ITK's filters find (--mask itk)"
            )
        image, source, what = found
        t1 = contrasts.contrasts[contrasts.index(source)].t1_weighted
        find = mask_by_deepbet if t1 else mask_by_deepbet_twice
    origin = f"{settings.mask} on {what}"
    try:
        mask = BrainMask(find(image), source, origin)
    except ImportError:
        raise
    except Exception as error:  # whatever ITK, torch and numpy raise for a scan that is no head
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StudyError(
            f"study {subject!r}, {source}: no brain mask could be made, {reason} ({origin}); "
            f"look at {source} and exclude it, or {_MASKS_OF_YOUR_OWN}"
        ) from error
    low, high = settings.brain_ml
    if not low <= mask.ml <= high:
        raise StudyError(
            f"study {subject!r}: the brain mask has {mask.ml:.0f} ml ({origin}), and a head's has {low:g} to {high:g}; "
            f"look at {source} for bright slices or missing parts and mend or exclude it, "
            f"or {_MASKS_OF_YOUR_OWN}"
        )
    if settings.mask == "itk":
        logger.warning("%s: brain mask by %s, %.0f ml; look at it: %s", subject, origin, mask.ml, _FILTERS_ERR)
    else:
        logger.info("%s: brain mask by %s, %.0f ml", subject, origin, mask.ml)
    return mask


def _mask_of_the_user(path: str, scans: Mapping[str, Scan]) -> BrainMask:
    volume, affine = read_volume(path)
    if not (volume > 0).any():
        raise StudyError(f"{path}: the mask is empty; draw one, above 0 in the brain")
    for name, scan in scans.items():
        if scan.is_on(volume.shape, affine):
            return BrainMask(Scan((volume > 0).astype(np.float32), affine), name, path)
    raise StudyError(
        f"{path}: the mask is on the grid of none of the study's scans ({', '.join(scans)}); "
        "draw it on one of them, so that it is known in whose space it is"
    )


def mask_by_filters(scan: Scan) -> Scan:
    """Mask the brain by thresholds and morphology: the largest bright piece deep in the head, sulci filled.

    It needs no training, and knows no anatomy. What is near the surface and brighter than the inside (fat, on T1) is
    left out; so may be a part of a bright lesion there. Scalp, neck and eyes that are no brighter than the brain are
    taken along where they touch it. On a glioma patient's T1 of 5.5 mm slices the Dice with deepbet's mask was 0.94
    (1,508 ml, deepbet 1,587), but on FLAIR, T2 and T1Gd 1,910 to 2,109 ml came out; on the phantom's T2 and PD (3 mm,
    two subjects) the volume was 13 to 20 % too great and once 75 %. Look at the masks before you trust them, or give
    your own.

    Args:
        scan: a scan of the head, bias corrected.

    Returns:
        The mask, 0 or 1, at about 2 mm.

    Raises:
        StudyError: no piece of the head can be the brain.
    """
    small = shrink(scan, 2.0)
    spacing = small.spacing

    def within(mask: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
        return ndimage.distance_transform_edt(mask, sampling=spacing) > distance

    head = small.volume > 0.5 * otsu_thresholds(small.volume, 1)[0]
    pad = [(1 + int(np.ceil(10 / step)),) * 2 for step in spacing]
    closed = within(~within(~np.pad(head, pad), 10.0), 10.0)  # air cells and the dark skull between scalp and brain
    unpad = tuple(slice(before, -after) for before, after in pad)
    head = _largest(ndimage.binary_fill_holes(closed[unpad]))
    dark, _ = otsu_thresholds(small.volume[head], 2)
    depth = ndimage.distance_transform_edt(np.pad(head, 1, mode="edge"), sampling=spacing)[1:-1, 1:-1, 1:-1]
    tissue = (small.volume > dark) & (depth > 5.0)  # scalp is never brain
    inside = tissue & (depth > NEAR_SURFACE_MM)
    if inside.any():
        tissue &= inside | (small.volume < FAT * np.median(small.volume[inside]))
    core = _largest(within(tissue, 4.0))
    if not core.any():
        raise StudyError("the thresholds find no brain")
    grown = ~within(~core, 5.0) & tissue
    margin = [(1 + int(np.ceil(12 / step)),) * 2 for step in spacing]
    padded = np.pad(grown, margin)
    brain = within(~within(~padded, 12.0), 11.0)[tuple(slice(before, -after) for before, after in margin)]
    return Scan(ndimage.binary_fill_holes(brain | grown).astype(np.float32), small.affine)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (labels == sizes.argmax()) & mask


def mask_by_deepbet(scan: Scan) -> Scan:
    """Mask the brain of a T1 scan by deepbet's network (Fisch et al., Comput Biol Med 2024), on the CPU.

    Its weights come with its package; about 1.5 GB of memory.

    Raises:
        ImportError: deepbet is not installed.
    """
    try:
        deepbet = import_module("deepbet")
    except ImportError as error:
        raise ImportError(NO_DEEPBET) from error
    _, mask, _ = deepbet.BrainExtraction(no_gpu=True).run(nib.Nifti1Image(scan.volume, scan.affine))
    return Scan(np.asarray(mask.dataobj, dtype=np.float32), scan.affine)


def mask_by_deepbet_twice(scan: Scan) -> Scan:
    """Mask the brain by deepbet in an image that is no T1, and in its mirror image to see whether that is steady.

    Returns:
        The mask of the image itself, 0 or 1.

    Raises:
        StudyError: the two masks agree less than :data:`STEADY`.
        ImportError: deepbet is not installed.
    """
    mask = mask_by_deepbet(scan)
    across = int(nib.io_orientation(scan.affine)[:, 0].argmin())  # the axis from one ear to the other
    mirrored = mask_by_deepbet(Scan(np.flip(scan.volume, across).copy(), scan.affine))
    first, second = mask.volume > 0.5, np.flip(mirrored.volume, across) > 0.5
    agreement = 2 * np.count_nonzero(first & second) / max(1, np.count_nonzero(first) + np.count_nonzero(second))
    if agreement < STEADY:
        raise StudyError(
            f"as the network finds another brain in the mirror image (Dice {agreement:.2f}, of a head {STEADY} or more)"
        )
    return mask
