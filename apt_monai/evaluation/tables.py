"""The results as Markdown: a table a region, one of what PSNR and SSIM don't tell, one of p-values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apt_monai.contrasts import ContrastSet
from apt_monai.evaluation.lesions import BRIGHT, FOUND, SMALLEST
from apt_monai.evaluation.scores import BESIDE, BRASYN, REGIONS
from apt_monai.evaluation.significance import COMPARED
from apt_monai.evaluation.survey import TestSet

Entry = Mapping[str, Any]

ALL_OTHERS = "all others"
EXPLAINED = (
    "PSNR in dB and SSIM on the acquired grid, on intensities in [0, 1] of the truth's own scale, data range 1; two "
    "numbers of the truth place every prediction. Mean over each subject's slices first, then mean ± standard "
    "deviation over subjects."
)
BESIDE_EXPLAINED = (
    "Structure: PSNR over the whole slice after the one rising intensity curve that fits best the study. HaarPSI: "
    "perceptual similarity of the whole slice (1 is the same). Detail and flicker: differences within slices, and from "
    "a slice to the next, squared, over the truth's (1 is right). "
    "Coverage: the share of the brain within the method's 90 % interval (0.90 is right)."
)

BRASYN_EXPLAINED = (
    "Each volume on its own scale, between its 0.5 and 99.5 percentiles; of the tumour, and of the brain without it."
)
LESIONS_EXPLAINED = (
    f"Summed over all slices, each counted by itself. A lesion: at least {SMALLEST} connected voxels of the tumour "
    f"above the {BRIGHT:g}th percentile of the study's brain without tumour. Missed: less than {FOUND:.0%} of it is as "
    "bright in the prediction. Invented: as large and as bright in the prediction, anywhere in the brain, and touched "
    "by no bright voxel of the truth."
)


def tables(
    aggregate: Sequence[Entry],
    differences: Sequence[Entry],
    contrasts: ContrastSet,
    subsets: Sequence[Sequence[str]],
    test_set: TestSet,
    seconds: Mapping[str, float],
    device: str,
    budget: Mapping[str, Any] | None,
) -> str:
    """The Markdown tables. All cases in which one contrast is missing share a row, as in the paper's Table 1."""
    lines: list[str] = []
    for region, heading in REGIONS.items():
        # where there is no tumour, the brain without it is the brain
        needed = "tumour" if region == "healthy" else region
        known = [entry for entry in aggregate if entry[f"psnr_{needed}_subjects"]]
        if not known:
            continue
        lines += _table(heading, "PSNR / SSIM", known, contrasts, subsets, list(seconds), _cell_of(region))
        counts = sorted({entry[f"psnr_{region}_subjects"] for entry in known})
        if counts != [test_set.subjects]:
            lines += [_over(counts[0], test_set), ""]
    whole = [entry for entry in aggregate if entry["brasyn_tumour_subjects"]]
    if whole:
        lines += _table("BraSyn: 3D SSIM", "tumour / healthy", whole, contrasts, subsets, list(seconds), _brasyn)
        lines += [f"{_over(whole[0]['brasyn_tumour_subjects'], test_set)} {BRASYN_EXPLAINED}", ""]
    counted = [entry for entry in aggregate if not math.isnan(entry["lesions"])]
    if counted:
        lines += _table("Enhancing lesions", "", counted, contrasts, subsets, list(seconds), _lesions)
        lines += [LESIONS_EXPLAINED, ""]
    others = [subset for subset in subsets if _given(subset, contrasts) == ALL_OTHERS]
    if others:
        one_missing = [e for e in aggregate if _given(e["acquired"].split("+"), contrasts) == ALL_OTHERS]
        heading = "Structure PSNR, HaarPSI, detail, flicker, coverage"
        lines += _table(heading, "", one_missing, contrasts, others, list(seconds), _beside)
        lines += [BESIDE_EXPLAINED, ""]
        lines += _p_values(differences, contrasts, others, list(seconds))
    times = ", ".join(f"{name} {value:.3g}" for name, value in seconds.items())
    lines += [f"{test_set.slices} slices of {test_set.subjects} subjects. {EXPLAINED}", ""]
    lines += [f"Seconds a slice ({device}, median): {times}."]
    if budget:
        lines += ["", "Learned from: " + ", ".join(f"{key} {value}" for key, value in budget.items()) + "."]
    return "\n".join(lines) + "\n"


def _p_values(
    differences: Sequence[Entry], contrasts: ContrastSet, others: Sequence[Sequence[str]], methods: Sequence[str]
) -> list[str]:
    """The main row, which is the last method, against each other one."""
    found = [{**e, "method": e["against"]} for e in differences if e["acquired"] in map("+".join, others)]
    if not found:
        return []
    heading = f"{methods[-1]} against each other row, p"
    lines = _table(heading, "PSNR / SSIM / HaarPSI", found, contrasts, others, methods[:-1], _p_cell)
    return [*lines, f"Paired Wilcoxon test over {found[0]['subjects']} subjects, whole slice, two-sided.", ""]


def _table(
    heading: str,
    scores: str,
    entries: Sequence[Entry],
    contrasts: ContrastSet,
    subsets: Sequence[Sequence[str]],
    methods: Sequence[str],
    cell: Callable[[Entry], str],
) -> list[str]:
    """A row for each (given, method), a column for each target."""
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
    targets = [name for name in contrasts.names if any(entry["target"] == name for entry in entries)]
    columns = " | ".join(f"{labels[name]} {scores}".rstrip() for name in targets)
    lines = [f"### {heading}", "", f"| given | method | {columns} |", "| --- | --- |" + " --- |" * len(targets)]
    for case in dict.fromkeys(_given(acquired, contrasts) for acquired in subsets):
        for method in methods:
            cells = dict.fromkeys(targets, "")
            for entry in entries:
                if entry["method"] == method and _given(entry["acquired"].split("+"), contrasts) == case:
                    cells[entry["target"]] = cell(entry)
            lines.append(f"| {case} | {method} | {' | '.join(cells.values())} |")
    return [*lines, ""]


def _given(acquired: Sequence[str], contrasts: ContrastSet) -> str:
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
    return ALL_OTHERS if len(acquired) == len(contrasts) - 1 else ", ".join(labels[name] for name in acquired)


def _cell_of(region: str) -> Callable[[Entry], str]:
    """``27.4 ± 1.2 / 0.912 ± 0.011``; no ± where there is a single subject."""
    return lambda entry: " / ".join(
        _number(entry[f"{metric}_{region}_mean"], digits) + _plus_minus(entry[f"{metric}_{region}_std"], digits)
        for metric, digits in (("psnr", 2), ("ssim", 3))
    )


def _beside(entry: Entry) -> str:
    """``31.2, 0.813, 0.71, 1.08, 0.90``; a dash for what a method does not have."""
    digits = {"structure": 1, "haarpsi": 3}
    return ", ".join(_number(entry[f"{score}_mean"], digits.get(score, 2)) for score in BESIDE)


def _over(subjects: int, test_set: TestSet) -> str:
    return f"Over the {subjects} of {test_set.subjects} subjects that have one in these slices."


def _brasyn(entry: Entry) -> str:
    """``0.812 ± 0.031 / 0.901 ± 0.012``."""
    return " / ".join(_number(entry[f"{score}_mean"], 3) + _plus_minus(entry[f"{score}_std"], 3) for score in BRASYN)


def _lesions(entry: Entry) -> str:
    """``missed 3 of 20, invented 1``."""
    return f"missed {entry['missed']:.0f} of {entry['lesions']:.0f}, invented {entry['invented']:.0f}"


def _p_cell(entry: Entry) -> str:
    """``0.012 / 0.4 / 0.03``."""
    return " / ".join(f"{entry[f'{score}_p']:.2g}" for score in COMPARED)


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _plus_minus(std: float, digits: int) -> str:
    return "" if math.isnan(std) else f" ± {std:.{digits}f}"
