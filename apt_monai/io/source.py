"""What a volume of a study is: a NIfTI file, or a DICOM series or one echo of it; and its identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apt_monai.errors import StudyError
from apt_monai.io.dicom import read_dicom_series
from apt_monai.io.nifti import read_nifti


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3D scalar volume, NIfTI or DICOM, and check it.

    The whole file is read, so that a damaged ``.nii.gz`` is found by its checksum.

    Args:
        path: a NIfTI file, ``.nii`` or ``.nii.gz``, or a DICOM series, ``FOLDER[::SERIES_UID][::echo=N]``: the folder
            of its files and, where that holds several series or echoes, which (see
            :func:`apt_monai.io.dicom.find_series`).

    Returns:
        The intensities, ``(X, Y, Z)`` float32 with the header's scaling applied, and the affine ``(4, 4)`` float64,
        voxels to mm, RAS+.

    Raises:
        StudyError: the file is missing, truncated or corrupt; it is not 3D, not scalar, or has an axis of a single
            voxel; it has NaN or infinite values; its affine has no inverse; or what
            :func:`apt_monai.io.dicom.read_dicom_series` refuses.

    Example::

        >>> import nibabel as nib
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), "case_t1.nii.gz")
        >>> read_volume("case_t1.nii.gz")[0].shape
        (4, 5, 6)
    """
    if Path(path).is_dir() or ("::" in str(path) and not Path(path).is_file()):
        volume, affine = read_dicom_series(path)
    else:
        volume, affine = read_nifti(Path(path))
    finite = np.isfinite(volume)
    if not finite.all():
        raise StudyError(f"{path}: {np.count_nonzero(~finite)} voxels are NaN or infinite; mend or exclude the volume")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise StudyError(f"{path}: the affine {affine.tolist()} has no inverse; mend the header's sform or qform")
    return volume, affine
