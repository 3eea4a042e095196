"""Preprocessing raw scans: registration against a known movement, resampling, masks, the cohort, and the way back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tiny_studies import write_nifti

from apt_monai.contrasts import get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.errors import StudyError
from apt_monai.phantom.datasets import write_phantom_dataset
from apt_monai.preprocessing import (
    PreprocessingSettings,
    brain_mask,
    cohort,
    preprocess_cohort,
    preprocess_study,
    to_scanner_space,
)
from apt_monai.preprocessing.bias import correct_bias
from apt_monai.preprocessing.brain_mask import find_brain_mask, mask_by_deepbet, mask_by_filters
from apt_monai.preprocessing.output import save_nifti
from apt_monai.preprocessing.registration import register_rigidly, register_study
from apt_monai.preprocessing.resampling import isotropic_grid, resample
from apt_monai.preprocessing.scan import Scan, from_itk, to_itk
from apt_monai.transforms import StudyPreprocessing

FILTERS = PreprocessingSettings(mask="itk")
QUICK = PreprocessingSettings(mask="itk", bias_spacing=20.0, levels=(8.0, 4.0))
# Intensities outside, in scalp, skull, CSF, grey matter, white matter
LOOKS = {"t1": (2, 90, 8, 20, 60, 85), "t2": (2, 50, 5, 140, 80, 60), "pd": (2, 75, 6, 90, 85, 70)}
T1_AFFINE = np.array([[0, 0, 6.0, -90], [6.0, 0, 0, -117], [0, 6.0, 0, -102], [0, 0, 0, 1]])  # stored sagittally
PAIR_AFFINE = np.array([[-5.0, 0, 0, 97.5], [0, 5.0, 0, -117.5], [0, 0, 8.0, -84], [0, 0, 0, 1]])


def movement(degrees: tuple[float, float, float] = (3.0, -4.0, 5.0), mm: tuple[float, ...] = (4, -3, 2)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees)).as_matrix()
    matrix[:3, 3] = mm
    return matrix


def anatomy(points: np.ndarray) -> np.ndarray:
    """The tissue, 0 to 5, at (3, N) mm of an uneven head."""
    x, y, z = points
    radius = np.sqrt((x / (68 + 0.12 * y)) ** 2 + (y / 86) ** 2 + ((z - 0.15 * x) / 54) ** 2)
    tissue = np.searchsorted(-np.array([1.34, 1.24, 1.08, 0.97, 0.85]), -radius)
    ventricle = ((x - 14) / 12) ** 2 + (y / 34) ** 2 + ((z - 6) / 14) ** 2 < 1
    nuclei = (np.hypot((x + 30) / 14, (y - 25) / 18) < 1) | (np.hypot((x - 25) / 18, (z + 15) / 12) < 1)
    tissue[nuclei & (tissue == 5)] = 4
    tissue[ventricle] = 3
    return tissue


def make_scan(name: str, shape: tuple[int, int, int], affine: np.ndarray, pose: np.ndarray) -> tuple[Scan, np.ndarray]:
    """A noisy scan of the head moved by `pose` (head mm to scanner mm), and its true brain mask."""
    rng = np.random.default_rng(len(name) + sum(shape))
    voxels = np.indices(shape).reshape(3, -1)
    looks = np.array(LOOKS[name], np.float32)
    total: np.ndarray = np.zeros(voxels.shape[1], np.float32)
    for part in np.array(np.meshgrid(*[[-0.33, 0, 0.33]] * 3)).reshape(3, -1).T:
        world = affine @ np.vstack([voxels + part[:, None], np.ones(voxels.shape[1])])
        total += looks[anatomy((np.linalg.inv(pose) @ world)[:3])] / 27
    middle = np.linalg.inv(pose) @ affine @ np.vstack([voxels, np.ones(voxels.shape[1])])
    brain = anatomy(middle[:3]) >= 3
    noise = rng.normal(0, 1.5, (2, *shape))
    return Scan(np.hypot(total.reshape(shape) + noise[0], noise[1]).astype(np.float32), affine), brain.reshape(shape)


def make_t1(pose: np.ndarray) -> tuple[Scan, np.ndarray]:
    return make_scan("t1", (40, 36, 31), T1_AFFINE, pose)


def make_pair(name: str) -> tuple[Scan, np.ndarray]:
    return make_scan(name, (40, 48, 22), PAIR_AFFINE, np.eye(4))


def write_raw(folder: Path, names: tuple[str, ...] = ("t1", "t2", "pd")) -> dict[str, str]:
    study = {"subject": folder.name}
    for name in names:
        scan, _ = make_t1(movement()) if name == "t1" else make_pair(name)
        study[name] = write_nifti(folder / f"{folder.name}_{name}.nii.gz", scan.volume, scan.affine)
    return study


def errors_mm(found: np.ndarray, true: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """How far each brain voxel is put from where it is, in mm."""
    points = affine @ np.vstack([np.argwhere(brain).T, np.ones(np.count_nonzero(brain))])
    return np.linalg.norm(((found - true) @ points)[:3], axis=0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def transforms_of(folder: Path) -> dict:
    return json.loads((folder / "preprocessing" / "transforms.json").read_text())


@pytest.mark.parametrize("far", [0.0, 60.0])
def test_registration_finds_the_movement_from_near_and_far(far: float) -> None:
    true = movement(mm=(4 + far, -3, 2))
    affine = T1_AFFINE.copy()
    affine[0, 3] += far  # the field of view went with the head
    moving, _ = make_scan("t1", (40, 36, 31), affine, true)
    fixed, brain = make_pair("t2")
    found, information = register_rigidly(fixed, moving, (8.0, 4.0))
    error = errors_mm(found, true, brain, fixed.affine)
    assert np.median(error) < 1.5  # the voxels have 5×5×8 mm and 6 mm
    assert 0 < information < 5


def test_registration_of_scans_that_cannot_overlap_is_one_error() -> None:
    fixed, _ = make_pair("t2")
    with pytest.raises(RuntimeError, match="registration failed"):
        register_rigidly(fixed, Scan(np.zeros((2, 2, 2), np.float32), np.diag([0.1, 0.1, 0.1, 1])), (8.0,))


def test_bias_correction_flattens_a_known_field() -> None:
    scan, brain = make_pair("pd")
    x = np.linspace(-1, 1, 40)[:, None, None]
    field = np.exp(0.35 * x).astype(np.float32)
    corrected = correct_bias(Scan(scan.volume * field, scan.affine), 10.0)
    left = np.log(corrected.volume / scan.volume)[brain]
    assert left.std() < 0.8 * np.log(np.broadcast_to(field, brain.shape))[brain].std()


def test_resampling_to_thicker_slices_averages_those_within() -> None:
    thin = np.random.default_rng(0).normal(size=(5, 4, 12)).astype(np.float32)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[2, 3] = 1.0
    thick = resample(Scan(thin, np.eye(4)), (5, 4, 4), affine, np.eye(4), order=1)
    assert np.allclose(thick, thin.reshape(5, 4, 4, 3).mean(-1), atol=1e-5)


def test_resampling_follows_the_matrix_into_the_scan() -> None:
    volume = np.zeros((9, 9, 9), np.float32)
    volume[6, 4, 4] = 1.0
    shift = np.eye(4)
    shift[0, 3] = 4.0  # 4 mm in output space are 2 voxels of 2 mm here
    scan = Scan(volume, np.diag([2.0, 2.0, 2.0, 1.0]))
    moved = resample(scan, (9, 9, 9), scan.affine, shift, order=1)
    assert np.unravel_index(moved.argmax(), moved.shape) == (4, 4, 4)


def test_itk_images_keep_the_space_of_any_affine() -> None:
    affine = movement() @ np.array([[0, 0, 1.5, 3], [-2.0, 0, 0, 4], [0, 1.0, 0, 5], [0, 0, 0, 1]])
    scan = Scan(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine)
    back = from_itk(to_itk(scan))
    assert np.array_equal(back.volume, scan.volume)
    assert np.allclose(back.affine, affine)


@pytest.mark.parametrize("name", ["t1", "t2", "pd"])
def test_filters_find_the_brain(name: str) -> None:
    scan, brain = make_t1(np.eye(4)) if name == "t1" else make_pair(name)
    mask = mask_by_filters(scan)
    assert dice(mask.volume > 0.5, brain) > 0.7  # voxels of 5 to 8 mm, as large as the skull is thick


def test_a_study_becomes_what_the_networks_read(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "raw" / "002_S_0295")
    report = preprocess_cohort([study], tmp_path / "out", "adni", QUICK, progress=False)
    assert (report.written, report.kept, report.failed) == (["002_S_0295"], [], {})

    (read,) = read_studies(tmp_path / "out", "adni", require_all=True)
    assert read["mask"] == str(tmp_path / "out" / "002_S_0295" / "preprocessing" / "brainmask.nii.gz")
    loaded = StudyPreprocessing("adni", size=48)(read)
    assert loaded["image"].shape == (3, 48, 48, 22)

    folder = tmp_path / "out" / "002_S_0295"
    record = transforms_of(folder)
    mask = nib.load(folder / "preprocessing" / "brainmask.nii.gz")
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


def test_a_sheared_grid_is_written_without_a_qform_which_cannot_hold_it(tmp_path: Path) -> None:
    affine = PAIR_AFFINE.copy()
    affine[1, 2] += affine[2, 2] * np.tan(np.radians(15))  # a tilted gantry
    path = tmp_path / "a.nii.gz"
    save_nifti(np.zeros((40, 48, 22), np.float32), affine, path)
    image = nib.load(path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    assert np.allclose(image.affine, affine, atol=1e-4)


def test_t1_alone_keeps_its_own_grid_and_an_edge_in_mm_gives_isotropic_voxels(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1",))
    own = nib.load(preprocess_study(study, tmp_path / "a", "adni", QUICK) / "case_t1.nii.gz")
    assert own.shape == (40, 36, 31)
    assert np.allclose(own.affine, T1_AFFINE)
    cubes = PreprocessingSettings(grid=8.0, mask="itk", bias_spacing=20.0)
    image = nib.load(preprocess_study(study, tmp_path / "b", "adni", cubes) / "case_t1.nii.gz")
    assert np.allclose(image.affine[:3, :3], np.diag([8.0] * 3))
    assert image.shape == (24, 30, 27)


def test_brats_comes_with_its_defaults_at_1_mm_in_the_pose_of_the_contrast_sets_reference(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "case"
    scans = {"flair": make_pair("pd")[0], "t1": make_t1(movement())[0], "t2": make_pair("t2")[0]}
    study = {"subject": "case"} | {
        name: write_nifti(folder / f"case_{name}.nii.gz", scan.volume, scan.affine) for name, scan in scans.items()
    }
    settings = PreprocessingSettings(mask="itk", bias_spacing=20.0, levels=(8.0, 4.0))
    report = preprocess_cohort([study], tmp_path / "out", "brats", settings, progress=False)
    assert report.written == ["case"]
    record = transforms_of(tmp_path / "out" / "case")
    assert record["reference"] == "t1"  # no T1Gd
    assert np.allclose(np.linalg.norm(np.array(record["grid"]["affine"])[:3, :3], axis=0), 1.0)
    assert record["scans"]["t1"]["to_scanner"] == np.eye(4).tolist()
    assert record["mask"]["scan"] == "t1"
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["grid"] == 1.0


def test_scans_of_one_grid_are_registered_unless_the_contrast_set_says_that_they_are_one_acquisition() -> None:
    true = movement()  # between T1 and T1Gd the patient moved, on a grid that was planned once
    fixed, brain = make_t1(np.eye(4))
    moving, _ = make_t1(true)
    scans = {"t1ce": fixed, "t1": moving}
    matrices, information = register_study("case", scans, "t1ce", get_contrast_set("brats"), (8.0, 4.0))
    assert np.median(errors_mm(matrices["t1"], true, brain, fixed.affine)) < 1.5
    assert list(information) == ["t1"]
    echoes = {"t2": fixed, "pd": moving}
    matrices, information = register_study("case", echoes, "pd", get_contrast_set("adni"), (8.0, 4.0))
    assert np.array_equal(matrices["t2"], np.eye(4)) and not information


def test_an_isotropic_grid_lies_along_the_axes_of_an_oblique_scan() -> None:
    turn = movement((12.0, 5.0, -8.0), (3, 4, 5))
    scan = Scan(np.ones((6, 8, 4), np.float32), turn @ np.diag([-1.0, 1.0, 5.0, 1.0]))
    shape, affine = isotropic_grid(scan, 1.0)
    assert shape == (6, 8, 20)
    assert np.allclose(affine[:3, :3], turn[:3, :3], atol=1e-6)  # right angles, nearest to RAS
    middle = (np.array(shape) - 1) / 2
    assert np.allclose(affine @ [*middle, 1], scan.affine @ [2.5, 3.5, 1.5, 1])


@pytest.mark.parametrize(
    ("dataset", "names", "tool", "source"),
    [
        ("brats", ("flair", "t1", "t1ce", "t2"), "deepbet", "t1"),
        ("brats", ("flair", "t1ce", "t2"), "deepbet", "t1ce"),
        ("brats", ("flair", "t2"), "itk", "t2"),
        ("adni", ("t1", "t2", "pd"), "deepbet", "t1"),
        ("adni", ("t2", "pd"), "itk", "t2"),
    ],
)
def test_deepbet_gets_t1_wherever_it_is_else_t1gd_else_the_filters_work(
    dataset: str, names: tuple[str, ...], tool: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    litre = Scan(np.ones((10, 10, 10), np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))
    asked: list[tuple[str, Scan]] = []

    def masked_by(name: str, scan: Scan) -> Scan:
        asked.append((name, scan))
        return litre

    monkeypatch.setattr(brain_mask, "mask_by_filters", partial(masked_by, "itk"))
    monkeypatch.setattr(brain_mask, "mask_by_deepbet", partial(masked_by, "deepbet"))
    scans = {name: Scan(litre.volume * i, litre.affine) for i, name in enumerate(names)}
    mask = find_brain_mask("case", scans, get_contrast_set(dataset), PreprocessingSettings(), None)
    assert asked == [(tool, scans[source])]
    assert mask.origin.startswith(f"{tool} on {source}") and mask.space == source and mask.ml == 1000
    assert tool == "deepbet" or "needs a T1-weighted scan" in mask.origin


def test_a_brain_volume_outside_what_heads_have_is_an_error_that_says_so(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t2", "pd"))
    message = r"'case': the brain mask has \d+ ml \(itk on t2\), and a head's has 100 to 300; look at t2.*your own"
    with pytest.raises(StudyError, match=message):
        preprocess_study(study, tmp_path / "out", "adni", replace(QUICK, brain_ml=(100.0, 300.0)))
    assert not (tmp_path / "out").exists()


def test_a_mask_of_the_users_own_is_taken_on_any_scans_grid(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "pd"))
    _, brain = make_t1(movement())
    write_nifti(tmp_path / "masks" / "case_mask.nii.gz", brain.astype(np.uint8), T1_AFFINE)
    pattern = str(tmp_path / "masks" / "{subject}_mask.nii.gz")
    settings = PreprocessingSettings(mask=pattern, bias_spacing=20.0, levels=(8.0, 4.0))
    folder = preprocess_study(study, tmp_path / "out", "adni", settings)
    _, true_brain = make_pair("pd")
    mask = np.asarray(nib.load(folder / "preprocessing" / "brainmask.nii.gz").dataobj) > 0
    assert dice(mask, true_brain) > 0.93
    assert transforms_of(folder)["mask"]["from"].endswith("case_mask.nii.gz")

    beside = {**study, "mask": str(tmp_path / "masks" / "case_mask.nii.gz")}  # in the study's own folder
    again = preprocess_cohort([beside], tmp_path / "beside", "adni", QUICK, progress=False)
    assert again.written == preprocess_cohort([beside], tmp_path / "beside", "adni", QUICK, progress=False).kept
    same = nib.load(tmp_path / "beside" / "case" / "preprocessing" / "brainmask.nii.gz")
    assert np.array_equal(np.asarray(same.dataobj) > 0, mask)

    write_nifti(tmp_path / "masks" / "case_mask.nii.gz", brain.astype(np.uint8), np.eye(4))
    with pytest.raises(StudyError, match=r"case_mask.nii.gz: the mask is on the grid of none .*t1, pd"):
        preprocess_study(study, tmp_path / "out2", "adni", settings)
    assert not (tmp_path / "out2" / "case").exists()


def test_a_result_goes_back_onto_the_scanners_own_grid(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "pd"))
    folder = preprocess_study(study, tmp_path / "out", "adni", QUICK)
    transforms = folder / "preprocessing" / "transforms.json"
    back = to_scanner_space(folder / "preprocessing" / "brainmask.nii.gz", transforms, "t1", tmp_path / "m.nii.gz")
    image = nib.load(back)
    assert image.shape == (40, 36, 31)
    assert np.allclose(image.affine, T1_AFFINE)
    _, brain = make_t1(movement())
    assert dice(np.asarray(image.dataobj) > 0.5, brain) > 0.7

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


def test_deepbet_that_is_not_installed_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package deepbet"):
        preprocess_cohort([], tmp_path / "out", "adni")
    assert not (tmp_path / "out").exists()


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
        mask = np.asarray(nib.load(folder / "preprocessing" / "brainmask.nii.gz").dataobj) > 0
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


@pytest.mark.slow
def test_deepbet_finds_the_phantoms_brain(tmp_path: Path) -> None:
    pytest.importorskip("deepbet")
    pytest.importorskip("nilearn")
    (folder,) = write_phantom_dataset(tmp_path, "adni-raw", subjects=1, seed=1, spacing=3.0, progress=False)
    image = nib.load(folder / f"{folder.name}_t1.nii.gz")
    mask = mask_by_deepbet(Scan(image.get_fdata(dtype=np.float32), image.affine))
    truth = np.asarray(nib.load(tmp_path / ".truth" / folder.name / "brain_t1.nii.gz").dataobj) > 0
    assert dice(mask.volume > 0.5, truth) > 0.95
