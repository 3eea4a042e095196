"""What says that a volume was synthesised: its file's name, its header, and the JSON sidecar beside it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib

from apt_monai import __version__
from apt_monai.io.nifti import load_nifti, nifti_stem

SYNTHETIC = "SYNTHETIC"
"""Part of the name of each synthesised volume, the beginning of its header's description, and its intent's name."""
NOTICE = "research software, not a medical device; synthesised, not acquired"


def is_synthetic_name(path: str | Path) -> bool:
    """Whether a file's name says that it was synthesised, in capitals or not.

    Example::

        >>> is_synthetic_name("out/case_t1_SYNTHETIC.nii.gz"), is_synthetic_name("synthetic/case_t1.nii.gz")
        (True, False)
    """
    return SYNTHETIC in Path(path).name.upper()


def is_synthetic(path: str | Path) -> bool:
    """Whether a volume was synthesised, as its file's name or its header says; a renamed file still says it.

    Args:
        path: a volume, as :func:`apt_monai.io.read_volume` takes it; a DICOM series is never one of ours.

    Raises:
        StudyError: a NIfTI file that cannot be read.

    Example::

        >>> import numpy as np
        >>> image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
        >>> mark_synthetic(image.header, "T1Gd")
        >>> nib.save(image, "renamed.nii.gz")
        >>> is_synthetic("renamed.nii.gz")
        True
    """
    if is_synthetic_name(path):
        return True
    return Path(path).is_file() and load_nifti(path).header["intent_name"].item() == SYNTHETIC.encode()


def mark_synthetic(header: nib.Nifti1Header, label: str) -> None:
    """Say in a header that the volume was synthesised.

    Args:
        header: of NIfTI-1 or NIfTI-2, changed in place.
        label: the contrast's, such as ``T1Gd``.

    Example::

        >>> header = nib.Nifti1Header()
        >>> mark_synthetic(header, "T1Gd")
        >>> header["intent_name"].item()
        b'SYNTHETIC'
    """
    header["descrip"] = f"{SYNTHETIC} apt_monai {__version__} {label}: not acquired"  # 79 bytes at most
    header["intent_name"] = SYNTHETIC


def sidecar_path(volume: str | Path) -> Path:
    """The JSON file that says where a volume comes from.

    Example::

        >>> sidecar_path("out/case_t1_SYNTHETIC.nii.gz").as_posix()
        'out/case_t1_SYNTHETIC.json'
    """
    path = Path(volume)
    return path.with_name(f"{nifti_stem(path.name) or path.name}.json")
