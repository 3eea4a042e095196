"""ADM (Dhariwal and Nichol, NeurIPS 2021): guided diffusion's U-Net, which learns its variance, given the sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, cat, nn

from apt_monai.inferers import noise_scheduler
from apt_monai.methods.compared import UNET, ComparedMethod
from apt_monai.networks import Conditions, Prediction, SourceDenoiser
from apt_monai.networks.modulated import ModulatedUNet
from apt_monai.networks.source_denoiser import mean_over, missing, set_known

NETWORK: dict[str, Any] = {**UNET, "resblock_updown": True}
"""Published, for 256 × 256."""


class ADMDenoiser(SourceDenoiser):
    """Predicts ε and, between β̃ and β, the logarithm of the variance (Nichol and Dhariwal 2021, Eq. 15).

    Args:
        network: ``(B, 2C, H, W)`` and steps to ``(B, 2C, H, W)``: ε and v.
        precision: what it computes in.
        multiple: of what height and width must be.
        scheduler: the noise schedule.
    """

    def __init__(self, network: nn.Module, precision: str, multiple: int, scheduler: DDPMScheduler) -> None:
        super().__init__(network, precision, multiple)
        self.scheduler = scheduler

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.network(inputs, t - 1)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        epsilon, v = output.chunk(2, dim=1)
        a = self.scheduler.alphas_cumprod.to(x_t)[t - 1][:, None, None, None]
        clean = set_known((x_t - (1 - a).sqrt() * epsilon) / a.sqrt(), conditions)
        low, high, _ = self._variances(t, x_t)
        log_variance = low + (v + 1) / 2 * (high - low)  # Eq. 15
        wanted = missing(conditions)
        if conditions.brain is not None:
            wanted = wanted * conditions.brain
        return Prediction(clean, cat([epsilon, log_variance, wanted], dim=1))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        low, _, share = self._variances(t, noise)
        return cat([noise, low.expand_as(noise), share.expand_as(noise)], dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The error of ε squared, and a thousandth of the variational bound, which trains the variance alone.

        The bound is the divergence of two normal distributions, whose means differ by the error of ε, held fixed.
        """
        epsilon, log_variance, wanted = output.chunk(3, dim=1)
        noise, true_log_variance, share = target.chunk(3, dim=1)
        squared = (epsilon - noise).square()
        ratio = true_log_variance - log_variance
        bound = (ratio.exp() - 1 - ratio + share * squared.detach() * (-log_variance).exp()) / 2
        scale = self.scheduler.num_train_timesteps / 1000  # L_vlb is T steps' sum, and weighs 0.001
        return mean_over(squared, wanted) + scale * mean_over(bound, wanted)

    def _variances(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log β̃_t, log β_t, and what the squared error of ε becomes in the posterior mean, ``(B, 1, 1, 1)`` each."""
        betas = self.scheduler.betas.double()
        bars = self.scheduler.alphas_cumprod.double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
        posterior = betas * (1 - before) / (1 - bars)
        posterior[0] = posterior[1]  # at the first step it is 0
        share = betas.square() / ((1 - betas) * (1 - bars))
        rows = torch.stack([posterior.log(), betas.log(), share]).to(like)[:, t - 1]
        return tuple(row[:, None, None, None] for row in rows)


class ADM(ComparedMethod):
    """ADM with available contrasts and mask concatenated; 50 DDIM steps are the default of its sampling."""

    name = "adm"
    denoiser_type = ADMDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        channels: dict[str, Any] = {"in_channels": 2 * contrasts, "out_channels": 2 * contrasts}
        return ModulatedUNet(spatial_dims=2, **channels, **{**NETWORK, **settings})

    @classmethod
    def build_denoiser(cls, network: nn.Module, settings: Mapping[str, Any], precision: str) -> SourceDenoiser:
        return ADMDenoiser(network, precision, settings["multiple"], noise_scheduler(**settings["scheduler"]))
