"""Readers: a dataset's folder becomes a MONAI data list. Names identify contrasts, never position."""

from __future__ import annotations

from pathlib import Path

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.readers.bids import anatomies, read_bids
from apt_monai.data.readers.folders import read_folders
from apt_monai.data.readers.listing import Study, visible
from apt_monai.data.readers.mapping import Mapping, SeriesMapping
from apt_monai.data.readers.series import read_series
from apt_monai.errors import StudyError

__all__ = ["SeriesMapping", "read_studies"]


def read_studies(
    dataset_dir: str | Path,
    contrasts: str | ContrastSet,
    require_all: bool = False,
    series: SeriesMapping | str | Path | None = None,
) -> list[Study]:
    """List the studies of a dataset folder, in one of three layouts.

    **A folder a study.** Each subfolder is one study, named as the folder; a folder that holds NIfTI files itself is
    accepted as one study. A study's files are called ``<name>_<suffix>.nii.gz`` (or ``-<suffix>``, or ``.nii``), with
    one name for all contrasts, where the suffix is one of the contrast's: BraTS 2021 (``BraTS2021_00000_t1ce.nii.gz``)
    and 2023 and later (``BraTS-GLI-00000-000-t1c.nii.gz``), or ADNI as this package writes it
    (``002_S_0413_pd.nii.gz``). What is brain is read from ``<anything>_mask.nii.gz`` or ``_brainmask.nii.gz``.

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
    - Series in different folders below a subject's are one study only where the mapping names the folders
      (``{"T1/*": "t1"}``), where ADNI's day says the visit, or where DICOM headers say that they are of one visit.
      DICOM headers of two patients or two visits are always an error.

    In each layout any non-empty subset of the contrasts may be there. Hidden files and folders are not looked at; links
    are followed. NIfTI files with ``synthetic`` in their name are this package's own output and not used. The log names
    what else of a study is not used, and the folders that are left out as no image is in them; an image in a format
    that is not read is an error. Files are not read here, but for DICOM headers.

    Args:
        dataset_dir: the folder.
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).
        require_all: refuse a study that lacks a contrast, as training and evaluation do.
        series: the series mapping or its JSON file, for the third layout; with it names mean nothing else.

    Returns:
        One dictionary a study, sorted by name: ``{"subject": name, <contrast>: path, ..., "seg": path,
        "mask": path}``; what is absent has no key. A path is absolute: a file, or what names a DICOM series (see
        :func:`apt_monai.io.read_volume`).

    Raises:
        StudyError: the folder is missing or has no study; it has studies beside files of its own; a study has no
            contrast, two files for one contrast, or a NIfTI file whose suffix is not known; it is, or may be, of two
            patients or visits; an image is in a format that is not read; a series that the mapping does not match; with
            ``require_all``, a study lacks a contrast.
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
    contrast_set = get_contrast_set(contrasts)
    mapping = None if series is None else Mapping.parse(series, contrast_set)
    folder = Path(dataset_dir).absolute()
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such folder; give the folder that holds the study folders")

    subfolders = [f for f in visible(folder) if f.is_dir()]
    bids = [f for f in (folder, *subfolders) if f.name.startswith("sub-") and anatomies(f)]
    if mapping is not None:
        studies = read_series(folder, bids or subfolders, contrast_set, mapping)
    elif bids:
        studies = read_bids(bids, contrast_set)
    else:
        studies = read_folders(folder, subfolders, contrast_set)

    if require_all:
        for study in studies:
            missing = [name for name in contrast_set.names if name not in study]
            if missing:
                raise StudyError(
                    f"study {study['subject']!r} in {folder}: lacks {', '.join(missing)}; training and evaluation need "
                    f"every contrast ({', '.join(contrast_set.names)}): add the files or move the study elsewhere"
                )
    return studies
