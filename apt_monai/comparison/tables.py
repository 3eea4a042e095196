"""The paper's tables: which rows each has, and what each row is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from apt_monai.comparison.systems import LABELS

Start = Literal["codebook", "noise", "zero", "random"]


@dataclass(frozen=True)
class TableRow:
    """One row.

    Args:
        label: what it is called, and its cell's folder.
        system: whose model it takes: a method, or ``"copy"`` or ``"prior"``, the trivial ones.
        start: of the published method, what the missing channels start from.
        sampling: of the published method, what differs from the model's own settings.
    """

    label: str
    system: str
    start: Start = "codebook"
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Args:
        title: what it shows.
        rows: its rows; none in tables 6 and 7, whose rows are the subsets of one method.
        subsets: whether each subset of acquired contrasts is a row of its own.
        dataset: the only one that it is of; None: either.
    """

    title: str
    rows: tuple[TableRow, ...]
    subsets: bool = False
    dataset: str | None = None


def _apt(label: str, start: Start = "codebook", **sampling: Any) -> TableRow:
    return TableRow(label, "published", start, sampling)


ONE: dict[str, Any] = {"unroll_iterations": 0}  # stage 1 alone

TABLES: dict[str, PaperTable] = {
    "1": PaperTable(
        "Comparison with other systems",
        (TableRow("copy", "copy"), TableRow("prior", "prior"), *(TableRow(label, m) for m, label in LABELS.items())),
    ),
    "2": PaperTable(
        "Unified model (U), adaptive prior (A) and iterative unrolling (I)",
        (
            _apt("U, M = T, S = 50", "noise", start_step=1000, sampling_steps=50, **ONE),
            _apt("U, M = T, S = 20", "noise", start_step=1000, sampling_steps=20, **ONE),
            _apt("U", "noise", **ONE),
            _apt("U+A", **ONE),
            _apt("U+A+I"),
        ),
    ),
    "3": PaperTable(
        "What the missing contrasts start from, without stage 2",
        (
            _apt("zero", "zero", **ONE),
            _apt("Gaussian noise", "noise", **ONE),
            _apt("random prior", "random", **ONE),
            _apt("adaptive prior", **ONE),
        ),
    ),
    "4": PaperTable(
        "Iterations of stage 2", tuple(_apt(f"N = {n}", unroll_iterations=n) for n in (10, 25, 50, 100, 200))
    ),
    "5": PaperTable(
        "The starting step, without stage 2",
        tuple(
            _apt(f"M = {m}", start_step=m, sampling_steps=min(20, m), **ONE) for m in (1000, 500, 400, 200, 100, 40, 20)
        ),
    ),
    "6": PaperTable("Every subset of BraTS's contrasts", (), subsets=True, dataset="brats"),
    "7": PaperTable("Every subset of ADNI's contrasts", (), subsets=True, dataset="adni"),
}
"""By number."""
