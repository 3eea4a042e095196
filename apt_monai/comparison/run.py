"""A table of the paper: train what is not trained, evaluate what is not evaluated, write it down."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from apt_monai import models
from apt_monai.comparison.paper import paper_numbers
from apt_monai.comparison.priors import starting_from
from apt_monai.comparison.summary import BEYOND, TESTED, summarise
from apt_monai.comparison.systems import LABELS, Plan, train_system
from apt_monai.comparison.tables import TABLES, PaperTable, TableRow
from apt_monai.data.preparation import studies_of_split
from apt_monai.data.readers import read_studies
from apt_monai.evaluation import EvaluationSlices, copy_ranking, evaluate_methods
from apt_monai.evaluation.downstream import dice_with, train_segmenter
from apt_monai.evaluation.run import Cases
from apt_monai.evaluation.scores import Row
from apt_monai.evaluation.statistics import mean
from apt_monai.files import write_text
from apt_monai.hardware import choose_device, choose_precision, device_name
from apt_monai.methods import APT, Copy, Method, Prior

TRIVIAL = ("copy", "prior")


@dataclass(frozen=True)
class Protocol:
    """How every row of a comparison is evaluated.

    Args:
        slices_per_subject: an even number; None: every slice.
        cases: as :func:`apt_monai.evaluation.evaluate_methods` takes them.
        subjects: at most so many of the split's test subjects; None: all.
        segmenter_iterations: of the training of the network whose Dice tells what a synthesis is good for; 0: none.
        batch_size: how many slices of a study a method is given at a time.
    """

    slices_per_subject: int | None = 2
    cases: Cases = None
    subjects: int | None = None
    segmenter_iterations: int = 0
    batch_size: int = 8


class Comparison:
    """Rows of tables, on one data set, with one split.

    Args:
        plan: the data, and how systems are trained.
        protocol: how they are evaluated.
        given: by method, folders of trained models that are taken as they are.
    """

    def __init__(self, plan: Plan, protocol: Protocol, given: Mapping[str, Path] | None = None) -> None:
        self.plan = plan
        self.protocol = protocol
        self.given = dict(given or {})
        self.device = choose_device(None)
        self.precision = choose_precision(self.device, "auto")
        self._loaded: dict[str, Method] = {}
        self._slices: dict[str, EvaluationSlices] = {}

    def table(self, number: str) -> Path:
        """Make one of the paper's tables; its Markdown file.

        Raises:
            ValueError: the table is of another data set.
        """
        table = TABLES[number]
        if table.dataset not in (None, self.plan.contrasts.name):
            raise ValueError(f"table {number} is of {table.dataset}, and the data are {self.plan.contrasts.name}'s")
        rows = table.rows or tuple(TableRow(LABELS[name], name) for name in ("published", "direct"))
        cases: Cases = "all" if table.subsets else self.protocol.cases
        costs = {row.system: self.cost(row.system) for row in rows}
        cells = {row.label: self.cell(row, cases) for row in rows}
        if table.subsets:
            cells = {
                f"{label}: {acquired}": [row for row in found if row.acquired == acquired]
                for label, found in cells.items()
                for acquired in dict.fromkeys(row.acquired for row in found)
            }
        entries = summarise(cells, self.plan.contrasts.names)
        of_row = {row.label: costs[row.system] for row in rows}
        for entry in entries:
            entry["cost"] = of_row[entry["row"].split(": ")[0]]
            if self.protocol.segmenter_iterations and not table.subsets:
                entry["dice"] = self.dice(next(row for row in rows if row.label == entry["row"]))
            entry["paper"] = paper_numbers(self.plan.contrasts.name, number, entry["row"].removeprefix("APT: "))
        return write_table(self.plan.out / "tables", number, table, entries, self.plan.contrasts.names, self._budget())

    def cost(self, system: str) -> dict[str, Any]:
        """Train a system unless it is trained or given; what it cost, as far as that is known."""
        if system in TRIVIAL or system in self.given:
            return {}
        return train_system(self.plan, system)

    def method(self, row: TableRow) -> Method:
        """A row's method."""
        if row.system == "copy":
            return Copy(self.slices("test").preprocessing, copy_ranking(self.slices("validation")))
        published = self.model("published" if row.system == "prior" else row.system)
        if row.system == "prior":
            assert isinstance(published, APT) and published.codebook is not None
            return Prior(published.preprocessing, published.codebook)
        if isinstance(published, APT) and (row.sampling or row.start != "codebook"):
            return starting_from(published, row.start).variant(prior=row.start != "noise", **row.sampling)
        return published

    def cell(self, row: TableRow, cases: Cases) -> list[Row]:
        """The scores of a row, from its folder, where what is finished stays."""
        folder = self.plan.out / "cells" / slug(row.label) / ("all" if cases == "all" else "others")
        method = self.method(row)
        return evaluate_methods(
            {row.label: method}, self.slices("test"), cases, folder, device=self.device, precision=self.precision
        ).rows

    def dice(self, row: TableRow) -> float:
        """The mean Dice of a segmentation network over test subjects when each contrast in turn is the row's.

        The network is trained once, on the training subjects' acquired contrasts. A row's Dice is kept beside its cell.
        """
        record = self.plan.out / "cells" / slug(row.label) / "dice.json"
        if not record.is_file():
            found = dice_with(self._segmenter, {row.label: self.method(row)}, self.slices("test"), self.device)
            write_text(record, json.dumps(_finite(found), indent=1) + "\n")
        found = json.loads(record.read_text(encoding="utf-8"))
        return mean([entry["dice"] for entry in found if entry["method"] == row.label and entry["dice"] is not None])

    @cached_property
    def _segmenter(self) -> nn.Module:
        weights, iterations = self.plan.out / "segmenter.pt", self.protocol.segmenter_iterations
        entries = self.slices("train").entries
        return train_segmenter(entries, self.plan.contrasts, weights, iterations, self.plan.seed, self.device)

    def slices(self, part: str) -> EvaluationSlices:
        """The slices of a part of the split: ``"train"``, ``"validation"`` or ``"test"``."""
        if part not in self._slices:
            studies = read_studies(self.plan.data, self.plan.contrasts, require_all=True)
            split = next(self.plan.out.glob("models/*/split.json"), None)
            # where every model was given, none was trained here: all studies are there to be tested on
            chosen = [] if split is None and part != "test" else studies_of_split(studies, split, part)
            if part == "test":
                chosen = chosen[: self.protocol.subjects]
            self._slices[part] = EvaluationSlices(
                chosen,
                self.plan.out / "slices",
                self.plan.contrasts,
                self.protocol.slices_per_subject,
                self.protocol.batch_size,
            )
        return self._slices[part]

    def model(self, system: str) -> Method:
        """A trained or given system."""
        if system not in self._loaded:
            folder = self.given.get(system) or self.plan.model(system)
            self._loaded[system] = models.load(folder, self.device, self.precision)
        return self._loaded[system]

    def _budget(self) -> str:
        budget = "own sizes" if self.plan.budget is None else f"{self.plan.budget:g} TFLOP of training each"
        return f"{budget}; {device_name(self.device)}, {self.precision}"


def slug(label: str) -> str:
    """A row's label as a folder's name.

    Example::

        >>> slug("U, M = T, S = 50"), slug("MM-GAN")
        ('u-m-t-s-50', 'mm-gan')
    """
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("+", "")).strip("-")


def write_table(
    folder: Path, number: str, table: PaperTable, entries: Sequence[Mapping[str, Any]], targets: Sequence[str], how: str
) -> Path:
    """Write a table as Markdown, CSV and JSON.

    Args:
        folder: where to.
        number: of the table.
        table: which it is.
        entries: its rows, as :func:`apt_monai.comparison.summary.summarise` gives them, with ``"cost"``, ``"paper"``.
        targets: the contrasts.
        how: the budget and the machine, in words.

    Returns:
        The Markdown file.
    """
    path = folder / f"table_{number}.md"
    write_text(path, markdown(number, table, entries, targets, how))
    record = {"table": number, "title": table.title, "how": how, "rows": list(entries)}
    write_text(path.with_suffix(".json"), json.dumps(_finite(record), indent=1) + "\n")
    lines = [["row", "target", "score", "mean", "std", "low", "high"]]
    for entry in entries:
        for score, found in entry["scores"].items():
            lines += [[entry["row"], target, score, *map(str, values.values())] for target, values in found.items()]
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(lines)
    write_text(path.with_suffix(".csv"), stream.getvalue())
    return path


def markdown(
    number: str, table: PaperTable, entries: Sequence[Mapping[str, Any]], targets: Sequence[str], how: str
) -> str:
    """The table, and the paper's numbers below it."""
    heads = [*targets, "mean, 95 % interval", "HaarPSI", "p (PSNR / SSIM / HaarPSI)", "Mparam.", "its × batch", "TFLOP"]
    heads += ["training s", "s a slice"]
    lines = [f"### Table {number}: {table.title}", "", f"{how}.", "", f"| row | {' | '.join(heads)} |"]
    lines.append("| --- |" + " --- |" * len(heads))
    for entry in entries:
        scores, cost = entry["scores"], entry["cost"]
        cells = [_pair(scores, target, spread=True) for target in targets]
        psnr, ssim = (scores[s].get("mean") for s in ("psnr_slice", "ssim_slice"))
        between = f" ({psnr['low']:.2f} to {psnr['high']:.2f} / {ssim['low']:.3f} to {ssim['high']:.3f})"
        cells.append(_pair(scores, "mean") + ("" if math.isnan(psnr["low"]) else between))  # few subjects have none
        cells.append(f"{scores['haarpsi']['mean']['mean']:.3f}" if "haarpsi" in scores else "–")
        cells.append(" / ".join(_number(entry["p"].get(score, math.nan), ".2g") for score in TESTED))
        cells.append(f"{cost['parameters'] / 1e6:.2f}" if cost else "–")
        cells.append(f"{cost['iterations']} × {cost['batch_size']}" if cost else "–")
        cells += [f"{cost['tflop']:g}", f"{cost['seconds']:.0f}"] if cost else ["–", "–"]
        cells.append(f"{entry['seconds']:.3g}")
        lines.append(f"| {entry['row']} | {' | '.join(cells)} |")
    lines += ["", EXPLAINED.format(subjects=max(entry["subjects"] for entry in entries))]
    lines += ["", *_beyond(entries)]
    known = [entry for entry in entries if entry["paper"]]
    if known:
        lines += [
            "",
            "The paper's own numbers, **on patients, another data set**:",
            "",
            f"| row | {' | '.join(targets)} |",
        ]
        lines.append("| --- |" + " --- |" * len(targets))
        for entry in known:
            pairs = [entry["paper"].get(target) for target in targets]
            cells = ["–" if pair is None else f"{pair[0]:.2f} / {pair[1]:.3f}" for pair in pairs]
            lines.append(f"| {entry['row']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _beyond(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What PSNR and SSIM don't tell: means over all targets, sums of lesions, Dice where it was measured."""
    shown = {
        score: name
        for score, name in BEYOND.items()
        if any(math.isfinite(entry["scores"][score]["mean"]["mean"]) for entry in entries)
    }
    lesions = any(entry["lesions"]["lesions"] for entry in entries)
    dice = any("dice" in entry for entry in entries)
    heads = [*shown.values(), *(["lesions missed", "invented"] if lesions else []), *(["Dice"] if dice else [])]
    lines = [f"| row | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for entry in entries:
        values = [entry["scores"][score]["mean"]["mean"] for score in shown]
        cells = [
            _number(value, ".2f" if score.startswith("psnr") or score == "structure" else ".3f")
            for score, value in zip(shown, values, strict=True)
        ]
        if lesions:
            found = entry["lesions"]
            cells += [f"{found['missed']:.0f} of {found['lesions']:.0f}", f"{found['invented']:.0f}"]
        if dice:
            cells.append(f"{entry['dice']:.3f}" if "dice" in entry else "–")
        lines.append(f"| {entry['row']} | {' | '.join(cells)} |")
    return [*lines, "", BEYOND_EXPLAINED]


BEYOND_EXPLAINED = (
    "Means over all targets. Structure: PSNR after the one rising intensity curve that fits best. Detail, flicker: "
    "gradient energy in and between slices over the truth's (1 is right). Coverage: of the 90 % interval. Lesions: "
    "enhancing ones in the contrast taken with gadolinium, over all slices. Dice: of a segmentation network trained on "
    "acquired contrasts, when one contrast is replaced by the row's."
)

EXPLAINED = (
    "PSNR in dB / SSIM over the whole slice, on the acquired grid and the truth's own scale: means over {subjects} "
    "subjects ± standard deviation; the mean over targets with its bootstrap interval. p: paired Wilcoxon test over "
    "subjects against the best other row, Holm-corrected over the rows."
)


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _pair(scores: Mapping[str, Any], target: str, spread: bool = False) -> str:
    if target not in scores["psnr_slice"]:
        return "acquired"
    values = [(scores[score][target], digits) for score, digits in (("psnr_slice", 2), ("ssim_slice", 3))]
    return " / ".join(
        f"{v['mean']:.{d}f}" + (f" ± {v['std']:.{d}f}" if spread and math.isfinite(v["std"]) else "") for v, d in values
    )


def _finite(value: Any) -> Any:
    """For JSON: null in the place of NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
