"""What a volume of a study is: a NIfTI file, or a DICOM series or one echo of it; and its identity."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from apt_monai.errors import StudyError
from apt_monai.files import file_sha256
from apt_monai.io.dicom import DicomSeries, dicom_files, find_series, read_dicom_series
from apt_monai.io.nifti import read_nifti
from apt_monai.io.series_path import parse_series_path
from apt_monai.io.sidecar import is_synthetic, is_synthetic_name


@dataclass(frozen=True)
class Source:
    """A volume that has been read, once.

    Args:
        volume: the intensities, ``(X, Y, Z)`` float32 with the header's scaling applied.
        affine: ``(4, 4)`` float64, voxels to mm, RAS+.
        header: of a NIfTI file; None of a DICOM series.
        sha256: what its content is known by, see :func:`source_sha256`.
        synthetic: whether it was synthesised, as its name, its header or its series' description says.
    """

    volume: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None
    sha256: str
    synthetic: bool


def read_source(path: str | Path) -> Source:
    """Read one 3D scalar volume, NIfTI or DICOM, and check it.

    The whole file is read, so that a damaged ``.nii.gz`` is found by its checksum.

    Args:
        path: a NIfTI file, compressed or not, whatever it is called; or a DICOM series,
            ``FOLDER[::SERIES_UID][::echo=N]``: the folder of its files and, where that holds several series or echoes,
            which (see :func:`apt_monai.io.dicom.find_series`).

    Raises:
        StudyError: the file is missing, truncated or corrupt; it is not 3D, not scalar, or has an axis of a single
            voxel; its header does not say which side is left; it has NaN or infinite values; its affine has no inverse;
            or what :func:`apt_monai.io.dicom.read_dicom_series` refuses.

    Example::

        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), "case_t1.nii.gz")
        >>> source = read_source("case_t1.nii.gz")
        >>> source.volume.shape, source.sha256 == source_sha256("case_t1.nii.gz")
        ((4, 5, 6), True)
    """
    header = None
    if is_series(path):
        series = find_series(path)
        volume, affine = read_dicom_series(series)
        digest = _series_sha256(series)
        synthetic = is_synthetic_name(path) or is_synthetic_name(series.label.description)
    else:
        volume, image, digest = read_nifti(path)
        header, affine = image.header, np.asarray(image.affine, dtype=np.float64)
        synthetic = is_synthetic(path, header)
    finite = np.isfinite(volume)
    if not finite.all():
        raise StudyError(f"{path}: {np.count_nonzero(~finite)} voxels are NaN or infinite; mend or exclude the volume")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise StudyError(f"{path}: the affine {affine.tolist()} has no inverse; mend the header's sform or qform")
    return Source(volume, affine, header, digest, synthetic)


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The intensities and the affine of :func:`read_source`.

    Example::

        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), "case_t1.nii.gz")
        >>> read_volume("case_t1.nii.gz")[0].shape
        (4, 5, 6)
    """
    source = read_source(path)
    return source.volume, source.affine


def source_sha256(path: str | Path) -> str:
    """What a volume's content is known by, wherever it lies, as 64 hexadecimal digits.

    Of a NIfTI file the SHA-256 of its bytes; of a DICOM series that of its files' SHA-256s, sorted: their names do not
    count.

    Raises:
        StudyError: the path names no series or several.
        OSError: a file is missing or cannot be read.

    Example::

        >>> Path("a.nii").write_bytes(b"abc")
        3
        >>> source_sha256("a.nii")[:8]
        'ba7816bf'
    """
    if not is_series(path):
        return file_sha256(path)
    return _series_sha256(find_series(path))


def _series_sha256(series: DicomSeries) -> str:
    hashes = sorted(file_sha256(file) for file in series.files)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def source_stat(path: str | Path) -> list[str | int]:
    """What tells quickly, without reading it, that a volume's files are the same as before.

    Of a NIfTI file its absolute path, size in bytes and modification time in ns; of a DICOM series its absolute path,
    the number of DICOM files in its folder, and a hash of their names, sizes and times.

    Raises:
        StudyError: there is no such file or folder.

    Example::

        >>> Path("a.nii").write_bytes(b"abc")
        3
        >>> source_stat("a.nii")[1]
        3
    """
    path = os.path.abspath(path)
    if is_series(path):
        folder = parse_series_path(path)[0]
        if folder.is_dir():
            listing = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in dicom_files(folder)]
            return [path, len(listing), hashlib.sha256(json.dumps(listing).encode()).hexdigest()]
    elif os.path.isfile(path):
        status = os.stat(path)
        return [path, status.st_size, status.st_mtime_ns]
    raise StudyError(f"{path}: no such file or folder; correct the path or take the contrast out of the study")


def is_series(path: str | Path) -> bool:
    """Whether a path names a DICOM series, not a file.

    Example::

        >>> is_series("CD1::1.2.3"), is_series("a.nii.gz")
        (True, False)
    """
    return Path(path).is_dir() or ("::" in str(path) and not Path(path).is_file())
