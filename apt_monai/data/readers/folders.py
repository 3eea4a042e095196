"""The layout of a folder a study, whose files' last word is the contrast."""

from __future__ import annotations

import logging
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers.listing import (
    MAPPING_NEEDED,
    LeftOut,
    Study,
    acquired_files,
    has_images,
    note_unused,
    refuse_foreign_files,
    walk,
)
from apt_monai.errors import StudyError
from apt_monai.io.dicom import dicom_files
from apt_monai.io.nifti import nifti_stem

logger = logging.getLogger(__name__)

MASK_SUFFIXES = ("mask", "brainmask")
DETAILS_FOLDER = "preprocessing"  # what `preprocess` writes in a study's folder beside its volumes


def read_folders(folder: Path, subfolders: list[Path], contrasts: ContrastSet) -> list[Study]:
    """The studies of a folder of study folders, or the one study that it is itself."""
    if acquired_files(folder):
        beside = [f.name for f in subfolders if f.name != DETAILS_FOLDER and acquired_files(f)]
        if beside:
            raise StudyError(
                f"{folder}: holds NIfTI files of its own and study folders ({beside[0]}, ...); "
                "it must be one study or a folder of studies: move the files or the folders elsewhere"
            )
        subfolders = [folder]
    if not subfolders:
        if dicom_files(folder):
            raise StudyError(f"{folder}: holds DICOM files; {MAPPING_NEEDED}")
        raise StudyError(f"{folder}: is empty, no study found; expected a folder for each study with NIfTI files in it")
    with_images = [f for f in subfolders if has_images(f)]
    if with_images and len(with_images) < len(subfolders):
        without = [f.name for f in subfolders if f not in with_images]
        logger.warning("%s: left out, as no image is in them: %s", folder, ", ".join(without))
        subfolders = with_images
    left_out = LeftOut(folder)
    studies = [_read_folder(f, contrasts, left_out) for f in subfolders]
    left_out.report()
    return studies


def _keys(contrasts: ContrastSet) -> dict[str, str]:
    """What a file is, by its name's last word."""
    keys = {suffix: contrast.name for contrast in contrasts.contrasts for suffix in contrast.suffixes}
    return keys | dict.fromkeys(contrasts.segmentation_suffixes, "seg") | dict.fromkeys(MASK_SUFFIXES, "mask")


def _split_name(file: Path) -> tuple[str, str]:
    """A NIfTI file's name before its last word, and that word, both in small letters."""
    name, _, suffix = (nifti_stem(file.name) or "").replace("-", "_").lower().rpartition("_")
    return name, suffix


def _read_folder(folder: Path, contrasts: ContrastSet, left_out: LeftOut) -> Study:
    keys = _keys(contrasts)
    study: Study = {"subject": folder.name}
    for file in acquired_files(folder):
        _, suffix = _split_name(file)
        if suffix not in keys:
            raise StudyError(
                f"{file}: unknown contrast {suffix!r}; {contrasts.name} file names end in one of {', '.join(keys)}: "
                "rename the file or move it elsewhere"
            )
        key = keys[suffix]
        if key in study:
            raise StudyError(f"{file}: a second file for {key}, beside {Path(study[key]).name}; keep one of the two")
        study[key] = str(file)
    refuse_foreign_files(folder)
    if not any(name in study for name in contrasts.names):
        raise _no_contrast(folder, contrasts)
    _check_one_name(folder, study, contrasts)
    _check_below(folder, study, contrasts, left_out)
    note_unused(folder, set(study.values()), left_out)
    return study


def _no_contrast(folder: Path, contrasts: ContrastSet) -> StudyError:
    studies = [f for f in sorted(folder.iterdir()) if f.is_dir() and acquired_files(f)]
    if len(studies) > 1:
        return StudyError(
            f"{folder}: no acquired contrast found, but folders with NIfTI files in it ({studies[0].name}, "
            f"{studies[1].name}, ...); if these are the studies, give {folder} as the data; if each is one series of "
            f"one visit of one patient, {MAPPING_NEEDED}"
        )
    below = next((f for f in walk(folder) if dicom_files(f) or (f != folder and acquired_files(f))), None)
    if below is not None:
        return StudyError(f"{folder}: no acquired contrast found, but files in {below}; {MAPPING_NEEDED}")
    return StudyError(
        f"{folder}: no acquired contrast found; a study needs at least one file <name>_<contrast>.nii.gz with "
        f"a contrast of {', '.join(contrasts.names)}"
    )


def _check_one_name(folder: Path, study: Study, contrasts: ContrastSet) -> None:
    """Raise where the contrasts' files are called after different patients or visits, as far as anybody can tell."""
    files = [Path(study[name]) for name in contrasts.names if name in study]
    names = {_split_name(file)[0]: file for file in files}
    names.pop("", None)
    if len(names) > 1:
        first, second, *_ = names.values()
        raise StudyError(
            f"{folder}: {first.name} and {second.name} have different names before the contrast, so they may be of two "
            "patients or visits; put each study into a folder of its own, rename the files, or, if they are of one "
            f'visit, say so by a series mapping, such as {{"{nifti_stem(first.name)}": "...", ...}}'
        )


def _check_below(folder: Path, study: Study, contrasts: ContrastSet, left_out: LeftOut) -> None:
    """Note the images in folders below a study; raise where one may be the contrast that the study lacks."""
    keys = _keys(contrasts)
    for below in walk(folder):
        if below == folder or below.relative_to(folder).parts[0] == DETAILS_FOLDER:
            continue
        for file in acquired_files(below):
            key = keys.get(_split_name(file)[1])
            if key in contrasts.names and key not in study:
                raise StudyError(
                    f"{file}: may be the {key} that study {study['subject']} lacks, but lies in a folder below it; "
                    "move it up, or elsewhere"
                )
            left_out.add(file, "in a folder below the study's")
        for file in dicom_files(below):
            left_out.add(file, "DICOM in a folder below the study's")
