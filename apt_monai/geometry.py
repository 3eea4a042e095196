"""Geometry: what a NIfTI header says of where its voxels lie. Affines take voxels to mm, RAS+."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import nibabel as nib
import numpy as np

QFORM_TOLERANCE_MM = 0.1
"""How far the qform may put a corner from where the sform does; a header's float32 quaternion is not exact."""


def set_space(image: nib.Nifti1Image, affine: np.ndarray, code: int = 1) -> None:
    """Say in a header where the volume lies: by the sform always, by the qform where that can say the same.

    A qform is a rotation, voxel sizes and a shift, so it cannot hold a shear (a tilted gantry, an affine registration):
    it then gets code 0, "not known", instead of another place. The unit is mm.

    Args:
        image: a NIfTI-1 or NIfTI-2 image of 3 dimensions; its header and affine are changed in place.
        affine: ``(4, 4)``, voxels to mm, RAS+.
        code: NIfTI's code of the space, 1 (scanner) to 4 (MNI).

    Example::

        >>> image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
        >>> tilted = np.eye(4)
        >>> tilted[1, 2] = 0.3
        >>> set_space(image, tilted)
        >>> int(image.header["sform_code"]), int(image.header["qform_code"])
        (1, 0)
    """
    image.set_qform(affine, code, strip_shears=True)
    image.set_sform(affine, code)
    image.header.set_xyzt_units("mm", image.header.get_xyzt_units()[1])
    if corners_apart(image.shape[:3], image.get_qform(), affine) > QFORM_TOLERANCE_MM:
        image.set_qform(affine, 0, strip_shears=True)


# Grids

SAME_GRID_MM = 1e-3
"""How far apart the corners of one voxel grid may be: what rounding leaves."""


def corners_apart(shape: Sequence[int], affine_a: np.ndarray, affine_b: np.ndarray) -> float:
    """How far, in mm, two affines put the same corner of a volume from each other, at most.

    Example::

        >>> corners_apart((4, 5, 6), np.eye(4), np.diag([1.5, 1, 1, 1]))
        1.5
    """
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape))]).T  # 4×8
    return float(np.linalg.norm((affine_a - affine_b) @ corners, axis=0).max())


def same_grid(shape_a: Sequence[int], affine_a: np.ndarray, shape_b: Sequence[int], affine_b: np.ndarray) -> bool:
    """Whether two volumes are on one voxel grid: the same shape, and no corner more than 1e-3 mm away.

    Example::

        >>> same_grid((4, 5, 6), np.eye(4), (4, 5, 6), np.eye(4)), same_grid((4, 5, 6), np.eye(4), (4, 5, 7), np.eye(4))
        (True, False)
    """
    return tuple(shape_a) == tuple(shape_b) and corners_apart(shape_a, affine_a, affine_b) <= SAME_GRID_MM
