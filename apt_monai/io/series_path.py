"""The path of a DICOM series: its folder and, where that is not enough, which series and which echo."""

from __future__ import annotations

import re
from pathlib import Path

from apt_monai.errors import StudyError

_NO_UID = "no-uid"


def parse_series_path(path: str | Path) -> tuple[Path, str | None, int | None]:
    """The folder, SeriesInstanceUID and echo that a path names; None for what it does not say.

    The UID is empty for the files of a folder that have none (``FOLDER::no-uid``).

    Raises:
        StudyError: the path is not ``FOLDER[::UID][::echo=N]``.

    Example::

        >>> parse_series_path("CD1::1.2.3::echo=2")
        (PosixPath('CD1'), '1.2.3', 2)
        >>> parse_series_path("CD1")
        (PosixPath('CD1'), None, None)
    """
    match = re.fullmatch(rf"(.+?)(?:::([\d.]+|{_NO_UID}))?(?:::echo=([1-9]\d*))?", str(path))
    if match is None or "::" in match[1]:
        raise StudyError(f"{path}: names no DICOM series; the form is FOLDER, FOLDER::SERIES_UID or FOLDER::echo=2")
    uid = "" if match[2] == _NO_UID else match[2]
    return Path(match[1]), uid, int(match[3]) if match[3] else None


def format_series_path(folder: str | Path, uid: str | None = None, echo: int | None = None) -> str:
    """What :func:`parse_series_path` takes apart.

    Example::

        >>> format_series_path("CD1", "1.2.3", echo=2), format_series_path("CD1", ""), format_series_path("CD1")
        ('CD1::1.2.3::echo=2', 'CD1::no-uid', 'CD1')
    """
    series = "" if uid is None else f"::{uid or _NO_UID}"
    return f"{folder}{series}" + (f"::echo={echo}" if echo else "")
