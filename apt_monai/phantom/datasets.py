"""Data sets of the digital phantom: brain-MR studies with real anatomy, made from physics, with nothing to download.

``brats``
    Skull-stripped cases with a tumour, FLAIR, T1, T1Gd, T2 and a segmentation, named and stored as BraTS 2021's.
``brats-raw``
    The same cases as a scanner gives them, with the whole head, to be preprocessed: FLAIR and T2 as tilted axial
    slices of 5 and 4 mm, T1 as sagittal slices of 4 mm, T1Gd as a 3D scan, and between the four the head has moved.
``adni-raw``
    ADNI-like studies as a scanner gives them, with the whole head, to be preprocessed: T1 as a sagittal 3D scan, PD and
    T2 as axial slices, and between the two the head has moved.
``adni``
    The same heads as preprocessing would give them at its best: skull-stripped, on one axial grid, ready to train on.

``brats`` and ``adni`` have a varied form, too: scanner, protocol, lesions and voxel size are drawn anew for each study
(:mod:`apt_monai.phantom.varied`), so that a network learns what holds for all of them.

The heads are those of :mod:`apt_monai.phantom.head`.

Example::

    >>> studies = write_phantom_dataset("phantom", "brats", subjects=2, seed=0, spacing=8.0, progress=False)
    >>> sorted(path.name for path in studies[0].iterdir())[:2]
    ['BraTS2021_00000_flair.nii.gz', 'BraTS2021_00000_seg.nii.gz']
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from apt_monai.files import write_text
from apt_monai.phantom.adni import ADNI_SERIES, adni_axial_grid, adni_t1_grid, write_adni_raw_study, write_adni_study
from apt_monai.phantom.brats import brats_grid, write_brats_study
from apt_monai.phantom.brats_raw import BRATS_SERIES, write_brats_raw_study
from apt_monai.phantom.grids import Grid
from apt_monai.phantom.studies import Request
from apt_monai.phantom.template import load_template
from apt_monai.phantom.varied import VARIED_ADNI, VARIED_BRATS, write_varied_study

VERSION = 1  # of the phantom: raise it whenever the same seed no longer gives the same bytes
RECORD_NAME = "phantom.json"
SERIES_NAME = "series.json"  # the series mapping of studies in DICOM, as the readers take it


@dataclass(frozen=True)
class _Kind:
    """A kind of phantom data set.

    Args:
        study: pattern of the study folders' names.
        marker: glob of what a folder of real studies of that kind holds.
        grid: the grid that a spacing and a shape give; it refuses what is not valid.
        write: writes one study.
        write_varied: writes one varied study; None where there are none.
        series: of raw studies in DICOM the series' descriptions, and which contrasts each is; else None.
    """

    study: str
    marker: str
    grid: Callable[[float, Sequence[int] | None], Grid]
    write: Callable[[Request], None]
    write_varied: Callable[[Request], None] | None = None
    series: Mapping[str, str | dict[str, int]] | None = None


def _raw_grid(spacing: float, shape: Sequence[int] | None) -> Grid:
    if shape is not None:
        raise ValueError(f"shape is {tuple(shape)}: the grids of raw studies have their own; leave it out")
    return adni_t1_grid(spacing)


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "brats": _Kind(
            "BraTS2021_{:05d}", "BraTS*", brats_grid, write_brats_study, partial(write_varied_study, VARIED_BRATS)
        ),
        "adni": _Kind(
            "000_S_{:04d}", "*_S_*", adni_axial_grid, write_adni_study, partial(write_varied_study, VARIED_ADNI)
        ),
        "brats-raw": _Kind("BraTS2021_{:05d}", "BraTS*", _raw_grid, write_brats_raw_study, series=BRATS_SERIES),
        "adni-raw": _Kind("000_S_{:04d}", "*_S_*", _raw_grid, write_adni_raw_study, series=ADNI_SERIES),
    }
)


def _claim_folder(out: Path, marker: str, record: Mapping[str, object]) -> None:
    """Make the folder and write down what it holds, or check that it holds the same already."""
    path = out / RECORD_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(out.glob(marker)):
                raise ValueError(f"{out} holds studies but no {RECORD_NAME}: they are no phantom; name another folder")
            write_text(path, json.dumps(record, indent=2) + "\n")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot write the phantom into {out}: {error}; name a folder that can be written") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete {out} or name another folder") from error
    if found != record:
        raise ValueError(
            f"{out} holds another phantom: {RECORD_NAME} says {found}, asked for is {record}; name another folder"
        )


def _choose_writer(dataset: str, shape: Sequence[int] | None, varied: bool) -> Callable[[Request], None]:
    kind = _KINDS[dataset]
    if not varied:
        return kind.write
    if kind.write_varied is None:
        valid = ", ".join(name for name, each in _KINDS.items() if each.write_varied is not None)
        raise ValueError(f"there is no varied phantom of {dataset}: valid are {valid}; or leave varied out")
    if shape is not None:
        raise ValueError(f"shape is {tuple(shape)}: each varied study has a shape of its own; leave it out")
    return kind.write_varied


def write_phantom_dataset(
    out: str | Path,
    dataset: str,
    subjects: int,
    seed: int,
    spacing: float = 1.0,
    shape: Sequence[int] | None = None,
    progress: bool = True,
    varied: bool = False,
    noise: bool = True,
    dicom: bool = False,
) -> list[Path]:
    """Write a phantom data set.

    A study that is there already is kept, so that an interrupted run goes on where it stopped; ``phantom.json`` in the
    folder says how it was made, and another seed or grid in the same folder is refused. All volumes are int16 NIfTI, or
    (``dicom``) DICOM series.

    ``"brats"``
        ``OUT/BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz``, …: real BraTS 2021 cases, skull-stripped,
        0 outside the brain, 240×240×155 voxels of 1 mm.
    ``"adni"``
        ``OUT/000_S_0000/000_S_0000_{t1,t2,pd}.nii.gz``, …: skull-stripped, 0 outside the brain, all three on
        :func:`adni_axial_grid`. A part of the subjects is atrophic.
    ``"brats-raw"``
        The heads of ``"brats"``, files of the same names but for ``seg``, as scanned: skull and scalp, an uneven coil
        and noise in air; FLAIR in tilted axial slices of 5 mm, T1 in sagittal ones of 4 mm, T1Gd as a 3D scan of 1 mm,
        T2 in tilted axial slices of 4 mm; between any two the head moved. What is true of a study is in a hidden
        folder, which no reader looks at, ``OUT/.truth/BraTS2021_00000``: ``truth.json`` with ``to_t1ce``, for each
        contrast the 4×4 matrix from the world mm (RAS+) of its scan to those of T1Gd; the brain masks on the scans'
        grids, ``brain_{flair,t1,t1ce,t2}.nii.gz``; and BraTS's segmentation on the grid of T1Gd, ``seg.nii.gz``.
    ``"adni-raw"``
        The heads of ``"adni"``, files of the same names, as scanned: T1 on :func:`adni_t1_grid`, T2 and PD on
        :func:`adni_axial_grid`, with skull and scalp, an uneven coil and noise in air, and between the two scans the
        head moved. What is true of a study is in ``OUT/.truth/000_S_0000``:
        ``truth.json`` with ``axial_to_t1``, the 4×4 matrix from the world mm (RAS+) of the T2 and PD scans to those of
        the T1 scan, and ``atrophy``; and the brain masks on both grids, ``brain_t1.nii.gz`` and ``brain_axial.nii.gz``.

    Args:
        out: the folder; made if absent.
        dataset: ``"brats"``, ``"adni"``, ``"brats-raw"`` or ``"adni-raw"``.
        subjects: how many, 1 or more.
        seed: 0 or above. The same seed gives the same bytes, and a larger data set begins with the smaller one.
        spacing: voxel edge in mm; 1 is that of real studies. Larger makes smaller volumes of the same heads: 2.5 gives
            BraTS's as 96×96×62. ADNI's axial slices are 3 mm thick up to a spacing of 3, and as thick as it beyond.
        shape: voxels along each axis; as many as cover the data set's field of view if None. Not for raw studies.
        progress: whether a progress bar is shown.
        varied: whether scanner, protocol, voxel size, lesions and skull-stripping differ from study to study, as
            between hospitals; a quarter of the studies keep the plain phantom's. All contrasts of a study are on one
            grid, whose voxels are 0.6 to 3 mm wide and 1 to 6 mm thick; ``spacing`` multiplies that, up to 10 mm. Not
            for raw studies, and not with a shape.
        noise: without it the same studies without their noise, to measure detail with.
        dicom: raw studies as DICOM series, each a folder with one file a slice (PD and T2 as two echoes of one series):
            ``OUT/BraTS2021_00000/Ax_FLAIR/0001.dcm``, and ``OUT/series.json``, by which
            :func:`apt_monai.data.readers.read_studies` finds them. Their headers say that they are of a phantom.

    Returns:
        The study folders, in order.

    Raises:
        ValueError: an argument is not valid, or the folder holds something else.
        OSError: the folder cannot be written.
        ImportError: nilearn is not installed.

    Example::

        >>> write_phantom_dataset("phantom", "brats", subjects=1, seed=0, spacing=8.0, progress=False)[0].name
        'BraTS2021_00000'
    """
    if dataset not in _KINDS:
        raise ValueError(f"there is no phantom of the unknown dataset {dataset!r}: valid are {', '.join(_KINDS)}")
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}: valid is 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}: valid is 0 or above")
    kind = _KINDS[dataset]
    if dicom and kind.series is None:
        valid = ", ".join(name for name, each in _KINDS.items() if each.series is not None)
        raise ValueError(f"there is no DICOM phantom of {dataset}: valid are {valid}; or leave dicom out")
    write = _choose_writer(dataset, shape, varied)
    grid = kind.grid(spacing, shape)
    load_template(spacing if varied else grid.spacing)  # fails here, before anything is written
    folder = Path(out)
    record: dict[str, object] = {"phantom": dataset, "version": VERSION, "seed": seed, "spacing": spacing}
    record |= {"varied": True} if varied else {"shape": list(grid.shape)}
    if not noise:
        record["noise"] = False
    if dicom:
        record["dicom"] = True
    _claim_folder(folder, kind.marker, record)
    if dicom and kind.series:
        mapping = {f"*{description}": meaning for description, meaning in kind.series.items()}
        write_text(folder / SERIES_NAME, json.dumps(mapping, indent=2) + "\n")
    studies = [folder / kind.study.format(subject) for subject in range(subjects)]
    for subject, study in enumerate(tqdm(studies, desc="phantom", unit="subject", disable=not progress)):
        if study.exists():
            continue
        try:
            write(Request(study, seed, subject, spacing, shape, noise, dicom))
        except OSError as error:
            raise OSError(f"cannot write {study}: {error}; make room or name another folder") from error
    return studies
