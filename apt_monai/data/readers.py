"""Readers: a dataset's folder becomes a MONAI data list. Names identify contrasts, never position."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.io.dicom import dicom_files, folder_label, list_series
from apt_monai.io.series_path import format_series_path

logger = logging.getLogger(__name__)

SeriesMapping = Mapping[str, "str | Mapping[str, int] | None"]
"""From a pattern of series names to a contrast, to the echo that each of several contrasts is, or to None."""

_NIFTI = re.compile(r"\.nii(\.gz)?$")
_DAY = re.compile(r"(\d{4}-\d\d-\d\d)(_|$)")  # ADNI's archive: 2006-11-15_10_01_56.0
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")  # BIDS


def read_studies(
    dataset_dir: str | Path,
    contrasts: str | ContrastSet,
    require_all: bool = False,
    series: SeriesMapping | str | Path | None = None,
) -> list[dict[str, str]]:
    """List the studies of a dataset folder, in one of three layouts.

    **A folder a study.** Each subfolder is one study, named as the folder; a folder that holds NIfTI files itself is
    accepted as one study. A study's files are called ``<anything>_<suffix>.nii.gz`` (or ``-<suffix>``, or ``.nii``),
    where the suffix is one of the contrast's: BraTS 2021 (``BraTS2021_00000_t1ce.nii.gz``) and 2023 and later
    (``BraTS-GLI-00000-000-t1c.nii.gz``), or ADNI as this package writes it (``002_S_0413_pd.nii.gz``).
    What is brain is read from ``<anything>_mask.nii.gz`` or ``_brainmask.nii.gz``, or from
    ``preprocessing/brainmask.nii.gz``, where it is there.

    **BIDS**, where the folder holds ``sub-*/anat`` or ``sub-*/ses-*/anat``, or is such a ``sub-*`` folder itself. Each
    session is one study, named ``sub-01_ses-01``, or ``sub-01`` where there are no sessions. Of
    ``anat/`` the files ending in ``_T1w``, ``_T2w``, ``_PDw`` or ``_FLAIR`` are taken, and ``_ce-<agent>_..._T1w`` as
    T1Gd: with a contrast agent it is never T1. Other files and sessions without a contrast of the set are left out, and
    the log says so.

    **Any other, with a series mapping**: ADNI's archive (``<subject>/<description>/<date>/<image id>/*.dcm`` or
    ``*.nii``), folders of DICOM series, or NIfTI files of other names. Each subfolder is one subject, each NIfTI file
    or DICOM series below it one series; a folder that holds such files itself is accepted as one study. A study is all
    that a subject has, or, where the folders name a day (``2006-11-15...``) or session (``ses-01``), what it has of
    that: it is then named ``002_S_0413_2006-11-15``. What a series is, is never guessed: the mapping says it, from
    patterns to contrasts, as a dictionary or a JSON file::

        {"MPRAGE*": "t1", "Axial_PD_T2_FSE": {"pd": 1, "t2": 2}, "MPRAGE/*/I12345": null, "*localizer*": null}

    - A pattern (``*``, ``?``, ``[...]``; upper and lower case are the same) is for any name of the series: its path
      below the subject's folder (of a NIfTI file without ``.nii.gz``), a part of that path, or its DICOM
      SeriesDescription. The first pattern that fits counts.
    - A contrast's name is for the whole series, and ``"seg"`` for a segmentation of the tumour where the set has one;
      ``{"pd": 1, "t2": 2}`` for the DICOM series whose first echo (the shortest echo time) is PD and whose second is
      T2; null leaves the series out. A series that no pattern fits is an error, which lists all of them.
    - DICOM files in the subject's own folder may be of several series, told apart by their headers; a folder below it
      is one series.

    In each layout any non-empty subset of the contrasts may be there. Hidden files and folders, and files that are
    neither NIfTI nor DICOM, are not looked at. NIfTI files with ``synthetic`` in their name are this package's own
    output: they are skipped, and the log says so. Files are not read here, but for DICOM headers.

    Args:
        dataset_dir: the folder.
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).
        require_all: refuse a study that lacks a contrast, as training and evaluation do.
        series: the series mapping or its JSON file, for the third layout; with it names mean nothing else.

    Returns:
        One dictionary a study, sorted by name: ``{"subject": name, <contrast>: path, ..., "seg": path,
        "mask": path}``; what is absent has no key. A path is absolute: a file, or what names a DICOM series (see
        :func:`apt_monai.transforms.read_volume`).

    Raises:
        StudyError: the folder is missing or has no study; it has studies beside files of its own; a study has no
            contrast, two files for one contrast, or a NIfTI file whose suffix is not known; a series that the mapping
            does not match; with ``require_all``, a study lacks a contrast.
        ValueError: the series mapping is not as above.

    Example::

        >>> study = Path("dataset/BraTS2021_00000")
        >>> study.mkdir(parents=True)
        >>> (study / "BraTS2021_00000_t1ce.nii.gz").touch()
        >>> [sorted(s) for s in read_studies("dataset", "brats")]
        [['subject', 't1ce']]
        >>> scan = Path("ADNI/002_S_0413/MPRAGE/2006-11-15_10_01_56.0/I30117")
        >>> scan.mkdir(parents=True)
        >>> (scan / "scan.nii").touch()
        >>> [(s["subject"], Path(s["t1"]).name) for s in read_studies("ADNI", "adni", series={"MPRAGE*": "t1"})]
        [('002_S_0413_2006-11-15', 'scan.nii')]
    """
    contrast_set = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
    mapping = None if series is None else _Mapping.parse(series, contrast_set)
    folder = Path(dataset_dir).absolute()
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such folder; give the folder that holds the study folders")

    subfolders = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    bids = [f for f in (folder, *subfolders) if f.name.startswith("sub-") and _anatomies(f)]
    if mapping is not None:
        studies = _read_series(folder, bids or subfolders, contrast_set, mapping)
    elif bids:
        studies = _read_bids(bids, contrast_set)
    else:
        studies = _read_folders(folder, subfolders, contrast_set)

    if require_all:
        for study in studies:
            missing = [name for name in contrast_set.names if name not in study]
            if missing:
                raise StudyError(
                    f"study {study['subject']!r} in {folder}: lacks {', '.join(missing)}; training and evaluation need "
                    f"every contrast ({', '.join(contrast_set.names)}): add the files or move the study elsewhere"
                )
    return studies


# A folder a study


def _read_folders(folder: Path, subfolders: list[Path], contrasts: ContrastSet) -> list[dict[str, str]]:
    if _acquired_files(folder):
        beside = [f.name for f in subfolders if _acquired_files(f)]
        if beside:
            raise StudyError(
                f"{folder}: holds NIfTI files of its own and study folders ({beside[0]}, ...); "
                "it must be one study or a folder of studies: move the files or the folders elsewhere"
            )
        subfolders = [folder]
    if not subfolders:
        if dicom_files(folder):
            raise StudyError(f"{folder}: holds DICOM files; {_MAPPING_NEEDED}")
        raise StudyError(f"{folder}: is empty, no study found; expected a folder for each study with NIfTI files in it")
    return [_read_folder(f, contrasts) for f in subfolders]


_MAPPING_NEEDED = 'say which series is which contrast by a series mapping, such as {"MPRAGE*": "t1"}'


def _read_folder(folder: Path, contrasts: ContrastSet) -> dict[str, str]:
    keys = {suffix: contrast.name for contrast in contrasts.contrasts for suffix in contrast.suffixes}
    keys.update(dict.fromkeys(contrasts.segmentation_suffixes, "seg") | dict.fromkeys(("mask", "brainmask"), "mask"))
    study: dict[str, str] = {"subject": folder.name}
    for file in _acquired_files(folder):
        suffix = re.split("[_-]", _NIFTI.sub("", file.name))[-1].lower()
        if suffix not in keys:
            raise StudyError(
                f"{file}: unknown contrast {suffix!r}; {contrasts.name} file names end in one of {', '.join(keys)}: "
                "rename the file or move it elsewhere"
            )
        key = keys[suffix]
        if key in study:
            raise StudyError(f"{file}: a second file for {key}, beside {Path(study[key]).name}; keep one of the two")
        study[key] = str(file)
    if "mask" not in study and (mask := folder / "preprocessing" / "brainmask.nii.gz").is_file():
        study["mask"] = str(mask)
    if not any(name in study for name in contrasts.names):
        below = next((f for f in _walk(folder) if dicom_files(f) or (f != folder and _acquired_files(f))), None)
        if below is not None:
            raise StudyError(f"{folder}: no acquired contrast found, but files in {below}; {_MAPPING_NEEDED}")
        raise StudyError(
            f"{folder}: no acquired contrast found; a study needs at least one file <name>_<contrast>.nii.gz with "
            f"a contrast of {', '.join(contrasts.names)}"
        )
    return study


# BIDS


def _anatomies(subject: Path) -> list[Path]:
    """The ``anat`` folders of a BIDS subject, one a session."""
    return [folder for folder in [subject / "anat", *sorted(subject.glob("ses-*/anat"))] if folder.is_dir()]


def _read_bids(subjects: list[Path], contrasts: ContrastSet) -> list[dict[str, str]]:
    names = {contrast.bids: contrast.name for contrast in contrasts.contrasts}
    studies = []
    for subject in subjects:
        for folder in _anatomies(subject):
            session = "" if folder.parent == subject else f"_{folder.parent.name}"
            study = {"subject": f"{subject.name}{session}"}
            for file in _acquired_files(folder):
                *entities, suffix = _NIFTI.sub("", file.name).split("_")
                agent = any(entity.startswith("ce-") for entity in entities)
                name = names.get(f"ce_{suffix}" if agent else suffix)
                if name is None:
                    logger.info("skipped %s: not a contrast of %s", file, contrasts.name)
                    continue
                if name in study:
                    raise StudyError(
                        f"{file}: a second file for {name}, beside {Path(study[name]).name}; keep one of the two, or "
                        'say which one by a series mapping, such as {"*_run-1_T1w": "t1", ..., "*": null}'
                    )
                study[name] = str(file)
            if len(study) > 1:
                studies.append(study)
            else:
                logger.warning("left out %s: it has no contrast of %s", folder, contrasts.name)
    if not studies:
        raise StudyError(
            f"{subjects[0].parent}: no session has a contrast of {contrasts.name}; expected "
            f"sub-*/anat/*_<suffix>.nii.gz, or sub-*/ses-*/anat/..., with a suffix of {', '.join(names)}"
        )
    return sorted(studies, key=lambda study: study["subject"])


# Any other layout, with a series mapping


@dataclass(frozen=True)
class _Series:
    """A NIfTI file or a DICOM series.

    Args:
        path: what names it, as a study holds it.
        names: what a pattern may fit.
        title: the one of them that a person would call it by.
        visit: the day or session that its folders name, if they do.
        is_dicom: it may have several echoes.
    """

    path: str
    names: tuple[str, ...]
    title: str
    visit: str | None
    is_dicom: bool


@dataclass(frozen=True)
class _Mapping:
    """A checked series mapping: for each pattern, in order, the contrasts with their echo, None for the whole series.

    Args:
        entries: the patterns and what they mean.
        keys: what a series may be: the contrasts, and ``"seg"`` where the set has segmentations.
    """

    entries: tuple[tuple[str, dict[str, int | None]], ...]
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, series: SeriesMapping | str | Path, contrasts: ContrastSet) -> _Mapping:
        keys = contrasts.names + (("seg",) if contrasts.segmentation_suffixes else ())
        source, content = ("series mapping", series) if isinstance(series, Mapping) else (str(series), _load(series))
        if not isinstance(content, Mapping) or not content:
            raise ValueError(f'{source}: must map patterns of series names to contrasts, such as {{"MPRAGE*": "t1"}}')
        entries = []
        for pattern, meaning in content.items():
            echoes = meaning if isinstance(meaning, Mapping) else {}
            meant: dict[str, int | None] = (
                dict(echoes) if meaning is None or isinstance(meaning, Mapping) else {str(meaning): None}
            )
            if (
                not isinstance(pattern, str)
                or not (meaning is None or meant)
                or any(key not in keys for key in meant)
                or any(type(echo) is not int or echo < 1 for echo in echoes.values())
            ):
                raise ValueError(
                    f"{source}: {pattern!r} is mapped to {meaning!r}; valid are a contrast ({', '.join(keys)}), "
                    f'{{"{keys[0]}": 1, "{keys[1]}": 2}} to name the echo that each is, and null to leave it out'
                )
            entries.append((pattern, meant))
        return cls(tuple(entries), keys)

    def find(self, series: _Series) -> dict[str, int | None] | None:
        """What a series is, by the first pattern that fits; None where no pattern does."""
        names = [name.lower() for name in series.names]
        for pattern, meant in self.entries:
            if any(fnmatchcase(name, pattern.lower()) for name in names):
                return meant
        return None


def _load(file: str | Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{min(twice)!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a series mapping ({error}); it must be a JSON object") from error


def _read_series(
    folder: Path, subfolders: list[Path], contrasts: ContrastSet, mapping: _Mapping
) -> list[dict[str, str]]:
    subjects = [folder] if _acquired_files(folder) or dicom_files(folder) else subfolders
    studies: dict[str, dict[str, str]] = {}
    unmatched: dict[str, list[str]] = {}  # title: paths
    for subject in subjects:
        for series in _find_series(subject):
            meant = mapping.find(series)
            if meant is None:
                unmatched.setdefault(series.title, []).append(series.path)
                continue
            name = subject.name if series.visit is None else f"{subject.name}_{series.visit}"
            study = studies.setdefault(name, {"subject": name})
            for key, echo in meant.items():
                if key in study:
                    raise StudyError(
                        f"{series.path}: a second series for {key} in study {name}, beside {study[key]}; keep one of "
                        "them, by an entry for the other before the more general one, such as "
                        f"{json.dumps(escape(series.names[0]))}: null"
                    )
                if echo is not None and not series.is_dicom:
                    raise StudyError(
                        f"{series.path}: is a NIfTI file, which has no echo {echo} for {key}; map each file to one "
                        'contrast, such as {"*_e1": "pd", "*_e2": "t2"}'
                    )
                study[key] = series.path if echo is None else f"{series.path}::echo={echo}"
    if unmatched:
        listing = "\n".join(
            f"  {json.dumps(escape(title))}: ...   ({len(paths)}, such as {paths[0]})"
            for title, paths in sorted(unmatched.items())
        )
        raise StudyError(
            f"{folder}: no pattern of the series mapping fits the series below; add an entry for each, with "
            f'a contrast ({", ".join(mapping.keys)}), {{"{mapping.keys[0]}": 1, "{mapping.keys[1]}": 2}} for the '
            f"echoes of one series, or null to leave it out:\n{listing}"
        )

    found = {name: study for name, study in studies.items() if any(key in study for key in contrasts.names)}
    for name in sorted(set(studies) - set(found)):
        logger.warning("left out study %s in %s: no contrast of %s is mapped", name, folder, contrasts.name)
    if not found:
        raise StudyError(
            f"{folder}: no study found; expected a folder for each subject, with NIfTI files or DICOM series in it or "
            f"below that the series mapping gives a contrast of {', '.join(contrasts.names)}"
        )
    return [found[name] for name in sorted(found)]


def _find_series(subject: Path) -> Iterator[_Series]:
    """The NIfTI files and DICOM series in a subject's folder and below it, sorted by folder."""
    for folder in _walk(subject):
        parts = folder.relative_to(subject).parts
        days = [i for i, part in enumerate(parts) if _DAY.match(part)]
        visit = next((_visit(part) for part in parts if _visit(part)), None)
        # in ADNI's archive the folder above that of the day is the series' description
        described = parts[days[0] - 1] if days and days[0] else None
        for file in _acquired_files(folder):
            stem = _NIFTI.sub("", file.name)
            yield _Series(str(file), ("/".join((*parts, stem)), *parts, stem), described or stem, visit, is_dicom=False)
        files = dicom_files(folder)
        label = folder_label(folder) if files and parts else None
        if label is not None:
            names = ("/".join(parts), *parts, label.description)
            yield _Series(str(folder), names, described or parts[-1], visit, is_dicom=True)
        elif files and not parts:
            for uid, label in {s.uid: s.label for s in list_series(folder)}.items():
                title = label.description or uid or folder.name
                yield _Series(format_series_path(folder, uid), (title,), title, visit, is_dicom=True)


def _visit(part: str) -> str | None:
    """The day or session that a folder's name says."""
    if day := _DAY.match(part):
        return day[1]
    return part if _SESSION.fullmatch(part) else None


def _walk(folder: Path) -> Iterator[Path]:
    """A folder and those below it, without hidden ones, sorted."""
    for root, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(root)


def _acquired_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, without hidden and synthetic ones, sorted by name."""
    files = [f for f in sorted(folder.iterdir()) if _NIFTI.search(f.name) and not f.name.startswith(".")]
    for file in files:
        if "synthetic" in file.name.lower():
            logger.info("skipped %s: synthesised, not acquired", file)
    return [f for f in files if "synthetic" not in f.name.lower()]
