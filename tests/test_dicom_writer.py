"""DICOM out: a derived series of the patient's own study that lies where the scanner saw it and says what it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from tiny_dicom import AXIAL, SAGITTAL, write_series

from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.io.dicom_writer import is_written, read_reference, write_dicom_series, write_parametric_map

SHAPE = (7, 6, 5)
PATIENT = {
    "patient": "P-17", "study": "1.2.826.0.1.9", "series": "1.2.826.0.1.9.1", "frame": "1.2.826.0.1.9.7",
    "date": "20260102",
}  # fmt: skip


def reference_series(folder: Path, orientation: tuple = AXIAL, **changes: object) -> str:
    volume = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    write_series(folder, volume, orientation=orientation, **{**PATIENT, **changes})
    return str(folder)


def synthetic_volume(path: Path, affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = np.random.default_rng(0).gamma(2.0, 300.0, shape).astype(np.float32)
    values[0] = 0
    nib.save(nib.Nifti1Image(values, affine), path)
    return values


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_it_is_read_back_to_the_same_voxels_at_the_same_places(tmp_path: Path, orientation: tuple) -> None:
    reference = read_reference(reference_series(tmp_path / "T1", orientation))
    values = synthetic_volume(tmp_path / "v.nii.gz", reference.affine)
    out = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    found, affine = read_volume(out)
    np.testing.assert_allclose(affine, reference.affine, atol=1e-6)
    np.testing.assert_allclose(found, values, atol=np.ptp(values) / 131070 * 1.01)
    files = sorted(out.iterdir())
    image = itk.imread([str(file) for file in files], pixel_type=itk.F, imageio=itk.GDCMImageIO.New())
    np.testing.assert_allclose(itk.array_from_image(image).T, found, rtol=1e-6)


def test_a_volume_stored_the_other_way_round_is_turned_not_resampled(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    values = synthetic_volume(tmp_path / "v.nii.gz", reference.affine)
    turned = nib.as_closest_canonical(nib.load(tmp_path / "v.nii.gz"))
    nib.save(turned, tmp_path / "ras.nii.gz")
    assert not np.allclose(turned.affine, reference.affine)
    out = write_dicom_series(tmp_path / "ras.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    np.testing.assert_allclose(read_volume(out)[0], values, atol=0.1)


def test_each_file_says_that_it_is_synthetic_and_whose_it_is(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    synthetic_volume(tmp_path / "v.nii.gz", reference.affine)
    out = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    sources = [header.SOPInstanceUID for header in reference.headers]
    for k, file in enumerate(sorted(out.iterdir())):
        made = pydicom.dcmread(file)
        assert made.ImageType[:2] == ["DERIVED", "SECONDARY"] and made.ContentQualification == "RESEARCH"
        assert made.SeriesDescription.startswith("SYNTHETIC T1Gd") and "not acquired" in made.DerivationDescription
        assert (made.PatientID, made.StudyInstanceUID) == (PATIENT["patient"], PATIENT["study"])
        assert made.FrameOfReferenceUID == PATIENT["frame"] and made.StudyDate == PATIENT["date"]
        assert made.SeriesInstanceUID != PATIENT["series"] and made.SOPInstanceUID not in sources
        assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == sources[k]  # the slice beside it


def test_the_same_volume_has_the_same_identifiers_and_another_one_others(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    synthetic_volume(tmp_path / "v.nii.gz", reference.affine)
    out = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    assert is_written(out, tmp_path / "v.nii.gz", reference)
    again = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "again", "T1Gd", "direct")
    assert [f.read_bytes() for f in sorted(out.iterdir())] == [f.read_bytes() for f in sorted(again.iterdir())]
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), reference.affine), tmp_path / "v.nii.gz")
    assert not is_written(out, tmp_path / "v.nii.gz", reference)


def test_a_volume_that_lies_elsewhere_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    away = reference.affine.copy()
    away[0, 3] += 500
    synthetic_volume(tmp_path / "v.nii.gz", away)
    with pytest.raises(StudyError, match=r"v\.nii\.gz: its centre .* outside the series"):
        write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    assert not list(tmp_path.glob("*out*"))


def test_another_grid_of_the_same_space_keeps_its_voxels(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    finer = reference.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    values = synthetic_volume(tmp_path / "v.nii.gz", finer, (14, 12, 10))
    out = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    found, affine = read_volume(out)
    np.testing.assert_allclose(affine, finer, atol=1e-6)
    np.testing.assert_allclose(found, values, atol=0.1)


@pytest.mark.parametrize("missing", ["frame", "study"])
def test_a_reference_that_does_not_say_where_it_belongs_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(StudyError, match=r"T1: has no \w+UID, so nothing can be written beside it"):
        read_reference(reference_series(tmp_path / "T1", **{missing: None}))


def test_the_uncertainty_is_a_map_of_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    reference = read_reference(reference_series(tmp_path / "T1"))
    values = synthetic_volume(tmp_path / "u.nii.gz", reference.affine)
    file = write_parametric_map(tmp_path / "u.nii.gz", reference, tmp_path / "u.dcm", "T1Gd", "direct")
    made = pydicom.dcmread(file)
    places = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in made.PerFrameFunctionalGroupsSequence]
    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(5, 6, 7)[np.argsort(places)]  # slices, rows, columns
    np.testing.assert_array_equal(frames.transpose(2, 1, 0), values)
    assert made.SeriesDescription == "SYNTHETIC T1Gd uncertainty (apt_monai)"
    assert made.StudyInstanceUID == PATIENT["study"] and made.FrameOfReferenceUID == PATIENT["frame"]
    assert is_written(file, tmp_path / "u.nii.gz", reference)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    reference = read_reference(reference_series(tmp_path / "T1"))
    synthetic_volume(tmp_path / "v.nii.gz", reference.affine)
    out = write_dicom_series(tmp_path / "v.nii.gz", reference, tmp_path / "out", "T1Gd", "direct")
    result = subprocess.run(["dciodvfy", str(out / "0001.dcm")], capture_output=True, text=True)
    assert not [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]
