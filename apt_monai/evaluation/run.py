"""Evaluation: methods × subsets of acquired contrasts on the test slices, as tables and pictures.

A method is anything that is called as :class:`apt_monai.inferers.Synthesizer` is. Each is scored with PSNR and SSIM of
every missing contrast in three regions: the whole slice, the brain, and the tumour where a slice has one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, Protocol

import ignite.distributed as idist
import monai
import numpy as np
import torch
from tqdm import tqdm

import apt_monai
from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.writers import check_writable
from apt_monai.distributed import gather, is_lead
from apt_monai.files import write_text
from apt_monai.metrics import psnr, ssim
from apt_monai.visualize import SynthesisRow, draw_synthesis

logger = logging.getLogger(__name__)

REGIONS = {"slice": "Whole slice", "brain": "Brain", "tumour": "Tumour"}

Batch = dict[str, Any]
Cases = Sequence[Sequence[str]] | Literal["all"] | None


class Method(Protocol):
    """What can be evaluated: the contract of :meth:`apt_monai.inferers.Synthesizer.__call__`.

    A method that has ``inferer.network_passes()`` is called with ``progress`` and reports each pass. One that has a
    ``fingerprint`` is known by it; see :func:`evaluate_methods`.
    """

    def __call__(
        self, batch: Batch, available: torch.Tensor, progress: Callable[[int], Any] | None = None
    ) -> dict[str, torch.Tensor]:
        """``"image"``: ``(B, C, H, W)`` in [-1, 1]; optionally ``"prior"``, the same with what it started from."""
        ...


@dataclass(frozen=True)
class Row:
    """The scores of one synthesised slice, one line of ``results.csv``.

    Args:
        method: the method's name.
        acquired: the acquired contrasts, joined by ``+``.
        target: the synthesised contrast.
        subject: the subject.
        slice: the slice's index in the oriented volume.
        psnr_slice: PSNR in dB over the whole slice; infinity if the images are identical.
        ssim_slice: SSIM over the whole slice, in [-1, 1].
        psnr_brain: PSNR over the brain.
        ssim_brain: SSIM over the brain.
        psnr_tumour: PSNR over the tumour; NaN in a slice without one.
        ssim_tumour: SSIM over the tumour; NaN in a slice without one.
        seconds: the wall time of the slice's batch divided by its slices; the same for all targets made in one go.
    """

    method: str
    acquired: str
    target: str
    subject: str
    slice: int
    psnr_slice: float
    ssim_slice: float
    psnr_brain: float
    ssim_brain: float
    psnr_tumour: float
    ssim_tumour: float
    seconds: float


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Args:
        rows: one for each (method, acquired, target, slice).
        aggregate: one dictionary for each (method, acquired, target): ``"subjects"``, ``"slices"`` and, for each score,
            its ``_mean`` and ``_std`` over subjects, such as ``"psnr_brain_mean"``.
        seconds: by method, the median seconds a slice.
        markdown: the tables, as in ``results.md``.
        files: what was written: CSV, JSON, Markdown and the pictures.
    """

    rows: list[Row]
    aggregate: list[dict[str, Any]]
    seconds: dict[str, float]
    markdown: str
    files: list[Path]


@dataclass(frozen=True)
class _TestSet:
    """What a first pass over the test slices finds out."""

    sha256: str
    subjects: int
    slices: int
    example: Batch  # the slice that is drawn, as a batch of one


def evaluate_methods(
    methods: Mapping[str, Method],
    loader: Iterable[Batch],
    contrasts: str | ContrastSet,
    cases: Cases,
    output_dir: str | Path,
    device: str | torch.device = "cpu",
    budget: Mapping[str, Any] | None = None,
) -> Results:
    """Score every method on every subset of acquired contrasts; write and print the tables.

    A method sees the acquired channels only (the others are -1, their features 0) and the brain, never the tumour's
    outline. Scores are taken on intensities in [0, 1] with data range 1. A subject's score is the mean over its slices
    (without those that have no such region); tables give mean ± sample standard deviation over subjects.

    Into ``output_dir`` go ``results.csv`` (a row a slice and target), ``results.json`` (settings, means, seconds a
    slice), ``results.md`` (the tables) and pictures of the slice with the largest tumour (without any: the
    largest brain): ``panel.png`` for each contrast from all others, else ``panel_<acquired>.png`` for each case.

    ``results.csv`` grows with each finished (method, subset), and a run with the same methods, slices and subsets goes
    on where the last one stopped. Any other run starts anew, and says so in the log. A method is known by its weights
    and settings, or by its ``fingerprint`` where it has one. A bare function is known by its name alone: give it a
    ``fingerprint`` or another folder when what it does changes.

    With several ranks, each takes the loader's batches in turn, all return the results, and rank 0 writes and prints.

    Args:
        methods: by the name that tables and pictures give them.
        loader: batches of collated slice samples with all contrasts; the same slices each time it is iterated.
        contrasts: the contrast set, or its name.
        cases: lists of acquired contrasts. None: each contrast from all others. ``"all"``: every subset.
        output_dir: the folder of the results; made if absent.
        device: where the methods' networks are.
        budget: what the methods had to learn from, such as ``{"training subjects": 24, "iterations": 2500}``, for
            people to read below the tables.

    Returns:
        The rows, their aggregate and the files.

    Raises:
        ValueError: no methods, slices or cases; an unknown contrast; a case with nothing to synthesise from, or nothing
            to synthesise; a loader that does not repeat itself; a method that breaks the contract.
        OSError: the folder cannot be written.

    Example::

        >>> def grey(batch, available, progress=None):
        ...     return {"image": torch.where(available[:, :, None, None], batch["image"], -0.5)}
        >>> image, region = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        >>> batch = {"subject": ["a"], "slice": torch.tensor([7]), "image": image, "region": region}
        >>> results = evaluate_methods({"grey": grey}, [batch], "adni", [["t1", "t2"]], "evaluation")
        ### Whole slice...
        >>> [row.target for row in results.rows]
        ['pd']
    """
    contrasts = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
    if not methods:
        raise ValueError("there is no method to evaluate: name at least one")
    subsets = _check_cases(cases, contrasts)
    test_set = _survey(loader)
    settings = {
        "apt_monai": apt_monai.__version__,
        "contrasts": list(contrasts.names),
        "cases": [list(acquired) for acquired in subsets],
        "test_slices_sha256": test_set.sha256,
        "methods": {name: _describe(method) for name, method in methods.items()},
    }
    folder = Path(output_dir)
    rows = gather(_resume(folder, settings, contrasts) if is_lead() else [])[0]  # what the lead sees decides for all
    finished = {(row.method, row.acquired) for row in rows}

    pending = [(n, a) for a in subsets for n in methods if (n, "+".join(a)) not in finished]
    total = sum(_passes(methods[name]) or 1 for name, _ in pending) * test_set.slices // idist.get_world_size()
    pictures: list[Path] = []
    panel: list[SynthesisRow] = []  # each target of the C - 1 cases, for one picture of them all
    with tqdm(total=total, desc="evaluate", unit="pass", disable=not (pending and is_lead())) as bar:
        for acquired in subsets:
            examples: dict[str, Batch] = {}
            for name, method in methods.items():
                if (name, acquired) in pending:
                    bar.set_postfix_str(f"{name}, {'+'.join(acquired)} given")
                    found, examples[name] = _evaluate(name, method, loader, contrasts, acquired, test_set, device, bar)
                    rows += found
                    if is_lead():
                        _write_rows(folder / "results.csv", rows)
            picture = folder / ("panel.png" if cases is None else _picture_name(acquired))
            if is_lead() and ((pending if cases is None else examples) or not picture.exists()):
                for name in (n for n in methods if n not in examples):  # finished in an earlier run: one slice again
                    examples[name], _ = _synthesise(name, methods[name], test_set.example, contrasts, acquired, device)
                found_rows = _panel_rows({n: examples[n] for n in methods}, test_set.example, contrasts, acquired)
                if cases is None:
                    panel += found_rows
                else:
                    _draw(picture, found_rows, test_set.example, contrasts, acquired)
            if picture not in pictures:
                pictures.append(picture)
    if panel:
        _draw(folder / "panel.png", panel, test_set.example, contrasts, ())

    order = {(n, "+".join(a)): i for i, (a, n) in enumerate((a, n) for a in subsets for n in methods)}
    rows.sort(key=lambda row: order[row.method, row.acquired])  # stable: slices stay in the loader's order
    aggregate = _aggregate(rows)
    seconds = {name: float(np.median([r.seconds for r in rows if r.method == name])) for name in methods}
    markdown = _tables(aggregate, contrasts, subsets, test_set, seconds, str(device), budget)
    files = [folder / name for name in ("results.csv", "results.json", "results.md")]
    if not is_lead():
        return Results(rows, aggregate, seconds, markdown, files + pictures)
    _write_rows(folder / "results.csv", rows)
    write_text(folder / "results.md", markdown)
    content = {
        "settings_sha256": _sha256(settings),
        "settings": settings,
        "complete": True,
        "subjects": test_set.subjects,
        "slices": test_set.slices,
        "budget": dict(budget or {}),
        "aggregate": aggregate,
        "seconds_per_slice": seconds,
        "device": _device_name(torch.device(device)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
        "pictures": [picture.name for picture in pictures],
    }
    _write_record(folder, content)
    print(markdown)
    return Results(rows, aggregate, seconds, markdown, files + pictures)


def _check_cases(cases: Cases, contrasts: ContrastSet) -> list[tuple[str, ...]]:
    """The subsets of acquired contrasts, each in the set's order."""
    if cases is None:
        return [tuple(name for name in contrasts.names if name != target) for target in contrasts.names]
    if isinstance(cases, str):
        if cases != "all":
            raise ValueError(f"cases is {cases!r}: valid are 'all', None, or lists of acquired contrasts")
        return contrasts.subsets()
    subsets = []
    for names in cases:
        if isinstance(names, str):
            raise ValueError(f"the case {names!r} is a text: a case is a list of acquired contrasts, such as [{names}]")
        contrasts.check(names)
        acquired = tuple(name for name in contrasts.names if name in names)
        if not 0 < len(acquired) < len(contrasts):
            raise ValueError(
                f"the case {list(names)} leaves nothing to synthesise {'from' if not acquired else ''}".rstrip()
                + f": name 1 to {len(contrasts) - 1} of {', '.join(contrasts.names)}"
            )
        if acquired not in subsets:
            subsets.append(acquired)
    if not subsets:
        raise ValueError("cases is empty: give lists of acquired contrasts, None or 'all'")
    return subsets


def _survey(loader: Iterable[Batch]) -> _TestSet:
    """Count and hash the test slices (whatever their order or batches), and choose the one to draw."""
    hashes: list[str] = []
    subjects: set[str] = set()
    best: tuple[int, int] = (-1, -1)
    example: Batch = {}
    for batch in loader:
        for i, subject in enumerate(batch["subject"]):
            region = batch["region"][i]
            text = json.dumps([subject, int(batch["slice"][i])])
            tensors = [batch[key][i] for key in ("image", "region", "features") if key in batch]
            hashes.append(hashlib.sha256(text.encode() + b"".join(_bytes(t) for t in tensors)).hexdigest())
            subjects.add(subject)
            size = int((region == 2).sum()), int((region > 0).sum())
            if size > best:
                best, example = size, {key: value[i : i + 1] for key, value in batch.items()}
    if not hashes:
        raise ValueError("there are no test slices to evaluate on: check the dataset and the split")
    return _TestSet(hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest(), len(subjects), len(hashes), example)


def _passes(method: Method) -> int | None:
    """Network passes a slice; None for a method that does not say."""
    network_passes = getattr(getattr(method, "inferer", None), "network_passes", None)
    return None if network_passes is None else network_passes()


def _evaluate(
    name: str,
    method: Method,
    loader: Iterable[Batch],
    contrasts: ContrastSet,
    acquired: Sequence[str],
    test_set: _TestSet,
    device: str | torch.device,
    bar: tqdm,
) -> tuple[list[Row], Batch]:
    """The rows of one method in one case, and its result for the slice that is drawn, from all ranks' batches."""
    found: list[list[Row]] = []  # by batch of this rank
    drawn = test_set.example
    example: Batch = {}
    slices = 0
    for batch in itertools.islice(loader, idist.get_rank(), None, idist.get_world_size()):
        result, seconds = _synthesise(name, method, batch, contrasts, acquired, device, bar)
        found.append(_score(name, batch, result["image"], contrasts, acquired, seconds / len(batch["subject"])))
        slices += len(batch["subject"])
        for i, subject in enumerate(batch["subject"]):
            if (subject, int(batch["slice"][i])) == (drawn["subject"][0], int(drawn["slice"][0])):
                example = {key: value[i : i + 1] for key, value in result.items()}
    ranks = gather((found, slices, example))
    in_order = itertools.zip_longest(*(found for found, _, _ in ranks), fillvalue=[])  # ranks take batches in turn
    rows = [row for batches in in_order for batch_rows in batches for row in batch_rows]
    slices = sum(count for _, count, _ in ranks)
    example = next((drawn_there for _, _, drawn_there in ranks if drawn_there), {})
    if slices != test_set.slices or not example:
        raise ValueError(
            f"the loader gave {slices} slices, and {test_set.slices} the first time: it must give the same each time"
        )
    return rows, example


def _synthesise(
    name: str,
    method: Method,
    batch: Batch,
    contrasts: ContrastSet,
    acquired: Sequence[str],
    device: str | torch.device,
    bar: tqdm | None = None,
) -> tuple[Batch, float]:
    """One batch's result on the CPU, and the seconds that the method took."""
    device = torch.device(device)
    image = batch["image"].to(device)  # (B, C, H, W)
    available = torch.tensor(contrasts.mask(acquired), device=device).expand(len(image), -1)  # (B, C)
    hidden = dict(batch, image=torch.where(available[:, :, None, None], image, torch.full_like(image, -1.0)))
    hidden["region"] = (batch["region"].to(device) > 0).to(torch.uint8)  # where the tumour is would help a method
    if "features" in batch:
        features = batch["features"].to(device)  # (B, C, D)
        hidden["features"] = torch.where(available[:, :, None], features, torch.zeros_like(features))

    def advance(passes: int) -> None:
        if bar is not None:
            bar.update(passes * len(image))

    _synchronise(device)
    start = time.perf_counter()
    if _passes(method) is None:
        result = method(hidden, available)
        advance(1)
    else:
        result = method(hidden, available, advance)
    _synchronise(device)
    seconds = time.perf_counter() - start

    found = result["image"]
    if found.shape != image.shape:
        raise ValueError(f"method {name!r}: its image is {tuple(found.shape)}, and {tuple(image.shape)} is needed")
    if not ((found >= -1) & (found <= 1)).all():
        raise ValueError(
            f"method {name!r}: its image goes from {found.min():g} to {found.max():g}; it must be in [-1, 1]"
        )
    return {key: result[key].float().cpu() for key in ("image", "prior") if key in result}, seconds


def _score(
    name: str, batch: Batch, image: torch.Tensor, contrasts: ContrastSet, acquired: Sequence[str], seconds: float
) -> list[Row]:
    """The rows of one batch."""
    region = batch["region"].cpu()  # (B, 1, H, W)
    regions = {"slice": torch.ones_like(region, dtype=torch.bool), "brain": region > 0, "tumour": region == 2}
    rows = []
    for target in (t for t in contrasts.names if t not in acquired):
        channel = contrasts.index(target)
        truth = (batch["image"][:, channel : channel + 1].cpu() + 1) / 2  # (B, 1, H, W) in [0, 1]
        prediction = (image[:, channel : channel + 1] + 1) / 2
        scores = {}
        for key, where in regions.items():
            scores[f"psnr_{key}"] = psnr(prediction, truth, where).tolist()
            scores[f"ssim_{key}"] = ssim(prediction, truth, where).tolist()
        for i, subject in enumerate(batch["subject"]):
            values = {key: round(score[i], 6) for key, score in scores.items()}
            index = int(batch["slice"][i])
            rows.append(Row(name, "+".join(acquired), target, subject, index, **values, seconds=round(seconds, 6)))
    return rows


def _panel_rows(
    results: Mapping[str, Batch], example: Batch, contrasts: ContrastSet, acquired: Sequence[str]
) -> list[SynthesisRow]:
    """A row for each missing contrast of one case."""
    truth = (example["image"][0].cpu().numpy() + 1) / 2  # (C, H, W) in [0, 1]
    made = {name: (result["image"][0].numpy() + 1) / 2 for name, result in results.items()}
    priors = [(result["prior"][0].numpy() + 1) / 2 for result in results.values() if "prior" in result]
    rows = []
    for target, label in zip(contrasts.names, contrasts.labels, strict=True):
        if target not in acquired:
            c = contrasts.index(target)
            expected = torch.from_numpy(truth[c])[None, None]  # (1, 1, H, W)
            decibels = {name: float(psnr(torch.from_numpy(m[c])[None, None], expected)) for name, m in made.items()}
            prior = priors[0][c] if priors else None
            rows.append(SynthesisRow(label, truth[c], prior, {name: m[c] for name, m in made.items()}, decibels))
    return rows


def _draw(
    path: Path, rows: Sequence[SynthesisRow], example: Batch, contrasts: ContrastSet, acquired: Sequence[str]
) -> None:
    """The panel of one case, or, with nothing ``acquired``, of each contrast from all others."""
    truth = (example["image"][0].cpu().numpy() + 1) / 2  # (C, H, W) in [0, 1]
    given = {contrasts.labels[contrasts.index(name)]: truth[contrasts.index(name)] for name in acquired}
    targets = f"{', '.join(row.target for row in rows)} from {', '.join(given)}" if given else "Each from the others"
    title = f"{targets} · {example['subject'][0]}, slice {int(example['slice'][0])}"
    draw_synthesis(path, rows, title, given)


def _picture_name(acquired: Sequence[str]) -> str:
    return f"panel_{'_'.join(acquired)}.png"


def _aggregate(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over each subject's slices, then mean and sample standard deviation over subjects."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.acquired, row.target), []).append(row)
    aggregate = []
    for (method, acquired, target), group in groups.items():
        subjects = sorted({row.subject for row in group})
        entry: dict[str, Any] = {"method": method, "acquired": acquired, "target": target}
        entry |= {"subjects": len(subjects), "slices": len(group)}
        for score in (f"{metric}_{region}" for region in REGIONS for metric in ("psnr", "ssim")):
            by_subject = [[getattr(row, score) for row in group if row.subject == subject] for subject in subjects]
            means = [_mean(values) for values in by_subject]
            entry[f"{score}_mean"], entry[f"{score}_std"] = _mean(means), _std(means)
            entry[f"{score}_subjects"] = sum(not math.isnan(value) for value in means)
        aggregate.append(entry)
    return aggregate


def _mean(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _std(values: Sequence[float]) -> float:
    """The sample standard deviation of what is not NaN; NaN of fewer than two values, or where one is infinite."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2 or any(math.isinf(value) for value in known):
        return math.nan
    return float(np.std(known, ddof=1))


def _tables(
    aggregate: Sequence[Mapping[str, Any]],
    contrasts: ContrastSet,
    subsets: Sequence[Sequence[str]],
    test_set: _TestSet,
    seconds: Mapping[str, float],
    device: str,
    budget: Mapping[str, Any] | None,
) -> str:
    """A Markdown table a region. All cases in which one contrast is missing share a row, as in the paper's Table 1."""
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))

    def given(acquired: str) -> str:
        names = acquired.split("+")
        return "all others" if len(names) == len(contrasts) - 1 else ", ".join(labels[name] for name in names)

    lines = []
    for region, heading in REGIONS.items():
        known = [entry for entry in aggregate if entry[f"psnr_{region}_subjects"]]
        if not known:
            continue
        targets = [name for name in contrasts.names if any(entry["target"] == name for entry in known)]
        columns = " | ".join(f"{labels[name]} PSNR / SSIM" for name in targets)
        lines += [f"### {heading}", "", f"| given | method | {columns} |", "| --- | --- |" + " --- |" * len(targets)]
        for case in dict.fromkeys(given("+".join(acquired)) for acquired in subsets):
            for method in seconds:
                cells = dict.fromkeys(targets, "")
                for entry in known:
                    if entry["method"] == method and given(entry["acquired"]) == case:
                        cells[entry["target"]] = _cell(entry, region)
                lines.append(f"| {case} | {method} | {' | '.join(cells.values())} |")
        counts = sorted({entry[f"psnr_{region}_subjects"] for entry in known})
        if counts != [test_set.subjects]:
            lines += ["", f"Over the {counts[0]} of {test_set.subjects} subjects that have one in these slices."]
        lines.append("")
    times = ", ".join(f"{name} {value:.3g}" for name, value in seconds.items())
    lines += [
        f"{test_set.slices} slices of {test_set.subjects} subjects. PSNR in dB and SSIM on intensities in [0, 1], data "
        "range 1. Mean over each subject's slices first, then mean ± standard deviation over subjects.",
        "",
        f"Seconds a slice ({device}, median): {times}.",
    ]
    if budget:
        lines += ["", "Learned from: " + ", ".join(f"{key} {value}" for key, value in budget.items()) + "."]
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any], region: str) -> str:
    """``27.4 ± 1.2 / 0.912 ± 0.011``; no ± where there is a single subject."""
    parts = []
    for metric, digits in (("psnr", 2), ("ssim", 3)):
        mean, std = entry[f"{metric}_{region}_mean"], entry[f"{metric}_{region}_std"]
        parts.append(f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}"))
    return " / ".join(parts)


def _resume(folder: Path, settings: Mapping[str, Any], contrasts: ContrastSet) -> list[Row]:
    """The rows of an earlier run with the same settings; else an emptied folder that says whose results will come."""
    record = folder / "results.json"
    digest = _sha256(settings)
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["settings_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record}: not the record of an evaluation ({error}); name another folder") from error
        if found == digest:
            rows = _read_rows(folder / "results.csv")
            if rows:
                logger.info("%s: an evaluation with the same settings is there, it goes on where it stopped", folder)
            return rows
        logger.warning("%s: holds an evaluation of other methods, slices or cases; starting anew", folder)
    pictures = [_picture_name(acquired) for acquired in contrasts.subsets()]
    check_writable(folder)
    # The old rows go first: a record of new settings beside old rows would pass for a run to be resumed.
    for name in ("results.csv", "results.md", "results.json", *pictures):
        (folder / name).unlink(missing_ok=True)
    content = {"settings_sha256": digest, "settings": settings, "complete": False}
    _write_record(folder, content)
    return []


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Row))
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_text(path, text.getvalue())


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    types = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in dataclasses.fields(Row)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Row(**{key: types[key](value) for key, value in line.items()}) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a table of results ({error}); delete it to evaluate again") from error


def _write_record(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(_jsonable(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "results.json", text + "\n")


def _describe(value: Any) -> Any:
    """What a method is made of, as JSON can hold it: classes, settings, and hashes of weights."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, FunctionType) and not hasattr(value, "fingerprint"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    description = {"class": f"{type(value).__module__}.{type(value).__qualname__}"}
    if hasattr(value, "fingerprint"):
        return description | {"fingerprint": str(value.fingerprint)}
    attributes = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    if isinstance(value, torch.nn.Module):
        simple = {k: v for k, v in attributes.items() if isinstance(v, (bool, int, float, str, torch.Tensor))}
        simple.pop("training")
        return description | {"sha256": _sha256(_describe([simple, value.state_dict()]))}
    if dataclasses.is_dataclass(value):
        return description | {"sha256": _sha256(_describe(attributes))}
    return description | _describe(attributes)


def _bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    return f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _jsonable(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become null and the text "inf"."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
