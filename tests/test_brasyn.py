"""BraSyn's SSIM, against scikit-image on whole volumes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from tiny_studies import write_study

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.evaluation import EvaluationSlices, evaluate_methods
from apt_monai.evaluation.brasyn import brasyn_ssim
from apt_monai.evaluation.statistics import rows_by_case
from apt_monai.methods import Copy

SHAPE = (30, 28, 20)
SKIMAGE = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}


def smooth(seed: int) -> NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    return 200 + 400 * (noise - noise.min())


@pytest.fixture
def brain() -> NDArray[np.bool_]:
    """A ball, which reaches two sides of the volume."""
    x, y, z = np.indices(SHAPE)
    return (x - 12) ** 2 + (y - 14) ** 2 + (z - 8) ** 2 < 144


@pytest.fixture
def tumour(brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    tumour = np.zeros(SHAPE, bool)
    tumour[2:10, 8:17, :7] = True
    return tumour & brain


def naive(prediction: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    scaled = []
    for volume in (prediction, truth):
        low, high = np.percentile(volume, (0.5, 99.5))
        scaled.append((np.clip(volume, low, high) - low) / (high - low) * region)
    return float(structural_similarity(*scaled, **SKIMAGE)[1][region].mean())


def test_it_is_the_mean_of_skimages_map_of_the_masked_volumes(
    brain: NDArray[np.bool_], tumour: NDArray[np.bool_]
) -> None:
    truth, prediction = smooth(0) * brain, (0.3 * smooth(0) + 0.7 * smooth(1)) * brain
    found = brasyn_ssim(prediction, truth, brain, tumour)
    expected = (naive(prediction, truth, tumour), naive(prediction, truth, brain & ~tumour))
    assert found == pytest.approx(expected, abs=1e-9) and min(found) < 0.95


def test_the_scale_of_a_volume_does_not_count(brain: NDArray[np.bool_], tumour: NDArray[np.bool_]) -> None:
    truth = smooth(0) * brain
    assert brasyn_ssim(2.5 * truth, truth, brain, tumour) == pytest.approx((1, 1))


def test_without_a_tumour_or_a_value_there_is_no_score_or_a_low_one(
    brain: NDArray[np.bool_], tumour: NDArray[np.bool_]
) -> None:
    truth = smooth(0) * brain
    without = brasyn_ssim(truth, truth, brain, np.zeros_like(brain))
    assert math.isnan(without[0]) and without[1] == pytest.approx(1)
    assert max(brasyn_ssim(np.zeros_like(truth), truth, brain, tumour)) < 0.2


def test_an_evaluation_of_every_slice_has_it_on_the_raw_scale(tmp_path: Path) -> None:
    shape = (16, 15, 8)
    studies = [write_study(tmp_path / f"case{i}", shape=shape, seg=i == 0) for i in range(2)]
    slices = EvaluationSlices(studies, tmp_path / "cache", BRATS, None)
    results = evaluate_methods({"copy": Copy(slices.preprocessing)}, slices, [["t1", "t2", "flair"]], tmp_path / "out")
    study, channel = slices.study(0), BRATS.index("t1ce")
    source = study.truth[:, BRATS.index("t1")].numpy()
    (zero, one), brain = study.intensity_range[channel].tolist(), study.brain[:, 0].numpy()
    raw = [np.where(brain, zero + image * (one - zero), 0) for image in (source, study.truth[:, channel].numpy())]
    expected = brasyn_ssim(raw[0].astype(float), raw[1].astype(float), brain, study.region[:, 0].numpy() == 2)
    ((_, rows),) = rows_by_case(results.rows).items()
    of_first = {(row.brasyn_tumour, row.brasyn_healthy) for row in rows if row.subject == "case0"}
    assert of_first.pop() == pytest.approx(expected, abs=1e-5) and not of_first
    assert all(math.isnan(row.brasyn_healthy) for row in rows if row.subject == "case1")
    assert "### BraSyn" in results.markdown and "Over the 1 of 2 subjects" in results.markdown


def test_some_slices_of_a_study_have_none(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case0", ADNI.names, (16, 15, 8))
    slices = EvaluationSlices([study], tmp_path / "cache", ADNI, 2)
    results = evaluate_methods({"copy": Copy(slices.preprocessing)}, slices, None, tmp_path / "out")
    assert all(math.isnan(row.brasyn_tumour) and math.isnan(row.brasyn_healthy) for row in results.rows)
    assert "### BraSyn" not in results.markdown
