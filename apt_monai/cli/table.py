"""``table``: the paper's tables on a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from apt_monai.comparison.run import Comparison, Protocol
from apt_monai.comparison.systems import Plan
from apt_monai.contrasts import get_contrast_set
from apt_monai.phantom import write_phantom_dataset
from apt_monai.places import TRAINABLE

SEED, SPACING = 20, 3.0
"""Of the phantoms: unseen by the shipped weights, which were trained on those of other seeds."""


def run(arguments: argparse.Namespace) -> int:
    """Make each table, and print it."""
    comparison = comparison_of(arguments)
    for number in arguments.numbers:
        path = comparison.table(number)
        print(f"\n{path.read_text(encoding='utf-8')}\nwritten: {path} (and .csv, .json)")
    return 0


def comparison_of(arguments: argparse.Namespace) -> Comparison:
    """The comparison that a command line is about; phantoms are written if need be.

    Raises:
        ValueError: not one of DATA and phantoms, or a method that there is not.
    """
    if (arguments.data is None) == (arguments.phantom is None):
        raise ValueError("give either --data DATA, the folder of studies, or --phantom SUBJECTS")
    given = {name: Path(str(folder)) for name, folder in arguments.given}
    unknown = sorted(set(given) - set(TRAINABLE))
    if unknown:
        raise ValueError(f"--given {', '.join(unknown)}: no such method; valid are {', '.join(TRAINABLE)}")
    contrasts = get_contrast_set(arguments.dataset)
    out, data = arguments.out.absolute(), arguments.data
    if data is None:
        data = out / "phantoms"
        write_phantom_dataset(data, contrasts.name, arguments.phantom, SEED, SPACING)
    plan = Plan(contrasts, Path(data).absolute(), out, arguments.budget)
    cases, segmenter = getattr(arguments, "cases", None), getattr(arguments, "dice", 0)
    protocol = Protocol(arguments.slices_per_subject, cases, arguments.subjects, segmenter)
    return Comparison(plan, protocol, given)
