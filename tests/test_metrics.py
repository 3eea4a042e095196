"""Tests of apt_monai.metrics, against scikit-image and naive versions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from apt_monai.metrics import coverage, detail, erode, flicker, haarpsi, monotone_match, psnr, ssim

SKIMAGE = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


@pytest.fixture
def truth() -> Tensor:
    """(3, 1, 40, 48) smooth, with a background of 0."""
    noise = torch.rand(3, 1, 10, 12, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(noise, (40, 48), mode="bicubic").clamp(0, 1)
    image[..., :, :14] = 0
    return image


@pytest.fixture
def prediction(truth: Tensor) -> Tensor:
    return (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.fixture
def region(truth: Tensor) -> Tensor:
    """A different region in each slice, reaching the slice's edge."""
    region = torch.zeros(truth.shape, dtype=torch.bool)
    for i in range(3):
        region[i, 0, i * 4 : 30, 20 - i :] = True
    return region


def arrays(*images: Tensor) -> list[tuple[np.ndarray, ...]]:
    return [tuple(image[i, 0].numpy().astype(np.float64) for image in images) for i in range(len(images[0]))]


def test_psnr_of_the_whole_slice_is_that_of_skimage(prediction: Tensor, truth: Tensor) -> None:
    expected = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in arrays(prediction, truth)]
    np.testing.assert_allclose(psnr(prediction, truth).numpy(), expected, atol=1e-5)


def test_psnr_of_a_region_takes_the_error_over_it_alone(prediction: Tensor, truth: Tensor, region: Tensor) -> None:
    expected = [-10 * np.log10(np.mean((p - t)[r.astype(bool)] ** 2)) for p, t, r in arrays(prediction, truth, region)]
    np.testing.assert_allclose(psnr(prediction, truth, region).numpy(), expected, atol=1e-5)


def test_ssim_of_the_whole_slice_is_that_of_skimage(prediction: Tensor, truth: Tensor) -> None:
    expected = [structural_similarity(t, p, **SKIMAGE) for p, t in arrays(prediction, truth)]
    np.testing.assert_allclose(ssim(prediction, truth).numpy(), expected, atol=1e-6)


def test_ssim_of_a_region_is_the_mean_of_the_map_of_skimage_over_it(
    prediction: Tensor, truth: Tensor, region: Tensor
) -> None:
    interior = np.zeros(truth.shape[-2:], dtype=bool)
    interior[5:-5, 5:-5] = True
    expected = [
        structural_similarity(t, p, full=True, **SKIMAGE)[1][r.astype(bool) & interior].mean()
        for p, t, r in arrays(prediction, truth, region)
    ]
    np.testing.assert_allclose(ssim(prediction, truth, region).numpy(), expected, atol=1e-6)


def test_ssim_of_nearly_flat_bright_slices_keeps_its_accuracy() -> None:
    truth = 0.9 + 0.001 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    prediction = 0.9 + 0.001 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    ((p, t),) = arrays(prediction, truth)
    assert ssim(prediction, truth).item() == pytest.approx(structural_similarity(t, p, **SKIMAGE), abs=1e-7)


def test_region_of_everything_equals_no_region(prediction: Tensor, truth: Tensor) -> None:
    everything = torch.ones_like(truth, dtype=torch.bool)
    assert torch.equal(psnr(prediction, truth, everything), psnr(prediction, truth))
    assert torch.equal(ssim(prediction, truth, everything), ssim(prediction, truth))


def test_identical_images_have_infinite_psnr_and_ssim_one(truth: Tensor, region: Tensor) -> None:
    assert (psnr(truth, truth) == torch.inf).all() and (psnr(truth, truth, region) == torch.inf).all()
    assert (ssim(truth, truth) == 1).all() and (ssim(truth, truth, region) == 1).all()


def test_empty_region_is_nan_for_that_slice_alone(prediction: Tensor, truth: Tensor, region: Tensor) -> None:
    region[1] = False
    for metric in (psnr, ssim):
        assert metric(prediction, truth, region).isnan().tolist() == [False, True, False]


def test_region_in_the_outer_five_pixels_has_no_ssim(prediction: Tensor, truth: Tensor) -> None:
    edge = torch.zeros_like(truth, dtype=torch.bool)
    edge[..., :5, :] = True
    assert ssim(prediction, truth, edge).isnan().all() and psnr(prediction, truth, edge).isfinite().all()


def test_haarpsi_is_one_for_the_same_and_falls_with_noise_and_with_blur(prediction: Tensor, truth: Tensor) -> None:
    blurred = F.avg_pool2d(truth, 5, stride=1, padding=2)
    assert haarpsi(truth, truth).tolist() == pytest.approx([1.0] * 3)
    assert (haarpsi(prediction, truth) < 0.95).all() and (haarpsi(blurred, truth) < 0.95).all()
    each = [float(haarpsi(p[None], t[None])) for p, t in zip(prediction, truth, strict=True)]
    assert haarpsi(prediction, truth).tolist() == pytest.approx(each)


def test_a_slice_smaller_than_haarpsis_filters_is_one_with_a_margin_of_zeros(prediction: Tensor, truth: Tensor) -> None:
    small = [image[..., :10, 14:32] for image in (prediction, truth)]
    assert haarpsi(*small).tolist() == haarpsi(*(F.pad(image, (0, 0, 0, 6)) for image in small)).tolist()
    dark = torch.zeros(1, 1, 8, 8)
    assert float(haarpsi(dark, dark)) == pytest.approx(1)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_inputs_are_refused(metric: Callable[..., Tensor], truth: Tensor, region: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 1, H, W\)"):
        metric(truth[:1], truth)
    with pytest.raises(ValueError, match=r"must be \(B, 1, H, W\)"):
        metric(truth[:, 0], truth[:, 0])
    with pytest.raises(ValueError, match=r"prediction goes from -1 to .*must be in \[0, 1\]"):
        metric(truth * 2 - 1, truth)
    with pytest.raises(ValueError, match=r"truth goes from nan"):
        metric(truth, truth * float("nan"))
    with pytest.raises(ValueError, match="region is torch.uint8"):
        metric(truth, truth, region.byte())
    with pytest.raises(ValueError, match="region is torch.bool of shape"):
        metric(truth, truth, region[:, :, 1:])


def test_slice_smaller_than_the_window_has_no_ssim() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


def naive_erosion(region: np.ndarray) -> np.ndarray:
    """Voxels whose 5 × 5 neighbourhood lies in the slice and the region."""
    inside = np.zeros_like(region)
    for x in range(2, region.shape[0] - 2):
        for y in range(2, region.shape[1] - 2):
            inside[x, y] = region[x - 2 : x + 3, y - 2 : y + 3].all()
    return inside


def test_erosion_is_that_of_the_naive_one(region: Tensor) -> None:
    for found, whole in zip(erode(region), region, strict=True):
        np.testing.assert_array_equal(found[0].numpy(), naive_erosion(whole[0].numpy()))


def test_detail_is_the_ratio_of_the_naive_sums_of_squared_differences(
    prediction: Tensor, truth: Tensor, region: Tensor
) -> None:
    sums = [0.0, 0.0]
    for p, t, r in arrays(prediction, truth, region):
        inside = naive_erosion(r > 0)
        for x, y in np.argwhere(inside):
            for neighbour in ((x + 1, y), (x, y + 1)):
                if neighbour[0] < p.shape[0] and neighbour[1] < p.shape[1] and inside[neighbour]:
                    for i, image in enumerate((p, t)):
                        sums[i] += (image[neighbour] - image[x, y]) ** 2
    assert detail(prediction, truth, region) == pytest.approx(sums[0] / sums[1], rel=1e-9)
    assert detail(truth, truth, region) == 1
    assert np.isnan(detail(prediction, torch.zeros_like(truth), region))


def test_flicker_is_of_neighbouring_slices_alone(prediction: Tensor, truth: Tensor, region: Tensor) -> None:
    slices = arrays(prediction, truth, region)
    sums = [0.0, 0.0]
    (a_prediction, a_truth, a_region), (b_prediction, b_truth, b_region) = slices[1:]
    both = naive_erosion(a_region > 0) & naive_erosion(b_region > 0)
    sums = [((b - a)[both] ** 2).sum() for a, b in ((a_prediction, b_prediction), (a_truth, b_truth))]
    assert flicker(prediction, truth, region, [3, 7, 8]) == pytest.approx(sums[0] / sums[1], rel=1e-9)
    assert flicker(truth, truth, region, [3, 4, 5]) == 1
    assert np.isnan(flicker(prediction, truth, region, [3, 5, 7]))


def test_the_monotone_curve_is_the_best_of_all_on_few_values(truth: Tensor) -> None:
    """On four values, against a search through all curves of 21 levels."""
    generator = torch.Generator().manual_seed(2)
    prediction = torch.randint(0, 4, truth.shape, generator=generator) / 4
    target = ((1 - prediction) ** 2 * 0.5 + 0.5 * torch.rand(truth.shape, generator=generator)).clamp(0, 1)
    everywhere = torch.ones(truth.shape, dtype=torch.bool)
    error = float(((monotone_match(prediction, target, everywhere) - target) ** 2).mean())
    levels = np.linspace(0, 1, 21)
    best = min(
        sum(float(((target[prediction == k / 4] - curve[k]) ** 2).sum()) for k in range(4)) / target.numel()
        for curve in itertools.combinations_with_replacement(levels, 4)
    )
    assert best - 1e-3 < error <= best + 1e-9


def test_the_monotone_curve_undoes_a_rising_curve_and_leaves_the_rest(truth: Tensor, region: Tensor) -> None:
    bent = truth**0.5
    matched = monotone_match(bent, truth, region)
    assert (psnr(matched.float(), truth, region) > 45).all()
    assert torch.equal(matched[~region], bent.double()[~region])
    constant = monotone_match(torch.full_like(truth, 0.25), truth, region)
    assert constant[region].unique().item() == pytest.approx(float(truth[region].double().mean()))


def test_coverage_counts_what_lies_in_the_interval(prediction: Tensor, truth: Tensor, region: Tensor) -> None:
    lower, upper = (prediction - 0.05).clamp(0, 1), (prediction + 0.05).clamp(0, 1)
    counted = [
        low <= value <= high
        for *images, where in arrays(lower, truth, upper, region)
        for low, value, high in np.stack(images, axis=-1)[where > 0]
    ]
    assert coverage(lower, upper, truth, region) == pytest.approx(np.mean(counted))
    assert np.isnan(coverage(lower, upper, truth, torch.zeros_like(region)))
