"""What the methods share that are a denoiser in the two-stage sampler."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from apt_monai.inferers import TwoStageInferer, slice_seed
from apt_monai.methods.base import INTERVAL, Batch, Method
from apt_monai.networks import Conditions, Denoiser
from apt_monai.transforms.preprocessing import StudyPreprocessing


class SampledMethod(Method):
    """A denoiser in the two-stage sampler; what is known of the slices is each method's own.

    Args:
        denoiser: the trained denoiser.
        inferer: the sampler.
        preprocessing: from a study's files to its slices, and back.
        seed: the run's seed; a slice's noise is drawn from (seed, subject, slice).
        weights: what its weights are known by, as JSON can hold it.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        inferer: TwoStageInferer,
        preprocessing: StudyPreprocessing,
        seed: int = 0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.inferer = inferer
        self.preprocessing = preprocessing
        self.contrasts = preprocessing.contrasts
        self.seed = seed
        self.device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        self.precision = getattr(denoiser, "precision", "float32")
        self.weights = dict(weights or {})

    @classmethod
    @abstractmethod
    def build_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        """The network of a model's settings, untrained."""

    @classmethod
    @abstractmethod
    def build_denoiser(cls, network: torch.nn.Module, settings: Mapping[str, Any], precision: str) -> Denoiser:
        """The denoiser around a network, in training and in use alike."""

    @property
    def network(self) -> torch.nn.Module:
        """The trained network."""
        return self.denoiser.network  # type: ignore[return-value]

    @property
    def passes(self) -> int:
        return self.inferer.passes

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "method": self.name,
            **self.weights,
            "sampling": self.inferer.settings,
            "preprocessing_fingerprint": self.preprocessing.fingerprint,
            "seed": self.seed,
        }

    @abstractmethod
    def conditions(self, batch: Batch, acquired: torch.Tensor, available: torch.Tensor) -> Conditions:
        """What is known of a batch of slices; ``acquired`` is -1 in the missing channels."""

    @torch.no_grad()
    def synthesize(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None
    ) -> dict[str, torch.Tensor]:
        image, brain = batch["image"], batch["region"] > 0
        known = available[:, :, None, None]  # (B, C, 1, 1)
        conditions = self.conditions(batch, torch.where(known, image, torch.full_like(image, -1.0)), available)
        seeds = [slice_seed(self.seed, s, int(i)) for s, i in zip(batch["subject"], batch["slice"], strict=True)]
        prediction = self.inferer.synthesize(self.denoiser, conditions, seeds, progress)
        image = torch.where(known | brain, prediction.clean, torch.full_like(prediction.clean, -1.0))
        result = {} if conditions.prior is None else {"prior": conditions.prior}
        if prediction.scale is not None:
            result["uncertainty"] = self.half_width(prediction.scale, available)
        return {**result, "image": image}

    def half_width(self, scale: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
        """From a denoiser's scale to the half width of the 90 % interval, ``(B, C, H, W)``.

        Args:
            scale: ``(B, C, H, W)``, the mean absolute error that the denoiser expects.
            available: ``(B, C)`` bool.
        """
        # of Laplace's distribution: P(|e| > w) = exp(-w / b)
        return scale * -math.log(1 - INTERVAL)
