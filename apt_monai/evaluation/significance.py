"""Whether the main row differs from each other one by more than chance: the paired Wilcoxon test over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from apt_monai.evaluation.scores import Row
from apt_monai.evaluation.statistics import rows_by_case, subject_means

FEWEST_SUBJECTS = 6
"""With fewer, no difference can have p < 0.05."""

COMPARED = ("psnr_slice", "ssim_slice", "haarpsi")
"""All over the whole slice."""


def compare_rows(rows: Sequence[Row], main: str) -> list[dict[str, Any]]:
    """The p-values of the main row against each other one, of each (acquired, target).

    Args:
        rows: the scores of each slice.
        main: the main row's method.

    Returns:
        For each (method, acquired, target) a dictionary with ``"against"`` (the other method), ``"acquired"``,
        ``"target"``, ``"subjects"`` and, for PSNR, SSIM and HaarPSI over the whole slice, ``"psnr_slice_p"``,
        ``"ssim_slice_p"`` and ``"haarpsi_p"``, two-sided. Empty with fewer than 6 subjects.
    """
    groups, found = rows_by_case(rows), []
    for (method, acquired, target), group in groups.items():
        subjects = len({row.subject for row in group})
        if method == main or subjects < FEWEST_SUBJECTS:
            continue
        own = groups[main, acquired, target]
        entry: dict[str, Any] = {"against": method, "acquired": acquired, "target": target, "subjects": subjects}
        for score in COMPARED:
            pairs = [list(subject_means(of, score).values()) for of in (own, group)]
            entry[f"{score}_p"] = paired_p(*pairs)
        found.append(entry)
    return found


def paired_p(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p-value of the paired Wilcoxon test; 1 where no pair differs, NaN where a value is not finite.

    Example::

        >>> round(paired_p([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]), 5)
        0.03125
    """
    differences = np.array([0.0 if a == b else a - b for a, b in zip(one, other, strict=True)])
    if not np.isfinite(differences).all():
        return math.nan
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0
