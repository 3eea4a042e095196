"""What the studies of every kind are written with."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from apt_monai.phantom.grids import Grid, Volume


def subject_generator(seed: int, subject: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, subject, zlib.crc32(purpose.encode())])


def save_nifti(data: NDArray[np.generic], grid: Grid, path: Path) -> None:
    image = nib.Nifti1Image(data, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"PHANTOM: apt_monai digital phantom"
    nib.save(image, path)


def save_scan(scan: Volume, grid: Grid, path: Path) -> None:
    save_nifti(np.rint(scan).astype(np.int16), grid, path)


@dataclass(frozen=True)
class Request:
    """One study to write: of which data set, which subject, on which grid, whether with noise, and whether as DICOM."""

    folder: Path
    seed: int
    subject: int
    spacing: float
    shape: Sequence[int] | None
    noise: bool = True
    dicom: bool = False
