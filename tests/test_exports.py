"""A study's synthetic volumes as DICOM and as BIDS: beside the acquired, never among them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from tiny_bundle import environment, settings_of, write_untrained_model
from tiny_dicom import write_series

from apt_monai.cli import main
from apt_monai.contrasts import ADNI, BRATS
from apt_monai.data.exports import bids_names, dicom_references, export_bids, export_dicom
from apt_monai.data.readers import read_studies
from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.io.source import read_source

SHAPE = (6, 5, 4)
SERIES = {"patient": "P-17", "study": "1.2.9", "frame": "1.2.9.7"}


def write_output(out: Path, subject: str, contrast: str, affine: np.ndarray, uncertain: bool = True) -> Path:
    """What a synthesis leaves."""
    path = out / subject / f"{subject}_{contrast}_SYNTHETIC.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).gamma(2, 100, SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), path)
    if uncertain:
        nib.save(nib.Nifti1Image(values / 10, affine), path.with_name(path.name[:-7] + "_uncertainty.nii.gz"))
    label = {"t1ce": "T1Gd"}.get(contrast, contrast.upper())
    sidecar = {"synthetic": True, "subject": subject, "contrast": contrast, "label": label, "method": "direct"}
    sidecar |= {"sources": {}, "intensity_scale": {"contrast": "t1"}}
    path.with_name(path.name[:-7] + ".json").write_text(json.dumps(sidecar))
    return path


def acquired_series(folder: Path) -> np.ndarray:
    write_series(folder, np.arange(1, 121, dtype=np.int16).reshape(SHAPE), series="1.2.9.1", **SERIES)
    return read_volume(folder)[1]


def test_a_volume_and_its_uncertainty_become_dicom_beside_the_series_that_came_in(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    affine = acquired_series(tmp_path / "T1")
    volume = write_output(tmp_path / "out", "case", "t1ce", affine)
    study = {"subject": "case", "t1": str(tmp_path / "T1"), "t2": str(tmp_path / "t2.nii.gz")}
    series, uncertainty = export_dicom(study, tmp_path / "out", BRATS)
    assert series == volume.parent / "dicom" / "case_t1ce_SYNTHETIC"
    assert uncertainty.name == "case_t1ce_SYNTHETIC_uncertainty.dcm"
    np.testing.assert_allclose(read_volume(series)[0], nib.load(volume).get_fdata(), atol=0.01)
    before = {file: file.stat().st_mtime_ns for file in series.iterdir()}
    export_dicom(study, tmp_path / "out", BRATS)
    assert before == {file: file.stat().st_mtime_ns for file in series.iterdir()}, "what is there is kept"
    write_output(tmp_path / "out", "case", "t1ce", affine @ np.diag([1, 1, 0.9, 1]))
    export_dicom(study, tmp_path / "out", BRATS)
    assert before != {file: file.stat().st_mtime_ns for file in series.iterdir()}, "another volume takes its place"


def test_each_series_of_a_study_has_a_number_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    affine = acquired_series(tmp_path / "T1")
    for name in ("flair", "t1ce", "t2"):
        write_output(tmp_path / "out", "case", name, affine)
    written = export_dicom({"subject": "case", "t1": str(tmp_path / "T1")}, tmp_path / "out", BRATS)
    files = [path / "0001.dcm" if path.is_dir() else path for path in written]
    numbers = {int(pydicom.dcmread(file, stop_before_pixels=True).SeriesNumber) for file in files}
    assert len(numbers) == len(files) == 6 and min(numbers) > 9000


def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    path = write_output(tmp_path / "out", "case", "t1ce", np.eye(4))
    path.with_name("case_t1ce_SYNTHETIC.json").write_text("[]")
    with pytest.raises(StudyError, match="case_t1ce_SYNTHETIC.json: is no sidecar"):
        export_bids(["case"], tmp_path / "out", tmp_path / "bids", BRATS)


def test_nifti_that_came_in_needs_a_series_of_the_patient_named(tmp_path: Path) -> None:
    study = {"subject": "case", "t1": "t1.nii.gz"}
    with pytest.raises(StudyError, match="study 'case': came as NIfTI.*--dicom-reference"):
        dicom_references(study, BRATS)
    assert dicom_references(study, BRATS, "CD") == {"t1": "CD"}


def test_our_own_dicom_is_never_taken_as_acquired(tmp_path: Path) -> None:
    affine = acquired_series(tmp_path / "exam" / "p1" / "T1")
    write_output(tmp_path / "out", "p1", "t2", affine, uncertain=False)
    study = {"subject": "p1", "t1": str(tmp_path / "exam" / "p1" / "T1")}
    (series,) = export_dicom(study, tmp_path / "out", ADNI)
    assert read_source(series).synthetic and not read_source(study["t1"]).synthetic
    series.rename(tmp_path / "exam" / "p1" / "T2")
    studies = read_studies(tmp_path / "exam", "adni", series={"T1": "t1", "T2": "t2"})
    assert [sorted(found) for found in studies] == [["subject", "t1"]]


def test_bids_names_say_synthetic_and_keep_subject_and_session(tmp_path: Path) -> None:
    write_output(tmp_path / "out", "sub-01_ses-02", "t1ce", np.eye(4))
    written = export_bids(["sub-01_ses-02"], tmp_path / "out", tmp_path / "bids", BRATS)
    stem = "sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_desc-"
    assert [path.relative_to(tmp_path / "bids").as_posix() for path in written] == [
        f"{stem}synthetic_T1w.nii.gz",
        f"{stem}syntheticuncertainty_T1w.nii.gz",
    ]
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "apt_monai"
    sidecar = json.loads(Path(str(written[0])[:-7] + ".json").read_text())
    assert "SYNTHETIC" in sidecar["Description"] and sidecar["apt_monai"]["subject"] == "sub-01_ses-02"
    with pytest.raises(StudyError):  # nothing there was acquired
        read_studies(tmp_path / "bids", "brats")


def test_bids_is_never_written_among_acquired_data(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "acquired", "BIDSVersion": "1.9.0"}')
    with pytest.raises(StudyError, match="not a derivatives dataset of apt_monai"):
        export_bids([], tmp_path / "out", tmp_path / "raw", BRATS)


def test_two_studies_that_bids_could_not_tell_apart_are_refused() -> None:
    with pytest.raises(StudyError, match="'a-1': has no BIDS name of its own"):
        bids_names(["a_1", "a-1"])
    with pytest.raises(StudyError, match="'_': has no letter or digit"):
        bids_names(["_"])


@pytest.mark.slow
def test_one_command_gives_nifti_dicom_and_bids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    monkeypatch.chdir(tmp_path)
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    write_untrained_model(tmp_path / "model", "apt_adni")
    volume = np.pad(np.arange(64, dtype=np.int16).reshape(4, 4, 4) + 100, 4)
    write_series(tmp_path / "PD", volume, series="1.2.9.1", **SERIES)
    settings = settings_of("inference", "apt_adni").items()
    words = ["--model", "model", *(word for key, value in settings for word in ("--set", f"{key}={value}"))]
    command = ["synthesize", "--pd", "PD", "--target", "t2", "--out", "out", "--dicom", "--bids", "bids", *words]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "out/study/dicom/study_t2_SYNTHETIC\n" in said
    assert "bids/sub-study/anat/sub-study_desc-synthetic_T2w.nii.gz\n" in said
    nifti, affine = read_volume("out/study/study_t2_SYNTHETIC.nii.gz")
    found, place = read_volume("out/study/dicom/study_t2_SYNTHETIC")
    np.testing.assert_allclose(found, nifti, atol=np.ptp(nifti) / 65535)
    np.testing.assert_allclose(place, affine, atol=1e-5)
    made = pydicom.dcmread("out/study/dicom/study_t2_SYNTHETIC/0001.dcm")
    assert made.PatientID == "P-17" and made.SeriesDescription.startswith("SYNTHETIC T2")


def test_a_reference_without_a_frame_is_refused_before_anything_is_synthesised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom")
    monkeypatch.setattr("apt_monai.cli.synthesize.run_config", lambda *_, **__: pytest.fail("it was synthesised"))
    write_series(tmp_path / "PD", np.ones(SHAPE, np.int16))
    command = ["synthesize", "--pd", str(tmp_path / "PD"), "--dataset", "adni", "--out", str(tmp_path / "out")]
    assert main([*command, "--dicom"]) == 2
    assert "has no FrameOfReferenceUID" in capsys.readouterr().err
    assert main([*command, "--dicom-reference", str(tmp_path / "PD")]) == 2
    assert "give --dicom too" in capsys.readouterr().err
