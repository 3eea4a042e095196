from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import write_nifti, write_study

from apt_monai.errors import StudyError
from apt_monai.transforms import LoadStudyd, ScaleIntensityInBrain, ScaleIntensityInBraind


@pytest.fixture
def volume() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 9, 8, 7, generator=generator) * 800 + 100
    region = torch.zeros(1, 9, 8, 7, dtype=torch.uint8)
    region[:, 2:-2, 2:-2, 1:] = 1
    region[:, 3:5, 3:5, 2:4] = 2
    return image * (region > 0), region


def test_scaling_agrees_with_the_formula_written_out(volume: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, region = volume
    scaled, intensity_range = ScaleIntensityInBrain(5, 90)(image, region)
    for channel in range(2):
        values, brain = image[channel].numpy(), region[0].numpy() > 0
        low, high = np.percentile(values[brain], 5), np.percentile(values[brain], 90)
        naive = np.full(values.shape, -1.0)
        for index in np.argwhere(brain):
            unit = (values[tuple(index)] - low) / (high - low)
            naive[tuple(index)] = min(max(unit, 0), 1) * 2 - 1
        np.testing.assert_allclose(scaled[channel], naive, atol=1e-6)
        assert (scaled[channel, ~brain] == -1).all()
        np.testing.assert_allclose(intensity_range[channel], [low, high], rtol=1e-6)


def test_the_inverse_gives_raw_intensities_and_an_empty_background(volume: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, region = volume
    scale = ScaleIntensityInBrain(0, 100)
    torch.testing.assert_close(scale.inverse(*scale(image, region), region=region), image, rtol=1e-5, atol=1e-3)


def test_the_inverse_without_a_known_range_is_refused() -> None:
    with pytest.raises(ValueError, match="not acquired"):
        ScaleIntensityInBrain().inverse(torch.zeros(1, 2, 2, 2), torch.full((1, 2), torch.nan))


@pytest.mark.parametrize(("lower", "upper"), [(-1, 99), (50, 50), (1, 101)])
def test_percentiles_out_of_order_are_refused(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match="need 0 <= lower < upper <= 100"):
        ScaleIntensityInBrain(lower, upper)


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="no brain"):
        ScaleIntensityInBrain()(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))


def test_a_constant_contrast_is_refused_by_its_file(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", names=("t1", "t2"))
    constant = np.zeros((12, 10, 6), np.int16)
    constant[2:-2, 2:-2, 1:] = 7
    write_nifti(Path(study["t2"]), constant)
    with pytest.raises(StudyError, match="case_t2.nii.gz: .*percentiles within the brain are both 7"):
        ScaleIntensityInBraind()(LoadStudyd("brats")(study))


def test_an_absent_contrast_is_minus_one_with_no_range(tmp_path: Path) -> None:
    scaled = ScaleIntensityInBraind()(LoadStudyd("brats")(write_study(tmp_path / "case", names=("t1", "t2"))))
    assert (scaled["image"][[0, 2]] == -1).all()
    assert torch.isnan(scaled["intensity_range"]).all(dim=1).tolist() == [True, False, True, False]


def test_an_absent_contrast_does_not_change_the_others(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    whole = ScaleIntensityInBraind()(LoadStudyd("brats")(study))
    part = ScaleIntensityInBraind()(LoadStudyd("brats")({k: study[k] for k in ("subject", "t2")}))
    assert torch.equal(whole["image"][3].as_tensor(), part["image"][3].as_tensor())


def test_median_and_deviation_do_not_follow_a_few_bright_voxels() -> None:
    image = torch.randn(1, 10, 10, 10, generator=torch.Generator().manual_seed(0)) * 50 + 500
    region = torch.ones(1, 10, 10, 10)
    bright = image.clone()
    bright[:, 0, :4] = 9000  # vessels, contrast agent
    steady, percentiles = ScaleIntensityInBrain(deviations=4), ScaleIntensityInBrain()
    assert abs(steady(image, region)[1] - steady(bright, region)[1]).max() < 20
    assert abs(percentiles(image, region)[1] - percentiles(bright, region)[1]).max() > 5000
    low, high = steady(image, region)[1][0].tolist()
    inside = image.flatten().numpy()
    deviation = 1.4826 * np.median(np.abs(inside - np.median(inside)))
    np.testing.assert_allclose([low, high], np.median(inside) + np.array([-4, 4]) * deviation, rtol=1e-5)
    scaled, limits = steady(bright, region)
    assert scaled.max() == 1  # clipped
    kept = scaled.abs() < 1
    torch.testing.assert_close(steady.inverse(scaled, limits)[kept], bright[kept], rtol=1e-4, atol=1e-2)


def test_a_brain_of_one_intensity_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="half of the brain's voxels are exactly 3"):
        ScaleIntensityInBrain(deviations=3)(torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 2, 2, 2))
    with pytest.raises(ValueError, match="deviations=0"):
        ScaleIntensityInBrain(deviations=0)
