"""``preprocess``: raw scans to skull-stripped volumes on one grid."""

from __future__ import annotations

import argparse
import shlex
import sys

from apt_monai.cli.parser import PROGRAM
from apt_monai.data.readers import read_studies


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a cohort; 1 where studies failed."""
    studies = read_studies(arguments.raw, arguments.dataset, series=arguments.series)
    from apt_monai.distributed import start_ranks, stop_ranks  # after the check: seconds
    from apt_monai.preprocessing import PreprocessingSettings, preprocess_cohort

    start_ranks("cpu")
    settings = PreprocessingSettings(grid=arguments.grid, mask=arguments.mask, template=arguments.template)
    report = preprocess_cohort(studies, arguments.out, arguments.dataset, settings, arguments.workers)
    stop_ranks()
    print(f"{report}\nin {arguments.out}; a study's matrices are in its folder preprocessing/")
    if report.failed:
        print("once the failed ones are put right, the same command does them alone", file=sys.stderr)
        return 1
    words = ["train", arguments.out, "--dataset", arguments.dataset]
    print(f"Next, train with (on phantoms, add --overlay demo.yaml)\n  {PROGRAM} {shlex.join(words)}")
    return 0
