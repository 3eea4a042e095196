"""DICOM: one series of a folder becomes a volume with an affine in RAS+.

Headers, series and character sets are pydicom's work; the pixels, with their decoders, that of ITK's GDCM.

Wherever a NIfTI file is named, a series may be: by its folder, if that holds one series with one echo, else with what
to take, in the form that the error message lists::

    /data/002_S_0295/MPRAGE                         the only series of the folder
    /data/002_S_0295/PD_T2::echo=2                  of its one series the echo with the second-shortest echo time
    /data/CD1::1.2.840.113619.2.1                   the series of that SeriesInstanceUID
    /data/CD1::1.2.840.113619.2.1::echo=1           likewise, its echo with the shortest echo time
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword

from apt_monai.errors import StudyError
from apt_monai.io.nifti import nifti_stem
from apt_monai.io.series_path import format_series_path, parse_series_path

logger = logging.getLogger(__name__)

SLICE_TOLERANCE = 0.05
"""How far a slice may be from its place on an even grid, as a share of the distance between two slices."""
_DIRECTION_TOLERANCE = 1e-3  # of direction cosines, which scanners round

_TAGS = [
    "SOPClassUID", "PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SeriesDescription", "EchoTime",
    "EchoNumbers", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "PhotometricInterpretation",
]  # fmt: skip


@dataclass(frozen=True)
class SeriesLabel:
    """What a series' headers call it. Each is empty where the files do not say.

    Args:
        description: SeriesDescription, decoded by the file's character set.
        patient: PatientID.
        study: StudyInstanceUID.
        date: StudyDate, YYYYMMDD.
    """

    description: str
    patient: str
    study: str
    date: str


@dataclass(frozen=True)
class DicomSeries:
    """One echo of one series in a folder.

    Args:
        folder: the folder.
        uid: its SeriesInstanceUID, empty where the files have none.
        label: what its headers call it.
        echo: 1 for the shortest echo time of the series, 2 for the next.
        echoes: how many the series has.
        echo_time: in ms; None where the files do not say.
        files: its files, sorted by name.
    """

    folder: Path
    uid: str
    label: SeriesLabel
    echo: int
    echoes: int
    echo_time: float | None
    files: tuple[Path, ...]

    @property
    def path(self) -> str:
        """What names this echo of this series, and no other."""
        return format_series_path(self.folder, self.uid, self.echo if self.echoes > 1 else None)


def dicom_files(folder: str | Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name: those called ``.dcm`` or ``.ima``, or with DICOM's mark.

    Hidden files, files of folders below it and ``DICOMDIR`` (a table of contents) are left out.

    Example::

        >>> Path("a.dcm").touch()
        >>> Path("notes.txt").touch()
        >>> [file.name for file in dicom_files(".")]
        ['a.dcm']
    """
    return [file for file in sorted(Path(folder).iterdir()) if _is_dicom(file)]


def list_series(folder: str | Path) -> list[DicomSeries]:
    """The series of a folder's DICOM files, each echo by itself, sorted by UID and echo.

    A dual-echo acquisition (PD and T2 of one fast spin echo) is one series with two echo times; they are told apart by
    EchoTime (to 0.1 ms), and by EchoNumbers where that is the same.

    Objects that are no images (a presentation state, a report) are left out, and the log says so. Files without a
    SeriesInstanceUID are one series.

    Raises:
        StudyError: a file is truncated or corrupt.

    Example::

        >>> list_series(".")
        []
    """
    folder = Path(folder)
    by_series: dict[str, dict[tuple[float, int], list[Path]]] = {}
    labels: dict[str, SeriesLabel] = {}
    no_images = []
    for file in dicom_files(folder):
        header = _header(file)
        if not _is_image(header):
            no_images.append(file.name)
            continue
        uid = _text(header, "SeriesInstanceUID")
        echo = (round(_number(file, header, "EchoTime"), 1), int(_number(file, header, "EchoNumbers")))
        by_series.setdefault(uid, {}).setdefault(echo, []).append(file)
        labels.setdefault(uid, _label(header))
    if no_images:
        _say_left_out(folder, tuple(no_images))
    return [
        DicomSeries(folder, uid, labels[uid], i, len(echoes), key[0] or None, tuple(echoes[key]))
        for uid, echoes in sorted(by_series.items())
        for i, key in enumerate(sorted(echoes), start=1)
    ]


def folder_label(folder: str | Path) -> SeriesLabel | None:
    """What the first image of a folder's DICOM files says of its series; None where no file is an image.

    Raises:
        StudyError: a file is truncated or corrupt.

    Example::

        >>> folder_label(".") is None
        True
    """
    headers = (_header(file) for file in dicom_files(folder))
    return next((_label(header) for header in headers if _is_image(header)), None)


def find_series(path: str | Path) -> DicomSeries:
    """The one series, and its one echo, that a path names: ``FOLDER[::SERIES_UID][::echo=N]``.

    Raises:
        StudyError: the folder is missing or holds no DICOM file, a file of it cannot be read, or the path names none or
            several of its series and echoes: the message then lists them, in the form to use.
    """
    folder, uid, echo = parse_series_path(path)
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such file or folder; correct the path or take the contrast out of the study")
    series = list_series(folder)
    if not series:
        raise StudyError(f"{folder}: holds no DICOM file of an image; name a folder of one series, or a NIfTI file")
    named = [s for s in series if uid in (None, s.uid) and echo in (None, s.echo)]
    if len(named) != 1:
        listing = "; ".join(
            f"{s.path} ({s.label.description or 'no description'}, "
            + (f"echo time {s.echo_time:g} ms, " if s.echo_time else "")
            + f"{len(s.files)} files)"
            for s in series
        )
        raise StudyError(
            f"{path}: names {len(named) or 'none'} of the DICOM series and echoes in the folder, one is needed; "
            f"give one of: {listing}"
        )
    return named[0]


def read_dicom_series(path: str | Path | DicomSeries) -> tuple[np.ndarray, np.ndarray]:
    """Read one DICOM series as a volume: one file a slice, ordered by position, whatever the files are called.

    Args:
        path: ``FOLDER[::SERIES_UID][::echo=N]``, see the module's text; or the series, where it was found already.

    Returns:
        The intensities, ``(columns, rows, slices)`` float32 with the rescale slope and intercept applied, and the
        affine ``(4, 4)`` float64, voxels to mm, RAS+ (DICOM's own space is LPS+). A tilted gantry makes it sheared.

    Raises:
        StudyError: the path names no series or several (see :func:`find_series`); a file is truncated or corrupt; the
            slices are in colour, in one multi-frame file, without a position, not parallel, of different shapes or
            pixel sizes, not evenly spaced (one is missing) or two at one place; there is only one slice.
    """
    files, affine, _ = series_grid(path if isinstance(path, DicomSeries) else find_series(path))
    volume = np.stack([_pixels(file) for file in files], axis=-1)  # columns×rows×slices
    return volume, affine


def series_grid(series: DicomSeries) -> tuple[list[Path], np.ndarray, tuple[int, int, int]]:
    """Where a series lies, without its pixels.

    Returns:
        Its files in the order of their slices, the affine ``(4, 4)``, voxels to mm, RAS+, and the shape
        ``(columns, rows, slices)``.

    Raises:
        StudyError: the slices are no volume, see :func:`read_dicom_series`.
    """
    headers = {file: _header(file) for file in series.files}
    for file, header in headers.items():
        _check_slice(file, header)
    files, affine = _grid(series, headers)
    columns, rows = (int(_number(files[0], headers[files[0]], tag)) for tag in ("Columns", "Rows"))
    return files, affine, (columns, rows, len(files))


def _is_dicom(file: Path) -> bool:
    if file.name.startswith(".") or file.name == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    if nifti_stem(file.name) is not None:
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _header(file: Path) -> pydicom.Dataset:
    """The tags that this module uses, those that the file has."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a value of unusual length, an unknown character set
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            for tag in _TAGS:
                _text(header, tag)  # decoded here, once
    except Exception as error:
        raise _unreadable(file) from error
    if not _text(header, "SOPClassUID") or (_is_image_class(header) and not _is_image(header)):
        raise _unreadable(file)
    return header


def _is_image(header: pydicom.Dataset) -> bool:
    return bool(_text(header, "Rows") and _text(header, "Columns"))


def _is_image_class(header: pydicom.Dataset) -> bool:
    """Whether the object's class is one of images, so that without rows and columns it is cut off."""
    return "Image Storage" in pydicom.uid.UID(_text(header, "SOPClassUID")).name


@cache  # once a folder, however often it is listed
def _say_left_out(folder: Path, names: tuple[str, ...]) -> None:
    logger.info("%s: left out, as these DICOM objects are no images: %s", folder, ", ".join(names))


def _label(header: pydicom.Dataset) -> SeriesLabel:
    tags = ("SeriesDescription", "PatientID", "StudyInstanceUID", "StudyDate")
    return SeriesLabel(*(_text(header, tag) for tag in tags))


def _text(header: pydicom.Dataset, tag: str) -> str:
    try:
        value = header.get(tag)
    except ValueError:  # a number that is none; what needs it says so
        return ""
    return "" if value is None else str(value).strip("\0 ")


def _unreadable(file: Path) -> StudyError:
    return StudyError(
        f"{file}: cannot be read as a DICOM image, it is truncated or corrupt; "
        "copy or download the file again, or move it elsewhere"
    )


def _tag_name(tag: str) -> str:
    number = tag_for_keyword(tag) or 0
    return f"({number >> 16:04x},{number & 0xFFFF:04x})"


def _number(file: Path, header: pydicom.Dataset, tag: str) -> float:
    numbers = _numbers(file, header, tag)
    return float(numbers[0]) if len(numbers) else 0.0


def _numbers(file: Path, header: pydicom.Dataset, tag: str) -> np.ndarray:
    """The numbers of a tag, none where it is missing or empty."""
    try:
        value: Any = header.get(tag)
        if value is None or value == "":
            return np.array([])
        return np.array([float(number) for number in (value if isinstance(value, Sequence) else [value])])
    except (TypeError, ValueError) as error:
        raise StudyError(f"{file}: DICOM tag {_tag_name(tag)} is no number ({error})") from error


def _check_slice(file: Path, header: pydicom.Dataset) -> None:
    photometric = _text(header, "PhotometricInterpretation") or "MONOCHROME2"
    if not photometric.startswith("MONOCHROME"):
        raise StudyError(
            f"{file}: is in colour ({photometric}), a screenshot or a map; one number a voxel is needed: "
            "name another series"
        )
    frames = int(_number(file, header, "NumberOfFrames"))
    if frames > 1:
        raise StudyError(
            f"{file}: holds {frames} frames (enhanced DICOM); one file a slice is needed: "
            "convert the series to NIfTI (dcm2niix) and name that file"
        )
    for tag, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        if len(_numbers(file, header, tag)) != count:
            raise StudyError(
                f"{file}: DICOM tag {_tag_name(tag)} is {_text(header, tag) or 'missing'}, so its place in space "
                f"is not known ({count} numbers are needed); name another series, or convert it to NIfTI (dcm2niix)"
            )


def _grid(series: DicomSeries, headers: dict[Path, pydicom.Dataset]) -> tuple[list[Path], np.ndarray]:
    """The files in the order of their slices, and the affine, RAS+; raises where they are no even stack."""
    first = series.files[0]
    for file in series.files[1:]:
        for name, tag, tolerance in (
            ("orientation", "ImageOrientationPatient", _DIRECTION_TOLERANCE),
            ("pixel size", "PixelSpacing", _DIRECTION_TOLERANCE),
            ("rows", "Rows", 0.0),
            ("columns", "Columns", 0.0),
        ):
            values, expected = (_numbers(f, headers[f], tag) for f in (file, first))
            if np.abs(values - expected).max() > tolerance:
                raise StudyError(
                    f"{file}: its {name} {values.tolist()} differs from {expected.tolist()} of {first.name}; the "
                    "slices of a volume are alike and parallel: name another series (this one may be a localiser)"
                )
    if len(series.files) < 2:
        raise StudyError(f"{first}: is the only slice of its series; a volume of at least 2 slices is needed")

    orientation = _numbers(first, headers[first], "ImageOrientationPatient")
    along_row, along_column = orientation[:3], orientation[3:]  # unit vectors, LPS+
    normal = np.cross(along_row, along_column)
    place = {file: _numbers(file, headers[file], "ImagePositionPatient") for file in series.files}
    files = sorted(series.files, key=lambda file: float(place[file] @ normal))
    positions = np.stack([place[file] for file in files])  # slices×3, mm
    step = (positions[-1] - positions[0]) / (len(files) - 1)
    _check_even(files, positions, normal, step)

    between_rows, between_columns = _numbers(first, headers[first], "PixelSpacing")
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * between_columns, along_column * between_rows, step, positions[0]], axis=1)
    affine[:2] = 0 - affine[:2]  # LPS+ to RAS+, without -0
    return files, affine


def _check_even(files: Sequence[Path], positions: np.ndarray, normal: np.ndarray, step: np.ndarray) -> None:
    gaps = np.diff(positions @ normal)  # mm
    tightest, widest = int(gaps.argmin()), int(gaps.argmax())
    if gaps[tightest] < SLICE_TOLERANCE * gaps[widest]:
        raise StudyError(
            f"{files[tightest]} and {files[tightest + 1].name}: are slices at the same place; a volume has one file a "
            "slice: name a series without repetitions, or move the surplus files elsewhere"
        )
    even = positions[0] + np.arange(len(files))[:, None] * step
    if np.linalg.norm(positions - even, axis=1).max() > SLICE_TOLERANCE * np.linalg.norm(step):
        raise StudyError(
            f"{files[widest]}: the slices of its series are not evenly spaced: {gaps[widest]:.4g} mm to the next one, "
            f"{files[widest + 1].name}, and {gaps[tightest]:.4g} mm elsewhere; a slice may be missing: "
            "copy or download the series again"
        )


def _pixels(file: Path) -> np.ndarray:
    """One slice's intensities, ``(columns, rows)`` float32."""
    try:
        image = itk.imread(str(file), pixel_type=itk.F, imageio=itk.GDCMImageIO.New())
    except RuntimeError as error:
        raise _unreadable(file) from error
    return np.squeeze(itk.array_from_image(image), axis=0).T  # from 1×rows×columns
