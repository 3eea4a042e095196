"""NIfTI: one file becomes a volume with an affine in RAS+, or one clear error."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from apt_monai.errors import StudyError


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise StudyError(f"{path}: no such file; correct the path or take the contrast out of the study")
    if path.suffix.lower() in (".dcm", ".ima"):
        raise StudyError(f"{path}: is one DICOM file, a slice; name the folder that holds its series, {path.parent}")
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
        image_class = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(content[:540]) else nib.Nifti1Image
        image = image_class.from_bytes(content)
        shape, dtype = image.shape, image.get_data_dtype()
    except Exception as error:
        raise _unreadable(path, error) from error

    if dtype.names is not None or dtype.kind == "c":
        raise StudyError(f"{path}: voxels are {dtype} (RGB or complex); one number a voxel is needed")
    if len(shape) != 3:
        raise StudyError(f"{path}: is {len(shape)}D, shape {shape}; a 3D volume is needed: save one frame as a file")
    if min(shape) < 2:
        raise StudyError(f"{path}: shape {shape} is a single slice; a volume of at least 2 voxels an axis is needed")
    try:
        volume = image.get_fdata(dtype=np.float32)
    except Exception as error:
        raise _unreadable(path, error) from error
    return volume, np.asarray(image.affine, dtype=np.float64)


def _unreadable(path: Path, error: Exception) -> StudyError:
    return StudyError(
        f"{path}: cannot be read as NIfTI, it is truncated or corrupt ({type(error).__name__}: {error}); "
        "copy or download the file again"
    )
