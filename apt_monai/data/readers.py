"""Readers: a folder of study folders becomes a MONAI data list. Names identify contrasts, never position."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.transforms import StudyError

logger = logging.getLogger(__name__)


def read_studies(
    dataset_dir: str | Path, contrasts: str | ContrastSet, require_all: bool = False
) -> list[dict[str, str]]:
    """List the studies of a dataset folder.

    Each subfolder is one study, named as the folder; a folder that holds NIfTI files itself is accepted as one study.
    A study's files are called ``<anything>_<suffix>.nii.gz`` (or ``-<suffix>``, or ``.nii``), where the suffix is one
    of the contrast's: BraTS 2021 (``BraTS2021_00000_t1ce.nii.gz``) and 2023 and later
    (``BraTS-GLI-00000-000-t1c.nii.gz``). Any non-empty subset of the contrasts may be there. Hidden files and folders,
    and files that are not NIfTI, are not looked at. NIfTI files with ``synthetic`` in their name are this package's
    own output: they are skipped, and the log says so.

    Args:
        dataset_dir: the folder.
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).
        require_all: refuse a study that lacks a contrast, as training and evaluation do.

    Returns:
        One dictionary a study, sorted by name: ``{"subject": name, <contrast>: path, ..., "seg": path}``; what is
        absent has no key.

    Raises:
        StudyError: the folder is missing or has no study; it has studies beside files of its own; a study has no
            contrast, two files for one contrast, or a NIfTI file whose suffix is not known; with ``require_all``, a
            study lacks a contrast.

    Example::

        >>> study = Path("dataset/BraTS2021_00000")
        >>> study.mkdir(parents=True)
        >>> (study / "BraTS2021_00000_t1ce.nii.gz").touch()
        >>> [sorted(s) for s in read_studies("dataset", "brats")]
        [['subject', 't1ce']]
    """
    contrast_set = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
    folder = Path(dataset_dir).absolute()
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such folder; give the folder that holds the study folders")
    subfolders = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    if _acquired_files(folder):
        beside = [f.name for f in subfolders if _acquired_files(f)]
        if beside:
            raise StudyError(
                f"{folder}: holds NIfTI files of its own and study folders ({beside[0]}, ...); "
                "it must be one study or a folder of studies: move the files or the folders elsewhere"
            )
        subfolders = [folder]
    if not subfolders:
        raise StudyError(f"{folder}: is empty, no study found; expected a folder for each study with NIfTI files in it")
    studies = [_read_study(f, contrast_set) for f in subfolders]

    if require_all:
        for study in studies:
            missing = [name for name in contrast_set.names if name not in study]
            if missing:
                raise StudyError(
                    f"study {study['subject']!r} in {folder}: lacks {', '.join(missing)}; training and evaluation need "
                    f"every contrast ({', '.join(contrast_set.names)}): add the files or move the study elsewhere"
                )
    return studies


def _read_study(folder: Path, contrasts: ContrastSet) -> dict[str, str]:
    keys = {suffix: contrast.name for contrast in contrasts.contrasts for suffix in contrast.suffixes}
    keys.update(dict.fromkeys(contrasts.segmentation_suffixes, "seg"))
    study: dict[str, str] = {"subject": folder.name}
    for file in _acquired_files(folder):
        stem = re.sub(r"\.nii(\.gz)?$", "", file.name)
        suffix = re.split("[_-]", stem)[-1].lower()
        if suffix not in keys:
            raise StudyError(
                f"{file}: unknown contrast {suffix!r}; {contrasts.name} file names end in one of {', '.join(keys)}: "
                "rename the file or move it elsewhere"
            )
        key = keys[suffix]
        if key in study:
            raise StudyError(f"{file}: a second file for {key}, beside {Path(study[key]).name}; keep one of the two")
        study[key] = str(file)
    if not any(name in study for name in contrasts.names):
        raise StudyError(
            f"{folder}: no acquired contrast found; a study needs at least one file <name>_<contrast>.nii.gz with "
            f"a contrast of {', '.join(contrasts.names)}"
        )
    return study


def _acquired_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, without hidden and synthetic ones, sorted by name."""
    files = [f for f in sorted(folder.iterdir()) if re.search(r"\.nii(\.gz)?$", f.name) and not f.name.startswith(".")]
    for file in files:
        if "synthetic" in file.name.lower():
            logger.info("skipped %s: synthesised, not acquired", file)
    return [f for f in files if "synthetic" not in f.name.lower()]
