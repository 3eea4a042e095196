"""``synthesize``: the bundle's inference."""

from __future__ import annotations

import argparse
from pathlib import Path

from apt_monai.bundle import quick_imports
from apt_monai.cli.choices import dataset_of, datasets_with
from apt_monai.cli.launch import run_config
from apt_monai.cli.parser import contrast_names
from apt_monai.contrasts import CONTRAST_SETS, ContrastSet, get_contrast_set


def run(arguments: argparse.Namespace) -> int:
    """Write the absent contrasts of a folder of studies or of one patient, and say where they are."""
    given = {name: path for name in contrast_names() if (path := getattr(arguments, name))}
    if (arguments.data is None) == (not given):
        raise ValueError(
            "give either DATA, a folder of studies, or one patient's files: "
            + ", ".join(f"--{name}" for name in contrast_names())
        )
    unsaid = arguments.dataset is None and arguments.model is None
    if unsaid and arguments.data is not None:
        choices = " or ".join(f"--dataset {name}" for name in CONTRAST_SETS)
        raise ValueError(f"{arguments.data}: whose contrasts may be missing there? Give {choices}, or --model")
    arguments.dataset = dataset_of(arguments, list(given))
    with quick_imports():  # monai: seconds
        from apt_monai.data.readers import read_studies
        from apt_monai.data.writers import synthetic_path

    contrasts, overrides = get_contrast_set(arguments.dataset), {}
    if arguments.data is not None:
        read_studies(arguments.data, contrasts, series=arguments.series)
        written = [f"{arguments.out}/*/*_SYNTHETIC.nii.gz"]
    else:
        study = _read_patient(arguments, contrasts, given)
        overrides["studies"] = [study]
        targets = [name for name in contrasts.names if name not in study]
        written = [str(synthetic_path(arguments.out, arguments.subject, name)) for name in targets]
    run_config(arguments, "run", "inference", **overrides)
    others = [name for name in datasets_with(list(given)) if name != arguments.dataset]
    if unsaid and others:
        print(f"\nBy the bundle of {arguments.dataset}; another knows these contrasts too: --dataset {others[0]}")
    print("\nSynthesised, not acquired; for research, not for diagnosis or treatment:", *written, sep="\n  ")
    return 0


def _read_patient(arguments: argparse.Namespace, contrasts: ContrastSet, given: dict[str, str]) -> dict[str, str]:
    """The study of one patient's files, which are read to be checked here, before the bundle's command starts."""
    from apt_monai.io.sidecar import is_synthetic_name
    from apt_monai.transforms import LoadStudyd

    if arguments.series:
        raise ValueError("--series is for DATA, a folder of studies; the flags say which contrast a file is")
    contrasts.check(given)
    if set(given) == set(contrasts.names):
        raise ValueError(
            f"nothing to synthesise: every contrast of {contrasts.name} is given ({', '.join(contrasts.names)})"
        )
    for name, path in given.items():
        if is_synthetic_name(path):
            raise ValueError(f"--{name} {path}: is synthesised, as its name says; give acquired contrasts alone")
    study = {"subject": arguments.subject} | {name: str(Path(path).absolute()) for name, path in given.items()}
    LoadStudyd(contrasts)(study)
    return study
