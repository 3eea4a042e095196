"""The command line, ``python -m apt_monai``: from phantoms or raw scans to a trained model, volumes and tables.

Training, synthesis and evaluation are the bundles' own commands (``python -m monai.bundle run ...``): each is printed
before it runs, so that it can be used and changed without this module.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apt_monai.cli.demo import Demo
from apt_monai.cli.launch import BundleError, config_files, run_bundle
from apt_monai.codebook import PriorCodebook
from apt_monai.contrasts import ADNI, BRATS, CONTRAST_SETS, ContrastSet, get_contrast_set
from apt_monai.data import read_studies, synthetic_path
from apt_monai.models import find_bundle_root, find_model_dir, load_model_settings
from apt_monai.phantom import write_phantom_dataset
from apt_monai.preprocessing.study import MASK_TOOLS, PreprocessingSettings, preprocess_cohort
from apt_monai.transforms import LoadStudyd
from apt_monai.visualize import draw_codebook

PROGRAM = "python -m apt_monai"
RAW = "adni-raw"  # the phantom that is to be preprocessed
CODEBOOK_NAME = "codebook.json"


# The commands. Each returns the exit status; None is 0.


def _phantom(arguments: argparse.Namespace) -> None:
    studies = write_phantom_dataset(
        arguments.out, arguments.dataset, arguments.subjects, arguments.seed, arguments.spacing
    )
    if arguments.dataset == RAW:
        step, words = "preprocess", ["preprocess", arguments.out, f"{arguments.out}-preprocessed"]
    else:
        words = ["train", arguments.out, "--dataset", arguments.dataset, "--overlay", "demo.yaml"]
        step = "train, at a size for phantoms,"
    print(f"{len(studies)} studies in {arguments.out}. Next, {step} with\n  {PROGRAM} {shlex.join(words)}")


def _preprocess(arguments: argparse.Namespace) -> int:
    settings = PreprocessingSettings(grid=arguments.grid, mask=arguments.mask)
    studies = read_studies(arguments.raw, arguments.dataset, series=arguments.series)
    report = preprocess_cohort(studies, arguments.out, arguments.dataset, settings, arguments.workers)
    print(f"{report}\nin {arguments.out}; a study's matrices and mask are in its folder preprocessing/")
    if report.failed:
        print("once the failed ones are put right, the same command does them alone", file=sys.stderr)
        return 1
    words = ["train", arguments.out, "--dataset", arguments.dataset]
    print(f"Next, train with (on phantoms, add --overlay demo.yaml)\n  {PROGRAM} {shlex.join(words)}")
    return 0


def _train(arguments: argparse.Namespace) -> None:
    read_studies(arguments.data, arguments.dataset, require_all=True, series=arguments.series)
    model = arguments.model or Path(find_bundle_root(f"apt_{arguments.dataset}"), "models", "trained")
    finished = (model / "model.pt").exists()
    _run(arguments, "training", "train")
    if finished:
        print(f"\n{model}/model.pt was there already, nothing was trained: for other settings, name another --model")
    words = ["evaluate", arguments.data, "--dataset", arguments.dataset, "--model", str(model)]
    print(f"\nThe model is in {model}. Next, evaluate it with\n  {PROGRAM} {shlex.join(words)}")


def _synthesize(arguments: argparse.Namespace) -> None:
    given = {name: path for name in _contrast_names() if (path := getattr(arguments, name))}
    if (arguments.data is None) == (not given):
        raise ValueError(
            "give either DATA, a folder of studies, or one patient's files: "
            + ", ".join(f"--{name}" for name in _contrast_names())
        )
    unsaid = arguments.dataset is None and arguments.model is None
    if unsaid and arguments.data is not None:
        choices = " or ".join(f"--dataset {name}" for name in CONTRAST_SETS)
        raise ValueError(f"{arguments.data}: whose contrasts may be missing there? Give {choices}, or --model")
    arguments.dataset = _dataset_of(arguments, list(given))
    contrasts, overrides = get_contrast_set(arguments.dataset), {}
    if arguments.data is not None:
        read_studies(arguments.data, contrasts, series=arguments.series)
        written = [f"{arguments.out}/*/*_SYNTHETIC.nii.gz"]
    else:
        study = _read_patient(arguments, contrasts, given)
        overrides["studies"] = [study]
        targets = [name for name in contrasts.names if name not in study]
        written = [str(synthetic_path(arguments.out, arguments.subject, name)) for name in targets]
    _run(arguments, "run", "inference", **overrides)
    others = [name for name in _datasets_with(list(given)) if name != arguments.dataset]
    if unsaid and others:
        print(f"\nBy the bundle of {arguments.dataset}; another knows these contrasts too: --dataset {others[0]}")
    print("\nSynthesised, not acquired; for research, not for diagnosis or treatment:", *written, sep="\n  ")


def _read_patient(arguments: argparse.Namespace, contrasts: ContrastSet, given: dict[str, str]) -> dict[str, str]:
    """The study of one patient's files, which are read to be checked here, before the bundle's command starts."""
    if arguments.series:
        raise ValueError("--series is for DATA, a folder of studies; the flags say which contrast a file is")
    contrasts.check(given)
    if set(given) == set(contrasts.names):
        raise ValueError(
            f"nothing to synthesise: every contrast of {contrasts.name} is given ({', '.join(contrasts.names)})"
        )
    for name, path in given.items():
        if "synthetic" in Path(path).name.lower():
            raise ValueError(f"--{name} {path}: is synthesised, as its name says; give acquired contrasts alone")
    study = {"subject": arguments.subject} | {name: str(Path(path).absolute()) for name, path in given.items()}
    LoadStudyd(contrasts)(study)
    return study


def _evaluate(arguments: argparse.Namespace) -> None:
    arguments.dataset = _dataset_of(arguments)
    read_studies(arguments.data, arguments.dataset, require_all=True, series=arguments.series)
    overrides = {"cases": arguments.cases} if arguments.cases else {}
    _run(arguments, "evaluating", "evaluate", **overrides)
    print(f"\nTables: {arguments.out}/results.md (and .csv, .json); pictures: {arguments.out}/panel*.png")


PATHS = {"data": "dataset_dir", "series": "series", "model": "model_dir", "work": "work_dir", "out": "output_dir"}
"""What the bundles' configs call the paths that the commands take."""


def _run(arguments: argparse.Namespace, run_id: str, config: str, **overrides: Any) -> None:
    """Run the bundle's command; the paths that were given are made absolute."""
    given = {key: path for name, key in PATHS.items() if (path := getattr(arguments, name, None)) is not None}
    paths = {key: Path(path).absolute() for key, path in given.items()}
    configs = config_files(arguments.dataset, config, arguments.overlay, arguments.gpus)
    run_bundle(run_id, configs, paths | overrides | dict(arguments.set), arguments.gpus)


def _contrast_names() -> list[str]:
    """The names of all sets, each once."""
    return list(dict.fromkeys(name for contrasts in CONTRAST_SETS.values() for name in contrasts.names))


def _datasets_with(names: Sequence[str]) -> list[str]:
    return [contrasts.name for contrasts in CONTRAST_SETS.values() if set(names) <= set(contrasts.names)]


def _dataset_of(arguments: argparse.Namespace, names: Sequence[str] = ()) -> str:
    """The dataset that was named, or else that of the model, or else the first that has all these contrasts."""
    if arguments.model is not None:
        trained = get_contrast_set(str(load_model_settings(arguments.model).get("contrasts"))).name
        if arguments.dataset not in (None, trained):
            raise ValueError(f"{arguments.model}: is a model of {trained}, not of {arguments.dataset}; name another")
        return trained
    if arguments.dataset is not None:
        return arguments.dataset
    fitting = _datasets_with(names)
    if fitting:
        return fitting[0]
    sets = "; ".join(f"{contrasts.name} has {', '.join(contrasts.names)}" for contrasts in CONTRAST_SETS.values())
    raise ValueError(f"no dataset has {', '.join(names)} together: {sets}; leave out what the model does not know")


def _codebook_show(arguments: argparse.Namespace) -> None:
    path = arguments.path
    if path is None:
        bundle = find_bundle_root(f"apt_{arguments.dataset}")
        path = find_model_dir(None, bundle)
    if path.is_dir():
        path = path / CODEBOOK_NAME
    codebook = PriorCodebook.read(path)
    print(f"{path}\n\n{codebook_text(codebook)}")
    if arguments.picture:
        print(f"\nDrawn in {draw_codebook(arguments.picture, codebook)}")


def codebook_text(codebook: PriorCodebook, best: int = 3) -> str:
    """A codebook for people to read: each target's entries, and which of them is used for each subset of contrasts.

    Args:
        codebook: the codebook.
        best: how many entries of each target are listed, beside the best one of each source: no other is ever used.

    Example::

        >>> from apt_monai.codebook import CodebookEntry
        >>> curves = {"unchanged": (-1, -1 / 3, 1 / 3, 1)}
        >>> def entries_of(best, other):
        ...     return [CodebookEntry(best, "unchanged", 2, 0.9, 1.25), CodebookEntry(other, "unchanged", 0, 0.7, 1.25)]
        >>> entries = {"t1": entries_of("t2", "pd"), "t2": entries_of("pd", "t1"), "pd": entries_of("t2", "t1")}
        >>> book = PriorCodebook(ADNI, entries, curves, "ab12", "tiny", "", num_subjects=1, num_slices=2)
        >>> print(codebook_text(book))
        Prior codebook of adni: 2 training slices of 1 subjects, encoder tiny (ab12)
        <BLANKLINE>
        target  rank  source  curve      won     similarity  scale
        t1      #1    t2      unchanged  100.0%   0.900      1.250
                #2    pd      unchanged    0.0%   0.700      1.250
        t2      #1    pd      unchanged  100.0%   0.900      1.250
                #2    t1      unchanged    0.0%   0.700      1.250
        pd      #1    t2      unchanged  100.0%   0.900      1.250
                #2    t1      unchanged    0.0%   0.700      1.250
        won: the share of the slices in which it was the most similar; similarity: mean cosine; scale: σ, which the
        transformed source is multiplied by. An entry that is not listed is never used.
        <BLANKLINE>
        Used, by which contrasts are acquired (left) and synthesised (top)
        acquired  t1     t2     pd
        t1+t2     -      -      #1 t2
        t1+pd     -      #1 pd  -
        t2+pd     #1 t2  -      -
        t1        -      #2 t1  #2 t1
        t2        #1 t2  -      #1 t2
        pd        #2 pd  #1 pd  -
    """
    contrasts = codebook.contrasts
    ranks = {
        target: {entry: f"#{i}" for i, entry in enumerate(entries, start=1)}
        for target, entries in codebook.entries.items()
    }
    table = [["target", "rank", "source", "curve", "won", "similarity", "scale"]]
    for target in contrasts.names:
        usable = {codebook.lookup(target, [source]) for source in contrasts.names if source != target}
        listed = [e for i, e in enumerate(codebook.entries[target]) if i < best or e in usable]
        for entry in listed:
            share = entry.count / max(codebook.num_slices, 1)
            numbers = [f"{share:6.1%}", f"{entry.similarity:6.3f}", f"{entry.scale:.3f}"]
            name = target if entry is listed[0] else ""
            table.append([name, ranks[target][entry], entry.source, entry.curve, *numbers])

    used = [["acquired", *contrasts.names]]
    for acquired in contrasts.subsets():
        row = ["+".join(acquired)]
        for target in contrasts.names:
            if target in acquired:
                row.append("-")
            else:
                entry = codebook.lookup(target, acquired)
                row.append(f"{ranks[target][entry]} {entry.source}")
        used.append(row)
    return f"""\
Prior codebook of {contrasts.name}: {codebook.num_slices} training slices of {codebook.num_subjects} subjects, \
encoder {codebook.encoder_source} ({codebook.encoder_fingerprint})

{_in_columns(table)}
won: the share of the slices in which it was the most similar; similarity: mean cosine; scale: σ, which the
transformed source is multiplied by. An entry that is not listed is never used.

Used, by which contrasts are acquired (left) and synthesised (top)
{_in_columns(used)}"""


def _in_columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _demo(arguments: argparse.Namespace) -> None:
    Demo(
        arguments.out,
        arguments.dataset,
        arguments.subjects,
        arguments.spacing,
        arguments.iterations,
        arguments.unroll_iterations,
        arguments.slices_per_subject,
    ).run()


# What the arguments may be


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from ``lowest`` on."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid: give a whole number, {lowest} or more")
        return number

    return whole_number


def plain_name(text: str) -> str:
    """A type for argparse: a name that a folder and a config can have."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: give letters, digits, '_', '-' and '.'")
    return text


def key_and_value(text: str) -> tuple[str, str]:
    """A type for argparse: ``KEY=VALUE``, as a pair."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: give KEY=VALUE, such as seed=7")
    return key, value


def grid(text: str) -> tuple[str, ...] | float:
    """A type for argparse: names of contrasts, separated by commas, or a number of mm."""
    try:
        return float(text)
    except ValueError:
        return tuple(text.split(","))


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the defaults where there are any, and the example as it is typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or isinstance(action.default, bool | list)
        return action.help if unsaid else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The parser; each subcommand's function is its ``command``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="APT on MONAI: synthesis of missing brain-MR contrasts. Research software, not a medical device. "
        "train, synthesize and evaluate are commands of the bundle (python -m monai.bundle run): each is printed "
        "before it runs.",
        allow_abbrev=False,
    )
    datasets, default = list(CONTRAST_SETS), PreprocessingSettings()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")

    series = argparse.ArgumentParser(add_help=False)
    series.add_argument(
        "--series",
        metavar="FILE",
        help="for DICOM and other layouts than a folder a study or BIDS: a JSON file that says which series is which "
        'contrast, such as {"MPRAGE*": "t1", "PD_T2*": {"pd": 1, "t2": 2}, "*localizer*": null}',
    )

    bundle = argparse.ArgumentParser(add_help=False)
    passed_on = bundle.add_argument_group("how the bundle's command runs")
    passed_on.add_argument(
        "--gpus",
        type=at_least(1),
        default=1,
        metavar="N",
        help="how many GPUs of this machine share the work; without GPUs, processes",
    )
    passed_on.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="FILE",
        help="a config that is laid over the bundle's: one of its own by name (demo.yaml), or a path; repeatable",
    )
    passed_on.add_argument(
        "--set",
        action="append",
        type=key_and_value,
        default=[],
        metavar="KEY=VALUE",
        help="another value for a key of the bundle's config, such as seed=7; repeatable",
    )

    def add_to(commands: Any, name: str, what: str, command: Any, example: str, *parents: Any) -> Any:
        added = commands.add_parser(
            name,
            help=what,
            description=what,
            epilog=f"example:\n  {PROGRAM} {example}",
            parents=[*parents, common],
            formatter_class=Help,
            allow_abbrev=False,
        )
        added.set_defaults(command=command)
        return added

    commands = parser.add_subparsers(dest="name", required=True)
    phantom = add_to(
        commands, "phantom", "write digital phantoms, as the NIfTI files of a dataset", _phantom,
        "phantom data --dataset brats --spacing 3",
    )  # fmt: skip
    phantom.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    phantom.add_argument(
        "--dataset",
        default=BRATS.name,
        choices=[*datasets, RAW],
        help=f"whose format and contrasts; {RAW}: as a scanner gives them, to be preprocessed",
    )
    phantom.add_argument("--subjects", type=at_least(1), default=20, metavar="N", help="how many, 1 or more")
    phantom.add_argument(
        "--seed", type=at_least(0), default=0, metavar="S", help="0 or above; the same seed, the same bytes"
    )
    phantom.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="voxel edge in mm, at most 10; real studies have 1"
    )

    preprocess = add_to(
        commands, "preprocess", "raw scans to skull-stripped volumes on one grid, as training and synthesis need them",
        _preprocess, "preprocess raw preprocessed --workers 4", series,
    )  # fmt: skip
    preprocess.add_argument("raw", metavar="RAW", help="the folder of studies: a folder each, BIDS, or see --series")
    preprocess.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    preprocess.add_argument("--dataset", default=ADNI.name, choices=datasets, help="whose contrasts")
    preprocess.add_argument(
        "--grid",
        type=grid,
        metavar="CONTRASTS|MM",
        help="the first of these contrasts that a study has gives the grid of all; or a voxel edge in mm, in "
        "the pose of the reference scan (default: for brats 1 mm; for adni pd,t2,t1, so that PD and T2 keep their "
        "voxels and T1 becomes coarser, where a finer grid would invent two of three slices of PD and T2)",
    )
    preprocess.add_argument(
        "--mask",
        default=default.mask,
        metavar="{" + ",".join(MASK_TOOLS) + "}|PATH",
        help="the brain mask: deepbet, a network for T1 (T1Gd where there is none, else the filters), nearest to the "
        "truth on the phantom (pip install 'apt_monai[preprocess]'); itk, filters that need no other package; or masks "
        "of your own, a path with {subject} in it, such as masks/{subject}_mask.nii.gz",
    )
    preprocess.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N", help="studies at a time; each takes a core and 2 GB"
    )

    train = add_to(
        commands, "train", "train on a dataset: the fusion module, the prior codebook, the diffusion model", _train,
        "train data --dataset brats --model model --set encoder_source=FOLDER", series, bundle,
    )  # fmt: skip
    train.add_argument("data", metavar="DATA", help="the folder of studies, each with every contrast")
    train.add_argument("--dataset", default=BRATS.name, choices=datasets, help="which bundle")
    train.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="where the model goes; continued if interrupted (default: models/trained of the bundle)",
    )
    train.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="slices, checkpoints, TensorBoard's logs; can be deleted when the model is finished (default: work in the "
        "model's folder)",
    )

    synthesize = add_to(
        commands, "synthesize", "write the contrasts that were not acquired, as NIfTI on the acquired grid",
        _synthesize, "synthesize --t1 a.nii.gz --t2 b.nii.gz --out DIR", series, bundle,
    )  # fmt: skip
    synthesize.add_argument(
        "data", metavar="DATA", nargs="?", help="a folder of studies that lack contrasts; not with one patient's files"
    )
    patient = synthesize.add_argument_group(
        "one patient",
        "What was acquired, on one grid and skull-stripped: for each contrast a NIfTI file, or the folder of a DICOM "
        "series\n(FOLDER::echo=2 for its second echo).",
    )
    for name in _contrast_names():
        patient.add_argument(f"--{name}", metavar="PATH")
    patient.add_argument(
        "--subject", type=plain_name, default="study", metavar="NAME", help="what the patient's volumes are called"
    )
    synthesize.add_argument(
        "--dataset",
        choices=datasets,
        help="which bundle; needed with DATA, unless --model says it (default for one patient: the model's; without "
        f"--model the first of {', '.join(datasets)} that has the contrasts given)",
    )
    synthesize.add_argument(
        "--out", type=Path, default=Path("synthetic"), metavar="DIR", help="the folder; what it has already is kept"
    )

    evaluate = add_to(
        commands, "evaluate", "measure how well contrasts that were acquired are synthesised from the others",
        _evaluate, "evaluate data --dataset brats --cases all --out eval", series, bundle,
    )  # fmt: skip
    evaluate.add_argument(
        "data",
        metavar="DATA",
        help="the folder that the model was trained on, of which the test subjects of its split are used; of another "
        "folder, all: --set 'split_file=$None'",
    )
    evaluate.add_argument(
        "--dataset", choices=datasets, help=f"which bundle (default: the model's; without --model {datasets[0]})"
    )
    evaluate.add_argument(
        "--cases", choices=["all"], help="every subset of acquired contrasts (default: each contrast from all others)"
    )
    evaluate.add_argument(
        "--out", type=Path, default=Path("eval"), metavar="DIR", help="the folder; continued if interrupted"
    )
    evaluate.add_argument(
        "--work", type=Path, metavar="DIR", help="the slices; can be deleted (default: work of the bundle)"
    )
    for command in (synthesize, evaluate):
        command.add_argument(
            "--model",
            type=Path,
            metavar="DIR",
            help="the trained model's folder (default: models/trained of the bundle, else the phantom weights that "
            "come with it)",
        )

    codebook = commands.add_parser("codebook", help="show a prior codebook", description="show a prior codebook")
    show = add_to(
        codebook.add_subparsers(dest="codebook_command", required=True),
        "show", "print which transform of which contrast each contrast is started from", _codebook_show,
        "codebook show model --picture codebook.png",
    )  # fmt: skip
    show.add_argument("path", nargs="?", type=Path, metavar="PATH", help="a model's folder, or its codebook.json")
    show.add_argument(
        "--dataset", default=BRATS.name, choices=datasets, help="without PATH: whose bundle's model is shown"
    )
    show.add_argument("--picture", type=Path, metavar="FILE", help="draw it as well, such as codebook.png")

    demo = add_to(
        commands, "demo", "the whole method on phantoms: train, synthesise, evaluate, and show what comes out", _demo,
        "demo demo",
    )  # fmt: skip
    demo.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    demo.add_argument("--dataset", default=BRATS.name, choices=datasets, help="which bundle")
    demo.add_argument("--subjects", type=at_least(3), default=20, metavar="N", help="how many phantoms, 3 or more")
    demo.add_argument(
        "--spacing", type=float, metavar="MM", help="their voxel edge in mm, at most 10 (default: as demo.yaml says)"
    )
    demo.add_argument(
        "--iterations",
        type=at_least(1),
        metavar="N",
        help="of the diffusion model's training (default: as demo.yaml says)",
    )
    demo.add_argument(
        "--unroll-iterations", type=at_least(0), default=4, metavar="N", help="of stage 2; the paper has 50"
    )
    demo.add_argument("--slices-per-subject", type=at_least(1), default=1, metavar="N", help="to evaluate")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit status: 0; 1 where studies of a cohort failed; 2 after an error, which is one line on the standard
        error; 130 if interrupted; that of a bundle's command which failed.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, BundleError) as error:
        if arguments.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, BundleError) else 2


if __name__ == "__main__":
    sys.exit(main())
