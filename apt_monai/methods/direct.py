"""Our own method: one pass of a network that sees what was acquired, and which contrasts they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SegResNet

from apt_monai.contrasts import get_contrast_set
from apt_monai.errors import ModelError
from apt_monai.files import file_sha256
from apt_monai.hardware import memory_format
from apt_monai.inferers import TwoStageInferer, noise_scheduler, slice_seed
from apt_monai.methods.base import Batch, Method
from apt_monai.networks import Conditions, DirectDenoiser
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.weights import load_weights


class Direct(Method):
    """One pass from the acquired contrasts to the missing ones; no vision encoder, fusion or codebook.

    The sampler is the paper's, from pure noise (M = T) in one step (S = 1), without guidance and without stage 2.

    Args:
        denoiser: the trained denoiser.
        inferer: the sampler.
        preprocessing: from a study's files to its slices, and back.
        seed: the run's seed; nothing depends on it while the denoiser does not look at the noise.
        weights: what its weights are known by, as JSON can hold it.

    Example::

        >>> inferer = TwoStageInferer(noise_scheduler(), 1000, 1, unroll_iterations=0, guidance_scale=0.0)
        >>> method = Direct(DirectDenoiser(torch.nn.Conv2d(8, 4, 1)), inferer, StudyPreprocessing("brats", 8))
        >>> batch = {"image": torch.zeros(1, 4, 8, 8), "region": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        ...          "subject": ["BraTS2021_00000"], "slice": [70]}
        >>> method(batch, torch.tensor([[True, True, True, False]]))["image"].shape, method.passes
        (torch.Size([1, 4, 8, 8]), 1)
    """

    name = "direct"
    files = ("model.pt",)

    def __init__(
        self,
        denoiser: DirectDenoiser,
        inferer: TwoStageInferer,
        preprocessing: StudyPreprocessing,
        seed: int = 0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.inferer = inferer
        self.preprocessing = preprocessing
        self.contrasts = preprocessing.contrasts
        self.seed = seed
        self.device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        self.precision = denoiser.precision
        self.weights = dict(weights or {})

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> Direct:
        try:
            preprocessing = StudyPreprocessing(get_contrast_set(settings["contrasts"]), settings["image_size"])
            network = SegResNet(**settings["network"])
            inferer = TwoStageInferer(noise_scheduler(**settings["scheduler"]), **settings["sampling"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{folder / 'model.json'}: settings of no {cls.name} model ({error!r})") from error
        network = load_weights(network, folder / "model.pt").to(device).to(memory_format=memory_format(device))
        described = json.dumps([settings["network"], settings["scheduler"]], sort_keys=True)
        weights = {
            "trained_on": settings["trained_on"],
            "settings_sha256": hashlib.sha256(described.encode()).hexdigest(),
            "model_sha256": file_sha256(folder / "model.pt"),
        }
        multiple = 2 ** (len(settings["network"]["blocks_down"]) - 1)
        return cls(DirectDenoiser(network, precision, multiple), inferer, preprocessing, seed, weights)

    @property
    def network(self) -> torch.nn.Module:
        """The trained network."""
        return self.denoiser.network

    @property
    def passes(self) -> int:
        return self.inferer.passes

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "method": self.name,
            **self.weights,
            "sampling": self.inferer.settings,
            "preprocessing_fingerprint": self.preprocessing.fingerprint,
            "seed": self.seed,
        }

    @torch.no_grad()
    def __call__(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None = None
    ) -> dict[str, torch.Tensor]:
        brain = batch["region"] > 0
        if not available.any(dim=1).all():
            raise ValueError("a slice has no acquired contrast: at least one is needed to synthesise the others")
        known = available[:, :, None, None]  # (B, C, 1, 1)
        acquired = torch.where(known, batch["image"], torch.full_like(batch["image"], -1.0))
        seeds = [slice_seed(self.seed, s, int(i)) for s, i in zip(batch["subject"], batch["slice"], strict=True)]
        conditions = Conditions(acquired, available, brain=brain)
        synthesised = self.inferer.synthesize(self.denoiser, conditions, seeds, progress)
        return {"image": torch.where(known | brain, synthesised, torch.full_like(synthesised, -1.0))}
