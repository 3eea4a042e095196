"""Raw scans in, what they lack out, on the scanner's own grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import environment, write_untrained_direct
from tiny_heads import QUICK as QUICK_FILTERS
from tiny_heads import make_pair, write_raw

import apt_monai
from apt_monai.cli import main
from apt_monai.contrasts import BRATS
from apt_monai.errors import StudyError
from apt_monai.phantom.datasets import write_phantom_dataset
from apt_monai.preprocessing import PreprocessingSettings
from apt_monai.raw import STEPS, check_raw, prepared_study, synthesize_raw
from apt_monai.report import write_report

QUICK = PreprocessingSettings(bias_spacing=20.0, levels=(8.0, 6.0))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw tumour study without T1Gd."""
    folder = tmp_path_factory.mktemp("raw")
    (study,) = write_phantom_dataset(folder / "data", "brats-raw", 1, 3, 6.0)
    next(study.glob("*_t1ce.nii.gz")).unlink()
    return folder / "data"


def study_of(raw: Path) -> dict[str, str]:
    (folder,) = (path for path in raw.iterdir() if not path.name.startswith(".") and path.is_dir())
    paths = {path.name.removesuffix(".nii.gz").rpartition("_")[2]: str(path) for path in folder.glob("*.nii.gz")}
    mask = next((raw / ".truth" / folder.name).glob("brain_t1.nii.gz"))
    return {"subject": folder.name, **paths, "mask": str(mask)}


@pytest.mark.slow
def test_a_raw_study_comes_back_on_the_scanners_own_grid(raw: Path, tmp_path: Path) -> None:
    study = study_of(raw)
    written = synthesize_raw(apt_monai.load("brats"), study, tmp_path, settings=QUICK)
    assert list(written) == ["t1ce"]
    volume, t1 = nib.load(written["t1ce"]), nib.load(study["t1"])
    assert volume.shape == t1.shape and np.allclose(volume.affine, t1.affine)
    brain = np.asarray(nib.load(study["mask"]).dataobj) > 0
    values = volume.get_fdata()
    found = values > 0
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.85, "the brain is where the scanner saw it"
    prepared = tmp_path / "steps" / "synthesised" / study["subject"] / written["t1ce"].name
    assert np.array_equal(values, nib.load(prepared).get_fdata()), "no synthesised voxel is resampled"
    # T1Gd has the tissues of T1
    assert np.corrcoef(values[found & brain], t1.get_fdata()[found & brain])[0, 1] > 0.5
    sidecar = json.loads(Path(str(written["t1ce"])[:-7] + ".json").read_text())
    assert sidecar["resampled_to"]["scan"] == "t1" and sidecar["synthetic"] is True
    names = sorted(path.name.removeprefix(study["subject"]) for path in written["t1ce"].parent.iterdir())
    stem = "_t1ce_SYNTHETIC"
    assert names == [
        "_SYNTHETIC.png",
        "_registration.png",
        f"{stem}.json",
        f"{stem}.nii.gz",
        f"{stem}_uncertainty.nii.gz",
    ]

    before = written["t1ce"].stat().st_mtime_ns
    again = synthesize_raw(apt_monai.load("brats"), study, tmp_path, settings=QUICK)
    assert again["t1ce"].stat().st_mtime_ns == before, "what is there is kept"
    onto_t2 = synthesize_raw(apt_monai.load("brats"), study, tmp_path, grid="t2", settings=QUICK)
    assert nib.load(onto_t2["t1ce"]).shape == nib.load(study["t2"]).shape


@pytest.mark.slow
def test_one_line_is_the_three_commands_and_a_bad_study_does_not_stop_the_others(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    name = study_of(raw)["subject"]
    for path in (raw / name).glob("*.nii.gz"):
        copy = tmp_path / "exams" / name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    bad = tmp_path / "exams" / "zz" / "zz_t1.nii.gz"
    bad.parent.mkdir()
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), 5, np.int16), np.eye(4)), bad)
    assert main(["synthesize", "exams", "--raw", "--dataset", "brats", "--out", "one"]) == 1
    assert "failed: zz: " in capfd.readouterr().err
    assert main(["preprocess", "exams", "prepared", "--dataset", "brats", "--grid", "t1"]) == 1
    assert main(["synthesize", "prepared", "--dataset", "brats", "--out", "two"]) == 0
    assert main(["restore", "two", "prepared", "--out", "three"]) == 0
    made = sorted(path for path in (tmp_path / "three" / name).iterdir())
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (tmp_path / "one" / name / path.name).read_bytes(), path.name


def test_what_quality_control_finds_in_a_raw_scan_is_in_log_sidecar_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = write_raw(tmp_path / "case", ("t1", "t2"))
    t2, brain = make_pair("t2")
    nib.save(nib.Nifti1Image(np.where(brain, t2.volume, 0), t2.affine), study["t2"])  # the planted fault
    model = apt_monai.load(write_untrained_direct(tmp_path / "model"), device="cpu")
    written = synthesize_raw(model, study, tmp_path / "out", ["flair"], grid="t1", settings=QUICK_FILTERS)
    assert "case: t2: it seems to have none" in caplog.text
    sidecar = json.loads(Path(str(written["flair"]).replace(".nii.gz", ".json")).read_text())
    found = {(each["check"], each["file"]) for each in sidecar["findings"] if each["found"].startswith("it seems")}
    assert found == {("skull", "t2")}, "T1 has its skull"
    prepared = prepared_study("case", tmp_path / "out", BRATS, "t1")
    page = write_report(prepared, tmp_path / "out" / STEPS / "synthesised", BRATS, tmp_path / "SYNTHETIC.html")
    assert "it seems to have none" in page.read_text()


def test_a_raw_scan_that_can_hold_no_brain_is_one_error(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "t2"))
    t2, _ = make_pair("t2")
    nib.save(nib.Nifti1Image(t2.volume[..., 10:12], t2.affine), study["t2"])
    model = apt_monai.load(write_untrained_direct(tmp_path / "model"), device="cpu")
    message = "study 'case': t2: it covers 768 ml, and a brain has 900 or more; use a scan of the whole head"
    with pytest.raises(StudyError, match=message):
        synthesize_raw(model, study, tmp_path / "out", settings=replace(QUICK_FILTERS, brain_ml=(900.0, 2000.0)))


def test_what_cannot_be_done_is_refused_before_hours_of_work() -> None:
    study = {"subject": "case", "t1": "a", "t2": "b"}
    with pytest.raises(ValueError, match="grid 't1ce': study 'case' has no such scan .* valid are t1, t2"):
        check_raw([study], BRATS, None, "t1ce")
    with pytest.raises(StudyError, match="nothing to synthesise"):
        check_raw([{"subject": "case", **dict.fromkeys(BRATS.names, "a")}], BRATS, None, None)
    with pytest.raises(ValueError, match="cannot be called 'steps'"):
        check_raw([study | {"subject": "steps"}], BRATS, None, None)


def test_a_grid_without_raw_is_a_mistake_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "--t1", "a.nii.gz", "--grid", "t1"]) == 2
    assert "give --raw too" in capsys.readouterr().err
