"""A scan: a volume in its scanner space, as read, as an image of ITK, and on fewer voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import itk
import numpy as np
from numpy.typing import NDArray

from apt_monai.errors import StudyError
from apt_monai.geometry import same_grid
from apt_monai.io import read_volume

Volume = NDArray[np.float32]
Matrix = NDArray[np.float64]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's world axes to those of ITK, and back."""


@dataclass(frozen=True)
class Scan:
    """A volume in its scanner space.

    Args:
        volume: float32 (X, Y, Z).
        affine: 4×4, voxels to mm, RAS+.
    """

    volume: Volume
    affine: Matrix

    @property
    def spacing(self) -> NDArray[np.float64]:
        """The voxel edges in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def is_on(self, shape: Sequence[int], affine: Matrix) -> bool:
        """Whether this is the voxel grid: the same shape, and no corner more than 1e-3 mm away."""
        return same_grid(self.volume.shape, self.affine, shape, affine)


def read_scan(path: str) -> Scan:
    scan = Scan(*read_volume(path))
    if scan.volume.min() == scan.volume.max():
        raise StudyError(f"{path}: every voxel is {scan.volume.min():g}; take the file out of the study")
    if scan.volume.min() < 0:
        raise StudyError(
            f"{path}: has intensities down to {scan.volume.min():g}; a raw MR scan has none below 0, "
            "take the magnitude image as the scanner gave it"
        )
    return scan


def to_itk(scan: Scan) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(scan.volume.T, dtype=np.float32))  # ITK's arrays are (Z, Y, X)
    affine = RAS_TO_LPS @ scan.affine
    image.SetSpacing(scan.spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(np.ascontiguousarray(affine[:3, :3] / scan.spacing))
    return image


def from_itk(image: Any) -> Scan:
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Scan(np.ascontiguousarray(itk.array_from_image(image).T), RAS_TO_LPS @ affine)


def shrink(scan: Scan, spacing: float) -> Scan:
    """Average blocks of voxels, so many along each axis that their edges come nearest to ``spacing`` mm."""
    factors = np.clip(np.rint(spacing / scan.spacing), 1, np.array(scan.volume.shape) // 2).astype(int)
    return from_itk(itk.bin_shrink_image_filter(to_itk(scan), shrink_factors=factors.tolist()))


def otsu_thresholds(values: NDArray[np.floating[Any]], count: int) -> list[float]:
    """Otsu's thresholds of any array of values; the brightest percent (fat, vessels) counts as equally bright."""
    clipped = np.clip(values, None, np.percentile(values, 99)).astype(np.float32).reshape(1, 1, -1)
    calculator = itk.OtsuMultipleThresholdsImageFilter.New(
        itk.image_from_array(clipped), number_of_thresholds=count, number_of_histogram_bins=256
    )
    calculator.Update()
    return list(calculator.GetThresholds())
