"""Data: study folders to data lists, splits by subject, the slice cache, and synthetic volumes to NIfTI."""

from apt_monai.data.preparation import find_split, find_studies, prepare_slices, select_studies
from apt_monai.data.readers import read_studies
from apt_monai.data.slice_cache import CachedStudy, FeatureDataset, SliceCache, SliceDataset, encode_slices
from apt_monai.data.splits import load_split, patient, save_split, split_subjects
from apt_monai.data.writers import (
    SaveSyntheticStudyD,
    SaveSyntheticStudyd,
    SaveSyntheticStudyDict,
    check_writable,
    pending_studies,
    synthetic_path,
)

__all__ = [
    "CachedStudy",
    "FeatureDataset",
    "SaveSyntheticStudyD",
    "SaveSyntheticStudyDict",
    "SaveSyntheticStudyd",
    "SliceCache",
    "SliceDataset",
    "check_writable",
    "encode_slices",
    "find_split",
    "find_studies",
    "load_split",
    "patient",
    "pending_studies",
    "prepare_slices",
    "read_studies",
    "save_split",
    "select_studies",
    "split_subjects",
    "synthetic_path",
]
