"""What says that a volume was synthesised: its file's name, its header, and the JSON sidecar beside it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib

from apt_monai import __version__
from apt_monai.io.nifti import nifti_stem

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


def is_synthetic(path: str | Path, header: nib.Nifti1Header) -> bool:
    """Whether a NIfTI volume was synthesised, as its file's name or its header says; a renamed file still says it.

    Args:
        path: the volume.
        header: its header.

    Example::

        >>> header = nib.Nifti1Header()
        >>> mark_synthetic(header, "T1Gd")
        >>> is_synthetic("renamed.nii.gz", header), is_synthetic("renamed.nii.gz", nib.Nifti1Header())
        (True, False)
    """
    return is_synthetic_name(path) or bool(header["intent_name"].item() == SYNTHETIC.encode())


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


def uncertainty_path(volume: str | Path) -> Path:
    """Where the uncertainty of a synthetic volume is written.

    Example::

        >>> uncertainty_path("out/case/case_t1ce_SYNTHETIC.nii.gz").as_posix()
        'out/case/case_t1ce_SYNTHETIC_uncertainty.nii.gz'
    """
    return _beside(volume, "uncertainty")


def prior_path(volume: str | Path) -> Path:
    """Where what a synthetic volume was started from is written, for a report: the prior of the published method.

    Example::

        >>> prior_path("out/case/case_t1ce_SYNTHETIC.nii.gz").as_posix()
        'out/case/case_t1ce_SYNTHETIC_prior.nii.gz'
    """
    return _beside(volume, "prior")


def _beside(volume: str | Path, what: str) -> Path:
    path = Path(volume)
    return path.with_name(f"{path.name.removesuffix('.nii.gz')}_{what}.nii.gz")
