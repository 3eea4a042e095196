"""Denoisers: from a noised slice and what is known of it to the clean slice, whatever the network predicts.

The seam between networks and the sampler (after k-diffusion and EDM2). What a network is given, what it predicts
(noise, the clean image, a velocity), the loss on it, its precision and the offset of its timesteps live here, once, for
training and sampling alike; :class:`apt_monai.inferers.TwoStageInferer` knows none of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from apt_monai.hardware import autocast


@dataclass(frozen=True)
class Conditions:
    """What is known of a batch of slices; each denoiser reads what it knows and leaves the rest.

    Args:
        acquired: y, ``(B, C, H, W)`` in [-1, 1]; what the missing channels hold does not matter.
        available: the mask m, ``(B, C)`` bool, True = acquired.
        prior: ``(B, C, H, W)`` in [-1, 1], used in the missing channels; None: there is none.
        context: z, ``(B, D)``, the fused anatomical feature; or the random numbers that a denoiser's ``latent`` asks
            for. None: there is none.
        brain: ``(B, 1, H, W)`` bool, True in the brain; None: not known.
    """

    acquired: Tensor
    available: Tensor
    prior: Tensor | None = None
    context: Tensor | None = None
    brain: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of a noised batch.

    Args:
        clean: x̂0, ``(B, C, H, W)`` float32, not clipped.
        output: what the loss is taken on, ``(B, …, H, W)`` float32: the network's own output.
        scale: how far off ``clean`` may be, where the denoiser says so: the mean absolute error that it expects,
            ``(B, C, H, W)``, 0 where the slice is known.
    """

    clean: Tensor
    output: Tensor
    scale: Tensor | None = None


LOG_SCALE = (-7.0, 2.0)
"""Between which the logarithm of the direct denoiser's scale is held."""
SCALE_WEIGHT = 0.1
"""Of the scale's likelihood beside the mean absolute error: the image must not pay for it."""


class Denoiser(nn.Module, ABC):
    """The contract: ``denoiser(x_t, t, conditions) -> Prediction``.

    Attributes:
        noisy: whether it looks at x_t; if not, nothing is drawn for it in training.
        latent: how many random numbers a step it wants in ``conditions.context``, ``(B, T, latent)``; 0: none.
    """

    noisy: ClassVar[bool] = True
    latent: int = 0

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        """Predict the clean slices.

        Args:
            x_t: ``(B, C, H, W)``, noised to step t.
            t: ``(B,)`` int, the steps as the paper counts them: 1 to T.
            conditions: what is known of the slices.
        """

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What :attr:`Prediction.output` is trained to be, ``(B, C, H, W)``."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The training loss of an output (Eq. 2: the mean squared error), on a target ``(B, C, H, W)``."""
        return F.mse_loss(output, target)


class PublishedDenoiser(Denoiser):
    """The paper's denoiser (section 3.2): one U-Net over all contrasts, which sees x_t and, by cross-attention, z.

    Args:
        network: ε_θ, called as ``network(x=…, timesteps=…, context=…)``, such as MONAI's ``DiffusionModelUNet``.
        scheduler: the noise schedule, and what the network predicts (``prediction_type``: ``"epsilon"`` in the paper).
        precision: what the network computes in, ``"float32"`` or ``"bfloat16"``; see :mod:`apt_monai.hardware`.

    Example::

        >>> import torch
        >>> class Network(nn.Module):
        ...     def forward(self, x, timesteps, context):
        ...         return 0.1 * x
        >>> denoiser = PublishedDenoiser(Network(), DDPMScheduler(1000, schedule="cosine"))
        >>> y, m = torch.zeros(1, 2, 8, 8), torch.tensor([[True, False]])
        >>> known = Conditions(y, m, context=torch.ones(1, 16))
        >>> prediction = denoiser(torch.rand(1, 2, 8, 8), torch.tensor([400]), known)
        >>> prediction.clean.shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(self, network: nn.Module, scheduler: DDPMScheduler, precision: str = "float32") -> None:
        super().__init__()
        self.network = network
        self.scheduler = scheduler
        self.precision = precision

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        assert conditions.context is not None, "the published denoiser needs z"
        with autocast(x_t.device, self.precision):
            # MONAI counts steps from 0; z is a sequence of one token
            output = self.network(x=x_t, timesteps=t - 1, context=conditions.context[:, None, :])
        output = output.float()
        return Prediction(self._to_clean(output, x_t, t), output)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.scheduler.prediction_type == "epsilon":
            return noise
        if self.scheduler.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(x0, noise, t - 1)
        return x0

    def _to_clean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂0 from what the network predicts."""
        a = self.scheduler.alphas_cumprod.to(x_t)[t - 1][:, None, None, None]  # ᾱ_t, (B, 1, 1, 1)
        if self.scheduler.prediction_type == "epsilon":
            return (x_t - (1 - a).sqrt() * output) / a.sqrt()
        if self.scheduler.prediction_type == "v_prediction":
            return a.sqrt() * x_t - (1 - a).sqrt() * output
        return output


class DirectDenoiser(Denoiser):
    """A denoiser that sees the acquired contrasts and which they are, and needs no more: one pass is all it takes.

    Its network is given the acquired contrasts, 0 in the missing channels, and a channel of ±1 for each contrast that
    says whether it was acquired; it gives the clean slice, and the logarithm of how far off it may be. The noised slice
    and the timestep are not looked at. What is known (acquired channels; -1 outside the brain) is set, so that the loss
    is on the missing contrasts' brain alone.

    Args:
        network: ``(B, 2C, H, W)`` to ``(B, 2C, H, W)``, such as MONAI's ``SegResNet``.
        precision: what the network computes in, ``"float32"`` or ``"bfloat16"``; see :mod:`apt_monai.hardware`.
        multiple: of what height and width must be for the network; slices of other sizes are padded with 0 meanwhile.
        gain: what intensities are multiplied by on the way in and divided by on the way out, where most of a brain
            fills a small part of [-1, 1] only.

    Example::

        >>> import torch
        >>> denoiser = DirectDenoiser(nn.Conv2d(4, 4, 1))
        >>> known = Conditions(torch.zeros(1, 2, 8, 8), torch.tensor([[True, False]]))
        >>> prediction = denoiser(torch.rand(1, 2, 8, 8), torch.tensor([1000]), known)
        >>> prediction.clean.shape, prediction.clean[:, 0].abs().max().item(), prediction.scale[:, 0].max().item()
        (torch.Size([1, 2, 8, 8]), 0.0, 0.0)
    """

    noisy = False

    def __init__(self, network: nn.Module, precision: str = "float32", multiple: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.multiple = multiple
        self.gain = gain

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        h, w = conditions.acquired.shape[2:]
        known = conditions.available[:, :, None, None]  # (B, C, 1, 1)
        acquired = conditions.acquired.where(known, 0.0)
        which = known.to(acquired).expand_as(acquired) * 2 - 1
        with autocast(acquired.device, self.precision):
            inputs = torch.cat([self.gain * acquired, which], dim=1)
            output = self.network(F.pad(inputs, (0, -w % self.multiple, 0, -h % self.multiple)))[..., :h, :w]
        mean, log_scale = output.float().chunk(2, dim=1)  # (B, C, H, W) each
        clean, log_scale = (mean / self.gain).where(~known, acquired), log_scale.clamp(*LOG_SCALE).where(~known, 0.0)
        unknown = ~known.expand_as(clean)
        if conditions.brain is not None:
            clean = clean.where(conditions.brain | known, -1.0)
            log_scale = log_scale.where(conditions.brain, 0.0)
            unknown = unknown & conditions.brain
        return Prediction(
            clean, torch.cat([clean, log_scale], dim=1), (log_scale.exp() / self.gain).where(unknown, 0.0)
        )

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean absolute error, and on the same error, held fixed, Laplace's likelihood of the scale.

        Held fixed, so that the scale learns how far off the image is without the image being less sharp where it
        is hard: the image's gradient is that of the mean absolute error alone.
        """
        clean, log_scale = output.chunk(2, dim=1)
        error = self.gain * (clean - target).abs()
        # -log p(e | b) = |e| / b + log 2b
        likelihood = error.detach() * (-log_scale).exp() + log_scale
        return error.mean() + SCALE_WEIGHT * likelihood.mean()
