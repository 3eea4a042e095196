"""The slices that an evaluation is about: which they are, and the truth on the acquired grid, in its own scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.preparation import prepare_slices
from apt_monai.data.slice_cache import CachedStudy, SliceCache, subject_generator
from apt_monai.networks import VisionEncoder
from apt_monai.transforms.preprocessing import StudyPreprocessing


@dataclass(frozen=True)
class StudySlices:
    """The chosen slices of one study, on the acquired grid (oriented to RAS+, whole slices).

    Args:
        subject: the study's name.
        indices: each slice's index along the last axis of the oriented volume, rising.
        truth: ``(S, C, X, Y)`` float32 in [0, 1], the acquired contrasts; 0 outside the brain.
        noiseless: the same without noise where that is known (phantoms), on the truth's scale; else the truth.
        region: ``(S, 1, X, Y)`` uint8: 0 outside the brain, 1 in the brain, 2 in the tumour.
        intensity_range: ``(C, 2)`` float32, the raw intensities that are 0 and 1 in the truth.
        whole: whether it is every slice of the study that has enough brain, one after the other.
    """

    subject: str
    indices: tuple[int, ...]
    truth: Tensor
    noiseless: Tensor
    region: Tensor
    intensity_range: Tensor
    whole: bool

    @property
    def brain(self) -> Tensor:
        """``(S, 1, X, Y)`` bool."""
        return self.region > 0

    def at(self, position: int) -> StudySlices:
        """One of the slices alone."""
        one = slice(position, position + 1)
        tensors = (self.truth[one], self.noiseless[one], self.region[one])
        return StudySlices(self.subject, self.indices[one], *tensors, self.intensity_range, whole=False)


class EvaluationSlices:
    """The slices on which methods are compared, whatever the grid and the intensity scale of each.

    The truth is what was acquired: voxels as they are, and the 0.5 and 99.5 percentiles of each contrast's brain as 0
    and 1. Slices are chosen as neighbours (k, k + 1), so that what changes from slice to slice can be measured: one
    pair at random from each of as many equal stretches of the brain, from (``seed``, subject) alone.

    Args:
        studies: the data list, with all contrasts; shapes may differ from study to study.
        cache_dir: the folder of the slice cache, which is filled where need be; with several ranks, by each its share.
        contrasts: the contrast set, or its name.
        slices_per_subject: so many slices of each study, an even number; None: every slice.
        batch_size: how many slices of one study a method is given at a time.
        seed: the seed of the choice.
        noiseless: the same subjects without noise, as only a phantom has them: the truth of what noise spoils, detail
            and flicker.
        min_brain_fraction: only slices at least this share of whose brain box is brain are chosen.

    Raises:
            whole number of slices.
        StudyError: a study cannot be used.

    Example::

        >>> import nibabel as nib
        >>> volume = np.arange(1, 1153, dtype=np.int16).reshape(12, 12, 8)
        >>> for name in ("t1", "t2", "pd"):
        ...     nib.save(nib.Nifti1Image(volume, np.eye(4)), f"a_{name}.nii.gz")
        >>> study = {"subject": "a", "t1": "a_t1.nii.gz", "t2": "a_t2.nii.gz", "pd": "a_pd.nii.gz"}
        >>> slices = EvaluationSlices([study], "cache", "adni", slices_per_subject=2)
        >>> one = slices.study(0)
        >>> one.indices[1] - one.indices[0], one.truth.shape
        (1, torch.Size([2, 3, 12, 12]))
    """

    def __init__(
        self,
        studies: Sequence[Mapping[str, str]],
        cache_dir: str | Path,
        contrasts: str | ContrastSet,
        slices_per_subject: int | None = 8,
        batch_size: int = 8,
        seed: int = 0,
        noiseless: Sequence[Mapping[str, str]] | None = None,
        min_brain_fraction: float = 0.02,
    ) -> None:
        if slices_per_subject is not None and (slices_per_subject < 2 or slices_per_subject % 2):
            raise ValueError(
                f"slices_per_subject={slices_per_subject}: slices are chosen as pairs of neighbours, so it must be an "
                "even number from 2 on, or null for every slice"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.studies = list(studies)
        self.cache_dir = Path(cache_dir)
        self.contrasts = get_contrast_set(contrasts)
        self.batch_size = batch_size
        self._every = slices_per_subject is None
        self.preprocessing = StudyPreprocessing(self.contrasts, size=None)
        self._known: dict[tuple[str, str | None], list[CachedStudy]] = {}
        self.entries = self.cached(self.preprocessing)
        self.rows = [_choose(entry, slices_per_subject, seed, min_brain_fraction) for entry in self.entries]
        self._noiseless = self._opened(noiseless) if noiseless else self.entries

    def __len__(self) -> int:
        """How many slices there are, of all studies."""
        return sum(map(len, self.rows))

    def cached(self, preprocessing: StudyPreprocessing, encoder: VisionEncoder | None = None) -> list[CachedStudy]:
        """The studies' entries in the cache, every slice, for a preprocessing; all ranks reach this together."""
        key = preprocessing.fingerprint, None if encoder is None else str(encoder.fingerprint)
        if key not in self._known:
            self._known[key] = self._prepared(self.studies, preprocessing, encoder)
        return self._known[key]

    def _prepared(
        self, studies: Sequence[Mapping[str, str]], preprocessing: StudyPreprocessing, encoder: VisionEncoder | None
    ) -> list[CachedStudy]:
        cache = prepare_slices(studies, SliceCache(self.cache_dir, preprocessing, min_brain_fraction=0), encoder)
        return [cache.open(study) for study in studies]

    def _opened(self, noiseless: Sequence[Mapping[str, str]]) -> list[CachedStudy]:
        """The noiseless studies' entries, in the studies' order."""
        known = {study["subject"]: study for study in noiseless}
        absent = [study["subject"] for study in self.studies if study["subject"] not in known]
        if absent:
            raise ValueError(f"no noiseless study of {', '.join(absent)}: give one of each subject, or none at all")
        ordered = [known[study["subject"]] for study in self.studies]
        return self._prepared(ordered, self.preprocessing, None)

    def study(self, number: int) -> StudySlices:
        """The chosen slices of a study, by its place in the list."""
        entry, rows = self.entries[number], self.rows[number]
        region = entry.fit.back(torch.from_numpy(np.array(entry.regions[rows])).float(), "nearest", fill=0).byte()
        truth = on_truth_scale(_images(entry, rows), entry, entry, region > 0)
        clean = self._noiseless[number]
        noiseless = truth if clean is entry else on_truth_scale(_images(clean, rows), clean, entry, region > 0)
        indices = tuple(int(entry.slices[row]) for row in rows)
        whole = self._every and indices == tuple(range(indices[0], indices[-1] + 1))
        return StudySlices(entry.subject, indices, truth, noiseless, region, entry.intensity_range, whole)


def on_truth_scale(image: Tensor, entry: CachedStudy, truth: CachedStudy, brain: Tensor) -> Tensor:
    """Slices of an entry on the acquired grid, in the truth's scale.

    The way goes through raw intensities, by the two raw intensities of each contrast that the entry's preprocessing
    made -1 and 1, and the two that the truth's made 0 and 1. So two numbers of the *target* place every prediction,
    whichever scale its method works in. They are numbers that nobody has where the target was not acquired, and they
    are the same gift to every method.

    Args:
        image: ``(S, C, H, W)`` in [-1, 1], on the entry's grid.
        entry: the study in the method's preprocessing.
        truth: the study in the reference's.
        brain: ``(S, 1, X, Y)`` bool.

    Returns:
        ``(S, C, X, Y)`` float32 in [0, 1], clipped; 0 outside the brain.
    """
    (low, high), (zero, one) = entry.intensity_range.double().unbind(1), truth.intensity_range.double().unbind(1)
    scale, shift = (high - low) / (one - zero), (low - zero) / (one - zero)  # exactly 1 and 0 where both are the same
    placed = (entry.fit.back(image.double()) + 1) / 2 * scale[:, None, None] + shift[:, None, None]
    return placed.clamp(0, 1).float().masked_fill(~brain, 0)


def width_on_truth_scale(width: Tensor, entry: CachedStudy, truth: CachedStudy, brain: Tensor) -> Tensor:
    """Half widths of intervals ``(S, C, H, W)``, in units of [-1, 1], as :func:`on_truth_scale`: scaled, not shifted.

    Returns:
        ``(S, C, X, Y)`` float32 in units of [0, 1], at least 0; 0 outside the brain.
    """
    (low, high), (zero, one) = entry.intensity_range.double().unbind(1), truth.intensity_range.double().unbind(1)
    placed = entry.fit.back(width.double(), fill=0.0) / 2 * ((high - low) / (one - zero))[:, None, None]
    return placed.float().masked_fill(~brain, 0)


def _images(entry: CachedStudy, rows: Sequence[int]) -> Tensor:
    """``(rows, C, H, W)`` in [-1, 1]."""
    return torch.stack([entry.image(row) for row in rows])


def _choose(entry: CachedStudy, count: int | None, seed: int, min_brain_fraction: float) -> list[int]:
    """Rows of an entry that has every slice: pairs of neighbours, or all with enough brain."""
    enough = np.flatnonzero((np.array(entry.regions) > 0).mean(axis=(1, 2, 3)) >= min_brain_fraction)
    if count is None:
        return [int(row) for row in enough]
    if count > len(enough):
        raise ValueError(
            f"study {entry.subject!r} has {len(enough)} slices with enough brain, fewer than "
            f"slices_per_subject={count}; take fewer a subject or exclude the study"
        )
    generator = subject_generator(seed, entry.subject)
    pairs = count // 2
    chosen: list[int] = []
    for i in range(pairs):
        stretch = enough[i * len(enough) // pairs : (i + 1) * len(enough) // pairs]
        starts = stretch[:-1][np.diff(stretch) == 1]
        if not len(starts):
            raise ValueError(
                f"study {entry.subject!r} has no two neighbouring slices with brain among {stretch.tolist()}, and "
                f"slices_per_subject={count} takes a pair there; take fewer a subject or exclude the study"
            )
        start = int(generator.choice(starts))
        chosen += [start, start + 1]
    return chosen
