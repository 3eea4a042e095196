"""``evaluate``: the bundle's evaluation."""

from __future__ import annotations

import argparse

from apt_monai.cli.choices import bundle_of, contrasts_of
from apt_monai.cli.launch import run_config
from apt_monai.data.readers import read_studies


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a model, and say where the tables and pictures are."""
    contrasts = contrasts_of(arguments)
    read_studies(arguments.data, contrasts, require_all=True, series=arguments.series)
    overrides = {"cases": arguments.cases} if arguments.cases else {}
    run_config(arguments, bundle_of(contrasts), "evaluating", "evaluate", **overrides)
    print(f"\nTables: {arguments.out}/results.md (and .csv, .json); pictures: {arguments.out}/panel*.png")
    return 0
