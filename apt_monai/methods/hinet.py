"""Hi-Net (Zhou et al., IEEE TMI 2020): an encoder a contrast, fused at each level by sum, product and maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, cat, nn

from apt_monai.methods.adversary import Adversary, TrainingStep, least_squares
from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, Prediction, SourceDenoiser
from apt_monai.networks.source_denoiser import mean_over, missing, set_known

TARGET, RECONSTRUCTION = 100.0, 20.0
"""What the mean absolute errors of the missing contrasts and of the reconstructed acquired ones weigh."""


def _block(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2))


class Encoder(nn.Module):
    """One contrast's features at each level, and the contrast again, which is what they are trained to hold."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        befores = [1, *widths[:-1]]
        self.levels = nn.ModuleList(
            nn.Sequential(_block(before, width), _block(width, width))
            for before, width in zip(befores, widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        decoder: list[nn.Module] = []
        for width, before in zip(widths[-2::-1], widths[:0:-1], strict=True):
            decoder += [nn.ConvTranspose2d(before, width, 2, 2), _block(width, width)]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], 1, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """``(B, 1, H, W)`` to the features, finest first, and ``(B, 1, H, W)``."""
        features = []
        for number, level in enumerate(self.levels):
            x = level(self.pool(x) if number else x)
            features.append(x)
        return features, self.decoder(x)


class Fusion(nn.Module):
    """The mixed fusion block: sum, product and maximum over the acquired contrasts, joined with the level before."""

    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        self.mix = _block(3 * width, width)
        self.join = _block(width + before, width)

    def forward(self, features: Tensor, available: Tensor, before: Tensor | None) -> Tensor:
        """``(B, C, F, H, W)`` and ``(B, C)`` bool to ``(B, F, H, W)``."""
        known = available[:, :, None, None, None]
        added = features.where(known, 0.0).sum(dim=1)
        multiplied = features.where(known, 1.0).prod(dim=1)
        highest = features.where(known, -torch.inf).amax(dim=1)
        mixed = self.mix(cat([added, multiplied, highest], dim=1))
        return self.join(mixed if before is None else cat([mixed, before], dim=1))


class HiNetNetwork(nn.Module):
    """The generator.

    The published one takes two contrasts; here every contrast has an encoder, and the fusion goes over those that were
    acquired.

    Args:
        contrasts: C.
        widths: channels at each level.

    Example::

        >>> network = HiNetNetwork(3, widths=(4, 8, 8))
        >>> network(torch.zeros(2, 6, 16, 16), torch.ones(2, 3, dtype=torch.bool)).shape
        torch.Size([2, 6, 16, 16])
    """

    def __init__(self, contrasts: int, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder(widths) for _ in range(contrasts))
        befores = [0, *widths[:-1]]
        self.fusions = nn.ModuleList(Fusion(w, before) for w, before in zip(widths, befores, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        for width, before in zip(widths[-2::-1], widths[:0:-1], strict=True):
            self.ups.append(nn.ConvTranspose2d(before, width, 2, 2))
            self.joins.append(nn.Sequential(_block(2 * width, width), _block(width, width)))
        self.head = nn.Sequential(nn.Conv2d(widths[0], contrasts, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor, available: Tensor) -> Tensor:
        """``(B, 2C, H, W)`` to ``(B, 2C, H, W)``: the contrasts, and each contrast from its own features."""
        contrasts = x[:, : len(self.encoders)]
        encoded = [encode(one) for encode, one in zip(self.encoders, contrasts.split(1, dim=1), strict=True)]
        fused: list[Tensor] = []
        for level, fuse in enumerate(self.fusions):
            features = torch.stack([features[level] for features, _ in encoded], dim=1)
            fused.append(fuse(features, available, self.pool(fused[-1]) if fused else None))
        y = fused[-1]
        for up, join, skip in zip(self.ups, self.joins, reversed(fused[:-1]), strict=True):
            y = join(cat([up(y), skip], dim=1))
        return cat([self.head(y), *(again for _, again in encoded)], dim=1)


class HiNetDenoiser(SourceDenoiser):
    """Its output holds the reconstructions of the acquired contrasts too, on which there is a loss."""

    noisy = False

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.network(inputs, conditions.available)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        image, again = output.chunk(2, dim=1)
        clean = set_known(image, conditions)
        return Prediction(clean, cat([clean, again, missing(conditions)], dim=1))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        clean, again, wanted = output.chunk(3, dim=1)
        rebuilt = mean_over((again - target).abs(), 1 - wanted)
        return TARGET * mean_over((clean - target).abs(), wanted) + RECONSTRUCTION * rebuilt


class HiNetAdversary(Adversary):
    """LSGAN on all contrasts of a slice together."""

    def generator_loss(self, step: TrainingStep) -> Tensor:
        return least_squares(self.judge(step.prediction.clean), real=True)

    def discriminator_loss(self, step: TrainingStep, iteration: int) -> Tensor:
        real, fake = self.judge(cat([step.images, step.prediction.clean])).chunk(2)
        return (least_squares(real, real=True) + least_squares(fake, real=False)) / 2


def discriminator(contrasts: int, widths: Sequence[int] = (32, 64, 128, 256)) -> nn.Module:
    """Convolutions of 3 × 3 with stride 2, then one of 3 × 3 without padding to a map of answers."""
    layers: list[nn.Module] = []
    for before, width in zip([contrasts, *widths[:-1]], widths, strict=True):
        norm: list[nn.Module] = [] if before == contrasts else [nn.BatchNorm2d(width)]
        layers += [nn.Conv2d(before, width, 3, 2, 1), *norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3))


class HiNet(ComparedMethod):
    """Hi-Net, for any subset of any number of contrasts."""

    name = "hinet"
    denoiser_type = HiNetDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        return HiNetNetwork(contrasts, **settings)

    @classmethod
    def adversary(cls, settings: Mapping[str, Any], precision: str) -> Adversary:
        network = discriminator(len(settings["contrasts"]["contrasts"]), **settings["discriminator"])
        return HiNetAdversary(network, precision)
