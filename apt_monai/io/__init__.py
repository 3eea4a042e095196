"""Reading and writing volumes: NIfTI and DICOM."""

from apt_monai.io.source import read_volume

__all__ = ["read_volume"]
