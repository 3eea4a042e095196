"""What a training costs: parameters, and the floating-point operations of an iteration, counted and not timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from apt_monai.engines import adversarial_step
from apt_monai.inferers import noise_scheduler
from apt_monai.methods import METHODS
from apt_monai.networks import Conditions

PHASES = 10
"""Over so many iterations the mean is taken: a GAN's differ (ResViT's phases, SynDiff's penalty)."""
SLICES = 2
"""Counted are so many slices; operations grow with them in proportion."""


def parameters(settings: Mapping[str, Any]) -> int:
    """How many parameters the network has that synthesises; a discriminator's are not among them.

    Example::

        >>> network = {"spatial_dims": 2, "in_channels": 8, "out_channels": 8, "init_filters": 8, "blocks_down": [1],
        ...     "blocks_up": []}
        >>> parameters({"method": "direct", "network": network})
        1848
    """
    with torch.device("meta"):
        network = METHODS[settings["method"]].build_network(settings)
    return sum(parameter.numel() for parameter in network.parameters())


def training_flops(settings: Mapping[str, Any], side: int, batch_size: int) -> float:
    """The floating-point operations of one training iteration, forward and backward, of discriminators too.

    The frozen vision encoder of the published method, whose features are computed once, is not counted.

    Args:
        settings: as ``model.json`` holds them.
        side: height and width of the slices in training.
        batch_size: how many there are.
    """
    kind, contrasts = METHODS[settings["method"]], len(settings["contrasts"]["contrasts"])
    scheduler = noise_scheduler(**settings["scheduler"])
    denoiser = kind.build_denoiser(kind.build_network(settings), settings, "float32").train()
    images = torch.zeros(SLICES, contrasts, side, side)
    available = torch.zeros(SLICES, contrasts, dtype=torch.bool)
    available[:, 0] = True
    t = torch.ones(SLICES, dtype=torch.long)
    context = None
    if denoiser.latent:
        context = torch.zeros(SLICES, scheduler.num_train_timesteps, denoiser.latent)
    elif "fusion" in settings:
        context = torch.zeros(SLICES, settings["fusion"]["out_dim"])
    conditions = Conditions(images, available, context=context)
    target = denoiser.target(images, images, t)
    with FlopCounterMode(display=False) as counter:
        if "discriminator" not in settings:
            denoiser.loss(denoiser(images, t, conditions).output, target).backward()
            return counter.get_total_flops() * batch_size / SLICES
        adversary = kind.adversary(settings, "float32")  # type: ignore[attr-defined]
        optimizers = (torch.optim.SGD(denoiser.parameters(), 0.0), torch.optim.SGD(adversary.parameters(), 0.0))
        for iteration in range(1, PHASES + 1):
            adversarial_step(
                denoiser, adversary, optimizers, (images, target, images), (t, conditions), (iteration, PHASES)
            )
    return counter.get_total_flops() / PHASES * batch_size / SLICES
