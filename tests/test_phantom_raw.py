"""Raw phantoms: a head with a tumour in four series that lie differently, and raw studies as DICOM."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.ndimage import affine_transform

from apt_monai.contrasts import ADNI, BRATS, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.io import read_volume
from apt_monai.phantom import write_phantom_dataset
from apt_monai.phantom.brats_raw import brats_series
from apt_monai.phantom.grids import Grid, resample

SPACING = 6.0  # mm


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    return write_phantom_dataset(out, "brats-raw", subjects=1, seed=0, spacing=SPACING, progress=False)[0]


def load(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study / f"{study.name}_{name}.nii.gz")


def truth(study: Path, name: str) -> nib.Nifti1Image:
    return nib.load(study.parent / ".truth" / study.name / f"{name}.nii.gz")


def test_readers_see_four_contrasts_and_not_the_truth(study: Path) -> None:
    (found,) = read_studies(study.parent, BRATS, require_all=True)
    assert sorted(found) == ["flair", "subject", "t1", "t1ce", "t2"]
    assert all(b"PHANTOM" in bytes(load(study, name).header["descrip"]) for name in BRATS.names)


def test_the_four_series_are_on_grids_of_their_own_with_thick_slices_among_them() -> None:
    grids = {each.name: each.file_grid for each in brats_series(1.0, 0, 0)}
    edges = {name: np.linalg.norm(grid.affine[:3, :3], axis=0).round(6).tolist() for name, grid in grids.items()}
    assert edges == {
        "flair": [0.9375, 0.9375, 5],
        "t1": [4, 1, 1],
        "t1ce": [1, 1, 1],
        "t2": [0.9375, 0.9375, 4],
    }
    tilts = {
        name: np.abs(grid.affine[:3, :3] - np.diag(np.diag(grid.affine)[:3])).max() for name, grid in grids.items()
    }
    assert min(tilts["flair"], tilts["t2"]) > 0.02 and tilts["t1"] == tilts["t1ce"] == 0


def test_the_recorded_movements_take_each_brain_onto_that_of_t1gd(study: Path) -> None:
    record = json.loads((study.parent / ".truth" / study.name / "truth.json").read_text())
    fixed = truth(study, "brain_t1ce")
    brain = np.asarray(fixed.dataobj) > 0
    for name in BRATS.names:
        moving, movement = truth(study, f"brain_{name}"), np.array(record["to_t1ce"][name])
        voxels = np.linalg.inv(moving.affine) @ np.linalg.inv(movement) @ fixed.affine
        seen = affine_transform(np.asarray(moving.dataobj, np.float32), voxels, output_shape=brain.shape, order=1) > 0.5
        assert 2 * (seen & brain).sum() / (seen.sum() + brain.sum()) > 0.96
        assert np.array_equal(movement, np.eye(4)) == (name == "t1ce")


def test_the_segmentation_is_the_tumour_that_lights_up_in_t1gd_alone(study: Path) -> None:
    labels = np.asarray(truth(study, "seg").dataobj)
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    t1ce, t1 = load(study, "t1ce"), load(study, "t1")
    record = json.loads((study.parent / ".truth" / study.name / "truth.json").read_text())
    to_t1 = np.linalg.inv(np.array(record["to_t1ce"]["t1"]))
    seen = resample(np.asarray(t1.dataobj, np.float32), Grid(t1.shape, t1.affine), Grid(t1ce.shape, t1ce.affine), to_t1)
    other = (labels == 0) & (np.asarray(truth(study, "brain_t1ce").dataobj) > 0)
    rim = [np.median(volume[labels == 4]) / np.median(volume[other]) for volume in (np.asarray(t1ce.dataobj), seen)]
    assert rim[0] > 1.2 * rim[1]


def test_raw_scans_have_noise_in_air_and_a_head_around_the_brain(study: Path) -> None:
    for name in BRATS.names:
        scan, brain = np.asarray(load(study, name).dataobj).astype(float), truth(study, f"brain_{name}")
        inside = np.asarray(brain.dataobj) > 0
        assert 0 < scan[:2, :2].mean() < 0.15 * np.median(scan[inside])
        assert (scan[~inside] > 0.5 * np.median(scan[inside])).sum() > 0.2 * inside.sum()
        assert 1.0e6 < inside.sum() * abs(np.linalg.det(brain.affine)) < 2.1e6


@pytest.mark.parametrize("dataset", ["brats", "adni"])
def test_a_raw_study_in_dicom_reads_back_to_the_same_voxels_in_the_same_places(dataset: str, tmp_path: Path) -> None:
    contrasts = get_contrast_set(dataset)
    for form in ("nifti", "dicom"):
        arguments = {"subjects": 1, "seed": 2, "spacing": 9.0, "progress": False, "dicom": form == "dicom"}
        write_phantom_dataset(tmp_path / form, f"{dataset}-raw", **arguments)  # type: ignore[arg-type]
    (files,) = read_studies(tmp_path / "nifti", contrasts, require_all=True)
    (series,) = read_studies(tmp_path / "dicom", contrasts, True, tmp_path / "dicom" / "series.json")
    for name in contrasts.names:
        expected = nib.as_closest_canonical(nib.load(files[name]))
        found = nib.as_closest_canonical(nib.Nifti1Image(*read_volume(series[name])))
        assert np.array_equal(found.get_fdata(), expected.get_fdata())
        assert np.allclose(found.affine, expected.affine, atol=1e-4)
    truths = [sorted(p.name for p in (tmp_path / form / ".truth").rglob("*")) for form in ("nifti", "dicom")]
    assert truths[0] == truths[1]


def test_dicom_of_a_phantom_says_so_and_is_of_one_patient_and_one_visit(tmp_path: Path) -> None:
    def write(folder: str) -> list[Path]:
        write_phantom_dataset(tmp_path / folder, "adni-raw", 1, seed=0, spacing=10.0, progress=False, dicom=True)
        return sorted((tmp_path / folder / "000_S_0000").rglob("*.dcm"))

    files = write("one")
    slices = [pydicom.dcmread(file) for file in files]
    for header in slices:
        said = (header.PatientName, header.PatientID, header.StudyDescription, header.SeriesDescription)
        assert all("PHANTOM" in str(text) for text in (*said, header.Manufacturer, header.PatientComments))
    assert len({header.SOPInstanceUID for header in slices}) == len(slices)
    assert len({header.SeriesInstanceUID for header in slices}) == 2  # MPRAGE; PD and T2 in one
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
        assert len({header[tag].value for header in slices}) == 1
    assert {len(ADNI.names)} == {len({(h.SeriesInstanceUID, float(h.EchoTime)) for h in slices})}
    assert [file.read_bytes() for file in write("again")] == [file.read_bytes() for file in files]


def test_only_raw_studies_are_written_as_dicom(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no DICOM phantom of brats: valid are brats-raw, adni-raw"):
        write_phantom_dataset(tmp_path / "out", "brats", 1, seed=0, spacing=8.0, progress=False, dicom=True)
    assert not (tmp_path / "out").exists()
