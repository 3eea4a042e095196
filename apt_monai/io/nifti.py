"""NIfTI: one file becomes a volume with an affine in RAS+, or one clear error. What a file is, its content says."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from apt_monai.errors import StudyError

_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_NIFTI_1_HEADER, _NIFTI_2_HEADER = 348, 540  # bytes


def nifti_stem(name: str) -> str | None:
    """A file name without ``.nii`` or ``.nii.gz``, in capitals or not; None where it has no such ending.

    Example::

        >>> nifti_stem("case_t1.nii.gz"), nifti_stem("CASE_T1.NII"), nifti_stem("notes.txt")
        ('case_t1', 'CASE_T1', None)
    """
    stem = _ENDING.sub("", name)
    return stem if stem != name else None


def read_nifti(path: str | Path) -> tuple[np.ndarray, nib.Nifti1Image, str]:
    """Read one NIfTI-1 or NIfTI-2 file as a volume, whatever the file is called and compressed or not.

    The file is read once. What follows a complete gzip stream whose checksum is right is not looked at (some transfers
    append bytes).

    Returns:
        The intensities, ``(X, Y, Z)`` float32 with the header's scaling applied (further axes of one entry are left
        out); the image, for its header and its affine ``(4, 4)`` float64, voxels to mm, RAS+; and the SHA-256 of the
        file's bytes.

    Raises:
        StudyError: the file is missing, truncated, corrupt or no NIfTI; it is not 3D, not scalar, or has an axis of a
            single voxel; its header does not say which side is left.

    Example::

        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 1), np.int16), np.eye(4)), "a.nii.gz")
        >>> volume, image, _ = read_nifti(Path("a.nii.gz").rename("IMG0001"))
        >>> volume.shape, image.shape
        ((4, 5, 6), (4, 5, 6, 1))
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"{path}: no such file; correct the path or take the contrast out of the study")
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if content.startswith(_GZIP):
            content = _decompress(content)
        _check_kind(path, content)
        is_second = nib.Nifti2Header.may_contain_header(content[:_NIFTI_2_HEADER])
        image = (nib.Nifti2Image if is_second else nib.Nifti1Image).from_bytes(content)
    except StudyError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    shape = _checked_shape(path, image)
    _check_orientation(path, image)
    try:
        volume = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    except Exception as error:
        raise _unreadable(path, error) from error
    return volume, image, digest


def _checked_shape(path: Path, image: nib.Nifti1Image) -> tuple[int, ...]:
    """The shape of a scalar volume, without further axes of one entry."""
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.names is not None or dtype.kind == "c":
        raise StudyError(f"{path}: voxels are {dtype} (RGB or complex); one number a voxel is needed")
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3:
        raise StudyError(f"{path}: is {len(shape)}D, shape {shape}; a 3D volume is needed: save one frame as a file")
    if min(shape) < 2:
        raise StudyError(f"{path}: shape {shape} is a single slice; a volume of at least 2 voxels an axis is needed")
    return shape


def _check_orientation(path: Path, image: nib.Nifti1Image) -> None:
    """The one place that decides what a header must say of its space: a qform or sform code above 0.

    With both codes 0 the header gives voxel sizes alone (NIfTI's "method 1"), and programs differ in which side they
    then take for the left.
    """
    if int(image.header["qform_code"]) <= 0 and int(image.header["sform_code"]) <= 0:
        raise StudyError(
            f"{path}: left and right are not known, as the header's qform and sform codes are both 0; convert the "
            "DICOM files again (dcm2niix), or, where you know how it lies, say it in the header: nibabel's "
            "image.set_sform(affine, code=1), or fslorient -setsformcode 1 where its sform is right"
        )


def _decompress(packed: bytes) -> bytes:
    """The streams of a gzip file, each checked by its checksum, without what follows the last."""
    streams = []
    while packed.startswith(_GZIP):
        stream = zlib.decompressobj(wbits=31)  # gzip's header and checksum
        streams.append(stream.decompress(packed))
        if not stream.eof:
            raise EOFError("the compressed data ends too early")
        packed = stream.unused_data
    return b"".join(streams)


def _check_kind(path: Path, content: bytes) -> None:
    """Raise where a content as long as a header is something else; a shorter one is truncated."""
    if path.suffix.lower() in (".dcm", ".ima") or content[128:132] == b"DICM":
        raise StudyError(f"{path}: is one DICOM file, a slice; name the folder that holds its series, {path.parent}")
    magic_1, magic_2 = content[344:348], content[4:8]
    if magic_1 == b"ni1\0" or magic_2 == b"ni2\0":
        raise StudyError(f"{path}: is the header of a pair (.hdr and .img); convert the pair to one file, .nii")
    if len(content) >= _NIFTI_1_HEADER and magic_1 != b"n+1\0" and magic_2 != b"n+2\0":
        raise StudyError(
            f"{path}: is no NIfTI file, it begins with {content[:8]!r}; give a NIfTI file, or the folder of "
            "a DICOM series"
        )


def _unreadable(path: Path, error: Exception) -> StudyError:
    return StudyError(
        f"{path}: cannot be read as NIfTI, it is truncated or corrupt ({type(error).__name__}: {error}); "
        "copy or download the file again"
    )
