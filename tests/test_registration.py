"""Registration, bias correction and resampling: against known movements and fields, and naive twins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_heads import PAIR_AFFINE, T1_AFFINE, errors_mm, make_pair, make_scan, make_t1, movement

from apt_monai.contrasts import get_contrast_set
from apt_monai.phantom import write_phantom_dataset
from apt_monai.preprocessing.bias import correct_bias
from apt_monai.preprocessing.registration import (
    SHARP,
    judge_registration,
    match_scans,
    register_rigidly,
    register_study,
)
from apt_monai.preprocessing.resampling import isotropic_grid, resample
from apt_monai.preprocessing.scan import Scan, from_itk, read_scan, to_itk


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


def test_scans_of_one_grid_are_registered_unless_the_contrast_set_says_that_they_are_one_acquisition() -> None:
    true = movement()  # between T1 and T1Gd the patient moved, on a grid that was planned once
    fixed, brain = make_t1(np.eye(4))
    moving, _ = make_t1(true)
    scans = {"t1ce": fixed, "t1": moving}
    matrices, matches = register_study("case", scans, "t1ce", get_contrast_set("brats"), (8.0, 4.0))
    assert np.median(errors_mm(matrices["t1"], true, brain, fixed.affine)) < 1.5
    assert list(matches) == ["t1"]
    echoes = {"t2": fixed, "pd": moving}
    matrices, matches = register_study("case", echoes, "pd", get_contrast_set("adni"), (8.0, 4.0))
    assert np.array_equal(matrices["t2"], np.eye(4)) and not matches


def test_contrasts_that_are_aligned_already_stay_exactly_aligned() -> None:
    fixed, moving = make_pair("t2")[0], make_pair("pd")[0]
    assert np.array_equal(match_scans(fixed, moving, (8.0, 4.0)).matrix, np.eye(4))
    true = movement((1.0, 0.0, 0.0), (0, 2, 0))
    moved, brain = make_scan("pd", (44, 48, 22), PAIR_AFFINE, true)
    found = match_scans(fixed, moved, (8.0, 4.0)).matrix
    still, after = (np.median(errors_mm(matrix, true, brain, moved.affine)) for matrix in (np.eye(4), found))
    assert after < still / 2


def test_a_scan_of_another_pose_of_the_same_head_is_sharp_and_an_upside_down_one_is_a_finding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fixed, moving = make_pair("t2")[0], make_t1(movement())[0]
    good = match_scans(fixed, moving, (8.0, 4.0))
    wrong = match_scans(fixed, Scan(moving.volume[:, :, ::-1].copy(), moving.affine), (8.0, 4.0))
    assert good.sharpness > SHARP > wrong.sharpness
    assert judge_registration("case", {"t1": good}, "t2") == []
    (finding,) = judge_registration("case", {"t1": wrong, "t2": good}, "t2")
    assert (finding["severity"], finding["check"], finding["file"]) == ("warning", "registration", "t1")
    assert "case: t1 matches t2 nowhere clearly" in caplog.text and "exclude" in finding["advice"]


def raw_scan(folder: Path, name: str) -> Scan:
    return correct_bias(read_scan(str(folder / f"{folder.name}_{name}.nii.gz")))


@pytest.mark.slow
def test_two_patients_and_an_upside_down_scan_are_found_among_raw_phantoms(tmp_path: Path) -> None:
    first, second = write_phantom_dataset(tmp_path, "brats-raw", 2, seed=3, spacing=3.0, progress=False)
    fixed, levels = raw_scan(first, "t1ce"), (8.0, 4.0)
    truth = json.loads((tmp_path / ".truth" / first.name / "truth.json").read_text())["to_t1ce"]
    head = np.argwhere(np.ones((2, 2, 2))) * 120.0 - 60
    for name in ("flair", "t1", "t2"):
        scan = raw_scan(first, name)
        good = match_scans(fixed, scan, levels)
        error = (good.matrix - np.linalg.inv(truth[name])) @ np.column_stack([head, np.ones(8)]).T
        assert good.sharpness > SHARP and np.linalg.norm(error[:3], axis=0).max() < 1.5
        assert match_scans(fixed, Scan(scan.volume[:, :, ::-1].copy(), scan.affine), levels).sharpness < SHARP
        assert match_scans(fixed, raw_scan(second, name), levels).sharpness < SHARP


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


def test_an_isotropic_grid_lies_along_the_axes_of_an_oblique_scan() -> None:
    turn = movement((12.0, 5.0, -8.0), (3, 4, 5))
    scan = Scan(np.ones((6, 8, 4), np.float32), turn @ np.diag([-1.0, 1.0, 5.0, 1.0]))
    shape, affine = isotropic_grid(scan, 1.0)
    assert shape == (6, 8, 20)
    assert np.allclose(affine[:3, :3], turn[:3, :3], atol=1e-6)  # right angles, nearest to RAS
    middle = (np.array(shape) - 1) / 2
    assert np.allclose(affine @ [*middle, 1], scan.affine @ [2.5, 3.5, 1.5, 1])
