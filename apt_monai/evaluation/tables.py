"""The results as Markdown, a table a region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from apt_monai.contrasts import ContrastSet
from apt_monai.evaluation.scores import REGIONS
from apt_monai.evaluation.survey import TestSet


def tables(
    aggregate: Sequence[Mapping[str, Any]],
    contrasts: ContrastSet,
    subsets: Sequence[Sequence[str]],
    test_set: TestSet,
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
