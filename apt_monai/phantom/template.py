"""The anatomy: the MNI152 template (Fonov et al., NeuroImage 54:313, 2011) that nilearn's wheel ships."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, distance_transform_edt, gaussian_filter, map_coordinates

from apt_monai.phantom.grids import Volume


@dataclass(frozen=True)
class Template:
    """The MNI152 template: probability maps on a 1 mm grid, and the MNI coordinates in mm of their first voxel.

    What of the brain is neither grey nor white matter is CSF.
    """

    brain: Volume
    grey: Volume
    white: Volume
    origin: NDArray[np.float32]

    def sample(self, name: str, points: Volume) -> Volume:
        """The values of one map at (3, …) MNI coordinates in mm, linear between voxels, 0 outside."""
        voxels = points - self.origin.reshape(3, *[1] * (points.ndim - 1))
        return map_coordinates(getattr(self, name), voxels, order=1, output=np.float32)


TEMPLATE_CENTRE = (0.0, -17.0, 5.0)  # MNI mm: the middle of the template's brain


@lru_cache(maxsize=1)
def _read_maps(datasets: ModuleType) -> tuple[Volume, Volume, Volume, NDArray[np.float32]]:
    """Brain, grey and white matter as they are in nilearn's wheel, and the MNI mm of their first voxel."""
    t1 = datasets.load_mni152_template(resolution=1)
    grey, white = datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1)
    brain = binary_closing(np.asarray(t1.dataobj) > 0, iterations=4)  # the template's T1 is skull-stripped
    maps = (np.asarray(volume, np.float32) for volume in (brain, grey.dataobj, white.dataobj))
    return (*maps, t1.affine[:3, 3].astype(np.float32))


@lru_cache(maxsize=2)
def load_template(spacing: float = 1.0) -> Template:
    """Read the template from nilearn's wheel, smoothed for sampling at a spacing in mm. No network is used.

    Raises:
        ImportError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError("the phantom's anatomy comes with nilearn: pip install 'apt_monai[phantom]'") from error
    brain, grey, white, origin = _read_maps(datasets)
    # What a voxel of that size averages, as a Gaussian of that width at half maximum
    blur = math.sqrt(max(spacing, 1.0) ** 2 - 1) / 2.355
    return Template(
        gaussian_filter(brain, math.hypot(1.5, blur), mode="constant"),
        gaussian_filter(grey, blur, mode="constant"),
        gaussian_filter(white, blur, mode="constant"),
        origin=origin,
    )


@lru_cache(maxsize=1)
def skull_distance() -> tuple[Volume, NDArray[np.float32]]:
    """Distance in mm from the template's smoothed brain surface, below 0 inside, on a 2 mm grid; MNI mm of its origin.

    The 60 mm around the template hold all that :func:`whole_head_signals` draws by distance.
    """
    template = load_template()
    inside = np.pad(template.brain[::2, ::2, ::2] > 0.5, 30)
    distance = 2 * (distance_transform_edt(~inside) - distance_transform_edt(inside))
    return gaussian_filter(distance.astype(np.float32), 1.5), template.origin - 60
