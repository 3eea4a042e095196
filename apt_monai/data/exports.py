"""A study's synthetic volumes for others: DICOM series beside the acquired ones, and a BIDS derivatives dataset."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apt_monai import __version__
from apt_monai.contrasts import ContrastSet
from apt_monai.data.writers import synthetic_volumes
from apt_monai.errors import StudyError
from apt_monai.files import complete_file, write_text
from apt_monai.io.dicom_writer import (
    SERIES_NUMBER,
    Reference,
    is_written,
    read_reference,
    write_dicom_series,
    write_parametric_map,
)
from apt_monai.io.sidecar import NOTICE, sidecar_path, uncertainty_path
from apt_monai.io.source import is_series

DICOM_FOLDER = "dicom"  # in a study's output folder
DESCRIPTION = "dataset_description.json"


def dicom_references(study: Mapping[str, str], contrasts: ContrastSet, given: str | None = None) -> dict[str, str]:
    """The DICOM series beside which a study's volumes can be written, by contrast; the one that is given, for all.

    Raises:
        StudyError: the study came as NIfTI files alone, and no series is given.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> Path("T1").mkdir()
        >>> dicom_references({"subject": "a", "t1": "T1", "t2": "t2.nii.gz"}, BRATS)
        {'t1': 'T1'}
    """
    acquired = [name for name in contrasts.names if name in study]
    found = {name: given or study[name] for name in acquired if given or is_series(study[name])}
    if not found:
        raise StudyError(
            f"study {study['subject']!r}: came as NIfTI, so nothing says whose DICOM it is to become; name one of the "
            "patient's own series, as the scanner gave it: --dicom-reference FOLDER[::SERIES_UID]"
        )
    return found


def export_dicom(
    study: Mapping[str, str], output_dir: str | Path, contrasts: ContrastSet, given: str | None = None
) -> list[Path]:
    """Write each synthetic volume of a study as a DICOM series, and its uncertainty as a parametric map.

    Args:
        study: as it was synthesised: the acquired series by contrast.
        output_dir: where its volumes are, see :func:`apt_monai.data.writers.synthetic_path`; the series go into the
            folder ``dicom`` beside them.
        contrasts: the contrast set.
        given: a series of the patient's, for NIfTI that came in.

    Returns:
        The folders and files; those that are there already from the same volumes are kept.

    Raises:
        StudyError: there is no series to write beside, or what :func:`write_dicom_series` refuses.
        ImportError: there is an uncertainty, and highdicom is not installed.
        OSError: a file cannot be written.
    """
    references = dicom_references(study, contrasts, given)
    read: dict[str, Reference] = {}
    written = []
    for contrast, (volume, sidecar) in synthetic_volumes(study["subject"], output_dir, contrasts).items():
        grid = sidecar.get("resampled_to", {}).get("scan")  # a raw study's volumes lie on that scan's grid
        beside = [name for name in references if name != contrast] or list(references)  # not a spoilt one
        name = grid if grid in references else next(iter(beside))
        if references[name] not in read:
            read[references[name]] = read_reference(references[name])
        reference = read[references[name]]
        label, method = sidecar["label"], sidecar.get("method", "apt_monai")
        number = SERIES_NUMBER + 1 + 2 * contrasts.index(contrast)  # and the next is its uncertainty's
        folder = volume.parent / DICOM_FOLDER / volume.name.removesuffix(".nii.gz")
        if not is_written(folder, volume, reference):
            shutil.rmtree(folder, ignore_errors=True)
            write_dicom_series(volume, reference, folder, label, method, number)
        written.append(folder)
        uncertainty, file = uncertainty_path(volume), folder.with_name(f"{folder.name}_uncertainty.dcm")
        if uncertainty.is_file():
            if not is_written(file, uncertainty, reference):
                write_parametric_map(uncertainty, reference, file, label, method, number + 1)
            written.append(file)
    return written


# BIDS


def bids_names(subjects: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What studies are called in BIDS, by their name: ``("sub-…", "ses-…" or "")``.

    BIDS knows letters and digits alone: a study ``sub-01_ses-02`` keeps its name, and of another's everything else is
    left out.

    Raises:
        StudyError: two studies would have one name, or one would have none.

    Example::

        >>> bids_names(["BraTS2021_00000", "sub-01_ses-02"])
        {'BraTS2021_00000': ('sub-BraTS202100000', ''), 'sub-01_ses-02': ('sub-01', 'ses-02')}
    """
    names: dict[str, tuple[str, str]] = {}
    for subject in subjects:
        match = re.fullmatch(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?", subject)
        name = (match[1], match[2] or "") if match else ("sub-" + re.sub(r"[^A-Za-z0-9]", "", subject), "")
        other = next((known for known, taken in names.items() if taken == name), None)
        if other or name[0] == "sub-":
            raise StudyError(
                f"study {subject!r}: has no BIDS name of its own ({other!r} would be {'_'.join(filter(None, name))}, "
                "too); rename it, in letters and digits"
                if other
                else f"study {subject!r}: has no letter or digit, so it has no BIDS name; rename it"
            )
        names[subject] = name
    return names


def export_bids(
    subjects: Sequence[str], output_dir: str | Path, bids_dir: str | Path, contrasts: ContrastSet
) -> list[Path]:
    """Write the synthetic volumes of studies as a BIDS derivatives dataset.

    ``sub-01/[ses-02/]anat/sub-01[_ses-02][_ce-gadolinium]_desc-synthetic_T1w.nii.gz``, the uncertainty as
    ``…_desc-syntheticuncertainty_…``, each with a JSON file.

    Args:
        subjects: the studies' names.
        output_dir: where their volumes are.
        bids_dir: the dataset's folder; made if absent, and added to if it is ours.
        contrasts: the contrast set.

    Returns:
        The NIfTI files.

    Raises:
        StudyError: two studies would have one name; the folder holds something else, such as an acquired dataset.
        OSError: a file cannot be written.
    """
    root, names = Path(bids_dir), bids_names(subjects)
    check_bids_folder(root)
    write_text(
        root / DESCRIPTION,
        _json(
            {
                "Name": "Synthesised brain MR contrasts (not acquired)",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "apt_monai", "Version": __version__, "Description": NOTICE}],
            }
        ),
    )
    written = []
    for subject in subjects:
        who = [part for part in names[subject] if part]
        for contrast, (volume, sidecar) in synthetic_volumes(subject, output_dir, contrasts).items():
            *agent, suffix = contrasts.contrasts[contrasts.index(contrast)].bids.split("_")
            entities = [*who, *(f"{entity}-gadolinium" for entity in agent)]
            files = {"synthetic": volume, "syntheticuncertainty": uncertainty_path(volume)}
            for description, file in files.items():
                if not file.is_file():
                    continue
                target = root.joinpath(*who, "anat", f"{'_'.join([*entities, f'desc-{description}', suffix])}.nii.gz")
                with complete_file(target) as partial:
                    shutil.copyfile(file, partial)
                write_text(sidecar_path(target), _json(_bids_sidecar(sidecar, description)))
                written.append(target)
    return written


def check_bids_folder(folder: Path) -> None:
    """Raise ``StudyError`` where a folder is not empty and not a derivatives dataset of ours.

    Example::

        >>> check_bids_folder(Path("new"))
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        made_by = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["GeneratedBy"][0]["Name"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        made_by = None
    if made_by != "apt_monai":
        raise StudyError(
            f"{folder}: is not empty and not a derivatives dataset of apt_monai; synthetic volumes are never put among "
            "acquired ones: name a new folder, such as DATASET/derivatives/apt_monai"
        )


def _bids_sidecar(sidecar: Mapping[str, Any], description: str) -> dict[str, Any]:
    meaning = "half the width of the 90 % interval around each voxel" if "uncertainty" in description else "the volume"
    return {
        "Description": f"{sidecar['label']}, {meaning}: SYNTHETIC, not acquired; {NOTICE}",
        "SkullStripped": True,
        "SpatialReference": "orig",
        "apt_monai": dict(sidecar),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
