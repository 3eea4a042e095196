"""What MONAI does not have: the denoisers, the frozen vision encoder and the fusion of its features."""

from __future__ import annotations

from .denoisers import Conditions, Denoiser, DirectDenoiser, Prediction, PublishedDenoiser
from .fusion import MutualInformationFusion, random_subsets
from .vision_encoder import VisionEncoder, write_untrained_encoder

__all__ = [
    "Conditions",
    "Denoiser",
    "DirectDenoiser",
    "MutualInformationFusion",
    "Prediction",
    "PublishedDenoiser",
    "VisionEncoder",
    "random_subsets",
    "write_untrained_encoder",
]
