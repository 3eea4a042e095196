"""The published method (APT, CVPR 2025): encode, fuse, look up the prior, sample in two stages."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet

from apt_monai.codebook import PriorCodebook
from apt_monai.errors import ModelError
from apt_monai.files import file_sha256, json_sha256
from apt_monai.hardware import memory_format
from apt_monai.inferers import TwoStageInferer, noise_scheduler
from apt_monai.methods.base import Batch, Method
from apt_monai.methods.sampled import SampledMethod
from apt_monai.methods.trivial import Prior
from apt_monai.networks import Conditions, Denoiser, MutualInformationFusion, PublishedDenoiser, VisionEncoder
from apt_monai.transforms.preprocessing import StudyPreprocessing
from apt_monai.weights import load_weights


class APT(SampledMethod):
    """The whole method on one batch of slices.

    The vision encoder runs once a slice, on the acquired contrasts alone, or not at all where the batch already holds
    cached ``"features"``.

    Args:
        denoiser: the trained denoiser.
        fusion: the trained MIF module.
        inferer: the sampler.
        preprocessing: from a study's files to its slices, and back.
        codebook: where priors come from; None starts the missing channels as pure noise (the paper's "U").
        encoder: the vision encoder; not needed where batches hold ``"features"``.
        seed: the run's seed; a slice's noise is drawn from (seed, subject, slice).
        weights: what its weights are known by, as JSON can hold it.

    Example::

        >>> class Network(torch.nn.Module):
        ...     def forward(self, x, timesteps, context):
        ...         return 0.1 * x
        >>> scheduler = noise_scheduler()
        >>> inferer = TwoStageInferer(scheduler, sampling_steps=2, unroll_iterations=1)
        >>> fusion = MutualInformationFusion(16, 2, out_dim=8)
        >>> method = APT(PublishedDenoiser(Network(), scheduler), fusion, inferer, StudyPreprocessing("brats", 8))
        >>> batch = {"image": torch.zeros(1, 4, 8, 8), "region": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        ...          "features": torch.rand(1, 4, 16), "subject": ["BraTS2021_00000"], "slice": [70]}
        >>> method(batch, torch.tensor([[True, True, True, False]]))["image"].shape
        torch.Size([1, 4, 8, 8])
    """

    name = "apt"
    files = ("model.pt", "fusion.pt", "codebook.json")

    def __init__(
        self,
        denoiser: Denoiser,
        fusion: torch.nn.Module,
        inferer: TwoStageInferer,
        preprocessing: StudyPreprocessing,
        codebook: PriorCodebook | None = None,
        encoder: VisionEncoder | None = None,
        seed: int = 0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(denoiser, inferer, preprocessing, seed, weights)
        self.fusion = fusion.eval()
        self.codebook = codebook
        self.encoder = encoder

    @classmethod
    def build_network(cls, settings: Mapping[str, Any]) -> torch.nn.Module:
        return DiffusionModelUNet(**settings["network"])

    @classmethod
    def build_denoiser(cls, network: torch.nn.Module, settings: Mapping[str, Any], precision: str) -> Denoiser:
        return PublishedDenoiser(network, noise_scheduler(**settings["scheduler"]), precision)

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> APT:
        try:
            preprocessing = StudyPreprocessing.from_settings(settings)
            encoder = VisionEncoder(settings["encoder_source"]).to(device)
            fusion, network = MutualInformationFusion(**settings["fusion"]), cls.build_network(settings)
            scheduler = noise_scheduler(**settings["scheduler"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{folder / 'model.json'}: settings of no {cls.name} model ({error!r})") from error
        network = load_weights(network, folder / "model.pt").to(device).to(memory_format=memory_format(device, network))
        return cls(
            cls.build_denoiser(network, settings, precision),
            load_weights(fusion, folder / "fusion.pt").to(device),
            TwoStageInferer.from_settings(scheduler, settings["sampling"]),
            preprocessing,
            PriorCodebook.load(folder / "codebook.json", preprocessing.contrasts, encoder.fingerprint),
            encoder,
            seed,
            {
                "trained_on": settings["trained_on"],
                "settings_sha256": json_sha256([settings[key] for key in ("network", "fusion", "scheduler")]),
                **{f"{Path(name).stem}_sha256": file_sha256(folder / name) for name in cls.files},
                "encoder_fingerprint": encoder.fingerprint,
            },
        )

    def variant(self, prior: bool = True, **sampling: Any) -> APT:
        """The same weights with other sampling settings, or without the prior: a row of the paper's Table 2.

        Args:
            prior: start from the codebook's priors.
            sampling: arguments of :class:`~apt_monai.inferers.TwoStageInferer` that take the place of this method's.
        """
        other = copy.copy(self)
        other.inferer = TwoStageInferer.from_settings(self.inferer.scheduler, {**self.inferer.settings, **sampling})
        other.codebook = self.codebook if prior else None
        return other

    @property
    def rows(self) -> dict[str, Method]:
        """The rows of the paper's Table 2, and the prior that U+A starts from."""
        start = self.variant(prior=False, unroll_iterations=0)
        if self.codebook is None:
            return {"U": start, "U+I": self}
        prior = Prior(self.preprocessing, self.codebook)
        return {"prior": prior, "U": start, "U+A": self.variant(unroll_iterations=0), "U+A+I": self}

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | {"prior": None if self.codebook is None else "codebook"}

    def conditions(self, batch: Batch, acquired: torch.Tensor, available: torch.Tensor) -> Conditions:
        if "features" in batch:
            features = batch["features"]
        elif self.encoder is not None:
            encoded = self.encoder(acquired[available][:, None])[:, 0]  # (acquired contrasts of the batch, D)
            features = encoded.new_zeros(*available.shape, encoded.shape[-1])  # (B, C, D)
            features[available] = encoded
        else:
            raise ValueError("the batch has no 'features' and the method no encoder: give one of the two")
        z = self.fusion(features, available)  # (B, D)
        prior = None if self.codebook is None else self.codebook.prior(acquired, available, batch["region"] > 0)
        return Conditions(acquired, available, prior, z)
