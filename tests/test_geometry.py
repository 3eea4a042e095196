"""Geometry: a header says where its voxels lie, and says nothing that it cannot."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apt_monai.geometry import set_space

VOLUME = np.zeros((200, 180, 30), np.uint8)
TURNED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 3.1) @ np.diag([0.9, 1.1, 2.5]), [-10.5, 20.25, 3.0]
)
LPS = nib.affines.from_matvec(np.diag([-1.0, -1.0, 1.0]), [0, 239, 0])


def written(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    nib.save(image, path)
    return nib.load(path)  # type: ignore[return-value]


@pytest.mark.parametrize(("affine", "kind"), [(LPS, nib.Nifti1Image), (TURNED, nib.Nifti2Image)])
def test_a_rigid_space_is_said_by_both_forms(tmp_path: Path, affine: np.ndarray, kind: type) -> None:
    image = kind(VOLUME, None)
    set_space(image, affine, code=2)
    image = written(tmp_path / "a.nii", image)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("base", "degrees"), [(LPS, 1), (TURNED, -30)])
def test_a_sheared_space_is_said_by_the_sform_alone(tmp_path: Path, base: np.ndarray, degrees: float) -> None:
    affine = base.copy()
    affine[:3, 2] += affine[:3, 1] * np.tan(np.radians(degrees))
    image = nib.Nifti1Image(VOLUME, None)
    set_space(image, affine)
    image = written(tmp_path / "a.nii.gz", image)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-5)
