"""What skull-stripping leaves of a varied study: in some the mask cuts deeper, in others scalp or meninges stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Volume


@dataclass(frozen=True)
class Strippers:
    """How skull-stripping differs.

    Args:
        deep: the part of the studies whose mask cuts into the brain.
        depth: range of how deep, as the share of brain within a few millimetres that a voxel needs.
        residue: the part of the studies with a rim of what is not brain.
        reach: the share of brain within a few millimetres that the rim's voxels have at least.
        place: how high a smooth random field of variance 1 is where the rim is; it is a part of the surface.
        tissues: what the rim consists of; one of them, with the same probability.
        brightness: range of the rim's brightness, relative to that tissue's.
        scale: standard deviation in mm of the Gaussian that says how much brain is near.
    """

    deep: float = 0.25
    depth: tuple[float, float] = (0.52, 0.72)
    residue: float = 0.12
    reach: float = 0.22
    place: float = 0.7
    tissues: tuple[str, ...] = ("fat", "skin", "dura")
    brightness: tuple[float, float] = (0.4, 1.0)
    scale: float = 2.5


@dataclass(frozen=True)
class Stripped:
    """What is left.

    Args:
        mask: bool (X, Y, Z), what is not 0 in the volumes.
        rim: bool (X, Y, Z), the part of it that is not brain.
        tissue: what the rim consists of, a name of :data:`apt_monai.phantom.sequences.COVERINGS`.
        brightness: float32 (voxels of the rim,), relative to that tissue's.
    """

    mask: NDArray[np.bool_]
    rim: NDArray[np.bool_]
    tissue: str
    brightness: Volume


def strip_brain(
    share: Volume,
    nearby: Volume,
    axes: tuple[NDArray[np.float64], ...],
    rng: np.random.Generator,
    strippers: Strippers | None = None,
) -> Stripped:
    """The mask of a study, with what went wrong in it.

    Args:
        share: the share of brain in each voxel, (X, Y, Z).
        nearby: the same, smoothed by a few millimetres.
        axes: head coordinates in mm along x, y and z.
        rng: where it is drawn from.
        strippers: how skull-stripping differs; None for a mask as good as the plain phantom's.
    """
    mask, rim, tissue = share > 0.5, np.zeros(share.shape, bool), "fat"
    brightness = np.zeros(0, np.float32)
    if strippers is not None:
        if rng.random() < strippers.deep:
            mask &= nearby > rng.uniform(*strippers.depth)
        if rng.random() < strippers.residue:
            place = smooth_noise(axes, 45, rng) > strippers.place
            rim = place & ~mask & (share < 0.5) & (nearby > strippers.reach)
            tissue = strippers.tissues[rng.integers(len(strippers.tissues))]
            flesh = np.exp(0.25 * smooth_noise(axes, 5, rng)[rim])
            brightness = np.float32(rng.uniform(*strippers.brightness)) * flesh
    return Stripped(mask | rim, rim, tissue, brightness)
