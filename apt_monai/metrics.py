"""PSNR and SSIM of a slice, of the whole of it or of a region such as the brain or the tumour.

Both take intensities in [0, 1] with a data range of 1, and compute in float64. MONAI's versions have no region, and its
SSIM is computed in float32 with convolutions that a GPU does in TF32, too coarse for the variances of dark tissue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_RADIUS = 5
"""The SSIM window has 11×11 pixels; no window fits around the outer 5 pixels of a slice."""

SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


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
