"""Enhancing lesions that a synthetic volume misses and invents, counted a lesion: what a reader fears of it.

A mean over all voxels hardly sees them. They are counted where the target is the scan with a contrast agent. Bright is
what is above :data:`BRIGHT` percent of the truth's brain without tumour, in the truth and in the prediction alike. The
median and 2.5 robust deviations would be above the largest possible value, 1, in 4 of 6 phantoms with an enhancing rim:
the spread is that of grey against white matter against fluid, wider than from white matter to a rim. Where the rim is
no brighter than white matter (thin, in thick slices, or beside a strong bias field), no threshold finds it.

The prediction is compared as it is, never after :func:`apt_monai.metrics.monotone_match`: that curve is fitted to the
truth, and where a method invents bright lesions it makes just their intensities darker, which forgives what is to be
counted (on phantoms all 5 that the shipped model invented, and it found none of the 17 that this model missed).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

BRIGHT = 98.0
"""The percentile of the truth's brain without tumour above which a voxel is bright."""
SMALLEST = 5
"""A lesion has so many voxels of a slice or more; fewer are noise and small vessels."""
FOUND = 1 / 3
"""A lesion is found where at least this share of its voxels is bright in the prediction."""

NEIGHBOURS = np.ones((3, 3), bool)  # in a slice, diagonals included


def count_lesions(prediction: Tensor, truth: Tensor, region: Tensor) -> dict[str, list[int]]:
    """Lesions of each slice, as connected components in plane: one that two slices show counts twice.

    Args:
        prediction: ``(S, 1, X, Y)`` in [0, 1], on the truth's scale.
        truth: ``(S, 1, X, Y)`` in [0, 1], of all slices from which the threshold is taken.
        region: ``(S, 1, X, Y)`` uint8: 0 outside the brain, 1 in the brain, 2 in the tumour.

    Returns:
        For each slice: ``"lesions"``, the bright components of the truth in the tumour; ``"missed"``, those that are
        not found in the prediction; ``"invented"``, the bright components of the prediction, anywhere in the brain,
        that no bright voxel of the truth touches.

    Example::

        >>> import torch
        >>> region = torch.ones(1, 1, 20, 20, dtype=torch.uint8)
        >>> region[..., 4:12, 4:12] = 2
        >>> truth = torch.full(region.shape, 0.4)
        >>> truth[..., 5:8, 5:8] = 0.9
        >>> count_lesions(truth.flip(3), truth, region)
        {'lesions': [1], 'missed': [1], 'invented': [1]}
    """
    healthy = truth[region == 1].numpy()
    threshold = float(np.percentile(healthy, BRIGHT)) if healthy.size else float("inf")
    counts: dict[str, list[int]] = {"lesions": [], "missed": [], "invented": []}
    for made, real, where in zip(prediction[:, 0].numpy(), truth[:, 0].numpy(), region[:, 0].numpy(), strict=True):
        bright, shown = (real > threshold) & (where > 0), (made > threshold) & (where > 0)
        near = ndimage.binary_dilation(bright, NEIGHBOURS)
        lesions = _components(bright & (where == 2))
        counts["lesions"].append(len(lesions))
        counts["missed"].append(sum(bool(shown[lesion].mean() < FOUND) for lesion in lesions))
        counts["invented"].append(sum(not near[component].any() for component in _components(shown)))
    return counts


def _components(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected components of a slice that are large enough, a mask each."""
    labels, number = ndimage.label(mask, NEIGHBOURS)
    masks = (labels == label for label in range(1, number + 1))
    return [component for component in masks if component.sum() >= SMALLEST]
