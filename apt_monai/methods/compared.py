"""What the systems that the paper compares with have in common: one network, trained on every subset of contrasts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from apt_monai.errors import ModelError
from apt_monai.files import file_sha256, json_sha256
from apt_monai.hardware import memory_format
from apt_monai.inferers import TwoStageInferer, noise_scheduler, slice_seed
from apt_monai.methods.adversary import Adversary
from apt_monai.methods.base import Batch
from apt_monai.methods.sampled import SampledMethod
from apt_monai.networks import Conditions, SourceDenoiser
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.weights import load_weights

UNET: dict[str, Any] = {
    "channels": (128, 128, 256, 256, 512, 512),
    "attention_levels": (False, False, False, True, True, True),
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "norm_num_groups": 32,
}
"""The U-Net of the published APT and of ADM for 256 × 256: multipliers 1, 1, 2, 2, 4, 4, attention at 32, 16 and 8."""


class ComparedMethod(SampledMethod):
    """A system that the paper compares with: its network behind the denoiser's seam, in the same sampler.

    A system is a subclass with a network, a denoiser and, where it is a GAN, an adversary; published sizes are the
    defaults of the network's arguments. All are made from a model's settings (``model.json``): ``"network"``,
    ``"multiple"``, ``"scheduler"``, ``"sampling"`` and, for GANs, ``"discriminator"``.
    """

    files = ("model.pt",)
    denoiser_type: ClassVar[type[SourceDenoiser]]

    @classmethod
    @abstractmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        """The system's network, which maps ``(B, 2C, H, W)`` to the denoiser's output.

        Args:
            contrasts: C.
            settings: the network's sizes.
        """

    @classmethod
    def adversary(cls, settings: Mapping[str, Any], precision: str) -> Adversary:
        """The system's discriminator and losses.

        Raises:
            ValueError: the system is no GAN.
        """
        raise ValueError(f"{cls.name} is trained without a discriminator")

    @classmethod
    def build_adversary(cls, settings: Mapping[str, Any], precision: str, seed: int) -> Adversary:
        """The system's :meth:`adversary` with weights drawn from the seed: the same on every rank.

        Raises:
            ValueError: the system is no GAN.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.adversary(settings, precision)

    @classmethod
    def build_network(cls, settings: Mapping[str, Any]) -> nn.Module:
        return cls.network_of(len(settings["contrasts"]["contrasts"]), **settings["network"])

    @classmethod
    def build_denoiser(cls, network: nn.Module, settings: Mapping[str, Any], precision: str) -> SourceDenoiser:
        return cls.denoiser_type(network, precision, settings["multiple"])

    @classmethod
    def load(
        cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int
    ) -> ComparedMethod:
        try:
            preprocessing = StudyPreprocessing.from_settings(settings)
            network = cls.build_network(settings)
            denoiser = cls.build_denoiser(network, settings, precision)
            scheduler = noise_scheduler(**settings["scheduler"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{folder / 'model.json'}: settings of no {cls.name} model ({error!r})") from error
        load_weights(network, folder / "model.pt").to(device).to(memory_format=memory_format(device, network))
        weights = {
            "trained_on": settings["trained_on"],
            "settings_sha256": json_sha256([settings[key] for key in ("network", "scheduler", "multiple")]),
            "model_sha256": file_sha256(folder / "model.pt"),
        }
        inferer = TwoStageInferer.from_settings(scheduler, settings["sampling"])
        return cls(denoiser, inferer, preprocessing, seed, weights)

    def conditions(self, batch: Batch, acquired: torch.Tensor, available: torch.Tensor) -> Conditions:
        return Conditions(acquired, available, brain=batch["region"] > 0, context=self._latents(batch))

    def _latents(self, batch: Batch) -> torch.Tensor | None:
        """The denoiser's random numbers, ``(B, T, latent)``: of each slice alone, whatever the batch."""
        if not self.denoiser.latent:
            return None
        shape = self.inferer.scheduler.num_train_timesteps, self.denoiser.latent
        seeds = [
            slice_seed(self.seed, f"{s}/latent", int(i)) for s, i in zip(batch["subject"], batch["slice"], strict=True)
        ]
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device)
