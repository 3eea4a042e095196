"""Digital brains: data sets of phantoms, with nothing to download."""

from apt_monai.phantom.datasets import write_phantom_dataset

__all__ = ["write_phantom_dataset"]
