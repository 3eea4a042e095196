"""What ``synthesize`` writes beside its NIfTI files, where it is asked for: DICOM series, a BIDS dataset."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from apt_monai.contrasts import ContrastSet


def check_exports(arguments: argparse.Namespace, contrasts: ContrastSet, studies: Sequence[Mapping[str, str]]) -> None:
    """Find out what could not be written, before anything is synthesised.

    Raises:
        StudyError: a study has no DICOM series to write beside, or no BIDS name, or the BIDS folder is not ours.
        ValueError: a reference for several studies, or without ``--dicom``.
        ImportError: highdicom is needed, and not installed.
    """
    if arguments.dicom_reference and not arguments.dicom:
        raise ValueError("--dicom-reference says whose series --dicom is to write: give --dicom too")
    if arguments.dicom_reference and len(studies) > 1:
        raise ValueError(f"--dicom-reference is of one patient, and there are {len(studies)} studies: give one of them")
    if not (arguments.dicom or arguments.bids):
        return
    from apt_monai.data import exports
    from apt_monai.io.dicom_writer import read_reference, require_highdicom

    if arguments.dicom:
        require_highdicom()
        for study in studies:
            references = exports.dicom_references(study, contrasts, arguments.dicom_reference)
            for series in dict.fromkeys(references.values()):
                read_reference(series)
    if arguments.bids:
        exports.bids_names([study["subject"] for study in studies])
        exports.check_bids_folder(arguments.bids)


def write_exports(
    arguments: argparse.Namespace, contrasts: ContrastSet, studies: Sequence[Mapping[str, str]]
) -> list[str]:
    """Write what was asked for, and say where it is."""
    written: list[str] = []
    if not (arguments.dicom or arguments.bids):
        return written
    from apt_monai.data import exports

    if arguments.dicom:
        for study in studies:
            series = exports.export_dicom(study, arguments.out, contrasts, arguments.dicom_reference)
            written += [str(path) for path in series]
    if arguments.bids:
        subjects = [study["subject"] for study in studies]
        written += [str(path) for path in exports.export_bids(subjects, arguments.out, arguments.bids, contrasts)]
    return written
