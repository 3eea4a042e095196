"""The layout of BIDS: ``sub-*/anat`` or ``sub-*/ses-*/anat``, a study a session."""

from __future__ import annotations

import logging
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers.listing import LeftOut, Study, acquired_files, note_unused, refuse_foreign_files
from apt_monai.errors import StudyError
from apt_monai.io.nifti import nifti_stem

logger = logging.getLogger(__name__)


def anatomies(subject: Path) -> list[Path]:
    """The ``anat`` folders of a BIDS subject, one a session."""
    return [folder for folder in [subject / "anat", *sorted(subject.glob("ses-*/anat"))] if folder.is_dir()]


def read_bids(subjects: list[Path], contrasts: ContrastSet) -> list[Study]:
    """The studies of BIDS subjects, sorted by name."""
    root = subjects[0].parent
    left_out = LeftOut(root)
    studies = []
    for subject in subjects:
        for folder in anatomies(subject):
            study = _read_session(subject, folder, contrasts, left_out)
            if len(study) > 1:
                studies.append(study)
            else:
                logger.warning("left out %s: it has no contrast of %s", folder, contrasts.name)
    left_out.report()
    if not studies:
        raise StudyError(
            f"{root}: no session has a contrast of {contrasts.name}; expected "
            f"sub-*/anat/*_<suffix>.nii.gz, or sub-*/ses-*/anat/..., with a suffix of {', '.join(_names(contrasts))}"
        )
    return sorted(studies, key=lambda study: study["subject"])


def _names(contrasts: ContrastSet) -> dict[str, str]:
    return {contrast.bids: contrast.name for contrast in contrasts.contrasts}


def _read_session(subject: Path, folder: Path, contrasts: ContrastSet, left_out: LeftOut) -> Study:
    names = _names(contrasts)
    session = "" if folder.parent == subject else f"_{folder.parent.name}"
    study = {"subject": f"{subject.name}{session}"}
    others = set()
    for file in acquired_files(folder):
        *entities, suffix = (nifti_stem(file.name) or "").split("_")
        agent = any(entity.startswith("ce-") for entity in entities)
        name = names.get(f"ce_{suffix}" if agent else suffix)
        if name is None:
            left_out.add(file, f"not a contrast of {contrasts.name}")
            others.add(str(file))
            continue
        if name in study:
            raise StudyError(
                f"{file}: a second file for {name}, beside {Path(study[name]).name}; keep one of the two, or "
                'say which one by a series mapping, such as {"*_run-1_T1w": "t1", ..., "*": null}'
            )
        study[name] = str(file)
    refuse_foreign_files(folder)
    note_unused(folder, {*study.values(), *others}, left_out)
    return study
