"""ResViT (Dalmaz et al., IEEE TMI 2022): a residual generator whose bottleneck has two aggregated transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, cat, nn

from apt_monai.methods.adversary import Adversary, TrainingStep, least_squares
from apt_monai.methods.compared import ComparedMethod
from apt_monai.networks import Conditions, Denoiser, SourceDenoiser
from apt_monai.networks.source_denoiser import mean_over

RECONSTRUCTION = 100.0
"""What the mean absolute error weighs beside the adversarial loss."""
PRETRAINING = 2 / 3
"""The share of the training that goes without the transformer, as published: 100 of 150 epochs."""
FASTER = 5.0
"""What the learning rate is multiplied by with the transformer: 1e-3 after 2e-4."""
TRANSFORMED = (0, 5)
"""Which of the nine bottleneck blocks hold the transformer: the first and the sixth."""


def _conv(before: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = nn.ReflectionPad2d(kernel // 2)
    return nn.Sequential(padding, nn.Conv2d(before, width, kernel, stride), nn.InstanceNorm2d(width), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width), nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class VisionTransformer(nn.Module):
    """ViT's encoder on a grid of tokens, with learned positions.

    Args:
        channels: of the features that come and go.
        hidden: width of a token.
        layers: how many blocks.
        mlp: width inside each block's perceptron.
        heads: of the attention.
        tokens: side of the square of learned positions; for other grids they are interpolated.
    """

    def __init__(self, channels: int, hidden: int, layers: int, mlp: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, hidden, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, hidden, tokens, tokens))
        self.blocks = nn.ModuleList(TransformerBlock(hidden, mlp, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, h, w)`` to ``(B, hidden, h, w)``."""
        x = self.embed(x)
        h, w = x.shape[2:]
        positions: Tensor = self.positions
        if positions.shape[2:] != (h, w):
            positions = F.interpolate(positions, (h, w), mode="bicubic", align_corners=False)
        tokens = (x + positions).flatten(2).transpose(1, 2)  # (B, h w, hidden)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (h, w))


class AggregatedTransformer(nn.Module):
    """The ART block: transformer features beside the convolutional ones, compressed, then a residual block.

    Args:
        width: of the bottleneck.
        hidden: width of a token.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Sequential(_conv(width, 2 * width, stride=2), _conv(2 * width, 4 * width, stride=2))
        ups: list[nn.Module] = []
        for before, after in ((hidden, 2 * width), (2 * width, width)):
            ups += [nn.ConvTranspose2d(before, after, 3, 2, 1, 1), nn.InstanceNorm2d(after), nn.ReLU()]
        self.up = nn.Sequential(*ups)
        self.compress = _conv(2 * width, width)
        self.residual = Residual(width)

    def forward(self, x: Tensor, transformer: VisionTransformer | None) -> Tensor:
        if transformer is not None:
            x = self.compress(cat([x, self.up(transformer(self.down(x)))], dim=1))
        return self.residual(x)


class ResViTNetwork(nn.Module):
    """The generator: encoder, nine bottleneck blocks of which two share one transformer, decoder.

    Args:
        in_channels: 2C: contrasts and mask.
        out_channels: C.
        width: of the first convolution; published 64.
        blocks: in the bottleneck.
        hidden, layers, mlp, heads: of the transformer; published ViT-B.
        tokens: side of the square of learned positions; published 16, for 256 × 256.
        pretraining: the share of the training that goes without the transformer; 0 where there are few iterations, as
            what was learned without it has to be learned again with it.

    Example::

        >>> network = ResViTNetwork(8, 4, width=8, hidden=16, layers=1, mlp=32, heads=2, tokens=2)
        >>> network(torch.zeros(1, 8, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    partly_trained = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 9,
        hidden: int = 768,
        layers: int = 12,
        mlp: int = 3072,
        heads: int = 12,
        tokens: int = 16,
        pretraining: float = PRETRAINING,
    ) -> None:
        super().__init__()
        self.pretraining = pretraining
        deep = 4 * width
        self.encode = nn.Sequential(
            _conv(in_channels, width, 7), _conv(width, 2 * width, stride=2), _conv(2 * width, deep, stride=2)
        )
        self.blocks = nn.ModuleList(
            AggregatedTransformer(deep, hidden) if number in TRANSFORMED else Residual(deep) for number in range(blocks)
        )
        self.transformer = VisionTransformer(4 * deep, hidden, layers, mlp, heads, tokens)
        self.register_buffer("with_transformer", torch.tensor(True))
        decode: list[nn.Module] = []
        for before, after in ((deep, 2 * width), (2 * width, width)):
            decode += [nn.ConvTranspose2d(before, after, 3, 2, 1, 1), nn.InstanceNorm2d(after), nn.ReLU()]
        self.decode = nn.Sequential(*decode, nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 2C, H, W)`` to ``(B, C, H, W)`` in [-1, 1], H and W multiples of 16."""
        x = self.encode(x)
        transformer = self.transformer if bool(self.with_transformer) else None
        for block in self.blocks:
            x = block(x, transformer) if isinstance(block, AggregatedTransformer) else block(x)
        return self.decode(x)


def rate(progress: float, pretraining: float = PRETRAINING) -> float:
    """What the learning rate is multiplied by: constant, then falling to 0, without the transformer; again with it.

    Args:
        progress: from 0 to 1 over the training.
        pretraining: the share without the transformer.

    Example::

        >>> [round(rate(progress), 2) for progress in (0, 1 / 3, 0.5, 0.7, 0.9, 1)], rate(0.0, 0.0), rate(0.75, 0.0)
        ([1.0, 1.0, 0.5, 5.0, 3.0, 0.0], 1.0, 0.5)
    """
    first = progress < pretraining
    begin, end = (0.0, pretraining) if first else (pretraining, 1.0)
    left = (end - progress) / (end - begin)
    return min(1.0, 2 * left) * (1.0 if first or pretraining == 0 else FASTER)


class ResViTDenoiser(SourceDenoiser):
    """One pass from sources and mask to all contrasts."""

    noisy = False

    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return self.network(inputs)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        clean, wanted = output.chunk(2, dim=1)
        return RECONSTRUCTION * mean_over((clean - target).abs(), wanted)


class Patches(nn.Module):
    """MONAI's 70 × 70 patch discriminator, its answer alone."""

    def __init__(self, in_channels: int, channels: int = 64, num_layers_d: int = 3) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "channels": channels,
            "in_channels": in_channels,
            "out_channels": 1,
            "num_layers_d": num_layers_d,
        }
        self.network = PatchDiscriminator(2, norm="INSTANCE", **sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[-1]


class ResViTAdversary(Adversary):
    """A patch discriminator that sees the sources beside the contrasts, the acquired ones pasted in."""

    def begin(self, denoiser: Denoiser, progress: float) -> None:
        """The first part of the training is without the transformer."""
        network = getattr(denoiser.network, "module", denoiser.network)
        network.with_transformer.fill_(progress > network.pretraining)  # type: ignore[union-attr, operator]

    def generator_loss(self, step: TrainingStep) -> Tensor:
        return least_squares(self._logits(step, step.prediction.clean), real=True)

    def discriminator_loss(self, step: TrainingStep, iteration: int) -> Tensor:
        real, fake = self._logits(step, step.images, step.prediction.clean).chunk(2)
        return (least_squares(real, real=True) + least_squares(fake, real=False)) / 2

    def _logits(self, step: TrainingStep, *images: Tensor) -> Tensor:
        known = step.conditions.available[:, :, None, None]
        sources = cat([step.images.where(known, -1.0), known.to(step.images).expand_as(step.images)], dim=1)
        return self.judge(cat([cat([sources, image], dim=1) for image in images]))


class ResViT(ComparedMethod):
    """ResViT, its unified variant: any subset of the contrasts to the others.

    The published training goes without the transformer for its first two thirds, and so does ours.
    """

    name = "resvit"
    denoiser_type = ResViTDenoiser

    @classmethod
    def network_of(cls, contrasts: int, **settings: Any) -> nn.Module:
        return ResViTNetwork(2 * contrasts, contrasts, **settings)

    @classmethod
    def adversary(cls, settings: Mapping[str, Any], precision: str) -> Adversary:
        contrasts = len(settings["contrasts"]["contrasts"])
        return ResViTAdversary(Patches(3 * contrasts, **settings["discriminator"]), precision)
