"""Resampling: a volume on another voxel grid, in another space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apt_monai.preprocessing.scan import Matrix, Scan, Volume


def resample(scan: Scan, shape: Sequence[int], affine: Matrix, matrix: Matrix, order: int = 3) -> Volume:
    """Sample a scan on another grid in another space.

    Where a voxel of that grid is larger than the scan's, several samples along that edge are averaged: a thick slice
    shows the mean of the thin ones within it.

    Args:
        scan: what is sampled.
        shape: voxels of the grid.
        affine: 4×4, the grid's voxels to mm of its own space.
        matrix: 4×4, mm of that space to mm of the scan's.
        order: of the spline, 0 nearest, 1 linear, 3 cubic.

    Returns:
        float32 of the shape; 0 where the scan does not reach.

    Example::

        >>> thin = Scan(np.arange(8, dtype=np.float32).reshape(1, 1, 8).repeat(2, 0).repeat(2, 1), np.eye(4))
        >>> thick = np.diag([1.0, 1.0, 2.0, 1.0])
        >>> thick[2, 3] = 0.5  # the first thick slice covers the thin slices 0 and 1
        >>> resample(thin, (2, 2, 4), thick, np.eye(4), order=1)[0, 0].tolist()
        [0.5, 2.5, 4.5, 6.5]
    """
    voxels = np.linalg.inv(scan.affine) @ matrix @ affine
    parts = np.maximum(1, np.rint(np.linalg.norm(voxels[:3, :3], axis=0))).astype(int)
    finer = np.diag([*(1 / parts), 1.0])
    finer[:3, 3] = (1 / parts - 1) / 2
    fine_shape = [int(n * part) for n, part in zip(shape, parts, strict=True)]
    fine = ndimage.affine_transform(
        scan.volume, voxels @ finer, output_shape=fine_shape, output=np.float32, order=order, mode="constant"
    )
    (x, y, z), (i, j, k) = shape, parts
    return fine.reshape(x, i, y, j, z, k).mean(axis=(1, 3, 5))


def resample_labels(scan: Scan, shape: Sequence[int], affine: Matrix, matrix: Matrix) -> NDArray[np.uint8]:
    """Sample labels, 0 to 255, on another grid as :func:`resample` does, each voxel taking the nearest label.

    Example::

        >>> labels = Scan(np.array([[[0, 1, 4, 4]]], np.float32), np.eye(4))
        >>> resample_labels(labels, (1, 1, 2), np.diag([1.0, 1.0, 2.0, 1.0]), np.eye(4)).tolist()
        [[[0, 4]]]
    """
    voxels = np.linalg.inv(scan.affine) @ matrix @ affine
    return ndimage.affine_transform(scan.volume.astype(np.uint8), voxels, output_shape=tuple(shape), order=0)


def isotropic_grid(scan: Scan, spacing: float) -> tuple[tuple[int, ...], Matrix]:
    """The grid of isotropic voxels along a scan's own axes, in the order nearest to RAS, over its field of view."""
    left, _, right = np.linalg.svd(scan.affine[:3, :3] / scan.spacing)
    axes = left @ right  # the nearest right angles: a sheared scan's axes have others
    order = nib.io_orientation(np.vstack([np.column_stack([axes, np.zeros(3)]), [0, 0, 0, 1]]))
    turned = np.empty((3, 3))
    for axis, (nearest, sign) in enumerate(order):
        turned[:, int(nearest)] = sign * axes[:, axis]
    edges = product(*((-0.5, n - 0.5) for n in scan.volume.shape))
    corners = turned.T @ (scan.affine @ np.array([[*edge, 1] for edge in edges]).T)[:3]  # 3×8
    low, high = corners.min(axis=1), corners.max(axis=1)
    shape = np.ceil((high - low) / spacing - 1e-6).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turned * spacing
    affine[:3, 3] = turned @ ((low + high) / 2 - spacing * (shape - 1) / 2)
    return tuple(int(n) for n in shape), affine
