"""Synthesised volumes: they lie where the acquired ones lie, say what they are, and are whole or not there."""

from __future__ import annotations

import errno
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from test_files import almost_full_disk

from apt_monai import __version__
from apt_monai.contrasts import BRATS
from apt_monai.data.readers import read_studies
from apt_monai.data.writers import (
    SaveSyntheticStudyd,
    check_writable,
    pending_studies,
    synthetic_path,
)
from apt_monai.errors import StudyError
from apt_monai.files import file_sha256
from apt_monai.io.sidecar import prior_path, uncertainty_path
from apt_monai.transforms import StudyPreprocessing

PROVENANCE = {"version": __version__, "seed": 7, "settings": {"start_step": 400, "weights": [0.5, 1.0]}}
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.9, 1.1, 2.5]), [-10.5, 20.25, 3.0]
)
SHEARED = nib.affines.from_matvec(np.array([[1.0, 0.2, 0], [0, 1.1, 0.1], [0, 0, 2.0]]), [5, -7, 11])
LPS = nib.affines.from_matvec(np.diag([-1.0, -1.0, 1.0]), [0, 239, 0])
SAGITTAL = nib.affines.from_matvec(np.array([[0, 0, 1.2], [-1.0, 0, 0], [0, -0.8, 0]]), [1, 2, 3])  # stored as PIR
AFFINES = {"oblique": OBLIQUE, "sheared": SHEARED, "LPS": LPS, "sagittal": SAGITTAL}


def write_study(
    folder: Path,
    names: tuple[str, ...] = ("t1", "t2"),
    affine: np.ndarray = OBLIQUE,
    qform: int = 1,
    nifti2: bool = False,
) -> dict[str, str]:
    """A study of 8×7×4 voxels, a border of air around a random brain, each contrast with a scale of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    study = {"subject": folder.name}
    for i, name in enumerate(names):
        volume = np.zeros((8, 7, 4), np.int16)
        volume[1:-1, 1:-1, 1:-1] = np.random.default_rng(i).integers(100, 1000, (6, 5, 2)) * (i + 1)
        image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image)(volume, affine)
        image.set_qform(affine, qform, strip_shears=True)
        image.set_sform(affine, 2)
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = "acquired by somebody"
        study[name] = str(folder / f"{folder.name}_{name}.nii.gz")
        nib.save(image, study[name])
    return study


def synthesised(study: dict[str, str], size: int = 12) -> tuple[StudyPreprocessing, dict[str, Any]]:
    """The loaded study as inference returns it: every absent contrast looks like T2."""
    preprocessing = StudyPreprocessing("brats", size=size)
    loaded = preprocessing(study)
    absent = [name for name in BRATS.names if name not in study]
    loaded["synthesised"] = loaded["image"].as_tensor().clone()
    for name in absent:
        loaded["synthesised"][BRATS.index(name)] = loaded["synthesised"][BRATS.index("t2")]
    return preprocessing, loaded


def save(study: dict[str, str], output_dir: Path, dtype: str = "float32", size: int = 12) -> dict[str, Any]:
    preprocessing, loaded = synthesised(study, size)
    return SaveSyntheticStudyd(output_dir, preprocessing, PROVENANCE, dtype)(loaded)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("affine", AFFINES)
def test_a_volume_lies_where_the_acquired_one_lies(tmp_path: Path, affine: str, dtype: str) -> None:
    study = write_study(tmp_path / "case", affine=AFFINES[affine])
    written = save(study, tmp_path / "out", dtype)["written"]
    assert {name: Path(path).name for name, path in written.items()} == {
        "flair": "case_flair_SYNTHETIC.nii.gz",
        "t1ce": "case_t1ce_SYNTHETIC.nii.gz",
    }
    acquired, synthetic = nib.load(study["t1"]), nib.load(written["flair"])
    assert synthetic.shape == acquired.shape and synthetic.header.get_data_dtype() == dtype
    np.testing.assert_allclose(synthetic.affine, acquired.affine, atol=1e-6)
    np.testing.assert_array_equal(synthetic.header.get_sform(), acquired.header.get_sform())
    np.testing.assert_array_equal(synthetic.header.get_qform(), acquired.header.get_qform())
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(synthetic.header[field], acquired.header[field])


@pytest.mark.parametrize("affine", AFFINES)
def test_intensities_are_those_of_the_acquired_contrast_of_the_same_weighting(tmp_path: Path, affine: str) -> None:
    study = write_study(tmp_path / "case", affine=AFFINES[affine])
    volume = nib.load(save(study, tmp_path / "out")["written"]["t1ce"]).get_fdata()
    t1, t2 = (nib.load(study[name]).get_fdata() for name in ("t1", "t2"))
    brain = t1 > 0
    low1, high1 = np.percentile(t1[brain], (0.5, 99.5))
    low2, high2 = np.percentile(t2[brain], (0.5, 99.5))
    expected = ((t2 - low2) / (high2 - low2)).clip(0, 1) * (high1 - low1) + low1  # looks like T2, in the scale of T1
    np.testing.assert_allclose(volume, np.where(brain, expected, 0), rtol=1e-5, atol=1e-3)
    assert (volume[~brain] == 0).all()


def test_background_is_zero_whatever_the_network_gave_there(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    preprocessing, loaded = synthesised(study)
    loaded["synthesised"][0] = 0.5
    path = SaveSyntheticStudyd(tmp_path / "out", preprocessing, PROVENANCE)(loaded)["written"]["flair"]
    np.testing.assert_array_equal(nib.load(path).get_fdata() != 0, nib.load(study["t1"]).get_fdata() != 0)


def test_background_is_zero_where_slices_were_resampled(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", affine=np.eye(4))
    volume = nib.load(save(study, tmp_path / "out", size=5)["written"]["flair"]).get_fdata()
    acquired = nib.load(study["t1"]).get_fdata()
    assert volume.shape == acquired.shape
    assert (volume[:, :, [0, -1]] == 0).all() and (volume[[0, -1]] == 0).all()
    assert 0 < np.count_nonzero(volume) <= 1.2 * np.count_nonzero(acquired)


def test_int16_is_within_the_documented_rounding_error(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    exact = nib.load(save(study, tmp_path / "a")["written"]["flair"]).get_fdata()
    rounded = nib.load(save(study, tmp_path / "b", "int16")["written"]["flair"])
    assert abs(rounded.get_fdata() - exact).max() <= exact.max() / 65534 * (1 + 1e-5)
    assert np.asarray(rounded.dataobj.get_unscaled()).max() == 32767
    np.testing.assert_array_equal(rounded.get_fdata() == 0, exact == 0)
    assert rounded.dataobj.inter == 0


def test_header_says_synthetic_and_nothing_of_the_source(tmp_path: Path) -> None:
    header = nib.load(save(write_study(tmp_path / "case"), tmp_path / "out")["written"]["t1ce"]).header
    assert header["descrip"].item() == f"SYNTHETIC apt_monai {__version__} T1Gd: not acquired".encode()
    assert header["intent_name"].item() == b"SYNTHETIC"


def test_nifti2_stays_nifti2(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", nifti2=True)
    path = save(study, tmp_path / "out")["written"]["flair"]
    assert isinstance(nib.load(path), nib.Nifti2Image)
    np.testing.assert_allclose(nib.load(path).affine, OBLIQUE, atol=1e-6)


def test_a_source_with_no_qform_gives_a_volume_with_none(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", qform=0)
    synthetic = nib.load(save(study, tmp_path / "out")["written"]["flair"])
    assert synthetic.header["qform_code"] == 0 and synthetic.header["sform_code"] == 2
    np.testing.assert_allclose(synthetic.affine, OBLIQUE, atol=1e-6)


def test_a_source_may_have_any_name_and_a_fourth_axis_of_one_entry(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    expected = nib.load(study["t1"])
    fourth = nib.Nifti1Image(np.asarray(expected.dataobj)[..., None], OBLIQUE, expected.header)
    (tmp_path / "case" / "IMG0001").write_bytes(fourth.to_bytes())
    study["t1"] = str(tmp_path / "case" / "IMG0001")
    synthetic = nib.load(save(study, tmp_path / "out")["written"]["flair"])
    assert synthetic.shape == expected.shape
    for field in ("sform_code", "qform_code", "xyzt_units"):
        np.testing.assert_array_equal(synthetic.header[field], expected.header[field])
    np.testing.assert_array_equal(synthetic.affine, expected.affine)


def test_sidecar_says_where_the_volume_comes_from(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    path = Path(save(study, tmp_path / "out", "int16")["written"]["t1ce"])
    sidecar = json.loads((path.parent / "case_t1ce_SYNTHETIC.json").read_text())
    assert sidecar["synthetic"] is True and "not a medical device" in sidecar["notice"]
    assert (sidecar["subject"], sidecar["contrast"], sidecar["label"]) == ("case", "t1ce", "T1Gd")
    assert sidecar["sources"] == {n: {"sha256": file_sha256(study[n])} for n in ("t1", "t2")}
    assert str(tmp_path) not in json.dumps(sidecar), "of paths and patients a sidecar says the study's name alone"
    assert sidecar["intensity_scale"]["contrast"] == "t1"
    t1 = nib.load(study["t1"]).get_fdata()
    scale = [sidecar["intensity_scale"]["low"], sidecar["intensity_scale"]["high"]]
    np.testing.assert_allclose(scale, np.percentile(t1[t1 > 0], (0.5, 99.5)), rtol=1e-6)
    assert sidecar["dtype"] == "int16"
    assert {key: sidecar[key] for key in PROVENANCE} == PROVENANCE


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    save(study, tmp_path / "a")
    save(study, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") and len(files_of(tmp_path / "a")) == 4


def test_the_acquired_contrasts_and_the_input_are_left_alone(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    before = files_of(tmp_path / "case")
    preprocessing, loaded = synthesised(study)
    result = SaveSyntheticStudyd(tmp_path, preprocessing, PROVENANCE)(loaded)  # writes into the study's folder
    assert "written" not in loaded and result["synthesised"] is loaded["synthesised"]
    assert {name: content for name, content in files_of(tmp_path / "case").items() if name in before} == before
    assert read_studies(tmp_path, "brats") == [study]


def test_a_complete_study_writes_nothing(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", BRATS.names)
    assert save(study, tmp_path / "out")["written"] == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"synthesised": torch.zeros(4, 12, 12, 3)}, r"shape \(4, 12, 12, 3\)"),
        ({"synthesised": torch.full((4, 12, 12, 4), torch.nan)}, "flair spans nan to nan"),
        ({"synthesised": torch.full((4, 12, 12, 4), 1.5)}, "flair spans 1.5 to 1.5"),
        ({"subject": "../case"}, "subject '../case'.*plain name"),
    ],
)
def test_a_result_that_is_not_one_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    preprocessing, loaded = synthesised(write_study(tmp_path / "case"))
    with pytest.raises(ValueError, match=message):
        SaveSyntheticStudyd(tmp_path / "out", preprocessing, PROVENANCE)({**loaded, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("provenance", "dtype", "message"),
    [
        ({"subject": "x"}, "float32", "provenance has subject"),
        ({"seed": np.int64(1)}, "float32", "not JSON"),
        ({"seed": float("nan")}, "float32", "not JSON"),
        ({}, "uint8", "dtype='uint8': valid are float32, int16"),
    ],
)
def test_a_wrong_argument_is_refused(tmp_path: Path, provenance: dict[str, Any], dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaveSyntheticStudyd(tmp_path, StudyPreprocessing("brats", 12), provenance, dtype)
    with pytest.raises(ValueError, match=message):
        pending_studies([{"subject": "a", "t1": "t1.nii.gz"}], tmp_path, BRATS, provenance, dtype)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    preprocessing, loaded = synthesised(write_study(tmp_path / "case"))
    writer = SaveSyntheticStudyd(tmp_path / "out", preprocessing, PROVENANCE)
    message = "cannot write case_flair_SYNTHETIC.nii.gz in the folder .*out/case.*too large"
    with pytest.raises(OSError, match=message), almost_full_disk(100):
        writer(loaded)
    assert files_of(tmp_path / "out") == {}


def test_a_volume_without_sidecar_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path / "case")
    save(study, tmp_path / "out")
    preprocessing, loaded = synthesised(study)
    newer = SaveSyntheticStudyd(tmp_path / "out", preprocessing, {**PROVENANCE, "seed": 8})

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)  # the sidecar is what fails
    with pytest.raises(OSError, match="cannot write case_flair_SYNTHETIC.json .*No space left on device"):
        newer(loaded)
    left = [name for name in files_of(tmp_path / "out" / "case") if "flair" in name]
    assert left == ["case_flair_SYNTHETIC.nii.gz"]  # the newer volume, and not the older one's sidecar
    assert pending_studies([study], tmp_path / "out", BRATS, PROVENANCE) == [study]


def test_an_output_folder_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to the folder .*file"):
        check_writable(tmp_path / "file")

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(OSError, match="cannot write to the folder .*out.*Read-only file system.*choose another"):
        pending_studies([{"subject": "a", "t1": "t1.nii.gz"}], tmp_path / "out", BRATS, PROVENANCE)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    studies = [write_study(tmp_path / "in" / name) for name in ("a", "b c", "d")]
    assert pending_studies(studies, tmp_path / "out", BRATS, PROVENANCE) == studies
    save(studies[1], tmp_path / "out")
    assert pending_studies(studies, tmp_path / "out", BRATS, PROVENANCE) == [studies[0], studies[2]]
    assert "2 studies to synthesise; 1 are finished" in caplog.text
    for study in studies:
        save(study, tmp_path / "out")
    assert pending_studies(studies, tmp_path / "out", BRATS, PROVENANCE) == []


def test_what_changes_the_result_makes_a_study_pending_again(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    save(study, tmp_path / "out")

    def is_pending(provenance: dict[str, Any] = PROVENANCE, dtype: str = "float32") -> bool:
        return pending_studies([study], tmp_path / "out", BRATS, provenance, dtype) == [study]

    assert not is_pending()
    assert is_pending({**PROVENANCE, "seed": 8})
    assert is_pending({**PROVENANCE, "settings": {"start_step": 400}})
    assert is_pending({"seed": 7})  # the sidecar says more
    assert is_pending(dtype="int16")
    t1 = Path(study["t1"]).read_bytes()
    Path(study["t1"]).write_bytes(gzip.compress(gzip.decompress(t1) + b"\0"))
    assert is_pending()
    Path(study["t1"]).write_bytes(t1)  # another modification time, the same contents
    assert not is_pending()
    write_study(tmp_path / "case", ("t1", "t2", "flair"))
    study["flair"] = str(tmp_path / "case" / "case_flair.nii.gz")
    assert is_pending()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sources": 3}', '{"sources": {"t1": "x"}}'])
def test_a_damaged_sidecar_makes_a_study_pending(tmp_path: Path, content: str) -> None:
    study = write_study(tmp_path / "case")
    save(study, tmp_path / "out")
    synthetic_path(tmp_path / "out", "case", "flair").with_name("case_flair_SYNTHETIC.json").write_text(content)
    assert pending_studies([study], tmp_path / "out", BRATS, PROVENANCE) == [study]


def test_a_missing_volume_makes_a_study_pending(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    Path(save(study, tmp_path / "out")["written"]["t1ce"]).unlink()
    assert pending_studies([study], tmp_path / "out", BRATS, PROVENANCE) == [study]


def test_a_target_that_was_acquired_is_no_source_and_alone_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = write_study(tmp_path / "case", BRATS.names)
    (pending,) = pending_studies([study], tmp_path / "out", BRATS, PROVENANCE, targets=["t1"])
    assert pending == {key: path for key, path in study.items() if key != "t1"}
    assert "case: t1 is asked for, and not used as a source" in caplog.text
    preprocessing, loaded = synthesised(pending)
    SaveSyntheticStudyd(tmp_path / "out", preprocessing, PROVENANCE, targets=["t1"])(loaded)
    assert sorted(files_of(tmp_path / "out")) == ["case/case_t1_SYNTHETIC.json", "case/case_t1_SYNTHETIC.nii.gz"]
    assert pending_studies([study], tmp_path / "out", BRATS, PROVENANCE, targets=["t1"]) == []


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["pd"], "unknown contrast 'pd'"),
        ("t1", "give a list of contrasts"),
        ([], "give a list"),
        (["t1", "t2"], "case'"),
    ],
)
def test_targets_that_cannot_be_made_are_refused(tmp_path: Path, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pending_studies([{"subject": "case", "t1": "a", "t2": "b"}], tmp_path, BRATS, PROVENANCE, targets=targets)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, read = write_study(tmp_path / "case"), []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: [read.append(path.name), read_bytes(path)][1])
    monkeypatch.setattr("apt_monai.io.source.file_sha256", lambda path: pytest.fail(f"{path} is read again"))
    save(study, tmp_path / "out")
    assert read == ["case_t1.nii.gz", "case_t2.nii.gz"]


def test_studies_with_nothing_missing_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = {"subject": "whole", **dict.fromkeys(BRATS.names, "x.nii.gz")}
    part = {"subject": "part", "t1": "x.nii.gz"}
    assert pending_studies([whole, part], tmp_path, BRATS, PROVENANCE) == [part]
    assert "nothing is missing in 1 studies, they are left out: whole" in caplog.text
    with pytest.raises(StudyError, match="nothing to synthesise: each of the 1 studies has every contrast"):
        pending_studies([whole], tmp_path, BRATS, PROVENANCE)


def test_an_uncertainty_is_written_in_the_volumes_units_on_its_grid_and_said_in_the_sidecar(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    preprocessing, loaded = synthesised(study)
    loaded["uncertainty"] = torch.full_like(loaded["synthesised"], 0.25)
    ranges = {"flair": ("t2", (0.0, 400.0)), "t1ce": ("t1", (-300.0, 700.0))}
    writer = SaveSyntheticStudyd(
        tmp_path / "out", preprocessing, PROVENANCE, output_range=lambda target, acquired: ranges[target]
    )
    writer(loaded)
    brain = nib.load(study["t2"]).get_fdata() > 0
    for target, half in (("flair", 50.0), ("t1ce", 125.0)):
        path = synthetic_path(tmp_path / "out", "case", target)
        volume, uncertainty = nib.load(path), nib.load(uncertainty_path(path))
        assert np.array_equal(uncertainty.affine, volume.affine) and uncertainty.shape == volume.shape
        np.testing.assert_allclose(uncertainty.get_fdata()[brain], half, rtol=1e-6)
        assert not uncertainty.get_fdata()[~brain].any()
        assert uncertainty.header["descrip"].item().startswith(b"SYNTHETIC") and volume.get_fdata().min() >= 0
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["uncertainty"]["file"] == uncertainty_path(path).name
        assert sidecar["intensity_scale"]["contrast"] == ranges[target][0]
    pending = {key: study[key] for key in ("subject", "t1", "t2")}
    assert not pending_studies([pending], tmp_path / "out", BRATS, PROVENANCE)
    uncertainty_path(synthetic_path(tmp_path / "out", "case", "flair")).unlink()
    assert pending_studies([pending], tmp_path / "out", BRATS, PROVENANCE) == [pending]


def test_a_prior_is_written_as_its_volume_is_and_none_of_another_volume_stays(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    preprocessing, loaded = synthesised(study)
    writer = SaveSyntheticStudyd(tmp_path / "out", preprocessing, PROVENANCE)
    path = synthetic_path(tmp_path / "out", "case", "flair")
    writer({**loaded, "prior": loaded["synthesised"], "uncertainty": torch.zeros_like(loaded["synthesised"])})
    volume, prior = nib.load(path), nib.load(prior_path(path))
    assert np.array_equal(prior.get_fdata(), volume.get_fdata()) and np.array_equal(prior.affine, volume.affine)
    assert b"SYNTHETIC" in prior.header["descrip"].item() and b"prior" in prior.header["descrip"].item()
    with pytest.raises(ValueError, match="prior flair spans"):
        writer({**loaded, "prior": loaded["synthesised"] * 3})
    writer(loaded)
    assert not prior_path(path).exists() and not uncertainty_path(path).exists()


def test_intensities_go_below_0_only_where_the_range_is_around_0(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    for limits, lowest in (((-300.0, 700.0), 0.0), ((-3.0, 3.0), -3.0)):
        preprocessing, loaded = synthesised(study)
        save = SaveSyntheticStudyd(
            tmp_path / "out", preprocessing, PROVENANCE, output_range=lambda *_, r=limits: ("t2", r)
        )
        volume = nib.load(save(loaded)["written"]["flair"]).get_fdata()
        assert volume.min() == pytest.approx(lowest, abs=1e-4)
