"""The SSIM of BraSyn, the challenge of synthesising a missing contrast for tumour segmentation (Li et al. 2023).

3D, in the tumour and in the healthy brain, after each volume was clipped to its own percentiles. It is not the SSIM of
the other tables: those are of slices, and of a prediction that two numbers of the truth have placed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter

from apt_monai.metrics import C1, C2, SIGMA, WINDOW_RADIUS

PERCENTILES = (0.5, 99.5)
"""Of a whole volume, what is outside the brain included; they become 0 and 1."""

Volume = NDArray[np.float64]


def brasyn_ssim(
    prediction: Volume, truth: Volume, brain: NDArray[np.bool_], tumour: NDArray[np.bool_]
) -> tuple[float, float]:
    """SSIM in the tumour and in the healthy brain, after the challenge's ``ssim.py`` as its comments describe it.

    Each volume is clipped to its own percentiles and scaled to [0, 1], whatever its scale; what is not of the region
    becomes 0 in both; and the mean of the SSIM map over the region is its score (Gaussian window of 11 × 11 × 11 voxels
    with σ = 1.5, data range 1). The healthy brain is the brain without the tumour; what surrounds the brain, where
    every method is right, does not count.

    Args:
        prediction: (X, Y, Z), intensities from 0 on; 0 outside the brain.
        truth: (X, Y, Z), intensities from 0 on; 0 outside the brain.
        brain: (X, Y, Z), the brain with the tumour.
        tumour: (X, Y, Z), a part of it.

    Returns:
        The tumour's and the healthy brain's, in [-1, 1]; NaN where there is no such voxel.

    Example::

        >>> volume = np.random.default_rng(0).uniform(1, 100, (12, 12, 12))
        >>> tumour = volume > 90
        >>> tuple(round(score, 6) for score in brasyn_ssim(3 * volume, volume, tumour | ~tumour, tumour))
        (1.0, 1.0)
    """
    x, y = _scale(prediction), _scale(truth)
    return _ssim_in(x, y, tumour), _ssim_in(x, y, brain & ~tumour)


def _scale(volume: Volume) -> Volume:
    """A volume between its percentiles, as 0 and 1; all 0 where it has one value only."""
    low, high = np.percentile(volume, PERCENTILES)
    low = max(low, 0.0)
    return (volume.clip(low, high) - low) / (high - low) if high > low else np.zeros_like(volume)


def _ssim_in(x: Volume, y: Volume, region: NDArray[np.bool_]) -> float:
    """The mean of the SSIM map over a region outside which both volumes are made 0."""
    if not region.any():
        return math.nan
    (found,) = find_objects(region.astype(np.uint8))
    # no window around a voxel of the region reaches out of this box
    box = tuple(slice(max(side.start - WINDOW_RADIUS, 0), side.stop + WINDOW_RADIUS) for side in found)
    inside = region[box]
    x, y = x[box] * inside, y[box] * inside
    mu_x, mu_y, mu_xx, mu_yy, mu_xy = (
        gaussian_filter(volume, SIGMA, radius=WINDOW_RADIUS) for volume in (x, y, x * x, y * y, x * y)
    )
    var_x, var_y, cov_xy = mu_xx - mu_x**2, mu_yy - mu_y**2, mu_xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
    structure = (2 * cov_xy + C2) / (var_x + var_y + C2)
    return float((luminance * structure)[inside].mean())
