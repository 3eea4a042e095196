"""From a dataset folder to slices that are ready to train on; without a folder, from the phantom, and said so."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from torch import nn

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.data.slice_cache import SliceCache, encode_slices
from apt_monai.data.splits import load_split, save_split, split_subjects
from apt_monai.distributed import is_lead, lead_first, own_share
from apt_monai.phantom import write_phantom_dataset
from apt_monai.phantom.datasets import RECORD_NAME

logger = logging.getLogger(__name__)

Study = dict[str, str]


def find_studies(
    dataset_dir: str | Path | None,
    contrasts: ContrastSet | str,
    phantom_dir: str | Path,
    phantom_subjects: int,
    phantom_spacing: float,
    phantom_seed: int,
    require_all: bool = True,
    series: Mapping[str, Any] | str | Path | None = None,
    phantom_varied: bool = False,
    phantom_noise: bool = True,
) -> list[Study]:
    """The studies of a dataset folder; without one, those of a digital phantom, which is made if need be.

    Args:
        dataset_dir: the folder of study folders, or None for the phantom.
        contrasts: the contrast set, or its name.
        phantom_dir: where phantoms are kept; each kind has a folder of its own in it.
        phantom_subjects, phantom_spacing, phantom_seed: see :func:`apt_monai.phantom.datasets.write_phantom_dataset`.
        series: which series is which contrast, for DICOM and other layouts; see
            :func:`apt_monai.data.readers.read_studies`.
        require_all: every study must have every contrast, as training and evaluation need. Without it (inference), each
            phantom study is given without one contrast, a different one from study to study.
        phantom_varied, phantom_noise: likewise; each kind has a folder of its own.

    Raises:
        StudyError: see :func:`apt_monai.data.readers.read_studies`.
        ValueError: without a folder, contrasts that there is no phantom of.
    """
    if dataset_dir is not None:
        return read_studies(dataset_dir, contrasts, require_all=require_all, series=series)
    contrasts = get_contrast_set(contrasts)
    name = f"{contrasts.name}-{phantom_spacing:g}mm-seed{phantom_seed}"
    name += ("-varied" if phantom_varied else "") + ("" if phantom_noise else "-noiseless")
    folder = Path(phantom_dir) / name
    logger.warning("no dataset_dir given: using a DIGITAL PHANTOM, not patients, in %s", folder)
    with lead_first():
        made = write_phantom_dataset(
            folder,
            contrasts.name,
            phantom_subjects,
            phantom_seed,
            phantom_spacing,
            varied=phantom_varied,
            noise=phantom_noise,
        )
    names = {path.name for path in made}
    studies = [study for study in read_studies(folder, contrasts, require_all=True) if study["subject"] in names]
    if not require_all:
        order = contrasts.names
        for i, study in enumerate(studies):
            left_out = order[i % len(order)]
            logger.warning("phantom study %s: %s is left out, to be synthesised", study["subject"], left_out)
            del study[left_out]
    return studies


def is_phantom(dataset_dir: str | Path | None) -> bool:
    """Whether a dataset folder, as :func:`find_studies` takes it, holds digital phantoms and not patients.

    Example::

        >>> is_phantom(None), is_phantom(".")
        (True, False)
    """
    return dataset_dir is None or (Path(dataset_dir) / RECORD_NAME).is_file()


def find_split(
    path: str | Path,
    studies: Sequence[Mapping[str, str]],
    train_fraction: float,
    validation_subjects: int,
    test_subjects: int | None,
    seed: int,
) -> dict[str, list[str]]:
    """The split in a file, or a new one, which is saved there; see :func:`apt_monai.data.splits.split_subjects`."""
    subjects = [study["subject"] for study in studies]
    with lead_first():
        if Path(path).exists():
            return load_split(path, subjects)
        settings = {
            "train_fraction": train_fraction,
            "validation_subjects": validation_subjects,
            "test_subjects": test_subjects,
            "seed": seed,
        }
        split = split_subjects(subjects, train_fraction, validation_subjects, test_subjects, seed)
        save_split(path, split, **settings)
        return split


def select_studies(studies: Sequence[Study], subjects: Sequence[str]) -> list[Study]:
    """The studies of some subjects, in the studies' order."""
    return [study for study in studies if study["subject"] in subjects]


def studies_of_split(studies: Sequence[Study], split_file: str | Path | None, part: str) -> list[Study]:
    """The studies of a part of a split, such as ``"test"``; without a split file, all.

    Raises:
        ValueError: the file is missing, damaged, or of other subjects.
    """
    if split_file is None:
        return list(studies)
    return select_studies(studies, load_split(split_file, [study["subject"] for study in studies])[part])


def prepare_slices(studies: Sequence[Mapping[str, str]], cache: SliceCache, encoder: nn.Module | None) -> SliceCache:
    """Fill the cache with the studies' slices and, with an encoder, their features, where they are not there yet.

    Returns the cache.

    Each rank does its share of the studies.
    """
    own = own_share(studies)
    cache.prepare(own, progress=is_lead())
    if encoder is not None:
        encode_slices(own, cache, encoder, progress=is_lead())
    idist.barrier()
    return cache
