"""What a table says of each row: means over subjects, their bootstrap intervals, and tests against the best row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from apt_monai.evaluation.scores import COUNTS, Row
from apt_monai.evaluation.significance import paired_p
from apt_monai.evaluation.statistics import mean, std

TESTED = ("psnr_slice", "ssim_slice", "haarpsi")
"""The scores for which rows are tested against the best one."""
BEYOND = {
    "psnr_brain": "brain, dB",
    "psnr_healthy": "without tumour, dB",
    "psnr_tumour": "tumour, dB",
    "structure": "structure, dB",
    "haarpsi": "HaarPSI",
    "detail": "detail",
    "flicker": "flicker",
    "coverage": "coverage",
    "brasyn_tumour": "BraSyn, tumour",
    "brasyn_healthy": "BraSyn, healthy",
}
"""What PSNR and SSIM over the slice don't tell, as the table's columns are called."""
SUMMED = ("psnr_slice", "ssim_slice", *BEYOND)
BOOTSTRAPS = 2000


def subject_scores(rows: Sequence[Row], score: str, target: str | None) -> dict[str, float]:
    """A score of one row of a table, by subject: over the target's slices and cases; None: the mean over targets.

    Example::

        >>> from types import SimpleNamespace as R
        >>> rows = [R(subject="a", target="t1", psnr_slice=20.0), R(subject="a", target="t2", psnr_slice=30.0)]
        >>> subject_scores(rows, "psnr_slice", None)
        {'a': 25.0}
    """
    by_target: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if target in (None, row.target):
            by_target.setdefault(row.subject, {}).setdefault(row.target, []).append(getattr(row, score))
    return {subject: mean([mean(values) for values in found.values()]) for subject, found in sorted(by_target.items())}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval (BCa) of the mean over subjects; NaN with fewer than three subjects.

    Example::

        >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
        >>> 1 <= low < 2.5 < high <= 4
        True
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < 3 or np.ptp(known) == 0:
        return math.nan, math.nan
    found = bootstrap((known,), np.mean, n_resamples=BOOTSTRAPS, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several tests (Holm 1979); what is NaN stays, and counts for nothing.

    Example::

        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    known = sorted(((p, name) for name, p in p_values.items() if not math.isnan(p)))
    corrected, highest = {}, 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[name] = round(highest, 12)
    return corrected | {name: p for name, p in p_values.items() if math.isnan(p)}


def summarise(cells: Mapping[str, Sequence[Row]], targets: Sequence[str]) -> list[dict[str, Any]]:
    """An entry a row: each score's mean, standard deviation and interval, by target and over all, and p-values.

    Args:
        cells: the slices' scores, by row.
        targets: the contrasts.

    Returns:
        Dictionaries with ``"row"``, ``"subjects"``, ``"scores"`` (by score, then by target or ``"mean"``: ``"mean"``,
        ``"std"``, ``"low"``, ``"high"``), ``"lesions"`` (all, missed, invented), ``"seconds"`` (a slice, the median)
        and ``"p"``: of PSNR, SSIM and HaarPSI over all targets, the paired Wilcoxon test against the best other
        row, Holm-corrected over the rows.
    """
    entries: list[dict[str, Any]] = []
    for label, rows in cells.items():
        scores: dict[str, dict[str, dict[str, float]]] = {}
        for score in SUMMED:
            found = {}
            for target in (*targets, None):
                values = list(subject_scores(rows, score, target).values())
                if values:
                    low, high = interval(values)
                    found[target or "mean"] = {"mean": mean(values), "std": std(values), "low": low, "high": high}
            scores[score] = found
        entries.append(
            {
                "row": label,
                "subjects": len({row.subject for row in rows}),
                "scores": scores,
                "lesions": {name: sum(n for row in rows if not math.isnan(n := getattr(row, name))) for name in COUNTS},
                "seconds": float(np.median([row.seconds for row in rows])),
                "p": {},
            }
        )
    for score in TESTED:
        for label, p in _tests(cells, entries, score).items():
            next(entry for entry in entries if entry["row"] == label)["p"][score] = p
    return entries


def _tests(cells: Mapping[str, Sequence[Row]], entries: Sequence[Mapping[str, Any]], score: str) -> dict[str, float]:
    """By row, the corrected p-value against the best other row."""
    known = {entry["row"]: entry["scores"][score]["mean"]["mean"] for entry in entries if score in entry["scores"]}
    if len(known) < 2:
        return {}
    values = {label: subject_scores(cells[label], score, None) for label in known}
    found = {}
    for label in known:
        best = max((other for other in known if other != label), key=lambda other: known[other])
        shared = sorted(values[label].keys() & values[best].keys())
        pairs = [[values[row][subject] for subject in shared] for row in (label, best)]
        found[label] = paired_p(*pairs) if len(shared) >= 6 else math.nan
    return holm(found)
