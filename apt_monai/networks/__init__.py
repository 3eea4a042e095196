"""What MONAI does not have: denoisers, a modulated U-Net, the frozen vision encoder and the fusion of its features."""

from __future__ import annotations

from .denoisers import Conditions, Denoiser, DirectDenoiser, Prediction, PublishedDenoiser
from .fusion import MutualInformationFusion, random_subsets
from .source_denoiser import SourceDenoiser
from .vision_encoder import VisionEncoder, write_untrained_encoder

__all__ = [
    "Conditions",
    "Denoiser",
    "DirectDenoiser",
    "MutualInformationFusion",
    "Prediction",
    "PublishedDenoiser",
    "SourceDenoiser",
    "VisionEncoder",
    "random_subsets",
    "write_untrained_encoder",
]
