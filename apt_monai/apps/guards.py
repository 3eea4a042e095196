"""What a server accepts: names by a pattern, files below one folder, and headers before pixels."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from apt_monai.geometry import same_grid
from apt_monai.io.dicom import find_series

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BLOCK = 1 << 20  # bytes
_NAMING = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128, no '..'"


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP: 404 what is not there, 413 what is too large, 415 what is no image, 422 what makes no sense.
        message: what was found, what is valid, what to do.

    Example::

        >>> Refused(404, "there is no study 'a'").status
        404
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that it can be sent from process to process
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


def is_plain(name: str) -> bool:
    """Whether a study or an image may be called so.

    Example::

        >>> is_plain("BraTS2021_00000_t1"), is_plain("../evil"), is_plain("Anna Muster")
        (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name


def checked_name(what: str, name: Any) -> str:
    """A name of a request, as it came.

    Raises:
        Refused: 422, it is no plain name.

    Example::

        >>> checked_name("image", "case_t1")
        'case_t1'
    """
    if not isinstance(name, str) or not is_plain(name):
        raise Refused(422, f"{what} is {str(name)[:60]!r}: valid are {_NAMING}")
    return name


def link_outside(folder: Path, root: Path) -> Path | None:
    """The first link in a folder, or the folder itself, that leads out of the root; None where there is none.

    Args:
        folder: a folder below the root.
        root: a real path.

    Example::

        >>> Path("studies/case").mkdir(parents=True)
        >>> Path("studies/case/away").symlink_to("/")
        >>> link_outside(Path("studies/case"), Path("studies").resolve()).name
        'away'
    """
    if not folder.resolve().is_relative_to(root):
        return folder
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
    return None


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, as its first bytes say."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def check_header(path: str | Path, max_voxels: int, name: str | None = None) -> tuple[tuple[int, ...], np.ndarray]:
    """What a NIfTI file's header says, and that the file unpacks to no more than that; no voxel is kept.

    Args:
        path: the file.
        max_voxels: so many are accepted.
        name: what messages call the file; None: its own name.

    Returns:
        The shape and the affine ``(4, 4)``, voxels to mm, RAS+.

    Raises:
        Refused: 404 no such file; 413 too many voxels, or more bytes than the header says; 415 no NIfTI file; 422 not
            3D, or an affine without an inverse.

    Example::

        >>> nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), "a.nii.gz")
        >>> check_header("a.nii.gz", 1000)[0]
        (4, 5, 6)
    """
    path = Path(path)
    name = name or path.name
    if not path.is_file():
        raise Refused(404, f"{name}: there is no such file")
    try:
        image: Any = nib.load(path)
        shape, affine, dtype = image.shape, image.affine, image.get_data_dtype()
        offset = int(image.header["vox_offset"])
    except Exception as error:
        raise Refused(415, f"{name}: is no NIfTI file that can be read ({type(error).__name__})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise Refused(415, f"{name}: is no single NIfTI file, but {type(image).__name__}")
    voxels = math.prod(int(n) for n in shape)
    if voxels > max_voxels:
        raise Refused(413, f"{name}: has {voxels} voxels, {tuple(shape)}; at most {max_voxels} are accepted")
    if len(shape) < 3 or set(shape[3:]) - {1} or min(shape[:3]) < 2:
        raise Refused(422, f"{name}: has the shape {tuple(shape)}; a 3D volume is needed")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise Refused(422, f"{name}: its affine has no inverse; mend the header's sform or qform")
    _check_unpacked(path, name, max(offset, 0) + voxels * dtype.itemsize)
    return tuple(shape[:3]), affine


def _check_unpacked(path: Path, name: str, expected: int) -> None:
    """Raise where a gzip file holds clearly more than its header says; one that is cut short is read, and refused."""
    if not is_gzip(path):
        return
    unpacked = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(_BLOCK):
                unpacked += len(block)
                if unpacked > expected + _BLOCK:
                    raise Refused(413, f"{name}: unpacks to more than the {expected} bytes that its header says")
    except (OSError, EOFError, zlib.error):
        return  # damaged, or followed by other bytes: reading it says so


def check_study(
    study: Mapping[str, str], keys: Iterable[str], root: Path, max_voxels: int, one_grid: bool = True
) -> None:
    """Look at the headers of a study's files before any voxel is read.

    Args:
        study: by contrast (and ``"mask"``, ``"seg"``), a NIfTI file or a DICOM series.
        keys: which of its entries are files.
        root: a real path, which they must lie below.
        max_voxels: so many a volume are accepted.
        one_grid: whether all must be on one grid.

    Raises:
        Refused: a file outside the root (422), or what :func:`check_header` refuses; 422 for other grids.

    Example::

        >>> nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), "a_t1.nii.gz")
        >>> check_study({"t1": "a_t1.nii.gz"}, ["t1", "t2"], Path.cwd().resolve(), 1000)
    """
    first: tuple[str, tuple[int, ...], np.ndarray] | None = None
    for key in keys:
        if key not in study:
            continue
        path = study[key]
        file = Path(path.split("::")[0])
        if not file.resolve().is_relative_to(root):
            raise Refused(422, f"{key}: lies outside the folder of studies, behind a link; copy it into the study")
        if file.is_dir():
            _check_series(path, key, max_voxels)
            continue
        shape, affine = check_header(file, max_voxels)
        if first is None:
            first = (file.name, shape, affine)
        elif one_grid and not same_grid(first[1], first[2], shape, affine):
            raise Refused(
                422,
                f"{file.name} {shape} and {first[0]} {first[1]} are on different grids, by their shapes or affines; "
                "all files of a study must be on one grid: register and resample them first",
            )


def _check_series(path: str, key: str, max_voxels: int) -> None:
    files = find_series(path).files
    header = pydicom.dcmread(files[0], stop_before_pixels=True, force=True, specific_tags=["Rows", "Columns"])
    voxels = len(files) * int(header.get("Rows") or 0) * int(header.get("Columns") or 0)
    if voxels > max_voxels:
        raise Refused(413, f"{key}: its DICOM series has {voxels} voxels; at most {max_voxels} are accepted")
