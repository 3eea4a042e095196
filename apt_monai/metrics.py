"""PSNR and SSIM of a slice or a region of it, and what they don't tell: detail, flicker, coverage, the intensity curve.

And HaarPSI, which agrees better with what readers see. All take intensities in [0, 1] with a data range of 1, and
compute in float64. MONAI's PSNR and SSIM have no region, and
its SSIM is computed in float32 with convolutions that a GPU does in TF32, too coarse for the variances of dark tissue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import piq
import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor

WINDOW_RADIUS = 5
"""The SSIM window has 11×11 pixels; no window fits around the outer 5 pixels of a slice."""

SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2

HAARPSI_PIXELS = 16
"""The largest of HaarPSI's filters has 16×16 pixels."""

RIM = 2
"""Detail and flicker are of the brain eroded by so many voxels: its edge against the background is no detail."""


def psnr(prediction: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB: -10 log10(MSE), the mean squared error taken over the region.

    Without a region it equals ``skimage.metrics.peak_signal_noise_ratio(truth, prediction, data_range=1)``.

    Args:
        prediction: (B, 1, H, W) in [0, 1].
        truth: (B, 1, H, W) in [0, 1].
        region: (B, 1, H, W) bool, the pixels that count; None is the whole slice.

    Returns:
        (B,) float32; infinity for identical images, NaN where the region is empty.

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> psnr(torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.5))
        tensor([20.0000])
    """
    region = _check(prediction, truth, region)
    mse = _mean((prediction.double() - truth.double()) ** 2, region)
    return (-10 * torch.log10(mse)).float()


def ssim(prediction: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004): the mean of the SSIM map over the region.

    Gaussian 11×11 window with σ = 1.5 pixels, K1 = 0.01, K2 = 0.03, variances with divisor n. The map exists where the
    window fits in the slice, so the outer 5 pixels never count. Without a region it equals
    ``skimage.metrics.structural_similarity(truth, prediction, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)``; with one, the mean of that function's full map over the pixels of the
    region that are at least 5 pixels from the slice's edge. The window of a pixel at the region's rim reaches outside
    the region; both images keep there what they have.

    Args:
        prediction: (B, 1, H, W) in [0, 1], H and W at least 11.
        truth: (B, 1, H, W) in [0, 1].
        region: (B, 1, H, W) bool, the pixels that count; None is the whole slice.

    Returns:
        (B,) float32 in [-1, 1]; 1 for identical images, NaN where no pixel of the region counts.

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> slices = torch.rand(2, 1, 32, 32)
        >>> ssim(slices, slices)
        tensor([1., 1.])
    """
    region = _check(prediction, truth, region)
    if min(truth.shape[-2:]) < 2 * WINDOW_RADIUS + 1:
        raise ValueError(
            f"truth has shape {tuple(truth.shape)}: SSIM needs H and W of at least {2 * WINDOW_RADIUS + 1}"
        )
    x, y = prediction.double(), truth.double()
    mu_x, mu_y, mu_xx, mu_yy, mu_xy = _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1)).split(1, dim=1)
    var_x, var_y, cov_xy = mu_xx - mu_x**2, mu_yy - mu_y**2, mu_xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
    structure = (2 * cov_xy + C2) / (var_x + var_y + C2)
    interior = region[..., WINDOW_RADIUS:-WINDOW_RADIUS, WINDOW_RADIUS:-WINDOW_RADIUS]
    return _mean(luminance * structure, interior).float()


def haarpsi(prediction: Tensor, truth: Tensor) -> Tensor:
    """Haar wavelet-based perceptual similarity of the whole slice (Reisenhofer et al. 2018), by the package piq.

    Where edges and fine structures lie counts, more than how bright they are. A slice smaller than its filters, 16
    pixels, is padded with 0.

    Args:
        prediction: (B, 1, H, W) in [0, 1].
        truth: (B, 1, H, W) in [0, 1].

    Returns:
        (B,) float32 in [0, 1]; 1 for identical images, and where neither has an edge.

    Raises:
        ValueError: wrong shapes or range.

    Example::

        >>> slices = torch.rand(2, 1, 32, 32)
        >>> haarpsi(slices, slices)
        tensor([1., 1.])
    """
    _check(prediction, truth, None)
    lacking = [max(HAARPSI_PIXELS - n, 0) for n in truth.shape[-2:]]
    padded = [F.pad(image.double(), (0, lacking[1], 0, lacking[0])) for image in (prediction, truth)]
    # Without any edge, its mean over the edges is that of none: infinity.
    return piq.haarpsi(*padded, reduction="none", data_range=1.0).clamp(max=1).float()


def monotone_match(prediction: Tensor, truth: Tensor, region: Tensor, bins: int = 256) -> Tensor:
    """The prediction after the one non-decreasing curve that brings it nearest to the truth.

    Most of the error on a real scan is the target's intensity curve, which no source tells: the PSNR after it is that
    of the structure. The curve is fitted by least squares (isotonic regression) to the truth's means in equal bins of
    the prediction's values, and is straight between the bins' means.

    Args:
        prediction: (B, 1, H, W) in [0, 1]; one curve is fitted to all B slices together.
        truth: (B, 1, H, W) in [0, 1].
        region: (B, 1, H, W) bool, where the curve is fitted and applied; elsewhere the prediction stays.
        bins: in how many bins the values are.

    Returns:
        (B, 1, H, W) float64 in [0, 1].

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> truth = torch.rand(2, 1, 16, 16)
        >>> matched = monotone_match(truth**2, truth, truth >= 0)
        >>> bool((psnr(matched, truth) > psnr(truth**2, truth) + 20).all())
        True
    """
    region = _check(prediction, truth, region)
    matched = prediction.double().clone()
    x, y = prediction[region].double().numpy(), truth[region].double().numpy()
    if not len(x):
        return matched
    place = np.minimum((x * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    means = [np.bincount(place, values, bins)[filled] / count[filled] for values in (x, y)]
    curve = isotonic_regression(means[1], weights=count[filled]).x
    matched[region] = torch.from_numpy(np.interp(x, means[0], curve)).clamp(0, 1)
    return matched


def detail(prediction: Tensor, truth: Tensor, brain: Tensor) -> float:
    """The prediction's gradient energy over the truth's: 1 where it is as sharp, below 1 where it is smoothed.

    The sum of squared differences between in-plane neighbours, both in the brain eroded by :data:`RIM` voxels (a
    square of 5 × 5), over all slices.

    Args:
        prediction: (B, 1, H, W) in [0, 1].
        truth: (B, 1, H, W) in [0, 1], without noise where that is known.
        brain: (B, 1, H, W) bool.

    Returns:
        The ratio; NaN where the truth has no difference at all.

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> truth = torch.rand(2, 1, 16, 16)
        >>> round(detail(truth / 2, truth, truth >= 0), 6)
        0.25
    """
    inside = erode(_check(prediction, truth, brain))
    energies = []
    for image in (prediction.double(), truth.double()):
        energy = 0.0
        for axis in (2, 3):
            n = image.shape[axis] - 1
            both = inside.narrow(axis, 0, n) & inside.narrow(axis, 1, n)
            energy += float((image.diff(dim=axis) ** 2)[both].sum())
        energies.append(energy)
    return energies[0] / energies[1] if energies[1] else float("nan")


def flicker(prediction: Tensor, truth: Tensor, brain: Tensor, indices: Sequence[int]) -> float:
    """The prediction's change from slice to slice over the truth's: above 1 where slices flicker.

    The sum of squared differences between slices k and k + 1, in the brain of both eroded by :data:`RIM` voxels
    in plane, over all such pairs.

    Args:
        prediction: (B, 1, H, W) in [0, 1].
        truth: (B, 1, H, W) in [0, 1], without noise where that is known.
        brain: (B, 1, H, W) bool.
        indices: each slice's index along the axis through the planes, rising.

    Returns:
        The ratio; NaN where the truth has no difference at all, or no two slices are neighbours.

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> truth = torch.rand(2, 1, 16, 16)
        >>> round(flicker(1 - truth, truth, truth >= 0, [7, 8]), 6)
        1.0
    """
    inside = erode(_check(prediction, truth, brain))
    first = torch.tensor([i for i, (a, b) in enumerate(zip(indices, indices[1:], strict=False)) if b == a + 1]).long()
    both = inside[first] & inside[first + 1]
    energies = [float((v[first + 1] - v[first])[both].square().sum()) for v in (prediction.double(), truth.double())]
    return energies[0] / energies[1] if energies[1] else float("nan")


def coverage(lower: Tensor, upper: Tensor, truth: Tensor, region: Tensor) -> float:
    """The share of the region's voxels whose truth lies in an interval, its ends included.

    Args:
        lower: (B, 1, H, W) in [0, 1], the intervals' lower ends.
        upper: (B, 1, H, W) in [0, 1], the upper ones.
        truth: (B, 1, H, W) in [0, 1].
        region: (B, 1, H, W) bool.

    Returns:
        In [0, 1]; NaN where the region is empty.

    Raises:
        ValueError: wrong shapes, type or range.

    Example::

        >>> truth = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
        >>> coverage(torch.full_like(truth, 0.25), torch.full_like(truth, 0.75), truth, truth >= 0)
        0.5
    """
    region = _check(lower, truth, region) & _check(upper, truth, region)
    within = (lower <= truth) & (truth <= upper)
    return float(within[region].double().mean())


def erode(region: Tensor, radius: int = RIM) -> Tensor:
    """A region ``(B, 1, H, W)`` bool without what is within ``radius`` voxels of its outside, as a square.

    Example::

        >>> int(erode(torch.ones(1, 1, 7, 8, dtype=torch.bool)).sum())
        12
    """
    outside = F.pad((~region).float(), (radius,) * 4, value=1)
    return F.max_pool2d(outside, 2 * radius + 1, stride=1) == 0


def _check(prediction: Tensor, truth: Tensor, region: Tensor | None) -> Tensor:
    """Check the inputs; return the region, all True where none is given."""
    if truth.ndim != 4 or truth.shape[1] != 1 or prediction.shape != truth.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}: both must be (B, 1, H, W)"
        )
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not ((image >= 0) & (image <= 1)).all():
            raise ValueError(
                f"{name} goes from {image.min():g} to {image.max():g}: must be in [0, 1]; "
                "map [-1, 1] with (v + 1) / 2 and clip a prediction first"
            )
    if region is None:
        return torch.ones_like(truth, dtype=torch.bool)
    if region.shape != truth.shape or region.dtype != torch.bool:
        raise ValueError(
            f"region is {region.dtype} of shape {tuple(region.shape)}: "
            f"must be torch.bool of shape {tuple(truth.shape)}, such as labels > 0"
        )
    return region


def _mean(values: Tensor, region: Tensor) -> Tensor:
    """(B, 1, H, W) → (B,), over the region; NaN where that is empty."""
    return values.masked_fill(~region, 0).sum(dim=(1, 2, 3)) / region.sum(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, H - 10, W - 10): the Gaussian window wherever it fits, as two passes."""
    offsets = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    window = window / window.sum()
    stack = images.flatten(0, 1).unsqueeze(1)  # (B*C, 1, H, W)
    blurred = F.conv2d(F.conv2d(stack, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return blurred.view(*images.shape[:2], *blurred.shape[-2:])
