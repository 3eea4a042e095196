"""What the published method's missing contrasts start from, in the paper's Table 3."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace

import torch

from apt_monai.codebook import PriorCodebook
from apt_monai.comparison.tables import Start
from apt_monai.contrasts import ContrastSet
from apt_monai.methods import APT


@dataclass(frozen=True)
class ZeroPrior:
    """In the codebook's place: the missing contrasts start from 0, the middle of the intensity range.

    Args:
        contrasts: the contrast set.

    Example::

        >>> from apt_monai.contrasts import ADNI
        >>> image, available = torch.ones(1, 3, 2, 2), torch.tensor([[True, False, True]])
        >>> ZeroPrior(ADNI).prior(image, available, torch.ones(1, 1, 2, 2) > 0)[0, :, 0, 0]
        tensor([1., 0., 1.])
    """

    contrasts: ContrastSet

    def prior(self, image: torch.Tensor, available: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)``: the acquired channels unchanged; 0 in the brain of the missing ones, -1 outside it."""
        known = available[:, :, None, None]
        return image.where(known, torch.zeros_like(image).where(brain, -1.0))


def shuffled(codebook: PriorCodebook, seed: int = 0) -> PriorCodebook:
    """The codebook with each target's entries in random order, so that a random one is taken for each subset."""
    generator = random.Random(seed)
    entries = {target: list(found) for target, found in codebook.entries.items()}
    for found in entries.values():
        generator.shuffle(found)
    return replace(codebook, entries=entries)


def starting_from(method: APT, start: Start) -> APT:
    """The method with another prior, known by it in results.

    Args:
        method: the published method with its codebook.
        start: ``"zero"``, ``"random"`` (an entry of the codebook), or one that leaves the codebook as it is.
    """
    if start not in ("zero", "random") or method.codebook is None:
        return method
    other = copy.copy(method)
    other.codebook = ZeroPrior(method.contrasts) if start == "zero" else shuffled(method.codebook)  # type: ignore[assignment]
    other.weights = {**method.weights, "start": start}
    return other
