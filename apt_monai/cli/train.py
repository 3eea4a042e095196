"""``train``: the bundle's training."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from apt_monai.bundle import quick_imports
from apt_monai.cli.launch import run_config
from apt_monai.cli.parser import PROGRAM


def run(arguments: argparse.Namespace) -> int:
    """Train on DATA, or on the bundle's phantom, and say how to evaluate the model."""
    if (arguments.data is None) != arguments.phantom:
        raise ValueError("give either DATA, the folder of studies to train on, or --phantom, to train on the phantom")
    with quick_imports():  # monai: seconds
        from apt_monai.data.readers import read_studies
        from apt_monai.models import find_bundle_root

    if arguments.data is not None:
        read_studies(arguments.data, arguments.dataset, require_all=True, series=arguments.series)
    model = arguments.model or Path(find_bundle_root(f"apt_{arguments.dataset}"), "models", "trained")
    data = arguments.data or str((arguments.work or model / "work") / "phantom")
    finished = (model / "model.pt").exists()
    run_config(arguments, "training", "train")
    if finished:
        print(f"\n{model}/model.pt was there already, nothing was trained: for other settings, name another --model")
    words = ["evaluate", data, "--dataset", arguments.dataset, "--model", str(model)]
    print(f"\nThe model is in {model}. Next, evaluate it with\n  {PROGRAM} {shlex.join(words)}")
    return 0
