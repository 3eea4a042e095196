"""Input quality control: findings about a study, from facts that are handed to it."""

from apt_monai.quality.alignment import check_alignment
from apt_monai.quality.appearance import Reference, learn, measure
from apt_monai.quality.checks import Limits, check_raw, check_volumes
from apt_monai.quality.findings import Finding
from apt_monai.quality.learning import REFERENCE, learn_reference, write_reference
from apt_monai.quality.study import check_study
from apt_monai.quality.volumes import Volumes

__all__ = [
    "REFERENCE",
    "learn_reference",
    "write_reference",
    "Finding",
    "Limits",
    "Reference",
    "Volumes",
    "check_alignment",
    "check_raw",
    "check_study",
    "check_volumes",
    "learn",
    "measure",
]
