"""The other half of a GAN: what tells synthesised slices from acquired ones while the denoiser is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn, ones_like, zeros_like

from apt_monai.hardware import autocast
from apt_monai.networks import Conditions, Denoiser, Prediction


@dataclass(frozen=True)
class TrainingStep:
    """What a training step's losses are taken on.

    Args:
        images: x_0, ``(B, C, H, W)`` in [-1, 1]: every contrast as it was acquired.
        x_t: ``(B, C, H, W)``, noised to step t.
        t: ``(B,)`` int, 1 to T.
        conditions: what the denoiser knew.
        prediction: what it made of it; its acquired channels are those of ``images``.
    """

    images: Tensor
    x_t: Tensor
    t: Tensor
    conditions: Conditions
    prediction: Prediction


class Adversary(nn.Module, ABC):
    """A discriminator and the two losses of its system.

    Args:
        discriminator: the network.
        precision: what it computes in, ``"float32"`` or ``"bfloat16"``.
    """

    def __init__(self, discriminator: nn.Module, precision: str = "float32") -> None:
        super().__init__()
        self.discriminator = discriminator
        self.precision = precision

    def judge(self, images: Tensor, *others: Tensor) -> Tensor:
        """The discriminator's logits, float32."""
        with autocast(images.device, self.precision):
            return self.discriminator(images, *others).float()

    def begin(self, denoiser: Denoiser, progress: float) -> None:
        """Called before each step; ``progress`` goes from 0 to 1 over the training. Most systems change nothing."""

    @abstractmethod
    def generator_loss(self, step: TrainingStep) -> Tensor:
        """What is added to the denoiser's own loss: how little it deceives, weighed as in its system."""

    @abstractmethod
    def discriminator_loss(self, step: TrainingStep, iteration: int) -> Tensor:
        """How badly the discriminator tells; ``step.prediction`` has no gradient. ``iteration`` counts from 1."""


def least_squares(logits: Tensor, real: bool) -> Tensor:
    """LSGAN's loss (Mao et al. 2017): the squared distance to 1 for acquired, to 0 for synthesised slices."""
    return F.mse_loss(logits, ones_like(logits) if real else zeros_like(logits))
