"""An image in which a network for T1 finds the brain, of a study that has no T1-weighted scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from apt_monai.contrasts import ContrastSet
from apt_monai.preprocessing.resampling import resample
from apt_monai.preprocessing.scan import Matrix, Scan, otsu_thresholds


def t1_like(
    scans: Mapping[str, Scan], contrasts: ContrastSet, matrices: Mapping[str, Matrix]
) -> tuple[Scan, str, str] | None:
    """Of a study's scans the one, or of them an image, that shows fluid and bone dark and tissue bright, as T1 does.

    In this order: a T1-weighted scan, as the contrast set's ``mask_sources`` rank them; FLAIR, which does so by itself;
    PD less T2 (:func:`subtract_fluid`). T2 alone, its bright side turned down, was measured and was not good enough:
    see :func:`apt_monai.preprocessing.brain_mask.find_brain_mask`.

    Args:
        scans: by contrast, bias corrected.
        contrasts: says how each is weighted.
        matrices: 4×4, mm of output space to mm of each scan's.

    Returns:
        The image, the contrast in whose space it is, and in words what it is; None where none of these is there.
    """
    weighted: dict[str, str] = {}
    for name in contrasts.mask_sources or contrasts.names:
        if name in scans:
            weighted.setdefault(contrasts.contrasts[contrasts.index(name)].weighting, name)
    for weighting in ("T1w", "FLAIR"):
        if weighting in weighted:
            return scans[weighted[weighting]], weighted[weighting], weighted[weighting]
    t2, pd = weighted.get("T2w"), weighted.get("PDw")
    if t2 and pd:
        there = scans[pd]
        between = matrices[t2] @ np.linalg.inv(matrices[pd])
        moved = Scan(resample(scans[t2], there.volume.shape, there.affine, between, order=1), there.affine)
        return subtract_fluid(there, moved), pd, f"{pd} less {t2}"
    return None


def subtract_fluid(pd: Scan, t2: Scan, fluid: float = 98.0) -> Scan:
    """PD less as much of T2 on the same grid as makes fluid 0.

    Args:
        pd, t2: the scans.
        fluid: the percentile of the head's intensities in T2 from which on it is fluid.

    Example::

        >>> pd, t2 = (np.full((10, 10, 10), value, np.float32) for value in (80, 40))
        >>> pd[0], t2[0], pd[1], t2[1] = 100, 200, 1, 1  # fluid, and bone
        >>> subtract_fluid(Scan(pd, np.eye(4)), Scan(t2, np.eye(4)), 90).volume[:3, 0, 0].tolist()
        [0.0, 0.5, 60.0]
    """
    head = pd.volume > otsu_thresholds(pd.volume, 1)[0]
    wet = head & (t2.volume >= np.percentile(t2.volume[head], fluid)) & (t2.volume > 0)
    share = np.median(pd.volume[wet] / t2.volume[wet])
    return Scan(np.clip(pd.volume - share * t2.volume, 0, None).astype(np.float32), pd.affine)
