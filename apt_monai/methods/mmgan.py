"""MM-GAN (Sharma and Hamarneh, IEEE TMI 2020): a U-Net generator and a discriminator with a map for each contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, cat, nn

from apt_monai.methods.adversary import Adversary, TrainingStep, least_squares
from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, SourceDenoiser
from apt_monai.networks.source_denoiser import mean_over

RECONSTRUCTION, DECEIT = 0.9, 0.1
"""What the mean absolute error and the adversarial loss weigh."""


class Generator(nn.Module):
    """The U-Net of pix2pix with instance norm and a convolution after the last upsampling.

    Args:
        in_channels: 2C: contrasts and mask.
        out_channels: C.
        widths: channels after each halving; the last is the bottleneck. Published: 8, for 256 × 256.
        dropout: from the fourth level down, on the way down and up.

    Example::

        >>> import torch
        >>> Generator(8, 4, widths=(8, 16, 16))(torch.zeros(1, 8, 16, 16)).shape
        torch.Size([1, 4, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (64, 128, 256, 512, 512, 512, 512, 512),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            before = in_channels if level == 0 else widths[level - 1]
            block: list[nn.Module] = [nn.Conv2d(before, width, 4, 2, 1, bias=False)]
            block += [nn.InstanceNorm2d(width)] if 0 < level < last else []
            block += [nn.LeakyReLU(0.2)] + ([nn.Dropout(dropout)] if level >= 3 else [])
            self.downs.append(nn.Sequential(*block))
        for level in range(last, 0, -1):
            before, width = widths[level] * (1 if level == last else 2), widths[level - 1]
            block = [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), nn.InstanceNorm2d(width), nn.ReLU()]
            self.ups.append(nn.Sequential(*block, *([nn.Dropout(dropout)] if level > 3 else [])))
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(2 * widths[0], out_channels, 4, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 2C, H, W)`` to ``(B, C, H, W)``, H and W multiples of 2 to the number of levels."""
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = cat([up(x), skip], dim=1)
        return self.head(x).relu()


class MMGANDenoiser(SourceDenoiser):
    """Intensities in [0, 1], as its rectified output has them."""

    noisy = False

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        contrasts, mask = inputs.chunk(2, dim=1)
        return 2 * self.network(cat([(contrasts + 1) / 2, mask], dim=1)) - 1

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        clean, wanted = output.chunk(2, dim=1)
        return RECONSTRUCTION * mean_over((clean - target).abs() / 2, wanted)


class MMGANAdversary(Adversary):
    """Sees synthesised beside real contrasts and says of each contrast, place by place, whether it was acquired."""

    def generator_loss(self, step: TrainingStep) -> Tensor:
        return DECEIT * least_squares(self.judge(cat([step.prediction.clean, step.images], dim=1)), real=True)

    def discriminator_loss(self, step: TrainingStep, iteration: int) -> Tensor:
        pairs = cat([step.images, step.prediction.clean]), cat([step.images, step.images])
        real, mixed = self.judge(cat(pairs, dim=1)).chunk(2)
        acquired = step.conditions.available[:, :, None, None].to(mixed).expand_as(mixed)
        return (least_squares(real, real=True) + (mixed - acquired).square().mean()) / 2


def discriminator(contrasts: int, widths: Sequence[int] = (64, 128, 256, 512)) -> nn.Module:
    """A patch discriminator on 2C channels with one map for each of the C contrasts."""
    layers: list[nn.Module] = []
    for level, width in enumerate(widths):
        before = 2 * contrasts if level == 0 else widths[level - 1]
        layers += [nn.Conv2d(before, width, 4, 2, 1), *([nn.InstanceNorm2d(width)] if level else []), nn.LeakyReLU(0.2)]
    return nn.Sequential(
        *layers, nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(widths[-1], contrasts, 4, padding=1, bias=False)
    )


def initialise(network: nn.Module) -> nn.Module:
    """N(0, 0.02) for every convolution's weights."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return network


class MMGAN(ComparedMethod):
    """MM-GAN: missing contrasts are background, real ones are pasted into what the discriminator sees.

    Example::

        >>> round(sum(p.numel() for p in MMGAN.network_of(4).parameters()) / 1e6)
        54
    """

    name = "mmgan"
    denoiser_type = MMGANDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        return initialise(Generator(2 * contrasts, contrasts, **settings))

    @classmethod
    def adversary(cls, settings: Mapping[str, Any], precision: str) -> Adversary:
        contrasts = len(settings["contrasts"]["contrasts"])
        return MMGANAdversary(initialise(discriminator(contrasts, **settings["discriminator"])), precision)
