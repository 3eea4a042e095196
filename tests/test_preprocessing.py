"""Preprocessing raw scans: a study, a cohort that goes on where it stopped, and the way back."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_dicom import write_series
from tiny_heads import (
    PAIR_AFFINE,
    QUICK,
    T1_AFFINE,
    dice,
    errors_mm,
    make_pair,
    make_scan,
    make_t1,
    movement,
    transforms_of,
    write_raw,
)
from tiny_studies import write_nifti

from apt_monai.data.readers import read_studies
from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.phantom.datasets import write_phantom_dataset
from apt_monai.preprocessing import (
    PreprocessingSettings,
    cohort,
    preprocess_cohort,
    preprocess_study,
    to_scanner_space,
)
from apt_monai.transforms import StudyPreprocessing

FILTERS = PreprocessingSettings(mask="itk")


def test_a_study_becomes_what_the_networks_read(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "raw" / "002_S_0295")
    report = preprocess_cohort([study], tmp_path / "out", "adni", QUICK, progress=False)
    assert (report.written, report.kept, report.failed) == (["002_S_0295"], [], {})

    (read,) = read_studies(tmp_path / "out", "adni", require_all=True)
    assert read["mask"] == str(tmp_path / "out" / "002_S_0295" / "002_S_0295_mask.nii.gz")
    loaded = StudyPreprocessing("adni", size=48)(read)
    assert loaded["image"].shape == (3, 48, 48, 22)

    folder = tmp_path / "out" / "002_S_0295"
    record = transforms_of(folder)
    mask = nib.load(folder / "002_S_0295_mask.nii.gz")
    brain = np.asarray(mask.dataobj) > 0
    fixed, true_brain = make_pair("pd")
    assert dice(brain, true_brain) > 0.7
    for name in ("t1", "t2", "pd"):
        image = nib.load(read[name])
        assert image.get_data_dtype() == np.float32
        assert np.allclose(image.affine, PAIR_AFFINE)
        assert np.array_equal(np.asarray(image.dataobj) > 0, brain)
    found = np.array(record["scans"]["t1"]["to_scanner"])
    assert np.median(errors_mm(found, movement(), true_brain, PAIR_AFFINE)) < 1.5
    assert record["reference"] == "pd"
    assert record["scans"]["t2"]["to_scanner"] == np.eye(4).tolist()
    # T1 lies where it would have been had the head not moved
    still, _ = make_scan("t1", (40, 48, 22), PAIR_AFFINE, np.eye(4))
    aligned = np.asarray(nib.load(read["t1"]).dataobj)
    assert np.corrcoef(aligned[brain], still.volume[brain])[0, 1] > 0.95


def test_the_same_scans_give_the_same_bytes(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "t2"))
    first, second = (preprocess_study(study, tmp_path / out, "adni", QUICK) for out in ("a", "b"))
    for file in (p for p in first.rglob("*") if p.is_file()):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_t1_alone_keeps_its_own_grid_and_an_edge_in_mm_gives_isotropic_voxels(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1",))
    own = nib.load(preprocess_study(study, tmp_path / "a", "adni", QUICK) / "case_t1.nii.gz")
    assert own.shape == (40, 36, 31)
    assert np.allclose(own.affine, T1_AFFINE)
    cubes = PreprocessingSettings(grid=8.0, mask="itk", bias_spacing=20.0)
    image = nib.load(preprocess_study(study, tmp_path / "b", "adni", cubes) / "case_t1.nii.gz")
    assert np.allclose(image.affine[:3, :3], np.diag([8.0] * 3))
    assert image.shape == (24, 30, 27)


def test_brats_comes_at_1_mm_and_where_asked_in_the_pose_of_the_contrast_sets_reference(tmp_path: Path) -> None:
    affines = {"flair": np.diag([2.0, 2.0, 4.0, 1.0]), "t1": np.diag([2.0, 3.0, 3.0, 1.0])}
    shapes = {"flair": (24, 24, 12), "t1": (24, 16, 16)}
    study = {"subject": "case"}
    for name, affine in affines.items():
        volume = np.random.default_rng(0).random(shapes[name], np.float32) + np.indices(shapes[name]).sum(0)
        study[name] = write_nifti(tmp_path / f"{name}.nii.gz", volume.astype(np.float32), affine)
    study["mask"] = write_nifti(tmp_path / "mask.nii.gz", np.ones(shapes["t1"], np.uint8), affines["t1"])
    settings = replace(QUICK, template="reference")
    report = preprocess_cohort([study], tmp_path / "out", "brats", settings, progress=False)
    assert report.written == ["case"]
    record = transforms_of(tmp_path / "out" / "case")
    assert record["reference"] == "t1" and record["template"] is None  # no T1Gd
    assert np.allclose(np.linalg.norm(np.array(record["grid"]["affine"])[:3, :3], axis=0), 1.0)
    assert record["scans"]["t1"]["to_scanner"] == np.eye(4).tolist()
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["grid"] == 1.0


def write_tumour(path: Path, affine: np.ndarray, pose: np.ndarray, shape: tuple[int, int, int]) -> str:
    """Labels 1 and 4 in two spheres of the head."""
    voxels = np.vstack([np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
    head = (np.linalg.inv(pose) @ affine @ voxels)[:3].reshape(3, *shape)
    labels = np.zeros(shape, np.uint8)
    distance = np.linalg.norm(head - np.array([20, 10, 5])[:, None, None, None], axis=0)
    labels[distance < 24], labels[distance < 12] = 1, 4
    return write_nifti(path, labels, affine)


def test_a_segmentation_moves_with_the_scan_whose_grid_it_is_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = tmp_path / "raw" / "case"
    write_nifti(raw / "case_t1ce.nii.gz", make_pair("pd")[0].volume, PAIR_AFFINE)
    write_nifti(raw / "case_t1.nii.gz", make_t1(movement())[0].volume, T1_AFFINE)
    write_nifti(raw / "case_flair.nii.gz", make_t1(movement(mm=(0, 3, 2)))[0].volume, T1_AFFINE)  # moved on that grid
    write_tumour(raw / "case_seg.nii.gz", T1_AFFINE, movement(), (40, 36, 31))
    settings = replace(QUICK, grid=("t1ce",))
    assert preprocess_cohort(read_studies(raw, "brats"), tmp_path / "out", "brats", settings).written == ["case"]
    assert "the head moved between t1, flair" in caplog.text and "the segmentation goes with t1" in caplog.text

    (study,) = read_studies(tmp_path / "out", "brats")
    image = nib.load(study["seg"])
    found = np.asarray(image.dataobj)
    assert image.get_data_dtype() == np.uint8 and np.allclose(image.affine, PAIR_AFFINE)
    true = np.asarray(nib.load(write_tumour(tmp_path / "a.nii", PAIR_AFFINE, np.eye(4), (40, 48, 22))).dataobj)
    assert set(np.unique(found)) == {0, 1, 4}  # no label between two others
    assert dice(found > 0, true > 0) > 0.85 and dice(found == 4, true == 4) > 0.7

    transforms = tmp_path / "out" / "case" / "preprocessing" / "transforms.json"
    back = np.asarray(nib.load(to_scanner_space(study["seg"], transforms, "t1", tmp_path / "back.nii.gz")).dataobj)
    assert set(np.unique(back)) == {0, 1, 4}

    matrix = np.array(transforms_of(tmp_path / "out" / "case")["scans"]["t1"]["to_scanner"])
    labels = np.asarray(nib.load(raw / "case_seg.nii.gz").dataobj)
    naive = np.zeros_like(found)
    for voxel in np.argwhere(np.ones(found.shape, bool)):
        i, j, k = np.rint((np.linalg.inv(T1_AFFINE) @ matrix @ PAIR_AFFINE @ [*voxel, 1])[:3]).astype(int)
        if 0 <= i < 40 and 0 <= j < 36 and 0 <= k < 31:
            naive[tuple(voxel)] = labels[i, j, k]
    assert np.array_equal(found, naive)


@pytest.mark.parametrize("what", ["another grid", "no whole numbers", "corrupt"])
def test_a_segmentation_that_cannot_be_carried_along_is_left_out_and_the_log_names_it(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = write_raw(tmp_path / "case", ("t1",))
    path = tmp_path / "case" / "case_seg.nii.gz"
    if what == "another grid":
        write_nifti(path, np.ones((40, 36, 31), np.uint8), np.eye(4))
    elif what == "no whole numbers":
        write_nifti(path, np.full((40, 36, 31), 0.5, np.float32), T1_AFFINE)
    else:
        path.write_bytes(b"no image")
    folder = preprocess_study({**study, "seg": str(path)}, tmp_path / "out", "brats", replace(QUICK, grid=("t1",)))
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert line.startswith("case: ") and str(path) in line
    assert sorted(f.name for f in folder.iterdir()) == ["case_mask.nii.gz", "case_t1.nii.gz", "preprocessing"]


def test_unusable_studies_are_one_error_and_leave_nothing(tmp_path: Path) -> None:
    def fails(study: dict[str, str], match: str, settings: PreprocessingSettings = QUICK) -> None:
        with pytest.raises(ValueError, match=match):
            preprocess_study(study, tmp_path / "out", "adni", settings)
        assert not (tmp_path / "out").exists()

    t1 = write_raw(tmp_path / "case", ("t1",))["t1"]
    flat = write_nifti(tmp_path / "flat.nii.gz", np.zeros((4, 4, 4), np.int16))
    below = write_nifti(tmp_path / "below.nii.gz", np.arange(-10, 54).reshape(4, 4, 4).astype(np.int16))
    fails({"subject": "s"}, "has no contrast; at least one of t1, t2, pd")
    fails({"subject": "s", "flair": t1}, "unknown contrast 'flair'")
    fails({"subject": "../s", "t1": t1}, "plain name")
    fails({"subject": "s", "t1": flat}, "every voxel is 0")
    fails({"subject": "s", "t1": below}, "down to -10")
    fails({"subject": "s", "t1": t1}, "grid of pd or t2 was asked for", PreprocessingSettings(("pd", "t2"), "itk"))


def test_a_result_goes_back_onto_the_scanners_own_grid(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "pd"))
    folder = preprocess_study(study, tmp_path / "out", "adni", QUICK)
    transforms = folder / "preprocessing" / "transforms.json"
    back = to_scanner_space(next(folder.glob("*_mask.nii.gz")), transforms, "t1", tmp_path / "m.nii.gz")
    image = nib.load(back)
    assert image.shape == (40, 36, 31)
    assert np.allclose(image.affine, T1_AFFINE)
    _, brain = make_t1(movement())
    assert dice(np.asarray(image.dataobj) > 0.5, brain) > 0.7

    pd = nib.load(folder / "case_pd.nii.gz")
    own = nib.load(to_scanner_space(folder / "case_pd.nii.gz", transforms, "pd", tmp_path / "pd.nii.gz"))
    assert np.array_equal(own.dataobj, pd.dataobj) and np.allclose(own.affine, PAIR_AFFINE)  # its grid is the output's

    synthetic = tmp_path / "case_t2_SYNTHETIC.nii.gz"
    marked = nib.load(folder / "case_pd.nii.gz")
    marked.header["descrip"], marked.header["intent_name"] = "SYNTHETIC apt_monai", "SYNTHETIC"
    nib.save(marked, synthetic)
    synthetic.with_name("case_t2_SYNTHETIC.json").write_text('{"synthetic": true}')
    with pytest.raises(ValueError, match="must say SYNTHETIC"):
        to_scanner_space(synthetic, transforms, "t1", tmp_path / "t2.nii.gz")
    to_scanner_space(synthetic, transforms, "t1", tmp_path / "t1grid_t2_SYNTHETIC.nii.gz")
    header = nib.load(tmp_path / "t1grid_t2_SYNTHETIC.nii.gz").header
    assert header["descrip"] == b"SYNTHETIC apt_monai" and header["intent_name"] == b"SYNTHETIC"
    sidecar = json.loads((tmp_path / "t1grid_t2_SYNTHETIC.json").read_text())
    assert sidecar["synthetic"] and sidecar["resampled_to"]["scan"] == "t1"
    with pytest.raises(ValueError, match="no scan 't2'; valid are t1, pd"):
        to_scanner_space(synthetic, transforms, "t2", tmp_path / "x_SYNTHETIC.nii.gz")
    with pytest.raises(StudyError, match="not on the output grid"):
        to_scanner_space(study["t1"], transforms, "t1", tmp_path / "x.nii.gz")


def test_one_bad_study_is_reported_and_the_next_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = write_raw(tmp_path / "good", ("t1",)), write_raw(tmp_path / "bad", ("t1",))
    Path(bad["t1"]).write_bytes(Path(bad["t1"]).read_bytes()[:500])
    crash = write_raw(tmp_path / "crash", ("pd",))
    real = preprocess_study

    def crashing(study: dict[str, str], *args: object) -> Path:
        if study["subject"] == "crash":
            raise KeyError("surprise")
        return real(study, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(cohort, "preprocess_study", crashing)
    out = tmp_path / "out"
    report = preprocess_cohort([bad, crash, good], out, "adni", QUICK, progress=False)
    assert report.written == ["good"]
    assert "truncated or corrupt" in report.failed["bad"]
    assert report.failed["crash"] == "KeyError: 'surprise'"
    assert "1 preprocessed, 0 there already, 2 failed" in str(report)
    assert sorted(f.name for f in out.iterdir()) == ["good", "preprocessing.json"]

    again = preprocess_cohort([good], out, "adni", QUICK, progress=False)
    assert (again.written, again.kept) == ([], ["good"])
    write_raw(tmp_path / "good", ("t1",))  # the same voxels, written later
    assert "changed since" in preprocess_cohort([good], out, "adni", QUICK, progress=False).failed["good"]
    with pytest.raises(ValueError, match="preprocessed otherwise"):
        preprocess_cohort([good], out, "adni", FILTERS, progress=False)


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for arguments, match in (
        ({"grid": 0.0}, "grid is 0.0 mm"),
        ({"grid": ()}, "names no contrast"),
        ({"mask": "masks/all.nii.gz"}, "valid are itk, deepbet, or a path"),
        ({"levels": ()}, "above 0 mm"),
        ({"brain_ml": (900.0, 600.0)}, "brain_ml is 900 to 600 ml"),
    ):
        with pytest.raises(ValueError, match=match):
            PreprocessingSettings(**arguments)
    with pytest.raises(ValueError, match="unknown contrast 'flair'"):
        preprocess_cohort([], tmp_path, "adni", PreprocessingSettings(grid=("flair",), mask="itk"))
    with pytest.raises(ValueError, match="workers is 0"):
        preprocess_cohort([], tmp_path, "adni", FILTERS, workers=0)
    with pytest.raises(ValueError, match="two studies are called 'a'"):
        preprocess_cohort([{"subject": "a"}, {"subject": "a"}], tmp_path, "adni", FILTERS)
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match=r"is not empty and has no preprocessing.json"):
        preprocess_cohort([], tmp_path, "adni", FILTERS)


def test_a_changed_slice_of_a_dicom_series_is_a_changed_scan_and_a_missing_one_fails_its_study_alone(
    tmp_path: Path,
) -> None:
    scan, _ = make_t1(np.eye(4))
    mask = write_nifti(tmp_path / "masks" / "mask.nii.gz", np.ones((20, 18, 8), np.uint8), np.eye(4))
    studies = []
    for subject in ("a", "b", "c"):
        volume = scan.volume[10:30, 10:28, 10:18].astype(np.int16)
        write_series(tmp_path / subject, volume, (0, 0, 0), (1, 1, 1))
        studies.append({"subject": subject, "t1": f"{tmp_path / subject}::1.2.3", "mask": mask})
        nib.save(nib.Nifti1Image(np.ones(volume.shape, np.uint8), read_volume(tmp_path / subject)[1]), mask)
    out = tmp_path / "out"
    assert preprocess_cohort(studies, out, "adni", QUICK, progress=False).written == ["a", "b", "c"]
    assert preprocess_cohort(studies, out, "adni", QUICK, progress=False).kept == ["a", "b", "c"]

    changed = sorted((tmp_path / "a").iterdir())[0]
    changed.write_bytes(changed.read_bytes()[:-2] + b"\1\0")
    shutil.rmtree(tmp_path / "b")
    new = {**studies[2], "subject": "new"}
    report = preprocess_cohort([*studies, new], out, "adni", QUICK, progress=False)
    assert (report.written, report.kept) == (["new"], ["c"])
    assert "changed since" in report.failed["a"]
    assert report.failed["b"].startswith(f"{tmp_path / 'b'}::1.2.3: no such file or folder")


def test_a_mask_of_the_users_own_that_was_drawn_anew_is_noticed(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1",))
    settings = replace(QUICK, mask=f"{tmp_path}/{{subject}}_mask.nii.gz")
    brain = make_t1(movement())[1].astype(np.uint8)
    write_nifti(tmp_path / "case_mask.nii.gz", brain, T1_AFFINE)
    assert preprocess_cohort([study], tmp_path / "out", "adni", settings, progress=False).written == ["case"]
    assert preprocess_cohort([study], tmp_path / "out", "adni", settings, progress=False).kept == ["case"]
    brain[20] = 0
    write_nifti(tmp_path / "case_mask.nii.gz", brain, T1_AFFINE)
    again = preprocess_cohort([study], tmp_path / "out", "adni", settings, progress=False)
    assert "changed since" in again.failed["case"]


@pytest.mark.slow
def test_the_phantoms_movement_is_found_to_a_fraction_of_a_millimetre(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_phantom_dataset(raw, "adni-raw", subjects=2, seed=1, spacing=3.0, progress=False)
    studies = read_studies(raw, "adni")
    report = preprocess_cohort(studies, out, "adni", FILTERS, workers=2, progress=False)
    assert not report.failed
    medians = []
    for study in studies:
        truth = raw / ".truth" / study["subject"]
        true = np.array(json.loads((truth / "truth.json").read_text())["axial_to_t1"])
        image = nib.load(truth / "brain_axial.nii.gz")
        brain = np.asarray(image.dataobj) > 0
        folder = out / study["subject"]
        found = np.array(transforms_of(folder)["scans"]["t1"]["to_scanner"])
        medians.append(float(np.median(errors_mm(found, true, brain, image.affine))))
        mask = np.asarray(nib.load(next(folder.glob("*_mask.nii.gz"))).dataobj) > 0
        assert dice(mask, brain) > 0.85
    print(f"median registration errors in mm: {medians}")
    assert max(medians) < 1.0


@pytest.mark.slow
def test_a_killed_process_fails_its_study_alone(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "good", ("t1",))
    killer = {"subject": "killer", "t1": _Bomb(study["t1"])}
    report = preprocess_cohort([killer, study], tmp_path / "out", "adni", QUICK, workers=2, progress=False)
    assert report.written == ["good"]
    assert "its process was killed" in report.failed["killer"]


class _Bomb(str):
    """A path that ends the process which unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)
