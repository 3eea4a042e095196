"""Means over each subject's slices, then over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from apt_monai.evaluation.scores import COUNTS, SCORES, Row


def aggregate_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over each subject's slices, then mean and sample standard deviation over subjects; lesions are summed."""
    aggregate = []
    for (method, acquired, target), group in rows_by_case(rows).items():
        subjects = sorted({row.subject for row in group})
        entry: dict[str, Any] = {"method": method, "acquired": acquired, "target": target}
        entry |= {"subjects": len(subjects), "slices": len(group)}
        for score in SCORES:
            means = list(subject_means(group, score).values())
            entry[f"{score}_mean"], entry[f"{score}_std"] = mean(means), std(means)
            entry[f"{score}_subjects"] = sum(not math.isnan(value) for value in means)
        for count in COUNTS:
            entry[count] = sum(getattr(row, count) for row in group)
        aggregate.append(entry)
    return aggregate


def rows_by_case(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of each (method, acquired, target)."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.acquired, row.target), []).append(row)
    return groups


def subject_means(rows: Sequence[Row], score: str) -> dict[str, float]:
    """The mean of a score over each subject's slices, by subject in alphabetical order."""
    values: dict[str, list[float]] = {subject: [] for subject in sorted({row.subject for row in rows})}
    for row in rows:
        values[row.subject].append(getattr(row, score))
    return {subject: mean(found) for subject, found in values.items()}


def mean(values: Sequence[float]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def std(values: Sequence[float]) -> float:
    """The sample standard deviation of what is not NaN; NaN of fewer than two values, or where one is infinite."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2 or any(math.isinf(value) for value in known):
        return math.nan
    return float(np.std(known, ddof=1))
