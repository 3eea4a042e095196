"""Voxel grids that are aligned with the head, and how a volume on one is seen on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import affine_transform

Volume = NDArray[np.float32]
HEAD_EXTENT = 130.0  # mm: random fields cover head coordinates in [-130, 130], more than any field of view here
HEAD_BOX = (88.0, 108.0, 94.0)  # mm: no brain reaches further to the sides, to front and back, up and down


@dataclass(frozen=True)
class Grid:
    """A voxel grid that is aligned with the head: shape, and affine from voxel to world millimetres (RAS+).

    Args:
        shape: voxels along each axis.
        affine: 4×4, diagonal but for the origin.
        centre: head coordinates in mm of the middle of the field of view.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def spacing(self) -> float:
        """The largest voxel edge in mm."""
        return float(np.abs(np.diag(self.affine)[:3]).max())

    @property
    def axes(self) -> tuple[NDArray[np.float64], ...]:
        """Head coordinates in mm of the voxel centres along each axis."""
        each = zip(np.diag(self.affine)[:3], self.shape, self.centre, strict=True)
        return tuple(step * (np.arange(n) - (n - 1) / 2) + middle for step, n, middle in each)


def check_spacing(spacing: float) -> None:
    if not 0 < spacing <= 10:
        raise ValueError(f"spacing is {spacing} mm: valid is above 0 and at most 10; real studies have about 1")


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"shape is {tuple(shape)}: valid are three whole numbers above 0, such as (240, 240, 155)")
    x, y, z = (int(n) for n in shape)
    return x, y, z


def centred_affine(shape: Sequence[int], steps: NDArray[np.float64], centre: ArrayLike) -> NDArray[np.float64]:
    """From voxel to world for voxel edges with a sign (mm), whose field of view is around a centre (world mm)."""
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = np.asarray(centre) - steps * (np.array(shape) - 1) / 2
    return affine + 0.0  # + 0.0: no negative zeros


def resample(
    volume: Volume, source: Grid, target: Grid, movement: ArrayLike | None = None, parts: int = 1, axis: int = 2
) -> Volume:
    """What a scan on another grid sees of a volume: linear between voxels, the mean over each slice, 0 outside.

    Args:
        volume: on the source grid.
        source, target: the grids; their affines map to world mm.
        movement: 4×4, from the target's to the source's world mm; the identity if None.
        parts: over how many evenly spaced points along the axis of the slices each target voxel is averaged.
        axis: that axis of the target.
    """
    world = np.eye(4) if movement is None else np.asarray(movement)
    total = np.zeros(target.shape, np.float32)
    for part in range(parts):
        within = np.eye(4)
        within[axis, 3] = (part + 0.5) / parts - 0.5
        matrix = np.linalg.inv(source.affine) @ world @ target.affine @ within
        # Values that are whole but for rounding: 1e-9 voxels beyond the last voxel would be outside
        total += affine_transform(volume, np.round(matrix, 9), output_shape=target.shape, order=1, output=np.float32)
    return total / np.float32(parts)


def slice_parts(grid: Grid) -> int:
    """How many points a slice is averaged over, to be as thin as the voxels are wide."""
    return max(1, round(abs(grid.affine[2, 2] / grid.affine[0, 0])))
