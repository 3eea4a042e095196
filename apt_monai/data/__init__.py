"""Data: study folders to data lists, splits by subject, the slice cache, and synthetic volumes to NIfTI.

Our own modules import from this room's files (``from apt_monai.data.readers import read_studies``). For users and for
MONAI's YAML the names below are here too; a file is imported when one of its names is asked for, so that listing a
folder's studies does not wait for torch and MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FILES = {
    "preparation": ("find_split", "find_studies", "prepare_slices", "select_studies"),
    "readers": ("read_studies",),
    "slice_cache": ("CachedStudy", "FeatureDataset", "SliceCache", "SliceDataset", "encode_slices"),
    "splits": ("load_split", "patient", "save_split", "split_subjects"),
    "writers": ("SaveSyntheticStudyD", "SaveSyntheticStudyDict", "SaveSyntheticStudyd", "pending_studies",
                "synthetic_path"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """A name of one of the room's files (PEP 562)."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
