"""Registration, bias correction and resampling: against known movements and fields, and naive twins."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_heads import T1_AFFINE, errors_mm, make_pair, make_scan, make_t1, movement

from apt_monai.contrasts import get_contrast_set
from apt_monai.preprocessing.bias import correct_bias
from apt_monai.preprocessing.registration import register_rigidly, register_study
from apt_monai.preprocessing.resampling import isotropic_grid, resample
from apt_monai.preprocessing.scan import Scan, from_itk, to_itk


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
    matrices, information = register_study("case", scans, "t1ce", get_contrast_set("brats"), (8.0, 4.0))
    assert np.median(errors_mm(matrices["t1"], true, brain, fixed.affine)) < 1.5
    assert list(information) == ["t1"]
    echoes = {"t2": fixed, "pd": moving}
    matrices, information = register_study("case", echoes, "pd", get_contrast_set("adni"), (8.0, 4.0))
    assert np.array_equal(matrices["t2"], np.eye(4)) and not information


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
