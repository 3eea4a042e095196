"""The rows that every method has to beat: an acquired contrast, or its best transform, in the missing one's place."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apt_monai.codebook import PriorCodebook
from apt_monai.methods.base import Batch, Method
from apt_monai.transforms.preprocessing import StudyPreprocessing


class _Trivial(Method):
    """Nothing to train and nothing to load."""

    files = ()
    passes = 1

    def __init__(self, preprocessing: StudyPreprocessing) -> None:
        self.preprocessing = preprocessing
        self.contrasts = preprocessing.contrasts
        self.device = torch.device("cpu")
        self.precision = "float32"

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any], device: torch.device, precision: str, seed: int) -> Method:
        raise NotImplementedError(f"{cls.name} has no model folder")

    @property
    def provenance(self) -> dict[str, Any]:
        return {"method": self.name, "preprocessing_fingerprint": self.preprocessing.fingerprint}

    def synthesize(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None
    ) -> dict[str, torch.Tensor]:
        image = self.fill(batch, available)
        if progress is not None:
            progress(1)
        return {"image": image}

    @abstractmethod
    def fill(self, batch: Batch, available: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` with the missing contrasts filled."""


class Copy(_Trivial):
    """Each missing contrast is a copy of the best acquired one.

    Args:
        preprocessing: from a study's files to its slices, and back.
        ranking: by target, the sources, best first, as :func:`apt_monai.evaluation.copy_ranking` finds them on
            validation studies: the first that was acquired is copied. A target that is not in it, or of whose sources
            none was acquired, is a copy of the contrast whose intensity scale it takes
            (:meth:`apt_monai.contrasts.ContrastSet.intensity_source`).

    Raises:
        ValueError: a name in the ranking is not of the contrast set.

    Example::

        >>> batch = {"image": torch.rand(1, 4, 8, 8)}
        >>> image = Copy(StudyPreprocessing("brats", 8))(batch, torch.tensor([[True, True, False, True]]))["image"]
        >>> bool((image[:, 2] == batch["image"][:, 1]).all())  # T1Gd is a copy of T1
        True
    """

    name = "copy"

    def __init__(self, preprocessing: StudyPreprocessing, ranking: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(preprocessing)
        self.ranking = {target: list(sources) for target, sources in (ranking or {}).items()}
        self.contrasts.check([*self.ranking, *(name for sources in self.ranking.values() for name in sources)])

    @property
    def provenance(self) -> dict[str, Any]:
        return super().provenance | {"ranking": self.ranking}

    def source(self, target: str, acquired: Sequence[str]) -> str:
        """The acquired contrast that is copied for a target."""
        best = (name for name in self.ranking.get(target, ()) if name in acquired)
        return next(best, None) or self.contrasts.intensity_source(target, acquired)

    def fill(self, batch: Batch, available: torch.Tensor) -> torch.Tensor:
        image = batch["image"].clone()
        for row, mask in enumerate(available.tolist()):
            acquired = [name for name, has in zip(self.contrasts.names, mask, strict=True) if has]
            for name in (name for name in self.contrasts.names if name not in acquired):
                source = self.contrasts.index(self.source(name, acquired))
                image[row, self.contrasts.index(name)] = batch["image"][row, source]
        return image


class Prior(_Trivial):
    """Each missing contrast is the codebook's prior (section 3.4), where the published sampler starts.

    Args:
        preprocessing: from a study's files to its slices, and back.
        codebook: where priors come from.
    """

    name = "prior"

    def __init__(self, preprocessing: StudyPreprocessing, codebook: PriorCodebook) -> None:
        super().__init__(preprocessing)
        self.codebook = codebook

    @property
    def provenance(self) -> dict[str, Any]:
        entries = repr(sorted(self.codebook.entries.items())).encode()
        return super().provenance | {"entries_sha256": hashlib.sha256(entries).hexdigest()}

    def fill(self, batch: Batch, available: torch.Tensor) -> torch.Tensor:
        return self.codebook.prior(batch["image"], available, batch["region"] > 0)
