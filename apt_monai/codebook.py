"""The prior codebook (section 3.3): which transform of which contrast looks most like each contrast.

Built once from the training split, it is a small JSON file. For each target contrast it keeps every (source contrast,
Bézier curve), how often that was the most similar one to the vision encoder, their mean similarity, and the intensity
scale σ, so that at inference the best entry whose source was acquired is used, whatever is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.distributed import gather, is_lead
from apt_monai.files import write_text
from apt_monai.transforms.bezier import BEZIER_CURVES, BezierIntensity

FORMAT = "apt_monai.prior_codebook"
VERSION = 1
REBUILD = "build one with the run id 'codebook' of the bundle's train.yaml"


class CodebookError(ValueError):
    """A codebook that cannot be read, or that was made for something else."""


@dataclass(frozen=True)
class CodebookEntry:
    """One way to make a prior.

    Args:
        source: the source contrast.
        curve: the name of the Bézier curve.
        count: in how many training slices this was the most similar of all (source, curve) pairs.
        similarity: its mean cosine similarity with the target, in [-1, 1].
        scale: σ, the ratio of the mean intensities (in [0, 1], within the brain) of target and transformed source.
    """

    source: str
    curve: str
    count: int
    similarity: float
    scale: float


@dataclass(frozen=True)
class PriorCodebook:
    """The codebook of one dataset.

    Args:
        contrasts: the dataset's contrast set.
        entries: for each target contrast its entries, best first: the most often most similar, then by similarity.
        curves: the Bézier curves' control values, by name.
        encoder_fingerprint: which vision encoder judged the similarity.
        encoder_source: where that encoder came from (its name on the hub, or its folder's name), for people to read.
        subjects: a hash of the training subjects' names.
        num_subjects: how many training subjects.
        num_slices: how many training slices.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> entry = CodebookEntry("t1", "unchanged", 9, 0.8, 1.2)
        >>> other = CodebookEntry("flair", "decreasing-steep", 1, 0.5, 0.9)
        >>> book = PriorCodebook(BRATS, {"t2": [entry, other]}, BEZIER_CURVES, "abc", "folder", "def", 1, 10)
        >>> book.lookup("t2", ["flair"]).curve
        'decreasing-steep'
    """

    contrasts: ContrastSet
    entries: dict[str, list[CodebookEntry]]
    curves: dict[str, tuple[float, float, float, float]]
    encoder_fingerprint: str
    encoder_source: str
    subjects: str
    num_subjects: int
    num_slices: int

    def lookup(self, target: str, acquired: Collection[str]) -> CodebookEntry:
        """The best entry for ``target`` whose source was acquired.

        Raises:
            ValueError: an unknown contrast, or none of the acquired ones can be a source of the target.
        """
        self.contrasts.check([target, *acquired])
        for entry in self.entries[target]:
            if entry.source in acquired:
                return entry
        raise ValueError(f"no prior for {target!r} from {sorted(acquired)}: another contrast than the target is needed")

    def prior(self, image: torch.Tensor, available: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """[acquired contrasts, priors]: x at the start of stage 1, before it is noised.

        Args:
            image: ``(B, C, H, W)`` in [-1, 1]; only its acquired channels are read.
            available: ``(B, C)`` bool, True = acquired.
            brain: ``(B, 1, H, W)`` bool.

        Returns:
            ``(B, C, H, W)`` in [-1, 1]: the acquired channels unchanged; each missing one is σ times the best transform
            of an acquired contrast (section 3.4), clipped, -1 outside the brain.
        """
        result = image.clone()
        for mask in torch.unique(available, dim=0):
            rows = (available == mask).all(dim=1)  # the slices with this very subset
            acquired = [name for name, has in zip(self.contrasts.names, mask.tolist(), strict=True) if has]
            for target in self.contrasts.names:
                if target not in acquired:
                    entry = self.lookup(target, acquired)
                    source = image[rows, self.contrasts.index(entry.source)]  # (b, H, W)
                    result[rows, self.contrasts.index(target)] = self.apply(entry, source, brain[rows, 0])
        return result

    def apply(self, entry: CodebookEntry, source: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        """One entry's prior from its source contrast, ``(…, H, W)`` in [-1, 1]."""
        transformed = BezierIntensity(self.curves[entry.curve])(source, brain)
        return (entry.scale * (transformed + 1)).clamp(0, 2) - 1  # σ acts on intensities in [0, 1]

    def similarity_matrix(self) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        """Mean similarities ``(C, C·curves)``, NaN where a contrast would meet itself, and the columns' names."""
        columns = [(source, curve) for source in self.contrasts.names for curve in self.curves]
        matrix = torch.full((len(self.contrasts), len(columns)), float("nan"))
        for row, target in enumerate(self.contrasts.names):
            for entry in self.entries[target]:
                matrix[row, columns.index((entry.source, entry.curve))] = entry.similarity
        return matrix, columns

    def save(self, path: str | Path) -> None:
        """Write the codebook as JSON, on rank 0 alone; an interrupted write leaves no file behind.

        Raises:
            OSError: the file cannot be written.
        """
        if not is_lead():
            return
        content = {
            "format": FORMAT,
            "version": VERSION,
            "dataset": self.contrasts.name,
            "contrasts": list(self.contrasts.names),
            "encoder": {"fingerprint": self.encoder_fingerprint, "source": self.encoder_source},
            "training": {"subjects": self.num_subjects, "slices": self.num_slices, "subjects_sha256": self.subjects},
            "curves": {name: list(values) for name, values in self.curves.items()},
            "entries": {target: [asdict(entry) for entry in found] for target, found in self.entries.items()},
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, contrasts: str | ContrastSet, encoder_fingerprint: str) -> PriorCodebook:
        """Read a codebook and refuse one that was made for something else.

        Args:
            path: the JSON file.
            contrasts: the contrast set that it must be for.
            encoder_fingerprint: the vision encoder that it must have been built with.

        Raises:
            CodebookError: not a codebook, or damaged, or of another version, dataset or encoder.
        """
        contrasts = get_contrast_set(contrasts)
        return cls._from_json(path, _read_json(path), contrasts, encoder_fingerprint)

    @classmethod
    def read(cls, path: str | Path, contrasts: ContrastSet | None = None) -> PriorCodebook:
        """Read a codebook to look at it, whatever encoder it was made for; to make priors, :meth:`load` it.

        Args:
            path: the JSON file.
            contrasts: the contrast set that it is for; None: the one of :data:`CONTRAST_SETS` that it names.

        Raises:
            CodebookError: not a codebook, or damaged, or of another version.
        """
        content = _read_json(path)
        try:
            contrasts = contrasts or get_contrast_set(str(content["dataset"]))
            fingerprint = content["encoder"]["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise CodebookError(f"{path}: damaged, or edited by hand ({error!r}); {REBUILD}") from error
        return cls._from_json(path, content, contrasts, fingerprint)

    @classmethod
    def _from_json(
        cls, path: str | Path, content: dict[str, Any], contrasts: ContrastSet, encoder_fingerprint: str
    ) -> PriorCodebook:
        """The codebook that a file holds, if it is for these contrasts and this encoder."""
        encoder = content.get("encoder")
        expected: list[tuple[str, Any, Any]] = [
            ("version", content.get("version"), VERSION),
            ("dataset", content.get("dataset"), contrasts.name),
            ("contrasts", content.get("contrasts"), list(contrasts.names)),
            ("encoder", encoder.get("fingerprint") if isinstance(encoder, dict) else encoder, encoder_fingerprint),
        ]
        for field, found, wanted in expected:
            if found != wanted:
                raise CodebookError(f"{path}: its {field} is {found!r}, and {wanted!r} is needed; {REBUILD}")
        try:
            codebook = cls(
                contrasts=contrasts,
                entries={t: [CodebookEntry(**e) for e in content["entries"][t]] for t in contrasts.names},
                curves={name: tuple(values) for name, values in content["curves"].items()},
                encoder_fingerprint=encoder_fingerprint,
                encoder_source=content["encoder"]["source"],
                subjects=content["training"]["subjects_sha256"],
                num_subjects=content["training"]["subjects"],
                num_slices=content["training"]["slices"],
            )
            codebook._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CodebookError(f"{path}: damaged, or edited by hand ({error!r}); {REBUILD}") from error
        return codebook

    def _check(self) -> None:
        """Raise unless every target has each curve of each other contrast once, with usable numbers."""
        for control_values in self.curves.values():
            BezierIntensity(control_values)
        for target, entries in self.entries.items():
            found = sorted((e.source, e.curve) for e in entries)
            if found != sorted((s, k) for s in self.contrasts.names if s != target for k in self.curves):
                raise ValueError(f"the entries of {target!r} are not each curve of each other contrast once")
            for e in entries:
                if not (e.count >= 0 and -1.001 <= e.similarity <= 1.001 and 0 <= e.scale < math.inf):
                    raise ValueError(f"the entry {e} of {target!r} has a number out of range")


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CodebookError(f"{path}: there is no such codebook; {REBUILD}") from None
    except (OSError, ValueError) as error:
        raise CodebookError(f"{path}: not a readable JSON file ({error}); {REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CodebookError(f"{path}: not a prior codebook (its 'format' is not {FORMAT!r}); {REBUILD}")
    return content


@torch.no_grad()
def build_codebook(
    loader: Iterable[dict[str, Any]],
    encoder: torch.nn.Module,
    contrasts: str | ContrastSet,
    curves: dict[str, tuple[float, float, float, float]] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> PriorCodebook:
    """Build the codebook in one pass over the training slices, in memory that does not grow with their number.

    Args:
        loader: batches of slice samples (``"image"``, ``"region"``, ``"subject"``; cached ``"features"`` spare encoding
            the unchanged contrasts again). With several ranks: this rank's.
        encoder: the vision encoder, with ``fingerprint`` and ``source``.
        contrasts: the contrast set.
        curves: Bézier curves by name; None: the unchanged image and the paper's four.
        device: where the encoder is.
        progress: show a progress bar.

    Raises:
        ValueError: the loader is empty.

    Example::

        >>> class MeanEncoder(torch.nn.Module):
        ...     fingerprint, source = "mean", "this example"
        ...     def forward(self, images):
        ...         return images.mean(dim=-1)
        >>> image = torch.rand(2, 3, 8, 8)
        >>> batch = {"image": image, "region": torch.ones(2, 1, 8, 8, dtype=torch.uint8), "subject": ["a", "b"]}
        >>> book = build_codebook([batch], MeanEncoder(), "adni", progress=False)
        >>> book.num_slices, book.lookup("pd", ["t1", "t2"]).source in ("t1", "t2")
        (2, True)
    """
    contrasts = get_contrast_set(contrasts)
    curves = dict(BEZIER_CURVES if curves is None else curves)
    transforms = [BezierIntensity(values) for values in curves.values()]
    unchanged = [tuple(values) == BEZIER_CURVES["unchanged"] for values in curves.values()]
    statistics = _Statistics(len(contrasts), len(curves))
    subjects: set[str] = set()
    for batch in tqdm(loader, desc="codebook", unit="batch", disable=not (progress and is_lead())):
        image = batch["image"].to(device)  # (B, C, H, W)
        brain = batch["region"].to(device) > 0  # (B, 1, H, W)
        variants = torch.stack([t(image, brain) for t in transforms], dim=2)  # (B, C, K, H, W)
        target = batch["features"].to(device) if "features" in batch else encoder(image)  # (B, C, D)
        features = _variant_features(variants, target, unchanged, encoder)  # (B, C, K, D)
        statistics.update(target, features, image, variants, brain)
        subjects.update(batch["subject"])
    statistics.add_other_ranks()
    subjects = set().union(*gather(subjects))
    if not subjects:
        raise ValueError("there are no training slices to build a codebook from: check the dataset and the split")
    source = str(encoder.source)
    return PriorCodebook(
        contrasts=contrasts,
        entries=statistics.entries(contrasts, list(curves)),
        curves=curves,
        encoder_fingerprint=str(encoder.fingerprint),
        encoder_source=Path(source).name if Path(source).is_dir() else source,  # no path of this machine
        subjects=hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest(),
        num_subjects=len(subjects),
        num_slices=statistics.slices,
    )


def _variant_features(
    variants: torch.Tensor, target: torch.Tensor, unchanged: Sequence[bool], encoder: torch.nn.Module
) -> torch.Tensor:
    """Features ``(B, C, K, D)`` of every variant; those of an unchanged contrast are its own and not encoded again."""
    b, c, k, h, w = variants.shape
    features = target[:, :, None].repeat(1, 1, k, 1)  # (B, C, K, D)
    changed = [i for i in range(k) if not unchanged[i]]
    if changed:
        encoded = encoder(variants[:, :, changed].reshape(b, c * len(changed), h, w))  # (B, C·K', D)
        features[:, :, changed] = encoded.reshape(b, c, len(changed), -1)
    return features


class _Statistics:
    """Running sums over slices: all that the codebook needs to remember of its training data."""

    def __init__(self, contrasts: int, curves: int) -> None:
        self.slices = 0
        self.best = torch.zeros(contrasts, contrasts, curves, dtype=torch.int64)  # (target, source, curve)
        self.similarity = torch.zeros(contrasts, contrasts, curves, dtype=torch.float64)
        self.target_sum = torch.zeros(contrasts, dtype=torch.float64)  # of intensities in [0, 1] within the brain
        self.variant_sum = torch.zeros(contrasts, curves, dtype=torch.float64)

    def update(
        self,
        target: torch.Tensor,
        features: torch.Tensor,
        image: torch.Tensor,
        variants: torch.Tensor,
        brain: torch.Tensor,
    ) -> None:
        b, c, k, _ = features.shape
        similarity = torch.einsum("btd,bskd->btsk", F.normalize(target, dim=-1), F.normalize(features, dim=-1))
        itself = torch.eye(c, dtype=torch.bool, device=similarity.device)[None, :, :, None]  # (1, C, C, 1)
        similarity = similarity.masked_fill(itself, -torch.inf)  # (B, target, source, curve)
        winners = F.one_hot(similarity.flatten(2).argmax(dim=2), c * k).sum(dim=0)  # (target, source·curve)
        self.slices += b
        self.best += winners.reshape(c, c, k).cpu()
        self.similarity += similarity.double().sum(dim=0).cpu()
        self.target_sum += ((image + 1) / 2 * brain).double().sum(dim=(0, 2, 3)).cpu()
        self.variant_sum += ((variants + 1) / 2 * brain[:, :, None]).double().sum(dim=(0, 3, 4)).cpu()

    def add_other_ranks(self) -> None:
        """From here on, the sums are those over all ranks' slices."""
        others = gather(vars(self))
        vars(self).update({name: sum(rank[name] for rank in others) for name in others[0]})

    def entries(self, contrasts: ContrastSet, curves: Sequence[str]) -> dict[str, list[CodebookEntry]]:
        result = {}
        for t, target in enumerate(contrasts.names):
            found = [
                CodebookEntry(
                    source=source,
                    curve=curve,
                    count=int(self.best[t, s, k]),
                    similarity=float(self.similarity[t, s, k] / self.slices),
                    scale=float(self.target_sum[t] / self.variant_sum[s, k].clamp(min=1e-12)),
                )
                for s, source in enumerate(contrasts.names)
                for k, curve in enumerate(curves)
                if source != target
            ]
            result[target] = sorted(found, key=lambda e: (-e.count, -e.similarity))
        return result
