"""The anatomical consistency loss (paper, section 3.1, Eq. 1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class AnatomicalConsistencyLoss(nn.Module):
    """Symmetric InfoNCE between z of all contrasts and z of a subset of them, with a learned temperature (Eq. 1).

    The positive of a slice is itself; its negatives are the slices of *other subjects* in the whole batch, over all
    ranks. Two slices of one subject are never negatives of each other. The loss is the mean of both directions
    (z_all against every z_sub, z_sub against every z_all). A slice with no other subject in the batch adds zero.

    Where ``torch.distributed`` is initialised, the batches of all ranks are gathered with gradient, and each rank
    returns the loss of the whole batch. Averaging the ranks' gradients, as ``DistributedDataParallel`` does, then gives
    exactly the gradient of one process with the whole batch. The gradient of ``log_scale`` is the same on every rank,
    so this module needs no ``DistributedDataParallel`` of its own. Every rank must call the loss, with equally many
    slices.

    Args:
        temperature: the temperature τ to start from.
        max_scale: the logit scale 1/τ never exceeds this.

    Example::

        >>> loss = AnatomicalConsistencyLoss()
        >>> z = torch.eye(4)
        >>> bool(loss(z, z, ["a", "b", "c", "d"]) < loss(z, z.roll(1, 0), ["a", "b", "c", "d"]))
        True
    """

    def __init__(self, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        if temperature <= 0 or temperature * max_scale < 1:
            raise ValueError(f"temperature is {temperature}, must be at least 1/max_scale with max_scale {max_scale}")
        self.max_log_scale = math.log(max_scale)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, z_all: Tensor, z_sub: Tensor, subjects: Sequence[str] | Tensor) -> Tensor:
        """The loss of a batch. Computed in float32 even under autocast.

        Args:
            z_all: (B, D) unit vectors, from all contrasts.
            z_sub: (B, D) unit vectors, from a subset of the contrasts of the same slices.
            subjects: the subject of each slice: B names, or B integers (int64) that mean the same on every rank.

        Returns:
            The scalar loss.

        Raises:
            ValueError: the shapes do not fit, or ranks have different numbers of slices.
        """
        if z_all.ndim != 2 or z_sub.shape != z_all.shape or len(subjects) != len(z_all):
            raise ValueError(
                f"z_all has shape {tuple(z_all.shape)}, z_sub {tuple(z_sub.shape)}, subjects {len(subjects)} entries: "
                "must be (B, D), (B, D) and B"
            )
        ids = subjects if isinstance(subjects, Tensor) else torch.tensor([_subject_id(name) for name in subjects])
        ids = ids.to(z_all.device)
        z_all, z_sub = z_all.float(), z_sub.float()
        if dist.is_available() and dist.is_initialized():
            _check_equal_batches(len(z_all), z_all.device)
            z_all, z_sub, ids = _Gather.apply(z_all), _Gather.apply(z_sub), _gather(ids)

        with torch.no_grad():  # clamping the parameter, not its exponential, leaves it a gradient at the cap
            self.log_scale.clamp_(max=self.max_log_scale)
        same_subject = ids[:, None] == ids[None, :]
        same_subject.fill_diagonal_(False)
        with torch.autocast(z_all.device.type, enabled=False):
            # Eq. 1: the row of slice s is z_s^all · z_i^sub / τ
            logits = self.log_scale.exp() * (z_all @ z_sub.T)  # (B, B)
            logits = logits.masked_fill(same_subject, -torch.inf)
            positives = torch.arange(len(logits), device=logits.device)
            return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def _subject_id(name: str) -> int:
    """An int64 that is the same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


def _gather(x: Tensor) -> Tensor:
    """(B, ...) of each rank → (world size * B, ...), without gradient."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _check_equal_batches(size: int, device: torch.device) -> None:
    sizes = _gather(torch.tensor([size], device=device)).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(f"the ranks have {sizes} slices: all must have equally many; drop the last, smaller batch")


class _Gather(torch.autograd.Function):
    """:func:`_gather` with gradient: a rank's part gets the sum of the gradients that all ranks have for it.

    (``torch.distributed.nn.functional.all_gather`` is deprecated and its successor absent from older versions.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
