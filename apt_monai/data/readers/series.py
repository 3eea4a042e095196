"""Any other layout: each subject's NIfTI files and DICOM series, and a mapping that says which contrast each is."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers.listing import LeftOut, Study, acquired_files, foreign_files, note_unused, walk
from apt_monai.data.readers.mapping import Mapping, Series, fits
from apt_monai.errors import StudyError
from apt_monai.io.dicom import dicom_files, folder_label, list_series
from apt_monai.io.nifti import nifti_stem
from apt_monai.io.series_path import format_series_path
from apt_monai.io.sidecar import is_synthetic_name

logger = logging.getLogger(__name__)

_DAY = re.compile(r"(\d{4}-\d\d-\d\d)(_|$)")  # ADNI's archive: 2006-11-15_10_01_56.0
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")  # BIDS

Members = list[tuple[Series, str]]
"""A study's series, each with the pattern that fitted."""


def read_series(folder: Path, subfolders: list[Path], contrasts: ContrastSet, mapping: Mapping) -> list[Study]:
    """The studies of subjects' folders, or of the one subject whose folder it is, sorted by name."""
    subjects = [folder] if acquired_files(folder) or dicom_files(folder) else subfolders
    left_out = LeftOut(folder)
    studies: dict[str, Study] = {}
    unmatched: dict[str, list[str]] = {}  # title: paths
    without = []
    for subject in subjects:
        members: dict[str, Members] = {}
        series = None
        for series in _find_series(subject, mapping, left_out):
            found = mapping.find(series)
            if found is None:
                unmatched.setdefault(series.title, []).append(series.path)
                continue
            pattern, meant = found
            name = subject.name if series.visit is None else f"{subject.name}_{series.visit}"
            study = studies.setdefault(name, {"subject": name})
            if meant:
                _add(study, series, meant)
                members.setdefault(name, []).append((series, pattern))
            else:
                left_out.add(Path(series.path), "mapped to null")
        if series is None:
            without.append(subject.name)
        for name, parts in members.items():
            _check_one_visit(name, subject, parts)
    if unmatched:
        raise _no_pattern(folder, mapping, unmatched)
    left_out.report()
    if without:
        logger.warning("%s: left out, as no image is in them: %s", folder, ", ".join(without))

    found_studies = {name: study for name, study in studies.items() if any(key in study for key in contrasts.names)}
    for name in sorted(set(studies) - set(found_studies)):
        logger.warning("left out study %s in %s: no contrast of %s is mapped", name, folder, contrasts.name)
    if not found_studies:
        raise StudyError(
            f"{folder}: no study found; expected a folder for each subject, with NIfTI files or DICOM series in it or "
            f"below that the series mapping gives a contrast of {', '.join(contrasts.names)}"
        )
    return [found_studies[name] for name in sorted(found_studies)]


def _add(study: Study, series: Series, meant: dict[str, int | None]) -> None:
    for key, echo in meant.items():
        if key in study:
            raise StudyError(
                f"{series.path}: a second series for {key} in study {study['subject']}, beside {study[key]}; keep one "
                "of them, by an entry for the other before the more general one, such as "
                f"{json.dumps(escape(series.names[0]))}: null"
            )
        if echo is not None and series.label is None:
            raise StudyError(
                f"{series.path}: is a NIfTI file, which has no echo {echo} for {key}; map each file to one "
                'contrast, such as {"*_e1": "pd", "*_e2": "t2"}'
            )
        study[key] = series.path if echo is None else f"{series.path}::echo={echo}"


def _no_pattern(folder: Path, mapping: Mapping, unmatched: dict[str, list[str]]) -> StudyError:
    listing = "\n".join(
        f"  {json.dumps(escape(title), ensure_ascii=False)}: ...   ({len(paths)}, such as {paths[0]})"
        for title, paths in sorted(unmatched.items())
    )
    return StudyError(
        f"{folder}: no pattern of the series mapping fits the series below; add an entry for each, with "
        f'a contrast ({", ".join(mapping.keys)}), {{"{mapping.keys[0]}": 1, "{mapping.keys[1]}": 2}} for the '
        f"echoes of one series, or null to leave it out:\n{listing}"
    )


# A subject's series


def _find_series(subject: Path, mapping: Mapping, left_out: LeftOut) -> Iterator[Series]:
    """The NIfTI files and DICOM series in a subject's folder and below it, sorted by folder."""
    for folder in walk(subject):
        parts = folder.relative_to(subject).parts
        days = [i for i, part in enumerate(parts) if _DAY.match(part)]
        visit = next((_visit(part) for part in parts if _visit(part)), None)
        # in ADNI's archive the folder above that of the day is the series' description
        described = parts[days[0] - 1] if days and days[0] else None
        volumes, slices = acquired_files(folder), dicom_files(folder)
        foreign = foreign_files(folder)
        note_unused(folder, {str(file) for file in (*volumes, *slices, *foreign)}, left_out)
        for file in foreign:
            names = ("/".join((*parts, file.stem)), *parts, file.stem, file.name)
            found = mapping.find(Series(str(file), names, file.name, parts, visit, None))
            if found is None or found[1]:
                raise StudyError(
                    f"{file}: is an image in a format that is not read; convert it to NIfTI, move it elsewhere or map "
                    f"it to null: {json.dumps(escape(file.name))}: null"
                )
            left_out.add(file, "mapped to null")
        for file in volumes:
            stem = nifti_stem(file.name) or file.name
            names = ("/".join((*parts, stem)), *parts, stem)
            yield Series(str(file), names, described or stem, parts, visit, None)
        if slices and parts:
            label = folder_label(folder)
            if label is not None and is_synthetic_name(label.description):
                left_out.add(folder, "synthesised, not acquired")
            elif label is not None:
                names = ("/".join(parts), *parts, label.description)
                yield Series(str(folder), names, described or parts[-1], parts, visit, label)
            else:
                left_out.add(folder, "holds no DICOM image")
        elif slices:
            for uid, label in {s.uid: s.label for s in list_series(folder)}.items():
                title = label.description or uid or folder.name
                if is_synthetic_name(title):
                    left_out.add(Path(format_series_path(folder, uid)), "synthesised, not acquired")
                    continue
                yield Series(format_series_path(folder, uid), (title,), title, parts, visit, label)


def _visit(part: str) -> str | None:
    """The day or session that a folder's name says."""
    if day := _DAY.match(part):
        return day[1]
    return part if _SESSION.fullmatch(part) else None


# One patient, one visit


def _check_one_visit(name: str, subject: Path, members: Members) -> None:
    """Raise where the series of a study are, or may be, of several patients or visits."""
    labels = [series.label for series, _ in members if series.label is not None]
    patients, dates, visits = ({getattr(label, tag) for label in labels} for tag in ("patient", "date", "study"))
    for what, tag, values in (("patients", "PatientID", patients), ("visits", "StudyDate", dates)):
        if len(values - {""}) > 1:
            raise StudyError(
                f"{subject}: study {name} would be of several {what}, as its DICOM headers say ({tag} "
                f"{', '.join(sorted(values - {''}))}); {_advice(subject)}"
            )
    if len(visits - {""}) > 1 and "" in dates:
        raise StudyError(
            f"{subject}: study {name} may be of several visits, as its DICOM headers have several StudyInstanceUIDs "
            f"and no StudyDate; {_advice(subject)}"
        )
    known = len(labels) == len(members) and "" not in visits and len(visits) == 1
    known = known or (len(labels) == len(members) and "" not in patients | dates)
    below = [series.folder for series, _ in members]
    if known or len(set(below)) == 1 or all(_is_adnis(folder) for folder in below):
        return
    shared = len(os.path.commonprefix(below))
    unsaid = [series for series, pattern in members if not _names_folder(pattern, series.folder[shared:])]
    if unsaid:
        other = next(series for series, _ in members if series.folder != unsaid[0].folder)
        raise StudyError(
            f"{subject}: study {name} would be of files in different folders, {unsaid[0].path} and {other.path}, and "
            f"nothing says that they are of one patient and one visit; {_advice(subject)}; if each folder is one "
            'series, name the folder in the mapping, such as {"T1/*": "t1", "T2/*": "t2"}'
        )


def _advice(subject: Path) -> str:
    return (
        f"if the folders are those of patients, give {subject} as the data; if they are visits, call them after the "
        "session (ses-01) or the day (2006-11-15)"
    )


def _is_adnis(folder: tuple[str, ...]) -> bool:
    """Whether the day says the visit: <subject>/<day>/..., or as in ADNI <subject>/<description>/<day>/..."""
    return any(_DAY.match(part) for part in folder[:2])


def _names_folder(pattern: str, below: tuple[str, ...]) -> bool:
    """Whether a pattern was for a folder, so that its writer knew how the files lie; not so for ``*`` alone."""
    if not below:
        return True
    above, slash, _ = pattern.rpartition("/")
    if slash:
        return bool(above.strip("*?/"))
    return bool(pattern.strip("*?")) and any(fits(part, pattern) for part in below)
