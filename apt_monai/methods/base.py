"""The contract of a method: what can be loaded, evaluated and put in front of a study."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from apt_monai.contrasts import ContrastSet
from apt_monai.files import json_sha256
from apt_monai.networks import VisionEncoder
from apt_monai.transforms.preprocessing import StudyPreprocessing

Batch = Mapping[str, Any]
"""Slice samples, collated: ``"image"`` ``(B, C, H, W)`` in [-1, 1], ``"region"`` ``(B, 1, H, W)``, ``"subject"`` and
``"slice"`` (B of each), and, where they are cached, the encoder's ``"features"`` ``(B, C, D)``."""


INTERVAL = 0.9
"""The share of voxels that an uncertainty's interval is to cover."""


class Method(ABC):
    """One system that synthesises missing contrasts. Writers, evaluation and the command line know nothing more of it.

    Attributes:
        name: what ``model.json`` calls it.
        files: the files of a finished model folder beside ``model.json``; the training writes ``model.pt`` last.
        contrasts: the contrast set.
        preprocessing: from a study's files to the slices that the method takes, and back.
        device: where it computes.
        precision: in what; as the device, no part of what its results are known by.
        encoder: the frozen vision encoder whose features of each slice can be cached; None: it has none.
        weights: what its weights are known by, and what they were trained on, as JSON can hold it.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    contrasts: ContrastSet
    preprocessing: StudyPreprocessing
    device: torch.device
    precision: str
    encoder: VisionEncoder | None = None
    weights: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> Method:
        """The method with the weights of a finished model folder; :func:`apt_monai.models.load` calls it.

        Args:
            folder: the model folder; it has every one of :attr:`files`.
            settings: the content of its ``model.json``.
            device: where to compute.
            precision: in what, ``"float32"`` or ``"bfloat16"``.
            seed: of the noise.

        Raises:
            ModelError: settings or weights that do not fit.
        """

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often a call calls the network, and so ``progress``."""

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, Any]:
        """All that a result depends on beside its sources, as JSON can hold it."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the provenance."""
        return json_sha256(self.provenance)[:16]

    @property
    def rows(self) -> dict[str, Method]:
        """What an evaluation of it shows, by the rows' names: the method, and what it is made of where that can be."""
        return {self.name: self}

    def output_range(self, target: str, ranges: Mapping[str, tuple[float, float]]) -> tuple[str, tuple[float, float]]:
        """The raw intensities that -1 and 1 of a missing contrast become: it has no scale of its own.

        Args:
            target: the missing contrast.
            ranges: by acquired contrast, the raw intensities that had become -1 and 1.

        Returns:
            The acquired contrast whose scale it takes (:meth:`ContrastSet.intensity_source`), and the two intensities.
        """
        source = self.contrasts.intensity_source(target, ranges)
        return source, ranges[source]

    def __call__(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None = None
    ) -> dict[str, torch.Tensor]:
        """Synthesise what ``available`` says is missing.

        Args:
            batch: slice samples, collated.
            available: ``(B, C)`` bool; only these channels of the image (or features) are looked at.
            progress: called with 1 after each network pass.

        Returns:
            ``"image"``: ``(B, C, H, W)`` in [-1, 1], the acquired channels bit for bit, the missing ones synthesised
            and -1 outside the brain; where the method starts from a prior, ``"prior"``: the same with the priors; where
            it says how far off it may be, ``"uncertainty"``: half the width of the interval around the image that
            covers 90 % of the missing contrasts' voxels (:data:`INTERVAL`), in the image's units, 0 where it is known.

        Raises:
            ValueError: a slice has no acquired contrast.
        """
        if not available.any(dim=1).all():
            raise ValueError("a slice has no acquired contrast: at least one is needed to synthesise the others")
        return self.synthesize(batch, available, progress)

    @abstractmethod
    def synthesize(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None
    ) -> dict[str, torch.Tensor]:
        """A call's result; every slice has an acquired contrast."""
