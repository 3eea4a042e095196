"""A study's volumes as the viewer takes them: one grid, the brain's box alone, few bits, compressed."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from apt_monai.geometry import same_grid
from apt_monai.io.source import read_source
from apt_monai.preprocessing.resampling import resample
from apt_monai.preprocessing.scan import Scan

LEVELS = 1023
"""Steps between a volume's darkest and brightest shown intensity."""
MARGIN_MM = 5.0
"""Around the brain, what is kept of the volumes."""
WINDOW = (0.5, 99.5)
"""Percentiles of the brain between which a volume is shown at first."""
HEADROOM = 1.5
"""How far above the 99.9th percentile intensities are kept apart; above, an outlier would take all steps for itself."""

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The voxels that the viewer shows.

    Args:
        shape: of the volumes, RAS+, before they are cropped.
        affine: 4×4, those voxels to mm, RAS+.
        box: the brain, with a margin.
        brain: bool, of that box.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    box: tuple[slice, slice, slice]
    brain: NDArray[np.bool_]

    @classmethod
    def around(cls, volume: Volume, affine: NDArray[np.float64]) -> Grid:
        """The grid of a synthetic volume (RAS+), which is 0 outside the brain."""
        spacing = nib.affines.voxel_sizes(affine)
        box = []
        for axis, (n, edge) in enumerate(zip(volume.shape, spacing, strict=True)):
            found = np.flatnonzero((volume != 0).any(axis=tuple({0, 1, 2} - {axis})))
            first, last = (int(found[0]), int(found[-1])) if found.size else (0, n - 1)
            margin = round(MARGIN_MM / edge)
            box.append(slice(max(0, first - margin), min(n, last + margin + 1)))
        x, y, z = box
        return cls(volume.shape, affine, (x, y, z), volume[x, y, z] != 0)

    def description(self) -> dict[str, Any]:
        """As JSON: ``"shape"``, ``"spacing"`` in mm, ``"affine"``, and ``"start"``, the voxel in the brain's middle."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ [*(part.start for part in self.box), 1])[:3]
        inside = np.argwhere(self.brain)
        start = inside.mean(axis=0).round() if len(inside) else np.array(self.brain.shape) // 2
        return {
            "shape": list(self.brain.shape),
            "spacing": [float(edge) for edge in nib.affines.voxel_sizes(affine)],
            "affine": affine.tolist(),
            "start": [int(index) for index in start],
        }


def read_ras(path: str | Path) -> tuple[Volume, NDArray[np.float64]]:
    """A NIfTI file or DICOM series, its axes turned and swapped (never resampled) to RAS+, and its affine.

    Raises:
        StudyError: see :func:`apt_monai.io.source.read_source`.
    """
    source = read_source(path)
    image = nib.as_closest_canonical(nib.Nifti1Image(source.volume, source.affine))
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)


def on_grid(path: str | Path, grid: Grid) -> tuple[Volume, bool]:
    """The box of a volume on the grid, and whether it had to be resampled, linearly, as it is on another.

    Raises:
        StudyError: see :func:`apt_monai.io.source.read_source`.
    """
    volume, affine = read_ras(path)
    resampled = not same_grid(volume.shape, affine, grid.shape, grid.affine)
    if resampled:
        volume = resample(Scan(volume, affine), grid.shape, grid.affine, np.eye(4), order=1)
    return volume[grid.box], resampled


def encode_volume(volume: Volume, brain: NDArray[np.bool_]) -> tuple[dict[str, Any], str]:
    """A volume in 16 bits, of which the lower 10 are used: intensity = low + slope · code.

    Args:
        volume: ``(X, Y, Z)``.
        brain: bool, of the same shape.

    Returns:
        ``"low"``, ``"slope"`` and ``"shown"``, the two intensities that are black and white at first, for JSON; and the
        codes, x fastest, little-endian, in gzip, in base64. What is brighter than 1.5 times the 99.9th percentile is
        shown as that.

    Example::

        >>> volume = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        >>> values, text = encode_volume(volume, volume > 3)
        >>> codes = np.frombuffer(gzip.decompress(base64.b64decode(text)), "<u2").reshape(2, 3, 4, order="F")
        >>> bool(np.abs(values["low"] + values["slope"] * codes - volume).max() <= values["slope"] / 2)
        True
    """
    low, highest = float(volume.min()), float(volume.max())
    inside = volume[brain] if brain.any() else volume.ravel()
    high = min(highest, low + HEADROOM * (float(np.percentile(inside, 99.9)) - low))
    slope = (high - low) / LEVELS or 1.0
    codes = np.rint((np.clip(volume, low, high) - low) / slope).astype("<u2")
    first, last = (float(value) for value in np.percentile(inside, WINDOW))
    shown = [first, last] if last > first else [low, low + slope]
    return {"low": low, "slope": slope, "shown": shown}, _packed(codes)


def encode_uncertainty(volume: Volume) -> tuple[dict[str, Any], str]:
    """An uncertainty in 8 bits: half width = slope · code; the widest 0.5 % of the brain are shown as one.

    Args:
        volume: ``(X, Y, Z)``, 0 outside the brain.

    Example::

        >>> encode_uncertainty(np.full((2, 2, 2), 51, np.float32))[0]
        {'slope': 0.2}
    """
    inside = volume[volume > 0]
    high = float(np.percentile(inside, 99.5)) if inside.size else 0.0
    slope = high / 255 or 1.0
    return {"slope": slope}, _packed(np.rint(np.clip(volume / slope, 0, 255)).astype("u1"))


def _packed(codes: NDArray[Any]) -> str:
    return base64.b64encode(gzip.compress(codes.tobytes(order="F"), compresslevel=6, mtime=0)).decode()
