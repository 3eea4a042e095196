"""What is written of a study: the names, how a volume is saved, and what tells that the input is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
from numpy.typing import NDArray

from apt_monai.geometry import set_space
from apt_monai.preprocessing.scan import Matrix

VERSION = 2
"""Raise it with every change of what comes out: another version's folder is refused."""
SETTINGS_NAME = "preprocessing.json"
DETAILS_FOLDER = "preprocessing"  # within a study's folder; the readers look at no folder below a study
TRANSFORMS_NAME = "transforms.json"
BRAIN_MASK_NAME = "brainmask.nii.gz"


def save_nifti(
    data: NDArray[Any],
    affine: Matrix,
    path: Path,
    description: bytes = b"apt_monai preprocess",
    intent_name: bytes = b"",
) -> None:
    """Save a volume with its place in space, in mm, and these words in its header."""
    image = nib.Nifti1Image(data, affine)
    set_space(image, affine)
    image.header["descrip"], image.header["intent_name"] = description, intent_name
    nib.save(image, path)


def fingerprint(path: str) -> dict[str, Any]:
    """What tells that an input is the same: its path, and size and time of its files (a folder may hold DICOM)."""
    source = Path(path)
    files = [f for f in sorted(source.rglob("*")) if f.is_file()] if source.is_dir() else [source]
    stats = [f.stat() for f in files if f.exists()]
    return {
        "path": str(source.absolute()),
        "bytes": sum(s.st_size for s in stats),
        "modified_ns": max((s.st_mtime_ns for s in stats), default=0),
    }


def inputs_of(study: Mapping[str, str]) -> dict[str, Any]:
    """The fingerprints of a study's files, by what they are."""
    return {key: fingerprint(path) for key, path in study.items() if key != "subject"}
