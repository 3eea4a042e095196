"""``phantom``: digital phantoms, as the NIfTI files of a dataset."""

from __future__ import annotations

import argparse
import shlex

from apt_monai.cli.parser import PROGRAM, RAW
from apt_monai.phantom import write_phantom_dataset


def run(arguments: argparse.Namespace) -> int:
    """Write them, and say what to do with them next."""
    studies = write_phantom_dataset(
        arguments.out,
        arguments.dataset,
        arguments.subjects,
        arguments.seed,
        arguments.spacing,
        varied=arguments.varied,
        noise=not arguments.noiseless,
    )
    if arguments.dataset == RAW:
        step, words = "preprocess", ["preprocess", arguments.out, f"{arguments.out}-preprocessed"]
    else:
        words = ["train", arguments.out, "--dataset", arguments.dataset, "--overlay", "demo.yaml"]
        step = "train, at a size for phantoms,"
    print(f"{len(studies)} studies in {arguments.out}. Next, {step} with\n  {PROGRAM} {shlex.join(words)}")
    return 0
