"""``phantom``: digital phantoms, as the NIfTI or DICOM files of a dataset."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from apt_monai.cli.parser import PROGRAM, RAW
from apt_monai.phantom import write_phantom_dataset
from apt_monai.phantom.datasets import SERIES_NAME


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
        dicom=arguments.dicom,
    )
    if arguments.dataset in RAW:
        step, words = "preprocess", ["preprocess", arguments.out, f"{arguments.out}-preprocessed"]
        words += ["--dataset", RAW[arguments.dataset]]
        if arguments.dicom:
            words += ["--series", str(Path(arguments.out) / SERIES_NAME)]
    else:
        words = ["train", arguments.out, "--dataset", arguments.dataset, "--overlay", "demo.yaml"]
        step = "train, at a size for phantoms,"
    print(f"{len(studies)} studies in {arguments.out}. Next, {step} with\n  {PROGRAM} {shlex.join(words)}")
    return 0
