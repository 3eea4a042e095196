"""A cohort's report: the tables of an evaluation, how each subject scored, the worst cases first."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.evaluation.record import read_rows
from apt_monai.evaluation.scores import Row
from apt_monai.evaluation.statistics import rows_by_case, subject_means
from apt_monai.evaluation.tables import ALL_OTHERS
from apt_monai.files import write_text
from apt_monai.io.sidecar import SYNTHETIC
from apt_monai.report.page import WARNING, page, picture, table
from apt_monai.report.tables import markdown_to_html

DRAWN = {"psnr_brain": "PSNR in the brain, dB", "ssim_brain": "SSIM in the brain", "structure": "structure, dB"}
"""The scores whose distribution over subjects is drawn."""
METHOD_COLOURS = ("#8d979f", "#46c8ff", "#7bd88f", "#c792ea", "#ff7a6b")
MAIN_COLOUR = "#ffb000"
TEXT_COLOUR, PAPER = "#e9eaeb", "#1e2124"


def write_cohort_report(folder: str | Path, contrasts: str | ContrastSet) -> Path:
    """Write the report of an evaluation: one HTML file, complete in itself.

    The worst cases come first, with the pictures that :func:`apt_monai.evaluation.evaluate_methods` drew of them; then
    the distribution of scores over subjects, the tables, a line a subject, the other pictures, and what was evaluated.

    Args:
        folder: the evaluation's, with ``results.csv``, ``results.json``, ``results.md`` and the pictures.
        contrasts: the contrast set, or its name.

    Returns:
        The report, ``<folder>/report_SYNTHETIC.html``.

    Raises:
        ValueError: the folder holds no finished evaluation.
        OSError: a file of it is missing, or the report cannot be written.
    """
    folder, chosen = Path(folder), get_contrast_set(contrasts)
    labels = dict(zip(chosen.names, chosen.labels, strict=True))
    record = _read_record(folder / "results.json")
    rows = read_rows(folder / "results.csv")
    worst, main = record.get("worst", []), str(record["main"])
    names = {case["picture"] for case in worst}
    others = [name for name in record["pictures"] if name not in names]
    one_missing = [row for row in rows if len(row.acquired.split("+")) == len(chosen) - 1]
    what = f"given {ALL_OTHERS}" if one_missing else "all cases together"
    head = f"{record['subjects']} subjects, {record['slices']} slices; main row: {main}"
    drawn = _distributions(one_missing or rows, list(record["settings"]["methods"]), labels)
    parts = [
        f"<header><h1>Evaluation</h1><span>{escape(head)}</span></header><main>",
        "<h2>Worst cases first</h2>",
        _worst(worst, folder, main, labels),
        f"<h2>How the subjects scored, {escape(what)}</h2>",
        "<p>A point is a subject; the box holds the middle half of them, its line is the median.</p>",
        f'<img class="figure" src="{drawn}" alt="scores of each subject by target and method">',
        "<h2>Tables</h2>",
        markdown_to_html(_without_folders((folder / "results.md").read_text(encoding="utf-8"), record)),
        f"<details><summary>Each subject, {escape(main)}</summary>{_subjects(rows, main, labels)}</details>",
        "<h2>Pictures</h2>",
        *(picture(folder / name, name) for name in others),
        f"<h2>What was evaluated</h2>{_evaluated(record)}</main>",
    ]
    notice = f"What is scored here was synthesised by a model; {WARNING}"
    path = folder / f"report_{SYNTHETIC}.html"
    write_text(path, page(f"Evaluation: report, {SYNTHETIC}", "SYNTHETIC IMAGES INSIDE", notice, "\n".join(parts)))
    return path


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        complete = record["complete"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is not there; evaluate into that folder first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the record of an evaluation ({error!r}); name another folder") from error
    if not complete:
        raise ValueError(f"{path}: that evaluation is not finished; the same command goes on with it")
    return dict(record)


def _worst(cases: Sequence[Mapping[str, Any]], folder: Path, main: str, labels: Mapping[str, str]) -> str:
    if not cases:
        return "<p>No pictures of the worst cases were drawn: evaluate with --report.</p>"
    lines = [
        "<p>By the mean PSNR in the brain; of each subject and contrast the worst case alone. The picture is of the "
        "slice with the lowest PSNR.</p>"
    ]
    for case in cases:
        given = ", ".join(labels[name] for name in case["acquired"].split("+"))
        text = f"{case['subject']}: {labels[case['target']]} from {given}, {float(case['psnr_brain']):.1f} dB ({main})"
        lines.append(f"<h3>{escape(text)}</h3>{picture(folder / case['picture'], text)}")
    return "".join(lines)


def _distributions(rows: Sequence[Row], methods: Sequence[str], labels: Mapping[str, str]) -> str:
    """A panel for each (score, target), a box and the subjects' points for each method; as a data URL."""
    targets = [name for name in labels if any(row.target == name for row in rows)]
    others = methods[:-1]
    colours = [METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, _ in enumerate(others)] + [MAIN_COLOUR]
    figure = Figure(figsize=(2.9 * len(targets) + 0.6, 2.5 * len(DRAWN)), facecolor=PAPER)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(DRAWN), len(targets), squeeze=False, sharey="row")
    for line, (score, title) in zip(grid, DRAWN.items(), strict=True):
        for axes, target in zip(line, targets, strict=True):
            axes.set_facecolor(PAPER)
            for place, (method, colour) in enumerate(zip(methods, colours, strict=True)):
                values = [v for v in _means(rows, method, target, score) if math.isfinite(v)]
                if not values:
                    continue
                box = axes.boxplot([values], positions=[place], widths=0.5, showfliers=False)
                for part in (part for parts in box.values() for part in parts):
                    part.set_color(colour)
                spread = [place + 0.12 * (i % 3 - 1) for i, _ in enumerate(values)]
                axes.plot(spread, values, "o", color=colour, markersize=3.5, alpha=0.8)
            axes.set_xticks(range(len(methods)), methods, rotation=20, ha="right")
            axes.tick_params(colors=TEXT_COLOUR, labelsize=8)
            axes.grid(axis="y", color="#363b40", linewidth=0.6)
            for spine in axes.spines.values():
                spine.set_color("#50575e")
            axes.set_title(labels[target], color=TEXT_COLOUR, fontsize=10)
        line[0].set_ylabel(title, color=TEXT_COLOUR, fontsize=9)
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "apt_monai"}):  # the same input, the same bytes
        figure.savefig(file, format="svg", facecolor=PAPER, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _means(rows: Sequence[Row], method: str, target: str, score: str) -> list[float]:
    """A mean for each subject and case."""
    return [
        value
        for (name, _, made), group in rows_by_case(rows).items()
        if name == method and made == target
        for value in subject_means(group, score).values()
    ]


def _subjects(rows: Sequence[Row], main: str, labels: Mapping[str, str]) -> str:
    """A line for each subject and case of the main row, the worst first."""
    found = []
    for (method, acquired, target), group in rows_by_case(rows).items():
        if method == main:
            given = ", ".join(labels[name] for name in acquired.split("+"))
            scores = {score: subject_means(group, score) for score in DRAWN}
            for subject in scores["psnr_brain"]:
                values = [scores[score][subject] for score in DRAWN]
                found.append((values[0], subject, (subject, labels[target], given, *map(_number, values))))
    lines = [line for _, _, line in sorted(found, key=lambda item: (math.isnan(item[0]), item[:2]))]
    return table(lines, ("subject", "target", "given", *DRAWN.values()), numbers_from=3)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _without_folders(text: str, record: Mapping[str, Any]) -> str:
    """The tables' text, with the name of the model's folder in the place of its path."""
    model = record["budget"].get("model")
    return text if model is None else text.replace(str(model), Path(model).name)


def _evaluated(record: Mapping[str, Any]) -> str:
    budget = {key: Path(value).name if key == "model" else str(value) for key, value in record["budget"].items()}
    versions = {name: str(version) for name, version in record["versions"].items()}
    fields = {
        **budget,
        "device": f"{record['device']}, {record['precision']}",
        "apt_monai": str(record["settings"]["apt_monai"]),
        **versions,
        "settings (SHA-256)": str(record["settings_sha256"]),
        "test slices (SHA-256)": str(record["settings"]["test_slices_sha256"]),
    }
    return table(list(fields.items()))
