"""``calibrate``: how far off a trained model may be, measured anew on studies of one's own."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apt_monai.cli.choices import bundle_of, contrasts_of
from apt_monai.cli.parser import PROGRAM
from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers import read_studies
from apt_monai.data.splits import patient, read_split
from apt_monai.errors import ModelError
from apt_monai.places import find_model, work_folder

if TYPE_CHECKING:
    from apt_monai.calibrate import Errors
    from apt_monai.methods import Calibration


def run(arguments: argparse.Namespace) -> int:
    """Copy a model with a calibration on DATA, and print what its intervals covered before and what they cover now."""
    contrasts = contrasts_of(arguments)
    bundle = bundle_of(contrasts)
    folder = find_model(arguments.model, bundle, method="direct")
    if arguments.out.exists():
        raise FileExistsError(f"{arguments.out}: is there already; name another folder for the calibrated model")
    studies = read_studies(arguments.data, contrasts, require_all=True, series=arguments.series)
    from apt_monai.calibrate import find_errors  # after the checks: seconds
    from apt_monai.data.preparation import prepare_slices
    from apt_monai.data.slice_cache import SliceCache
    from apt_monai.files import complete_folder
    from apt_monai.methods import Direct
    from apt_monai.methods.calibration import CALIBRATION_NAME
    from apt_monai.models import PHANTOM, load

    method = load(folder)
    if not isinstance(method, Direct):
        raise ModelError(f"{folder}: is a model of the method {method.name}, which has no uncertainty to calibrate")
    if method.weights["trained_on"] != PHANTOM:
        refuse_training_subjects(folder, [study["subject"] for study in studies])
    before, method.calibration = method.calibration, None
    cache = SliceCache((arguments.work or work_folder(bundle)) / "slices", method.preprocessing)
    prepare_slices(studies, cache, None)
    errors = find_errors(method, [cache.open(study) for study in studies])
    with complete_folder(arguments.out) as partial:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                shutil.copyfile(file, partial / file.name)
        errors.calibration().save(partial / CALIBRATION_NAME)
    print(coverage_table(contrasts, errors, before))
    words = ["synthesize", "DATA", "--dataset", contrasts.name, "--model", str(arguments.out)]
    print(f"\nThe calibrated model is in {arguments.out}. Next, use it with\n  {PROGRAM} {shlex.join(words)}")
    return 0


def refuse_training_subjects(folder: Path, subjects: Sequence[str]) -> None:
    """Intervals measured on what the weights have seen are too narrow for what comes.

    Raises:
        ModelError: a patient is one that the model in the folder was trained on.
    """
    path = folder / "split.json"
    trained_on = read_split(path)["train"] if path.is_file() else []
    seen = sorted({patient(name) for name in trained_on} & {patient(name) for name in subjects})
    if seen:
        raise ModelError(
            f"{path}: the model was trained on {len(seen)} of these patients ({', '.join(seen[:3])}"
            f"{', …' if len(seen) > 3 else ''}), on whom it errs less than on others; give studies of other patients"
        )


def coverage_table(contrasts: ContrastSet, errors: Errors, before: Calibration | None) -> str:
    """What share of the brain the 90 % interval covers with the old factors, and with those of all other studies."""
    lines = ["the share of the brain within the 90 % interval, mean of the studies (the least)"]
    lines += [f"{'contrast':10}{'sources':9}{'before':15}calibrated on the others"]
    for name, label in zip(contrasts.names, contrasts.labels, strict=True):
        for n in range(1, len(contrasts)):
            old = errors.covered(name, n, before.half_width[name][n - 1] if before else 1.0)
            new = errors.covered_left_out(name, n)
            shares = [f"{each.mean():.2f} ({each.min():.2f})" for each in (old, new)]
            lines.append(f"{label:10}{n:<9}{shares[0]:15}{shares[1]}")
    return "\n".join(lines)
