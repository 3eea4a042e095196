"""What is written of a study: the names, how a volume is saved, and what tells that the input is still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
from numpy.typing import NDArray

from apt_monai.geometry import set_space
from apt_monai.io.source import source_stat
from apt_monai.preprocessing.scan import Matrix
from apt_monai.preprocessing.settings import PreprocessingSettings

VERSION = 4
"""Raise it with every change of what comes out: another version's folder is refused."""
SETTINGS_NAME = "preprocessing.json"
DETAILS_FOLDER = "preprocessing"  # within a study's folder; the readers look at no folder below a study
TRANSFORMS_NAME = "transforms.json"
MASK_ENDING = "_mask.nii.gz"  # what the readers know a brain mask by


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


def inputs_of(study: Mapping[str, str], settings: PreprocessingSettings) -> dict[str, list[str | int]]:
    """What tells that a study's files are the same, by what they are; the user's own mask is one of them.

    Raises:
        StudyError: a file is missing.
    """
    files = {key: path for key, path in study.items() if key != "subject"}
    if own := settings.own_mask(study):
        files["mask"] = own
    return {key: source_stat(path) for key, path in files.items()}


def preprocessing_findings(scan: str | Path) -> list[dict[str, str]]:
    """What preprocessing found about raw scans and their registration, by a volume that it wrote; else nothing.

    Example::

        >>> preprocessing_findings("elsewhere/case_t1.nii.gz")
        []
    """
    record = Path(scan).parent / DETAILS_FOLDER / TRANSFORMS_NAME
    return list(json.loads(record.read_text(encoding="utf-8")).get("findings", [])) if record.is_file() else []
