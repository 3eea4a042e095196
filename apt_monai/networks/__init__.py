"""The networks that MONAI does not have: the frozen vision encoder and the fusion of its features."""

from __future__ import annotations

from .fusion import MutualInformationFusion, random_subsets
from .vision_encoder import VisionEncoder, write_untrained_encoder

__all__ = ["MutualInformationFusion", "VisionEncoder", "random_subsets", "write_untrained_encoder"]
