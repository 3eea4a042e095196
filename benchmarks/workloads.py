"""The sizes of a benchmark run, and the ways to synthesise that it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apt_monai.contrasts import BRATS

PARTS = ("encode", "forward", "backward", "rest")


MISSING = "t1ce"
"""The contrast that is synthesised; the others are acquired."""


EPOCH_SLICES = 160_000
"""Slices in an epoch of the alignment, about 80 % of BraTS 2021: only to express its cost in hours."""


@dataclass(frozen=True)
class Workload:
    """The sizes of a benchmark run. The defaults are the paper's networks and image size with few steps.

    Args:
        image_size: height and width of a slice.
        channels: the U-Net's channels a level; the last three levels have attention.
        norm_num_groups: the U-Net's.
        encoder_model: timm's name of the vision tower; None: the small one of the demo.
        steps: (S, N) of the runs with one slice.
        batch_steps: (S, N) of the runs with ``batch_size`` slices.
        batch_size: how many slices go through the network together in those.
        encoded_slices: how many slices the encoder is timed on.
        alignment_batch: slices in a batch of the alignment.
        alignment_steps: how many of its steps are timed.
        study_shape: voxels of the study that random slices are read from.
        cached_reads: random slices read from the cache.
        nifti_reads: random slices read from the NIfTI files.
        codebook_subjects: n; the codebook is built from n and from 4 n subjects.
        codebook_size: height and width of their slices.
        codebook_slices: slices a subject.
    """

    image_size: int = 256
    channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    norm_num_groups: int = 32
    encoder_model: str | None = "vit_base_patch16_224"
    steps: tuple[int, int] = (2, 1)
    batch_steps: tuple[int, int] = (1, 0)
    batch_size: int = 8
    encoded_slices: int = 4
    alignment_batch: int = 512
    alignment_steps: int = 4
    study_shape: tuple[int, int, int] = (240, 240, 155)
    cached_reads: int = 1000
    nifti_reads: int = 5
    codebook_subjects: int = 8
    codebook_size: int = 128
    codebook_slices: int = 32

    @property
    def network_settings(self) -> dict[str, Any]:
        """The arguments of MONAI's ``DiffusionModelUNet``."""
        return {
            "spatial_dims": 2,
            "in_channels": len(BRATS),
            "out_channels": len(BRATS),
            "channels": self.channels,
            "attention_levels": [level >= len(self.channels) - 3 for level in range(len(self.channels))],
            "num_res_blocks": 2,
            "num_head_channels": min(64, self.channels[-1]),
            "norm_num_groups": self.norm_num_groups,
            "with_conditioning": True,
            "cross_attention_dim": 512,
        }


FEW_STEPS = Workload()


PAPER = Workload(steps=(20, 50), batch_steps=(20, 50), encoded_slices=16, alignment_steps=20, nifti_reads=20)


@dataclass(frozen=True)
class Variant:
    """One way to synthesise a slice.

    Args:
        name: what the tables call it.
        guidance_scale: α of Eq. 4; 0 leaves the guidance, and with it the way back through the network, out.
        fast: bfloat16 and channels-last, instead of float32 and channels-first.
        batched: ``Workload.batch_size`` slices together, instead of one.
        published: done the published way (:func:`synthesize_published_way`).
    """

    name: str
    guidance_scale: float = 20.0
    fast: bool = False
    batched: bool = False
    published: bool = False


VARIANTS = (
    Variant("published way", published=True),
    Variant("ours, paper's gradient, float32"),
    Variant("ours, paper's gradient, bfloat16", fast=True),
    Variant("ours, α = 0, bfloat16", guidance_scale=0.0, fast=True),
    Variant("ours, α = 0, bfloat16", guidance_scale=0.0, fast=True, batched=True),
    Variant("ours, paper's gradient, bfloat16", fast=True, batched=True),
)
