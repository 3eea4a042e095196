"""``synthesize``: the bundle's inference."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from apt_monai.cli.choices import bundle_of, contrasts_of, datasets_with
from apt_monai.cli.exports import check_exports, write_exports
from apt_monai.cli.launch import run_config
from apt_monai.contrasts import CONTRAST_SETS, ContrastSet
from apt_monai.data.readers import read_studies
from apt_monai.errors import StudyError
from apt_monai.io.series_path import parse_series_path
from apt_monai.io.sidecar import SYNTHETIC, is_synthetic_name


def run(arguments: argparse.Namespace) -> int:
    """Write the absent contrasts of a folder of studies or of one patient, and say where they are."""
    given = {name: path for name in arguments.contrast_names if (path := getattr(arguments, name))}
    if (arguments.data is None) == (not given):
        raise ValueError(
            "give either DATA, a folder of studies, or one patient's files: "
            + ", ".join(f"--{name}" for name in arguments.contrast_names)
        )
    unsaid = arguments.dataset is None and arguments.model is None
    if unsaid and arguments.data is not None:
        choices = " or ".join(f"--dataset {name}" for name in CONTRAST_SETS)
        raise ValueError(f"{arguments.data}: whose contrasts may be missing there? Give {choices}, or --model")
    contrasts = contrasts_of(arguments, [*given, *(arguments.target or ())])
    contrasts.check(arguments.target or ())
    overrides: dict[str, object] = {"targets": arguments.target} if arguments.target else {}
    if arguments.report:
        overrides["write_prior"] = True
    if arguments.grid and not arguments.raw:
        raise ValueError("--grid says onto which scan's grid --raw puts the volumes back: give --raw too")
    if arguments.data is not None:
        studies = read_studies(arguments.data, contrasts, series=arguments.series)
        written = [f"{arguments.out}/*/*_{SYNTHETIC}.nii.gz"]
    else:
        overrides["studies"] = studies = [_read_patient(arguments, contrasts, given)]
        targets = arguments.target or [name for name in contrasts.names if name not in given]
        written = [f"{arguments.out}/{arguments.subject}/{arguments.subject}_{t}_{SYNTHETIC}.nii.gz" for t in targets]
    check_exports(arguments, contrasts, studies)
    import ignite.distributed as idist  # after the checks: seconds

    from apt_monai.distributed import gather, is_lead, own_share, start_ranks, stop_ranks

    start_ranks("cpu")  # of torchrun, which share all that follows
    if idist.get_world_size() > 1:
        overrides["finalize"] = "$None"  # they stay together after the synthesis
    failed = _run_raw(arguments, contrasts, studies, overrides) if arguments.raw else {}
    if not arguments.raw:
        run_config(arguments, bundle_of(contrasts), "run", "inference", **overrides)
    own = own_share(study for study in studies if study["subject"] not in failed)
    more = write_exports(arguments, contrasts, own)
    more += _write_reports(arguments, contrasts, own) if arguments.report else []
    written += [path for paths in gather(more) for path in paths]
    if is_lead():
        others = [name for name in datasets_with(list(given)) if name != contrasts.name]
        if unsaid and others:
            print(f"\nBy the bundle of {contrasts.name}; another knows these contrasts too: --dataset {others[0]}")
        _print_written(arguments, written, failed)
    stop_ranks()
    return 1 if failed else 0


def _print_written(arguments: argparse.Namespace, written: Sequence[str], failed: Mapping[str, str]) -> None:
    """Say where everything is, and why studies failed."""
    print("\nSynthesised, not acquired; for research, not for diagnosis or treatment:", *written, sep="\n  ")
    if any(arguments.out.glob(f"*/*_{SYNTHETIC}_uncertainty.nii.gz")):
        print("Beside each, half the width of its 90 % interval: ..._uncertainty.nii.gz")
    if arguments.raw:
        print(f"Look at *_registration.png and *_SYNTHETIC.png there; the steps between are in {arguments.out}/steps")
    for subject, reason in failed.items():
        print(f"failed: {subject}: {reason}", file=sys.stderr)


def _run_raw(
    arguments: argparse.Namespace,
    contrasts: ContrastSet,
    studies: Sequence[Mapping[str, str]],
    overrides: dict[str, object],
) -> dict[str, str]:
    """Preprocess raw studies, synthesise by the bundle, and put the volumes back; why studies failed, by name."""
    from apt_monai import raw  # after the checks of the command line: seconds

    raw.check_raw(studies, contrasts, arguments.target, arguments.grid)
    prepared, failed = raw.prepare(studies, arguments.out, contrasts, arguments.target, arguments.grid)
    if prepared:
        overrides["studies"] = prepared
        out = arguments.out / raw.STEPS / "synthesised"
        bundles = argparse.Namespace(**vars(arguments) | {"data": None, "series": None, "out": out})
        run_config(bundles, bundle_of(contrasts), "run", "inference", **overrides)

    def restore(study: Mapping[str, str]) -> None:
        grid = raw.grid_of(study, contrasts, arguments.target, arguments.grid)
        raw.restore(study, arguments.out, contrasts, grid)

    return failed | raw.each([study for study in studies if study["subject"] not in failed], restore)


def _write_reports(
    arguments: argparse.Namespace, contrasts: ContrastSet, studies: Sequence[Mapping[str, str]]
) -> list[str]:
    """A report of each study that something was synthesised for; those that lack nothing have none.

    Of raw scans it shows the prepared volumes, which lie on each other, and the picture of how they were registered.
    """
    from apt_monai.report import report_path, write_report

    missing = [study for study in studies if arguments.target or not set(contrasts.names) <= set(study)]
    if not arguments.raw:
        return [str(write_report(study, arguments.out, contrasts)) for study in missing]
    from apt_monai.raw import STEPS, grid_of, prepared_study

    written = []
    for study in missing:
        subject, grid = study["subject"], grid_of(study, contrasts, arguments.target, arguments.grid)
        prepared = prepared_study(subject, arguments.out, contrasts, grid)
        path = report_path(arguments.out, subject)
        pictures = {"How the scans were registered": path.with_name(f"{subject}_registration.png")}
        written.append(str(write_report(prepared, arguments.out / STEPS / "synthesised", contrasts, path, pictures)))
    return written


def _read_patient(arguments: argparse.Namespace, contrasts: ContrastSet, given: dict[str, str]) -> dict[str, str]:
    """The study of one patient's files; what can be known without reading them is checked."""
    if arguments.series:
        raise ValueError("--series is for DATA, a folder of studies; the flags say which contrast a file is")
    contrasts.check(given)
    if set(given) == set(contrasts.names) and not arguments.target:
        raise ValueError(
            f"nothing to synthesise: every contrast of {contrasts.name} is given ({', '.join(contrasts.names)}); "
            "to synthesise one nevertheless, name it: --target"
        )
    for name, path in given.items():
        if is_synthetic_name(path):
            raise ValueError(f"--{name} {path}: is synthesised, as its name says; give acquired contrasts alone")
        if not Path(path).exists() and not parse_series_path(path)[0].is_dir():
            raise StudyError(f"--{name} {path}: no such file or folder; correct the path")
    return {"subject": arguments.subject} | {name: str(Path(path).absolute()) for name, path in given.items()}
