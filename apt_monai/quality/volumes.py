"""What every check looks at: a study's contrasts and brain on one RAS grid, and coarser where that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Volumes:
    """The facts about a study that is on one grid.

    Args:
        contrasts: by name, raw intensities ``(X, Y, Z)``.
        brain: ``(X, Y, Z)`` bool, the brain.
        affine: ``(4, 4)``, voxels to mm, RAS+.

    Example::

        >>> brain = np.ones((4, 5, 6), bool)
        >>> volumes = Volumes({"t1": np.ones((4, 5, 6), np.float32)}, brain, np.diag([-1.0, -1.0, 2.0, 1.0]))
        >>> volumes.edges.tolist(), volumes.ras().coarse(4.0).brain.shape
        ([1.0, 1.0, 2.0], (1, 2, 3))
    """

    contrasts: Mapping[str, np.ndarray]
    brain: np.ndarray
    affine: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """The voxels' edges ``(3,)`` in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def ras(self) -> Volumes:
        """With axes that run to the right, to the front and up, as nearly as voxels allow."""
        turn = nib.io_orientation(self.affine)
        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.brain.shape)
        brain = nib.apply_orientation(self.brain, turn)
        contrasts = {name: nib.apply_orientation(volume, turn) for name, volume in self.contrasts.items()}
        return Volumes(contrasts, brain, affine)

    def coarse(self, edge: float = 3.0) -> Volumes:
        """The box of the brain, of voxels of at least about ``edge`` mm: the means of blocks, where half is brain."""
        occupied = [np.flatnonzero(self.brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        factors = [max(1, round(edge / step)) for step in self.edges]
        box = tuple(slice(each[0], each[-1] + 1) for each in occupied)
        brain = self.brain[box]
        share = _blocks(brain.astype(np.float32), factors)
        means = {
            name: _blocks(np.where(brain, volume[box], 0).astype(np.float32), factors) / np.maximum(share, 1e-6)
            for name, volume in self.contrasts.items()
        }
        return Volumes(means, share >= 0.5, self.affine @ np.diag([*factors, 1]))


def _blocks(volume: np.ndarray, factors: list[int]) -> np.ndarray:
    """The mean of each block of voxels; what is over at the ends counts as 0."""
    padded = np.pad(volume, [(0, -size % factor) for size, factor in zip(volume.shape, factors, strict=True)])
    shape = [n for size, factor in zip(padded.shape, factors, strict=True) for n in (size // factor, factor)]
    return padded.reshape(shape).mean(axis=(1, 3, 5))
