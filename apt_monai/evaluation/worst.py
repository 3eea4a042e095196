"""The worst cases of an evaluation, worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apt_monai.evaluation.scores import Row
from apt_monai.evaluation.statistics import rows_by_case, subject_means

WORST_BY = "psnr_brain"
"""The score by which cases are ordered."""


@dataclass(frozen=True)
class WorstCase:
    """A contrast of a subject, and its worst slice.

    Args:
        subject: the subject.
        acquired: the acquired contrasts, joined by ``+``.
        target: the synthesised contrast.
        psnr_brain: the mean over the subject's slices, in dB.
        slice: the index of the slice with the lowest PSNR over the brain.
        picture: the name of the picture of that slice.
    """

    subject: str
    acquired: str
    target: str
    psnr_brain: float
    slice: int
    picture: str


def worst_cases(rows: Sequence[Row], method: str, count: int) -> list[WorstCase]:
    """The cases of a method with the lowest mean PSNR over the brain; of each subject and target only the worst.

    Args:
        rows: of all methods.
        method: whose cases.
        count: how many at most.

    Example::

        >>> from apt_monai.evaluation.scores import COUNTS, SCORES
        >>> scores = dict.fromkeys([*SCORES, *COUNTS, "seconds"], 0.9)
        >>> decibels = {"a": 30, "b": 20}
        >>> rows = [Row("direct", "t1", "t2", s, 7, **scores | {"psnr_brain": db}) for s, db in decibels.items()]
        >>> [case.subject for case in worst_cases(rows, "direct", 1)]
        ['b']
    """
    found = []
    for (name, acquired, target), group in rows_by_case(rows).items():
        if name == method:
            means = subject_means(group, WORST_BY)
            found += [(value, subject, acquired, target) for subject, value in means.items() if not math.isnan(value)]
    chosen: dict[tuple[str, str], WorstCase] = {}
    for value, subject, acquired, target in sorted(found):
        if len(chosen) == count:
            break
        if (subject, target) not in chosen:
            key = (method, acquired, target, subject)
            own = [row for row in rows if (row.method, row.acquired, row.target, row.subject) == key]
            index = min((row for row in own if not math.isnan(row.psnr_brain)), key=lambda row: row.psnr_brain).slice
            picture = f"worst_{len(chosen) + 1}.png"
            chosen[subject, target] = WorstCase(subject, acquired, target, value, index, picture)
    return list(chosen.values())
