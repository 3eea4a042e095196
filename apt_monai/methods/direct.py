"""Our own method: one pass of a network that sees what was acquired, and which contrasts they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SegResNet

from apt_monai.errors import ModelError
from apt_monai.files import file_sha256, json_sha256
from apt_monai.inferers import TwoStageInferer, noise_scheduler
from apt_monai.methods.base import Batch
from apt_monai.methods.calibration import CALIBRATION_NAME, Calibration
from apt_monai.methods.sampled import SampledMethod
from apt_monai.networks import Conditions, Denoiser, DirectDenoiser
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.weights import load_weights


class Direct(SampledMethod):
    """One pass from the acquired contrasts to the missing ones; no vision encoder, fusion or codebook.

    The sampler is the paper's, from pure noise (M = T) in one step (S = 1), without guidance and without stage 2.

    Args:
        denoiser: the trained denoiser.
        inferer: the sampler.
        preprocessing: from a study's files to its slices, and back.
        calibration: how wide intervals are, how spread volumes; None: as Laplace's distribution has it, and as the
            acquired contrast whose intensity scale is taken.
        seed: the run's seed; nothing depends on it while the denoiser does not look at the noise.
        weights: what its weights are known by, as JSON can hold it.

    Example::

        >>> inferer = TwoStageInferer(noise_scheduler(), 1000, 1, unroll_iterations=0, guidance_scale=0.0)
        >>> method = Direct(DirectDenoiser(torch.nn.Conv2d(8, 8, 1)), inferer, StudyPreprocessing("brats", None))
        >>> batch = {"image": torch.zeros(1, 4, 8, 9), "region": torch.ones(1, 1, 8, 9, dtype=torch.uint8),
        ...          "subject": ["BraTS2021_00000"], "slice": [70]}
        >>> result = method(batch, torch.tensor([[True, True, True, False]]))
        >>> result["image"].shape, result["uncertainty"].shape, method.passes
        (torch.Size([1, 4, 8, 9]), torch.Size([1, 4, 8, 9]), 1)
    """

    name = "direct"
    files = ("model.pt", CALIBRATION_NAME)

    def __init__(
        self,
        denoiser: Denoiser,
        inferer: TwoStageInferer,
        preprocessing: StudyPreprocessing,
        calibration: Calibration | None = None,
        seed: int = 0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(denoiser, inferer, preprocessing, seed, weights)
        self.calibration = calibration

    @classmethod
    def build_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        return SegResNet(**settings["network"])

    @classmethod
    def build_denoiser(cls, network: torch.nn.Module, settings: Mapping[str, Any], precision: str) -> Denoiser:
        return DirectDenoiser(network, precision, settings["multiple"], settings["gain"])

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> Direct:
        try:
            preprocessing = StudyPreprocessing.from_settings(settings)
            network = cls.build_network(settings)
            scheduler = noise_scheduler(**settings["scheduler"])
            denoiser = cls.build_denoiser(network, settings, precision)
        except (KeyError, TypeError) as error:
            raise ModelError(f"{folder / 'model.json'}: settings of no {cls.name} model ({error!r})") from error
        # without a backward pass, channels last is faster with any norm
        load_weights(network, folder / "model.pt").to(device).to(memory_format=torch.channels_last)
        weights = {
            "trained_on": settings["trained_on"],
            "settings_sha256": json_sha256([settings[key] for key in ("network", "scheduler", "multiple", "gain")]),
            **{f"{Path(name).stem}_sha256": file_sha256(folder / name) for name in cls.files},
        }
        inferer = TwoStageInferer.from_settings(scheduler, settings["sampling"])
        calibration = Calibration.load(folder / CALIBRATION_NAME, preprocessing.contrasts)
        return cls(denoiser, inferer, preprocessing, calibration, seed, weights)

    def conditions(self, batch: Batch, acquired: torch.Tensor, available: torch.Tensor) -> Conditions:
        return Conditions(acquired, available, brain=batch["region"] > 0)

    def half_width(self, scale: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
        half_width = super().half_width(scale, available)
        if self.calibration is None:
            return half_width
        table = torch.tensor([self.calibration.half_width[name] for name in self.contrasts.names])  # (C, C - 1)
        sources = available.sum(dim=1).cpu().clamp(max=table.shape[1])  # (B,)
        return half_width * table[:, sources - 1].T[:, :, None, None].to(scale)

    def output_range(self, target: str, ranges: Mapping[str, tuple[float, float]]) -> tuple[str, tuple[float, float]]:
        """The median of the acquired contrast whose scale is taken, and the spread that the target usually has."""
        source, (low, high) = super().output_range(target, ranges)
        median, deviations = (low + high) / 2, self.preprocessing.scale.deviations
        if self.calibration is None or deviations is None or median <= 0:
            return source, (low, high)
        half = deviations * self.calibration.deviation[target] * median
        return source, (median - half, median + half)
