"""DICOM: one series of a folder becomes a volume with an affine in RAS+, read by ITK's GDCM.

Wherever a NIfTI file is named, a series may be: by its folder, if that holds one series with one echo, else with what
to take, in the form that the error message lists::

    /data/002_S_0295/MPRAGE                         the only series of the folder
    /data/002_S_0295/PD_T2::echo=2                  of its one series the echo with the second-shortest echo time
    /data/CD1::1.2.840.113619.2.1                   the series of that SeriesInstanceUID
    /data/CD1::1.2.840.113619.2.1::echo=1           likewise, its echo with the shortest echo time
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import itk
import numpy as np

from apt_monai.errors import StudyError

SLICE_TOLERANCE = 0.05
"""How far a slice may be from its place on an even grid, as a share of the distance between two slices."""
_DIRECTION_TOLERANCE = 1e-3  # of direction cosines, which scanners round

_SERIES_UID, _DESCRIPTION = "0020|000e", "0008|103e"
_ECHO_TIME, _ECHO_NUMBER = "0018|0081", "0018|0086"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_ROWS, _COLUMNS, _FRAMES, _PHOTOMETRIC = "0028|0010", "0028|0011", "0028|0008", "0028|0004"


@dataclass(frozen=True)
class DicomSeries:
    """One echo of one series in a folder.

    Args:
        folder: the folder.
        uid: its SeriesInstanceUID.
        description: its SeriesDescription, empty where there is none.
        echo: 1 for the shortest echo time of the series, 2 for the next.
        echoes: how many the series has.
        echo_time: in ms; None where the files do not say.
        files: its files, sorted by name.
    """

    folder: Path
    uid: str
    description: str
    echo: int
    echoes: int
    echo_time: float | None
    files: tuple[Path, ...]

    @property
    def path(self) -> str:
        """What names this echo of this series, and no other."""
        return f"{self.folder}::{self.uid}" + (f"::echo={self.echo}" if self.echoes > 1 else "")


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

    Raises:
        StudyError: a file is truncated or corrupt, or no image.

    Example::

        >>> list_series(".")
        []
    """
    folder = Path(folder)
    by_series: dict[str, dict[tuple[float, int], list[Path]]] = {}
    descriptions: dict[str, str] = {}
    for file in dicom_files(folder):
        header = _header(file)
        uid = header.get(_SERIES_UID, "")
        echo = (round(_number(file, header, _ECHO_TIME), 1), int(_number(file, header, _ECHO_NUMBER)))
        by_series.setdefault(uid, {}).setdefault(echo, []).append(file)
        descriptions.setdefault(uid, header.get(_DESCRIPTION, ""))
    return [
        DicomSeries(folder, uid, descriptions[uid], i, len(echoes), key[0] or None, tuple(echoes[key]))
        for uid, echoes in sorted(by_series.items())
        for i, key in enumerate(sorted(echoes), start=1)
    ]


def series_description(file: str | Path) -> str:
    """The SeriesDescription of one DICOM file, empty where it has none.

    Raises:
        StudyError: the file is truncated or corrupt, or no image.
    """
    return _header(Path(file)).get(_DESCRIPTION, "")


def split_series_path(path: str | Path) -> tuple[Path, str | None, int | None]:
    """The folder, series UID and echo that a path names; None for what it does not say.

    Raises:
        StudyError: the path is not ``FOLDER[::UID][::echo=N]``.

    Example::

        >>> split_series_path("CD1::1.2.3::echo=2")
        (PosixPath('CD1'), '1.2.3', 2)
    """
    match = re.fullmatch(r"(.+?)(?:::([\d.]+))?(?:::echo=([1-9]\d*))?", str(path))
    if match is None or "::" in match[1]:
        raise StudyError(f"{path}: names no DICOM series; the form is FOLDER, FOLDER::SERIES_UID or FOLDER::echo=2")
    return Path(match[1]), match[2], int(match[3]) if match[3] else None


def find_series(path: str | Path) -> DicomSeries:
    """The one series, and its one echo, that a path names: ``FOLDER[::SERIES_UID][::echo=N]``.

    Raises:
        StudyError: the folder is missing or holds no DICOM file, a file of it cannot be read, or the path names none or
            several of its series and echoes: the message then lists them, in the form to use.
    """
    folder, uid, echo = split_series_path(path)
    if not folder.is_dir():
        raise StudyError(f"{folder}: no such file or folder; correct the path or take the contrast out of the study")
    series = list_series(folder)
    if not series:
        raise StudyError(f"{folder}: holds no DICOM file; name a folder of one series, or a NIfTI file")
    named = [s for s in series if uid in (None, s.uid) and echo in (None, s.echo)]
    if len(named) != 1:
        listing = "; ".join(
            f"{s.path} ({s.description or 'no description'}, "
            + (f"echo time {s.echo_time:g} ms, " if s.echo_time else "")
            + f"{len(s.files)} files)"
            for s in series
        )
        raise StudyError(
            f"{path}: names {len(named) or 'none'} of the DICOM series and echoes in the folder, one is needed; "
            f"give one of: {listing}"
        )
    return named[0]


def read_dicom_series(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one DICOM series as a volume: one file a slice, ordered by position, whatever the files are called.

    Args:
        path: ``FOLDER[::SERIES_UID][::echo=N]``, see the module's text.

    Returns:
        The intensities, ``(columns, rows, slices)`` float32 with the rescale slope and intercept applied, and the
        affine ``(4, 4)`` float64, voxels to mm, RAS+ (DICOM's own space is LPS+). A tilted gantry makes it sheared.

    Raises:
        StudyError: the path names no series or several (see :func:`find_series`); a file is truncated or corrupt; the
            slices are in colour, in one multi-frame file, without a position, not parallel, of different shapes or
            pixel sizes, not evenly spaced (one is missing) or two at one place; there is only one slice.
    """
    series = find_series(path)
    headers = {file: _header(file) for file in series.files}
    for file, header in headers.items():
        _check_slice(file, header)
    files, affine = _grid(series, headers)
    volume = np.stack([_pixels(file) for file in files], axis=-1)  # columns×rows×slices
    return volume, affine


def _is_dicom(file: Path) -> bool:
    if file.name.startswith(".") or file.name == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    if file.name.endswith((".nii", ".nii.gz")):
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _header(file: Path) -> dict[str, str]:
    """The tags that this module uses, those that the file has, as text."""
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(file) from error
    tags = reader.GetMetaDataDictionary()
    used = (
        _SERIES_UID, _DESCRIPTION, _ECHO_TIME, _ECHO_NUMBER, _POSITION, _ORIENTATION, _PIXEL_SPACING, _ROWS, _COLUMNS,
        _FRAMES, _PHOTOMETRIC,
    )  # fmt: skip
    return {tag: text for tag in used if tags.HasKey(tag) and (text := tags[tag].strip("\0 "))}


def _unreadable(file: Path) -> StudyError:
    return StudyError(
        f"{file}: cannot be read as a DICOM image, it is truncated, corrupt or no image (a report); "
        "copy or download the file again, or move it elsewhere"
    )


def _number(file: Path, header: dict[str, str], tag: str) -> float:
    return _numbers(file, header, tag)[0] if tag in header else 0.0


def _numbers(file: Path, header: dict[str, str], tag: str) -> np.ndarray:
    try:
        return np.array([float(number) for number in header[tag].split("\\")])
    except ValueError as error:
        raise StudyError(f"{file}: DICOM tag ({tag.replace('|', ',')}) is {header[tag]!r}, no number") from error


def _check_slice(file: Path, header: dict[str, str]) -> None:
    if not header.get(_PHOTOMETRIC, "MONOCHROME").startswith("MONOCHROME"):
        raise StudyError(
            f"{file}: is in colour ({header[_PHOTOMETRIC]}), a screenshot or a map; one number a voxel is needed: "
            "name another series"
        )
    if int(header.get(_FRAMES, "1")) > 1:
        raise StudyError(
            f"{file}: holds {header[_FRAMES]} frames (enhanced DICOM); one file a slice is needed: "
            "convert the series to NIfTI (dcm2niix) and name that file"
        )
    for tag, count in ((_POSITION, 3), (_ORIENTATION, 6), (_PIXEL_SPACING, 2)):
        if tag not in header or len(_numbers(file, header, tag)) != count:
            raise StudyError(
                f"{file}: DICOM tag ({tag.replace('|', ',')}) is {header.get(tag, 'missing')}, so its place in space "
                f"is not known ({count} numbers are needed); name another series, or convert it to NIfTI (dcm2niix)"
            )


def _grid(series: DicomSeries, headers: dict[Path, dict[str, str]]) -> tuple[list[Path], np.ndarray]:
    """The files in the order of their slices, and the affine, RAS+; raises where they are no even stack."""
    first = series.files[0]
    for file in series.files[1:]:
        for name, tag, tolerance in (
            ("orientation", _ORIENTATION, _DIRECTION_TOLERANCE),
            ("pixel size", _PIXEL_SPACING, _DIRECTION_TOLERANCE),
            ("rows", _ROWS, 0.0),
            ("columns", _COLUMNS, 0.0),
        ):
            values, expected = (_numbers(f, headers[f], tag) for f in (file, first))
            if np.abs(values - expected).max() > tolerance:
                raise StudyError(
                    f"{file}: its {name} {values.tolist()} differs from {expected.tolist()} of {first.name}; the "
                    "slices of a volume are alike and parallel: name another series (this one may be a localiser)"
                )
    if len(series.files) < 2:
        raise StudyError(f"{first}: is the only slice of its series; a volume of at least 2 slices is needed")

    orientation = _numbers(first, headers[first], _ORIENTATION)
    along_row, along_column = orientation[:3], orientation[3:]  # unit vectors, LPS+
    normal = np.cross(along_row, along_column)
    place = {file: _numbers(file, headers[file], _POSITION) for file in series.files}
    files = sorted(series.files, key=lambda file: float(place[file] @ normal))
    positions = np.stack([place[file] for file in files])  # slices×3, mm
    step = (positions[-1] - positions[0]) / (len(files) - 1)
    _check_even(files, positions, normal, step)

    between_rows, between_columns = _numbers(first, headers[first], _PIXEL_SPACING)
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
