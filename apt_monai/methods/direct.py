"""Our own method: one pass of a network that sees what was acquired, and which contrasts they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SegResNet

from apt_monai.contrasts import get_contrast_set
from apt_monai.errors import ModelError
from apt_monai.files import file_sha256, json_sha256
from apt_monai.hardware import memory_format
from apt_monai.inferers import TwoStageInferer, noise_scheduler
from apt_monai.methods.base import Batch
from apt_monai.methods.sampled import SampledMethod
from apt_monai.networks import Conditions, DirectDenoiser
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.weights import load_weights


class Direct(SampledMethod):
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

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> Direct:
        try:
            preprocessing = StudyPreprocessing(get_contrast_set(settings["contrasts"]), settings["image_size"])
            network = SegResNet(**settings["network"])
            scheduler = noise_scheduler(**settings["scheduler"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{folder / 'model.json'}: settings of no {cls.name} model ({error!r})") from error
        network = load_weights(network, folder / "model.pt").to(device).to(memory_format=memory_format(device))
        weights = {
            "trained_on": settings["trained_on"],
            "settings_sha256": json_sha256([settings["network"], settings["scheduler"]]),
            "model_sha256": file_sha256(folder / "model.pt"),
        }
        inferer = TwoStageInferer.from_settings(scheduler, settings["sampling"])
        multiple = 2 ** (len(settings["network"]["blocks_down"]) - 1)
        return cls(DirectDenoiser(network, precision, multiple), inferer, preprocessing, seed, weights)

    def conditions(self, batch: Batch, acquired: torch.Tensor, available: torch.Tensor) -> Conditions:
        return Conditions(acquired, available, brain=batch["region"] > 0)
