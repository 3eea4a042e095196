"""``evaluate``: the bundle's evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from apt_monai.cli.choices import bundle_of, contrasts_of
from apt_monai.cli.launch import run_config
from apt_monai.data.readers import read_studies
from apt_monai.places import TRAINABLE, find_model

WORST_CASES = 6  # so many are drawn in a report


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a model, and say where the tables and pictures are."""
    contrasts = contrasts_of(arguments)
    read_studies(arguments.data, contrasts, require_all=True, series=arguments.series)
    bundle = bundle_of(contrasts)
    overrides: dict[str, object] = {"cases": arguments.cases} if arguments.cases else {}
    if arguments.report:
        overrides["worst_cases"] = WORST_CASES
    if arguments.against:
        overrides["compared"] = [str(further_model(name, bundle)) for name in arguments.against]
    run_config(arguments, bundle, "evaluating", "evaluate", **overrides)
    print(f"\nTables: {arguments.out}/results.md (and .csv, .json); pictures: {arguments.out}/panel*.png")
    if arguments.report:
        from apt_monai.report import write_cohort_report

        print(f"Report: {write_cohort_report(arguments.out, contrasts)}")
    return 0


def further_model(name: str, bundle: str) -> Path:
    """The model that a name or a folder means: a method's, trained or shipped, or that in the folder.

    Raises:
        ModelError: there is no such folder.
    """
    known = name in TRAINABLE
    return find_model(None if known else name, bundle, method=name if known else None).absolute()
