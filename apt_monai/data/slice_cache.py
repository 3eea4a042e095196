"""The slice cache: preprocessed slices on disk, filled once, read by memory map; and the dataset of its slices.

A random slice from a ``.nii.gz`` costs the decompression of whole volumes. The cache holds, for each study, a folder
``<subject>-<origin>-<content>.v3``. ``origin`` stands for the paths of the study's files and the preprocessing,
``content`` for the files' sizes and times::

    images.npy              (n, C, H, W) int16: round(v * 32767) of intensities v in [-1, 1]; -1 is kept exactly
    regions.npy             (n, 1, H, W) uint8: 0 outside the brain, 1 brain, 2 tumour
    slices.npy              (n,) int64: each slice's index along the last axis of the oriented volume
    meta.json               subject, availability, intensity ranges, fit in plane, settings, files
    features-<encoder>.npy  (n, C, D) float32, once :func:`encode_slices` has run

So data sets with equal subject names, and several preprocessings of one data set, share a cache folder and do not touch
each other's entries. Only what can never be used again is removed, the entry of the same files before they changed;
everything else stays until the folder is deleted by hand, which is always safe between runs.

A folder is made under another name and renamed when it is complete, so that any number of processes can fill one cache
at once, and an interrupted run leaves only complete entries. Nothing is kept open: each access maps the file anew,
which costs some 0.1 ms, is safe in forked and spawned workers, and holds no file descriptor (there may be thousands of
studies).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from apt_monai.data.crops import Epoch, coarsened, crop_around, crop_generator
from apt_monai.errors import StudyError
from apt_monai.files import json_sha256, key_digest
from apt_monai.io.source import source_stat
from apt_monai.transforms import InPlaneFit, StudyPreprocessing

logger = logging.getLogger(__name__)

LAYOUT = ".v3"  # ends an entry's name: raise it with every change of the files, so that older entries are not used
ENTRY_FILES = ("images.npy", "regions.npy", "slices.npy", "meta.json")
SCALE = 32767  # int16 steps from 0 to 1


def _decode(images: np.ndarray) -> Tensor:
    """int16 steps to float32 in [-1, 1]."""
    return torch.from_numpy(np.divide(images, SCALE, dtype=np.float32))


@dataclass(frozen=True)
class CachedStudy:
    """One study's entry in the cache. Small and picklable: the slices stay on disk.

    Args:
        folder: the entry's folder.
        subject: the study's name.
        slices: ``(n,)`` int64, each slice's index along the last axis of the oriented volume.
        available: ``(C,)`` bool, True = acquired.
        intensity_range: ``(C, 2)`` float32, the raw intensities that became 0 and 1; NaN for an absent contrast.
        fit: how the slices' grid lies on that of the acquired slices.

    Raises:
        FileNotFoundError: a file was deleted since the entry was opened.
        OSError: a file is damaged.
    """

    folder: Path
    subject: str
    slices: np.ndarray
    available: Tensor
    intensity_range: Tensor
    fit: InPlaneFit

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def images(self) -> np.ndarray:
        """``(n, C, H, W)`` int16 memory map, ``round(v * 32767)`` of intensities v in [-1, 1]; see :meth:`image`."""
        return _load(self.folder / "images.npy")

    @property
    def regions(self) -> np.ndarray:
        """``(n, 1, H, W)`` uint8 memory map: 0 = outside the brain, 1 = brain, 2 = tumour."""
        return _load(self.folder / "regions.npy")

    def image(self, rows: int | slice) -> Tensor:
        """The slices in some rows: ``(C, H, W)`` or ``(rows, C, H, W)`` float32 in [-1, 1], background exactly -1."""
        return _decode(self.images[rows])

    def features(self, encoder_fingerprint: str) -> np.ndarray | None:
        """``(n, C, D)`` float32 memory map of an encoder's features; None where they were not written yet."""
        path = self._features_path(encoder_fingerprint)
        return _load(path) if path.is_file() else None

    def batch(self, rows: Sequence[int], encoder_fingerprint: str | None = None) -> dict[str, Any]:
        """The slices in some rows, collated as a method takes them; with an encoder, their ``"features"``, too.

        Raises:
            FileNotFoundError: the features are not there.
        """
        batch = {
            "subject": [self.subject] * len(rows),
            "slice": torch.tensor([int(self.slices[row]) for row in rows]),
            "image": torch.stack([self.image(int(row)) for row in rows]),
            "region": torch.from_numpy(np.array(self.regions[rows])),
        }
        if encoder_fingerprint is not None:
            features = self.features(encoder_fingerprint)
            if features is None:
                raise FileNotFoundError(f"{self.folder}: the features of {encoder_fingerprint} were removed")
            batch["features"] = torch.from_numpy(np.array(features[rows]))
        return batch

    def write_features(self, encoder_fingerprint: str, features: np.ndarray) -> None:
        """Keep an encoder's features of every slice, complete or not at all.

        Args:
            encoder_fingerprint: the encoder's fingerprint: letters, digits, ``.``, ``_`` and ``-``.
            features: ``(n, C, D)``, kept as float32.

        Raises:
            ValueError: another shape, NaN or infinite features, or a fingerprint that is no part of a file name.
        """
        expected = (len(self), len(self.available))
        if features.ndim != 3 or features.shape[:2] != expected:
            raise ValueError(f"features of {self.subject!r} have shape {features.shape}; need {expected} and D")
        if not np.isfinite(features).all():
            raise ValueError(f"features of {self.subject!r} are NaN or infinite; the encoder's weights are damaged")
        path = self._features_path(encoder_fingerprint)
        partial = self.folder / f".{path.name}.{uuid4().hex}"
        try:
            with partial.open("wb") as file:
                np.save(file, np.ascontiguousarray(features, dtype=np.float32))
            os.replace(partial, path)
        except OSError as error:
            raise _not_written(self.folder, error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _features_path(self, encoder_fingerprint: str) -> Path:
        if not re.fullmatch(r"[\w.-]+", encoder_fingerprint):
            raise ValueError(f"encoder fingerprint {encoder_fingerprint!r}: only letters, digits, '.', '_' and '-'")
        return self.folder / f"features-{encoder_fingerprint}.npy"


class SliceCache:
    """The preprocessed slices of studies on disk; see the module's text for the files.

    An entry belongs to the study's files (path, size, modification time), the preprocessing and
    ``min_brain_fraction``: for another of them :meth:`prepare` makes another entry. It removes an entry only where
    files of the same paths have changed; any number of data sets and preprocessings share one folder.

    Args:
        cache_dir: the cache's folder; it is made where it does not exist.
        preprocessing: from a study's files to its slices.
        min_brain_fraction: a slice is kept if at least this share of it is brain, in [0, 1]. The default leaves out
            the slices with almost no brain, less than 2 % of the (padded) square: at 256², 1310 voxels.

    Raises:
        ValueError: ``min_brain_fraction`` is out of range.

    Example::

        >>> import nibabel as nib
        >>> volume = np.arange(1, 97, dtype=np.int16).reshape(4, 4, 6)
        >>> nib.save(nib.Nifti1Image(volume, np.eye(4)), "case_t1.nii.gz")
        >>> study = {"subject": "case", "t1": "case_t1.nii.gz"}
        >>> cache = SliceCache("cache", StudyPreprocessing("brats", size=8))
        >>> cache.prepare([study], progress=False)
        >>> cache.open(study).images.shape
        (6, 4, 8, 8)
    """

    def __init__(
        self, cache_dir: str | Path, preprocessing: StudyPreprocessing, min_brain_fraction: float = 0.02
    ) -> None:
        if not 0 <= min_brain_fraction <= 1:
            raise ValueError(f"min_brain_fraction={min_brain_fraction}: must be in [0, 1]")
        self.cache_dir = Path(cache_dir).absolute()
        self.preprocessing = preprocessing
        self.min_brain_fraction = min_brain_fraction

    def prepare(self, studies: Sequence[Mapping[str, str]], progress: bool = True) -> None:
        """Make the entries that are not there yet.

        Raises:
            StudyError: a study cannot be used, or has no slice with enough brain. Entries made before it are kept.
            OSError: the cache's folder cannot be written.
        """
        absent = [(study, folder) for study in studies if not _is_complete(folder := self._folder(study))]
        if absent:
            self._report_older_layouts()
        done = len(studies) - len(absent)
        bar = tqdm(absent, "slice cache", len(studies), initial=done, unit="study", disable=not progress)
        for study, folder in bar:
            self._fill(study, folder)

    def open(self, study: Mapping[str, str]) -> CachedStudy:
        """The entry of a study.

        Raises:
            FileNotFoundError: there is none for these files and this preprocessing.
            StudyError: one of the study's files is missing.
        """
        folder = self._folder(study)
        if not _is_complete(folder):
            raise FileNotFoundError(
                f"{folder}: study {study['subject']!r} is not in the slice cache, or its files or the preprocessing "
                "have changed; call SliceCache.prepare first"
            )
        meta = json.loads((folder / "meta.json").read_text())
        return CachedStudy(
            folder=folder,
            subject=meta["subject"],
            slices=np.array(_load(folder / "slices.npy")),
            available=torch.tensor(meta["available"]),
            intensity_range=torch.tensor([[np.nan, np.nan] if r is None else r for r in meta["intensity_range"]]),
            fit=InPlaneFit(**{key: tuple(value) for key, value in meta["fit"].items()}),
        )

    def _folder(self, study: Mapping[str, str]) -> Path:
        files = _files(study)
        origin = _key(
            {
                "paths": {key: path for key, (path, *_) in files.items()},
                "preprocessing": self.preprocessing.fingerprint,
                "min_brain_fraction": self.min_brain_fraction,
            }
        )
        return self.cache_dir / f"{study['subject']}-{origin}-{_key(files)}{LAYOUT}"

    def _report_older_layouts(self) -> None:
        if not self.cache_dir.is_dir():
            return
        folders = [f for f in self.cache_dir.iterdir() if f.suffix != LAYOUT and not f.name.startswith(".")]
        if older := [f.name for f in folders if (f / "meta.json").is_file()]:
            logger.warning(
                "%s: %d entries of another version of the slice cache are not used (%s, ...); they can be deleted",
                self.cache_dir,
                len(older),
                min(older),
            )

    def _fill(self, study: Mapping[str, str], folder: Path) -> None:
        files = _files(study)
        loaded = self.preprocessing(study)
        image, region = loaded["image"].numpy(), loaded["region"].numpy()  # C×H×W×Z, 1×H×W×Z
        slices = np.flatnonzero((region[0] > 0).mean(axis=(0, 1)) >= self.min_brain_fraction)
        if not len(slices):
            raise StudyError(
                f"study {study['subject']!r} ({next(iter(loaded['paths'].values()))}): no slice is at least "
                f"{self.min_brain_fraction:.0%} brain; exclude the study or lower min_brain_fraction"
            )
        images = np.rint(image[..., slices] * SCALE).astype(np.int16)
        ranges = loaded["intensity_range"].tolist()
        fit = InPlaneFit.of(loaded["image"])
        meta = {
            "subject": study["subject"],
            "available": loaded["available"].tolist(),
            "intensity_range": [
                r if acquired else None for r, acquired in zip(ranges, loaded["available"].tolist(), strict=True)
            ],
            "fit": asdict(fit),
            "preprocessing": self.preprocessing.settings,
            "min_brain_fraction": self.min_brain_fraction,
            "files": files,
        }
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            partial = self.cache_dir / f".{folder.name}.{uuid4().hex}"
            partial.mkdir()
            try:
                np.save(partial / "images.npy", np.ascontiguousarray(np.moveaxis(images, -1, 0)))  # n×C×H×W
                np.save(partial / "regions.npy", np.ascontiguousarray(np.moveaxis(region[..., slices], -1, 0)))
                np.save(partial / "slices.npy", slices.astype(np.int64))
                (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
                if folder.exists() and not _is_complete(folder):  # someone deleted a part of it
                    _remove(folder)
                partial.rename(folder)
            except OSError:
                if not _is_complete(folder):  # else another process made the same entry first
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise _not_written(self.cache_dir, error) from error
        origin = folder.name.rpartition("-")[0]
        for entry in self.cache_dir.iterdir():
            if entry.suffix == LAYOUT and entry.name.rpartition("-")[0] == origin and entry != folder:
                logger.info("%s: removed, the files of study %r have changed", entry, study["subject"])
                _remove(entry)


def _key(content: Mapping[str, Any]) -> str:
    return json_sha256(content)[:12]


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ENTRY_FILES)


def _remove(folder: Path) -> None:
    """Remove an entry; one that is partly removed no longer has an entry's name."""
    doomed = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        folder.rename(doomed)
    except OSError:  # another process was first, or it stays as it is
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _load(path: Path) -> np.ndarray:
    """A memory map of an entry's file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: was deleted from the slice cache while this run used it (or the study's files have changed and "
            "another run made the entry anew); start the run again, which fills the cache where need be"
        ) from None
    except (EOFError, ValueError) as error:
        raise OSError(f"{path}: is damaged ({error}); delete the folder {path.parent} and start again") from error


def _files(study: Mapping[str, str]) -> dict[str, list[str | int]]:
    """By key, what tells that a study's files are the same as before."""
    return {key: source_stat(study[key]) for key in sorted(set(study) - {"subject"})}


def _not_written(folder: Path, error: OSError) -> OSError:
    return OSError(f"{folder}: the slice cache cannot be written ({error}); free space there or choose another folder")


class SliceDataset(Dataset[dict[str, Any]]):
    """The cached slices of studies, in the studies' order.

    A sample is ``{"subject": str, "slice": int, "image": (C, H, W) float32 in [-1, 1], "region": (1, H, W) uint8}``
    and, with an encoder, ``"features"``: ``(C, D)`` float32. Samples are plain tensors. A sample is asked for by its
    index, or by its index and the epoch (:class:`apt_monai.data.crops.EpochSampler`), which moves its crop.

    Args:
        data: the studies, a data list.
        cache: the cache that was prepared for them.
        encoder_fingerprint: the encoder whose features the samples carry; None: no features.
        slices_per_subject: so many slices of each study, spread over its brain: one at random from each of as many
            equal stretches, from (``seed``, subject) alone. None: every slice.
        seed: the seed of that choice, and of the crops.
        crop: height and width of a random crop of each slice; None: the slices as they are.
        coarsen: factors of which one is drawn for each crop, which is then taken that much larger and averaged to its
            size, as if voxels were coarser: what makes a network at home at several resolutions. Only with ``crop``.

    Raises:
        FileNotFoundError: a study is not in the cache, or its features are not.
        ValueError: a study has fewer slices than ``slices_per_subject``, or that is below 1.

    Example::

        >>> import nibabel as nib
        >>> volume = np.arange(1, 97, dtype=np.int16).reshape(4, 4, 6)
        >>> nib.save(nib.Nifti1Image(volume, np.eye(4)), "case_t1.nii.gz")
        >>> studies = [{"subject": "case", "t1": "case_t1.nii.gz"}]
        >>> cache = SliceCache("cache", StudyPreprocessing("brats", size=8))
        >>> cache.prepare(studies, progress=False)
        >>> dataset = SliceDataset(studies, cache, slices_per_subject=2)
        >>> len(dataset), dataset[0]["image"].shape
        (2, torch.Size([4, 8, 8]))
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        cache: SliceCache,
        encoder_fingerprint: str | None = None,
        slices_per_subject: int | None = None,
        seed: int = 0,
        crop: int | None = None,
        coarsen: Sequence[int] = (1,),
    ) -> None:
        if not coarsen or min(coarsen) < 1:
            raise ValueError(f"coarsen={list(coarsen)}: need whole factors of 1 or more, such as [1, 1, 2]")
        self.crop = crop
        self.coarsen = tuple(coarsen)
        self.seed = seed
        if slices_per_subject is not None and slices_per_subject < 1:
            raise ValueError(f"slices_per_subject={slices_per_subject}: must be at least 1, or None for every slice")
        self.encoder_fingerprint = encoder_fingerprint
        self.studies = [cache.open(study) for study in data]
        self.index: list[tuple[int, int]] = []  # of each sample: the study, the row in its entry
        for i, study in enumerate(self.studies):
            if encoder_fingerprint is not None and study.features(encoder_fingerprint) is None:
                raise FileNotFoundError(
                    f"{study.folder}: no features of encoder {encoder_fingerprint}; call encode_slices first"
                )
            rows = range(len(study)) if slices_per_subject is None else _spread(study, slices_per_subject, seed)
            self.index.extend((i, row) for row in rows)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int | Epoch) -> dict[str, Any]:
        index, epoch = index if isinstance(index, tuple) else (index, 0)
        i, row = self.index[index]
        study = self.studies[i]
        sample: dict[str, Any] = {
            "subject": study.subject,
            "slice": int(study.slices[row]),
            "image": study.image(row),
            "region": torch.from_numpy(np.array(study.regions[row])),
        }
        if self.crop is not None:
            generator = crop_generator(self.seed, study.subject, sample["slice"], epoch)
            factor = int(generator.choice(self.coarsen))
            sample["image"], sample["region"] = coarsened(
                *crop_around(sample["image"], sample["region"], factor * self.crop, generator), factor
            )
        if self.encoder_fingerprint is not None:
            features = study.features(self.encoder_fingerprint)
            if features is None:
                raise FileNotFoundError(f"{study.folder}: the features of {self.encoder_fingerprint} were removed")
            sample["features"] = torch.from_numpy(np.array(features[row]))
        return sample


class FeatureDataset(Dataset[dict[str, Any]]):
    """The cached features of every slice of studies, without the images: what the fusion is trained on.

    A sample is ``{"subject": str, "slice": int, "features": (C, D) float32}``. All features are held in memory: 8 KB a
    slice with four contrasts and D = 512, 1.6 GB for the whole of BraTS.

    Args:
        data: the studies, a data list.
        cache: the cache that was prepared for them.
        encoder_fingerprint: the encoder whose features the samples carry.

    Raises:
        FileNotFoundError: a study is not in the cache, or its features are not.
    """

    def __init__(self, data: Sequence[Mapping[str, str]], cache: SliceCache, encoder_fingerprint: str) -> None:
        slices = SliceDataset(data, cache, encoder_fingerprint)
        self.samples = [(study.subject, int(index)) for study in slices.studies for index in study.slices]
        self.features = torch.cat([_features(study, encoder_fingerprint) for study in slices.studies])  # (slices, C, D)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        subject, slice_index = self.samples[index]
        return {"subject": subject, "slice": slice_index, "features": self.features[index]}


def _features(study: CachedStudy, encoder_fingerprint: str) -> Tensor:
    features = study.features(encoder_fingerprint)
    if features is None:
        raise FileNotFoundError(
            f"{study.folder}: no features of encoder {encoder_fingerprint}; call encode_slices first"
        )
    return torch.from_numpy(np.array(features))


def subject_generator(seed: int, subject: str) -> np.random.Generator:
    """Random numbers from (seed, subject) alone.

    Example::

        >>> bool(subject_generator(0, "a").random() == subject_generator(0, "a").random())
        True
    """
    return np.random.default_rng(int.from_bytes(key_digest(seed, subject), "big"))


def _spread(study: CachedStudy, count: int, seed: int) -> list[int]:
    """``count`` rows of a study, one from each of as many equal stretches, from (seed, subject) alone."""
    if count > len(study):
        raise ValueError(
            f"study {study.subject!r} has {len(study)} slices in the cache, fewer than slices_per_subject={count}; "
            "take fewer a subject or exclude the study"
        )
    generator = subject_generator(seed, study.subject)
    edges = [i * len(study) // count for i in range(count + 1)]
    return [int(generator.integers(a, b)) for a, b in zip(edges, edges[1:], strict=False)]


@torch.inference_mode()
def encode_slices(
    studies: Sequence[Mapping[str, str]],
    cache: SliceCache,
    encoder: nn.Module,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Encode every cached slice once and keep the features in the cache; what is there already is skipped.

    The features of an absent contrast are those of an empty slice: mask them by ``available``.

    Args:
        studies: the data list; the cache was prepared for them.
        cache: the cache.
        encoder: ``(b, C, H, W)`` in [-1, 1] to ``(b, C, D)``, with a ``fingerprint`` that names its weights. It runs
            on the device of its parameters, in evaluation mode.
        batch_size: slices at a time.
        progress: show a bar.

    Raises:
        FileNotFoundError: a study is not in the cache.
        ValueError: the encoder gives another shape, or NaN.

    Example::

        >>> class MeanEncoder(nn.Module):
        ...     fingerprint = "mean"
        ...     def forward(self, images):
        ...         return images.mean(dim=-1)
        >>> import nibabel as nib
        >>> volume = np.arange(1, 97, dtype=np.int16).reshape(4, 4, 6)
        >>> nib.save(nib.Nifti1Image(volume, np.eye(4)), "case_t1.nii.gz")
        >>> studies = [{"subject": "case", "t1": "case_t1.nii.gz"}]
        >>> cache = SliceCache("cache", StudyPreprocessing("brats", size=8))
        >>> cache.prepare(studies, progress=False)
        >>> encode_slices(studies, cache, MeanEncoder(), progress=False)
        >>> SliceDataset(studies, cache, "mean")[0]["features"].shape
        torch.Size([4, 8])
    """
    fingerprint = str(encoder.fingerprint)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    encoder.eval()
    for study in tqdm([cache.open(s) for s in studies], desc="encode slices", unit="study", disable=not progress):
        if study.features(fingerprint) is not None:
            continue
        starts = range(0, len(study), batch_size)
        batches = [encoder(study.image(slice(i, i + batch_size)).to(device)).float().cpu() for i in starts]
        study.write_features(fingerprint, torch.cat(batches).numpy())
