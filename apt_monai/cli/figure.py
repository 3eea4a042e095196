"""``figure``: the paper's figures on a data set."""

from __future__ import annotations

import argparse

from apt_monai.cli.table import comparison_of
from apt_monai.comparison.figures import make_figure


def run(arguments: argparse.Namespace) -> int:
    """Draw each figure, and say where it is."""
    comparison = comparison_of(arguments)
    for number in arguments.numbers:
        print(f"written: {make_figure(comparison, number)}")
    return 0
