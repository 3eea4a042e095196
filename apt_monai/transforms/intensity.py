"""Intensity scaling: what of each volume's brain becomes -1 and 1, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from apt_monai.errors import StudyError

ROBUST = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


class ScaleIntensityInBrain(Transform):
    """Scale each channel so that two intensities of its brain become -1 and 1; the background is exactly -1.

    For each channel: two intensities become 0 and 1, values beyond them are clipped, and [0, 1] is then spread to
    [-1, 1]. The two are percentiles of the channel within the brain; or, with ``deviations``, that many robust standard
    deviations (1.4826 × the median absolute deviation) below and above its median. The upper percentile is vessels and
    contrast agent, and differs from scan to scan where all else is equal; median and deviation are those of grey and
    white matter.

    Args:
        lower: the percentile that becomes -1, at least 0.
        upper: the percentile that becomes 1, above ``lower`` and at most 100.
        deviations: how many deviations around the median; None: the percentiles count.

    Raises:
        ValueError: the percentiles are not ordered within [0, 100], or the deviations are not above 0.

    Example::

        >>> image, region = torch.arange(8.0).reshape(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
        >>> scaled, intensity_range = ScaleIntensityInBrain(0, 100)(image, region)
        >>> intensity_range.tolist(), scaled.min().item(), scaled.max().item()
        ([[0.0, 7.0]], -1.0, 1.0)
        >>> ScaleIntensityInBrain(deviations=1)(image, region)[1].round().tolist()  # median 3.5, deviation 2 × 1.48
        [[1.0, 6.0]]
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, deviations: float | None = None) -> None:
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles lower={lower}, upper={upper}: need 0 <= lower < upper <= 100")
        if deviations is not None and not deviations > 0:
            raise ValueError(f"deviations={deviations}: need a number above 0, or null for the percentiles")
        self.lower = lower
        self.upper = upper
        self.deviations = deviations

    def limits(self, inside: np.ndarray) -> tuple[float, float]:
        """The intensities that become -1 and 1, of a channel's values within the brain.

        Raises:
            ValueError: they coincide.
        """
        if self.deviations is None:
            low, high = np.percentile(inside, (self.lower, self.upper))
            what = f"the {self.lower} and {self.upper} percentiles within the brain are both {low:g}"
        else:
            median = np.median(inside)
            half = self.deviations * ROBUST * np.median(np.abs(inside - median))
            low, high = median - half, median + half
            what = f"half of the brain's voxels are exactly {median:g}"
        if not low < high:
            raise ValueError(f"{what}, the brain is nearly constant; exclude the volume")
        return float(low), float(high)

    def __call__(self, image: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """Scale a volume.

        Args:
            image: ``(C, X, Y, Z)`` raw intensities.
            region: ``(1, X, Y, Z)``, above 0 within the brain.

        Returns:
            The scaled volume ``(C, X, Y, Z)`` float32 in [-1, 1] (a MetaTensor keeps its meta data), and
            ``(C, 2)`` float32, the raw intensities that became 0 and 1 (before the spread to [-1, 1]).

        Raises:
            ValueError: the brain is empty, or a channel is nearly constant in it.
        """
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        brain = (region.as_tensor() if isinstance(region, MetaTensor) else region) > 0
        if not brain.any():
            raise ValueError("the region has no brain voxel, so there is nothing to scale by")
        scaled = torch.full(values.shape, -1.0, dtype=torch.float32)
        intensity_range = torch.empty(len(values), 2)
        for channel, volume in enumerate(values):
            inside = volume[brain[0]].float()
            try:
                low, high = self.limits(inside.numpy())
            except ValueError as error:
                raise ValueError(f"channel {channel}: {error}") from error
            scaled[channel, brain[0]] = ((inside - low) / (high - low)).clamp(0, 1) * 2 - 1
            intensity_range[channel] = torch.tensor([low, high])
        return (MetaTensor(scaled).copy_meta_from(image) if isinstance(image, MetaTensor) else scaled), intensity_range

    def inverse(self, image: Tensor, intensity_range: Tensor, region: Tensor | None = None) -> Tensor:
        """Raw intensities again, except those that were clipped.

        Args:
            image: ``(C, X, Y, Z)`` in [-1, 1].
            intensity_range: ``(C, 2)``, the raw intensities of 0 and 1, as :meth:`__call__` returned them.
            region: ``(1, X, Y, Z)``; where given, voxels outside the brain become 0, as they were when acquired.

        Raises:
            ValueError: a channel's range is not known (NaN: the contrast was not acquired).
        """
        if not torch.isfinite(intensity_range).all():
            raise ValueError(
                f"intensity_range {intensity_range.tolist()}: a contrast that was not acquired has no raw intensities; "
                "give the range that it should have"
            )
        low, high = intensity_range.to(image.device)[:, :, None, None, None].unbind(1)  # C×1×1×1 each
        raw = (image + 1) / 2 * (high - low) + low
        if region is not None:
            raw = raw.masked_fill((region.as_tensor() if isinstance(region, MetaTensor) else region) == 0, 0)
        return raw


class ScaleIntensityInBraind(Transform):
    """Dictionary form of :class:`ScaleIntensityInBrain`, for a study loaded by :class:`LoadStudyd`.

    Scales the acquired contrasts of ``"image"`` within ``"region"``; an absent contrast becomes all -1. Adds
    ``"intensity_range"``, ``(C, 2)`` float32: the raw intensities that became 0 and 1, NaN for an absent contrast.

    Args:
        lower, upper, deviations: as :class:`ScaleIntensityInBrain` takes them.

    Raises:
        StudyError: a contrast is (nearly) constant within the brain; the message names its file.

    Example::

        >>> study = {
        ...     "image": MetaTensor(torch.arange(16.0).reshape(2, 2, 2, 2)),
        ...     "region": MetaTensor(torch.ones(1, 2, 2, 2)),
        ...     "available": torch.tensor([True, False]),
        ...     "paths": {"t1": "case_t1.nii.gz"},
        ... }
        >>> ScaleIntensityInBraind(0, 100)(study)["intensity_range"].tolist()
        [[0.0, 7.0], [nan, nan]]
    """

    def __init__(self, lower: float = 0.5, upper: float = 99.5, deviations: float | None = None) -> None:
        self.scale = ScaleIntensityInBrain(lower, upper, deviations)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        image, available = data["image"], data["available"]
        scaled = torch.full(image.shape, -1.0)
        intensity_range = torch.full((len(image), 2), torch.nan)
        for channel, path in zip(available.nonzero().flatten().tolist(), data["paths"].values(), strict=True):
            one = slice(channel, channel + 1)
            try:
                volume, intensity_range[one] = self.scale(image.as_tensor()[one], data["region"])
            except ValueError as error:
                raise StudyError(f"{path}: {error}") from error
            scaled[one] = volume
        return {**data, "image": MetaTensor(scaled).copy_meta_from(image), "intensity_range": intensity_range}


ScaleIntensityInBrainD = ScaleIntensityInBrainDict = ScaleIntensityInBraind
