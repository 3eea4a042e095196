"""The denoiser of the systems that the paper compares with: it sees what was acquired, and which contrasts that is."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, cat, nn

from apt_monai.hardware import autocast
from apt_monai.networks.denoisers import Conditions, Denoiser, Prediction

BACKGROUND = -1.0


class SourceDenoiser(Denoiser):
    """What the compared systems share, so that each takes any subset of contrasts on the same terms.

    The network is given the acquired contrasts clean, in the missing channels the noised slice (or background, where
    the system does not diffuse), and a channel of 0 or 1 for each contrast that says whether it was acquired. What is
    known of its answer (acquired channels; background outside the brain) is set, and the loss is the mean over the
    missing channels alone.

    Args:
        network: the system's own.
        precision: what it computes in, ``"float32"`` or ``"bfloat16"``; see :mod:`apt_monai.hardware`.
        multiple: of what height and width must be for it; other slices are padded with background meanwhile.
    """

    def __init__(self, network: nn.Module, precision: str = "float32", multiple: int = 1) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.multiple = multiple

    @abstractmethod
    def call(self, inputs: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's output ``(B, …, H, W)`` for ``(B, 2C, H, W)``: contrasts, then mask channels."""

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        h, w = conditions.acquired.shape[2:]
        known = conditions.available[:, :, None, None]  # (B, C, 1, 1)
        seen = conditions.acquired.where(known, x_t if self.noisy else BACKGROUND)
        below, beside = -h % self.multiple, -w % self.multiple
        top, left = below // 2, beside // 2  # as training crops are padded: a transformer knows places
        contrasts = F.pad(seen, (left, beside - left, top, below - top), value=BACKGROUND)
        with autocast(seen.device, self.precision):
            output = self.call(cat([contrasts, known.to(seen).expand_as(contrasts)], dim=1), t, conditions)
        return self.interpret(output[..., top : top + h, left : left + w].float(), x_t, t, conditions)

    def interpret(self, output: Tensor, x_t: Tensor, t: Tensor, conditions: Conditions) -> Prediction:
        """From the network's output to what is predicted; here it is the clean slice itself."""
        clean = set_known(output, conditions)
        return Prediction(clean, cat([clean, missing(conditions)], dim=1))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean absolute error over the missing channels."""
        clean, wanted = output.chunk(2, dim=1)
        return mean_over((clean - target).abs(), wanted)


def missing(conditions: Conditions) -> Tensor:
    """``(B, C, H, W)``: 1 in the channels that are to be synthesised, 0 in the others."""
    return (~conditions.available[:, :, None, None]).to(conditions.acquired).expand_as(conditions.acquired)


def set_known(clean: Tensor, conditions: Conditions) -> Tensor:
    """The clean slice ``(B, C, H, W)`` with the acquired channels and, where it is known, the background set."""
    known = conditions.available[:, :, None, None]
    clean = clean.where(~known, conditions.acquired)
    return clean if conditions.brain is None else clean.where(conditions.brain | known, BACKGROUND)


def mean_over(values: Tensor, weight: Tensor) -> Tensor:
    """The mean of ``values`` ``(B, C, H, W)`` where ``weight`` is 1 (0 where it is nowhere), first of each slice.

    Each slice weighs the same, whatever it lacks, so that ranks can share a batch.
    """
    return ((values * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1)).mean()
