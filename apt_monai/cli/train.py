"""``train``: the bundle's training."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from apt_monai.cli.choices import bundle_of
from apt_monai.cli.launch import run_config
from apt_monai.cli.parser import PROGRAM, SHIPPED_WEIGHTS
from apt_monai.contrasts import CONTRAST_SETS, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.places import COMPARED, LAST_WRITTEN, trained_model


def overlay_of(method: str) -> str:
    """The config over train.yaml that makes it a training of the method."""
    return f"methods/{method}.yaml" if method in COMPARED else f"{method}.yaml"


def run(arguments: argparse.Namespace) -> int:
    """Train on DATA, or on the bundle's phantom, and say how to evaluate the model."""
    if (arguments.data is None) != arguments.phantom:
        raise ValueError("give either DATA, the folder of studies to train on, or --phantom, to train on the phantom")
    contrasts = get_contrast_set(arguments.dataset)
    if arguments.data is not None:
        read_studies(arguments.data, contrasts, require_all=True, series=arguments.series)
    arguments.model = arguments.model or trained_model(f"apt_{contrasts.name}", arguments.method)
    overrides: dict[str, Path] = {}
    if arguments.method != "direct":
        arguments.overlay = [overlay_of(arguments.method), *arguments.overlay]
    if arguments.start_from is not None:
        if arguments.method != "direct":
            raise ValueError(
                f"--from goes on with weights of the method 'direct'; {arguments.method} trains from nothing"
            )
        arguments.overlay = ["tune.yaml", *arguments.overlay]
        if arguments.start_from != SHIPPED_WEIGHTS:
            overrides["start_from"] = Path(arguments.start_from).absolute()
    data = arguments.data or str((arguments.work or arguments.model / "work") / "phantom")
    finished = (arguments.model / LAST_WRITTEN).exists()
    known = arguments.dataset in CONTRAST_SETS
    if not known:
        overrides["contrasts"] = Path(arguments.dataset).absolute()
    run_config(arguments, bundle_of(contrasts), "training", "train", **overrides)
    if finished:
        print(
            f"\n{arguments.model}/{LAST_WRITTEN} was there already, nothing was trained: for other settings, name "
            "another --model"
        )
    words = ["evaluate", data, "--model", str(arguments.model)]
    print(f"\nThe model is in {arguments.model}. Next, evaluate it with\n  {PROGRAM} {shlex.join(words)}")
    return 0
