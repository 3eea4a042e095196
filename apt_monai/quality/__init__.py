"""Input quality control: findings about a study, from facts that are handed to it."""

from apt_monai.quality.findings import Finding

__all__ = ["Finding"]
