"""The command line's parser: one function a command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt_monai.cli.arguments import Help, at_least, grid, key_and_value, plain_name
from apt_monai.contrasts import ADNI, BRATS, CONTRAST_SETS, get_contrast_set
from apt_monai.places import SHIPPED, TRAINABLE, read_settings

PROGRAM = "python -m apt_monai"
SHIPPED_WEIGHTS = "shipped"
DATASETS = list(CONTRAST_SETS)
RAW = {f"{dataset}-raw": dataset for dataset in DATASETS}  # the phantoms that are to be preprocessed
DATASET = f"{{{','.join(DATASETS)}}}|FILE"
WHOSE = "whose contrasts; FILE: a contrast set of your own, in YAML"
MASK = "deepbet"  # as PreprocessingSettings has it, which takes seconds to import


def contrast_names(argv: Sequence[str]) -> list[str]:
    """The names of all sets, and of the set of the model that a command line names, each once."""
    sets = list(CONTRAST_SETS.values())
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--model")
    with suppress(argparse.ArgumentError, ValueError, OSError):  # the command itself says what is wrong
        model = peek.parse_known_args(argv)[0].model
        sets += [get_contrast_set(read_settings(model)["contrasts"])] if model else []
    return list(dict.fromkeys(name for contrasts in sets for name in contrasts.names))


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser; what ``name`` says a command is called is its module here.

    Args:
        argv: the command line: ``synthesize`` takes the contrasts of the model that it names.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="APT on MONAI: synthesis of missing brain-MR contrasts. Research software, not a medical device. "
        "train, synthesize and evaluate are commands of the bundle (python -m monai.bundle run): each is printed "
        "before it runs.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for add in (_phantom, _preprocess, _train, _calibrate, _evaluate, _restore, _codebook, _table, _figure, _demo):
        add(commands)
    _synthesize(commands, contrast_names(argv))
    return parser


def _add(
    commands: Any, name: str, what: str, example: str, *parents: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")

    return commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"example:\n  {PROGRAM} {example}",
        parents=[*parents, common],
        formatter_class=Help,
        allow_abbrev=False,
    )


def _series() -> argparse.ArgumentParser:
    series = argparse.ArgumentParser(add_help=False)
    series.add_argument(
        "--series",
        metavar="FILE",
        help="for DICOM and other layouts than a folder a study or BIDS: a JSON file that says which series is which "
        'contrast, such as {"MPRAGE*": "t1", "PD_T2*": {"pd": 1, "t2": 2}, "*localizer*": null}',
    )
    return series


def _bundle() -> argparse.ArgumentParser:
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
    return bundle


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the trained model's folder (default: what train trained without --model, else the phantom weights "
        "that come with the bundle)",
    )


def _method(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--method",
        choices=TRAINABLE,
        help="without --model: direct, our own method, one pass a slice, or published, the paper's, or a system that "
        "it is compared with, once trained (default: which of direct and published was trained, else direct)",
    )


def _phantom(commands: Any) -> None:
    phantom = _add(
        commands,
        "phantom",
        "write digital phantoms, as the NIfTI or DICOM files of a dataset",
        "phantom data --dataset brats --spacing 3",
    )
    phantom.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    phantom.add_argument(
        "--dataset",
        default=BRATS.name,
        choices=[*DATASETS, *RAW],
        help=f"whose format and contrasts; {', '.join(RAW)}: as a scanner gives them, to be preprocessed",
    )
    phantom.add_argument("--subjects", type=at_least(1), default=20, metavar="N", help="how many, 1 or more")
    phantom.add_argument(
        "--seed", type=at_least(0), default=0, metavar="S", help="0 or above; the same seed, the same bytes"
    )
    phantom.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="voxel edge in mm, at most 10; real studies have 1"
    )
    phantom.add_argument(
        "--varied",
        action="store_true",
        help=f"scanner, protocol, voxels and lesions differ from study to study, as between hospitals; not for "
        f"{', '.join(RAW)}",
    )
    phantom.add_argument("--noiseless", action="store_true", help="the same studies without their noise")
    phantom.add_argument("--dicom", action="store_true", help=f"DICOM series, one file a slice; of {', '.join(RAW)}")


def _preprocess(commands: Any) -> None:
    preprocess = _add(
        commands,
        "preprocess",
        "raw scans to skull-stripped volumes on one grid, as training and synthesis need them",
        "preprocess raw preprocessed --workers 4",
        _series(),
    )
    preprocess.add_argument("raw", metavar="RAW", help="the folder of studies: a folder each, BIDS, or see --series")
    preprocess.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    preprocess.add_argument("--dataset", default=ADNI.name, metavar=DATASET, help=WHOSE)
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
        default=MASK,
        metavar="{itk,deepbet}|PATH",
        help="the brain mask: deepbet, a network for T1 (else T1Gd, FLAIR, or PD and T2), nearest to the truth "
        "on the phantom (pip install 'apt_monai[preprocess]'); itk, filters that need no other package; or masks "
        "of your own, a path with {subject} in it, such as masks/{subject}_mask.nii.gz",
    )
    preprocess.add_argument(
        "--template",
        metavar="mni152|reference|PATH",
        help="in whose pose isotropic volumes come: MNI152's (needs nilearn), the reference scan's own, or that of a "
        "skull-stripped head, such as SRI24 (default: mni152 for brats)",
    )
    preprocess.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N", help="studies at a time; each takes a core and 2 GB"
    )


def _train(commands: Any) -> None:
    train = _add(
        commands,
        "train",
        "train on a dataset",
        "train data --dataset brats --model model",
        _series(),
        _bundle(),
    )
    train.add_argument(
        "data", metavar="DATA", nargs="?", help="the folder of studies, each with every contrast; or --phantom"
    )
    train.add_argument(
        "--method",
        choices=TRAINABLE,
        default="direct",
        help="direct: our own method, one network, one pass a slice; published: the paper's, with a vision encoder; or "
        "a system that it is compared with",
    )
    train.add_argument(
        "--from",
        dest="start_from",
        metavar=f"{SHIPPED_WEIGHTS}|DIR",
        help=f"go on from trained weights, on a few studies of your own: {SHIPPED_WEIGHTS}, those that come with the "
        "bundle, or a model's folder (default: from nothing)",
    )
    train.add_argument(
        "--phantom", action="store_true", help="train on the digital phantom that the bundle writes, instead of DATA"
    )
    train.add_argument("--dataset", default=BRATS.name, metavar=DATASET, help=WHOSE)
    train.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="where the model goes; continued if interrupted (default: in your user folder, which is named at the end)",
    )
    train.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="slices, checkpoints, TensorBoard's logs; can be deleted when the model is finished (default: work in the "
        "model's folder)",
    )


def _table(commands: Any) -> None:
    table = _add(
        commands,
        "table",
        "make tables of the paper: train what is not trained, evaluate what is not evaluated",
        "table 1 --data DATA --dataset brats --out study",
    )
    table.add_argument("numbers", metavar="N", nargs="+", choices=[*"1234567"], help="which tables, 1 to 7")
    _comparison(table)
    table.add_argument("--cases", choices=["all"], help="every subset (default: each contrast from all others)")
    table.add_argument(
        "--dice",
        type=at_least(1),
        default=0,
        metavar="N",
        help="also the Dice of a tumour segmentation network, trained for N iterations on acquired contrasts, when one "
        "contrast is replaced by each row's",
    )


def _figure(commands: Any) -> None:
    figure = _add(
        commands,
        "figure",
        "draw figures of the paper: a slice by every system (4: BraTS, 5: ADNI), or from the fused features alone (6)",
        "figure 4 --data DATA --dataset brats --out study",
    )
    figure.add_argument("numbers", metavar="N", nargs="+", choices=[*"456"], help="which figures, 4 to 6")
    _comparison(figure)


def _comparison(command: argparse.ArgumentParser) -> None:
    """What tables and figures have in common: the data, how systems are trained, how they are evaluated."""
    command.add_argument("--data", type=Path, metavar="DATA", help="the folder of studies, each with every contrast")
    command.add_argument(
        "--phantom",
        type=at_least(3),
        metavar="SUBJECTS",
        help="instead of DATA: so many digital phantoms of 3 mm, which are written into OUT/phantoms",
    )
    command.add_argument("--dataset", default=BRATS.name, choices=DATASETS, help="whose contrasts")
    command.add_argument(
        "--out", type=Path, default=Path("study"), metavar="OUT", help="models, cells and tables; continued"
    )
    command.add_argument(
        "--budget",
        type=float,
        metavar="TFLOP",
        help="small sizes, and so many 10^12 floating-point operations for each training (default: each system's "
        "published size and iterations)",
    )
    command.add_argument(
        "--given",
        action="append",
        type=key_and_value,
        default=[],
        metavar="METHOD=DIR",
        help="a trained model to take as it is, such as published=bundles/apt_brats/models/published; repeatable",
    )
    command.add_argument(
        "--slices-per-subject", type=at_least(2), default=8, metavar="N", help="of each test subject, an even number"
    )
    command.add_argument("--subjects", type=at_least(1), metavar="N", help="at most so many test subjects")


def _synthesize(commands: Any, names: list[str]) -> None:
    synthesize = _add(
        commands,
        "synthesize",
        "write the contrasts that were not acquired, as NIfTI on the acquired grid",
        "synthesize --t1 a.nii.gz --t2 b.nii.gz --out DIR",
        _series(),
        _bundle(),
    )
    synthesize.add_argument(
        "data", metavar="DATA", nargs="?", help="a folder of studies that lack contrasts; not with one patient's files"
    )
    patient = synthesize.add_argument_group(
        "one patient",
        "What was acquired, on one grid and skull-stripped: for each contrast a NIfTI file, or the folder of a DICOM "
        "series\n(FOLDER::echo=2 for its second echo).",
    )
    for name in names:
        patient.add_argument(f"--{name}", metavar="PATH")
    synthesize.set_defaults(contrast_names=names)
    patient.add_argument(
        "--subject", type=plain_name, default="study", metavar="NAME", help="what the patient's volumes are called"
    )
    synthesize.add_argument(
        "--target",
        action="append",
        metavar="CONTRAST",
        help="a contrast to write; one that was acquired, but spoilt, is then no source; repeatable (default: what is "
        "missing)",
    )
    synthesize.add_argument(
        "--dataset",
        metavar=DATASET,
        help="whose contrasts; needed with DATA, unless --model says it (default for one patient: the model's; without "
        f"--model the first of {', '.join(DATASETS)} that has the contrasts given)",
    )
    synthesize.add_argument(
        "--out", type=Path, default=Path("synthetic"), metavar="DIR", help="the folder; what it has already is kept"
    )
    _around(synthesize)
    _model(synthesize)
    _method(synthesize)


def _around(synthesize: argparse.ArgumentParser) -> None:
    """What comes before and after a synthesis: raw scans, other formats."""
    synthesize.add_argument(
        "--raw",
        action="store_true",
        help="the scans are as the scanner gave them, with skull, each on a grid of its own: they are preprocessed, "
        "and the volumes put back onto the grid of one of them",
    )
    synthesize.add_argument(
        "--grid",
        metavar="CONTRAST",
        help="with --raw: onto which scan's grid (default: the scan nearest in contrast to what is missing)",
    )
    synthesize.add_argument(
        "--dicom",
        action="store_true",
        help="each volume as a DICOM series of the patient's study too, in the folder dicom beside it, its uncertainty "
        "as a parametric map (pip install 'apt_monai[dicom]')",
    )
    synthesize.add_argument(
        "--dicom-reference",
        metavar="SERIES",
        help="for NIfTI files of one patient: the DICOM series, of the same study, that the volumes are written beside",
    )
    synthesize.add_argument(
        "--bids", type=Path, metavar="DIR", help="the volumes as a BIDS derivatives dataset too, in that folder"
    )
    synthesize.add_argument(
        "--report",
        action="store_true",
        help="for each study an HTML file to look at, complete in itself: acquired and synthetic contrasts side by "
        "side, uncertainty, findings, where the images come from; the published method's prior, where this run "
        "synthesises (it is written as ..._SYNTHETIC_prior.nii.gz)",
    )


def _restore(commands: Any) -> None:
    restore = _add(
        commands,
        "restore",
        "put synthesised volumes back onto the voxel grid of a raw scan",
        "restore synthetic preprocessed --out restored",
    )
    restore.add_argument("synthetic", type=Path, metavar="SYNTHETIC", help="the folder that synthesize wrote")
    restore.add_argument(
        "preprocessed", type=Path, metavar="PREPROCESSED", help="the folder that preprocess wrote, of the same studies"
    )
    restore.add_argument(
        "--out", type=Path, default=Path("restored"), metavar="DIR", help="the folder; what it has already is kept"
    )
    restore.add_argument(
        "--grid",
        metavar="CONTRAST",
        help="onto which scan's grid (default: for each volume that whose intensity scale it has)",
    )


def _evaluate(commands: Any) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        "measure how well contrasts that were acquired are synthesised from the others",
        "evaluate data --dataset brats --cases all --out eval",
        _series(),
        _bundle(),
    )
    evaluate.add_argument(
        "data",
        metavar="DATA",
        help="the folder that the model was trained on, of which the test subjects of its split are used; of another "
        "folder, all: --set 'split_file=$None'",
    )
    evaluate.add_argument(
        "--dataset", metavar=DATASET, help=f"whose contrasts (default: the model's; without --model {DATASETS[0]})"
    )
    evaluate.add_argument(
        "--cases", choices=["all"], help="every subset of acquired contrasts (default: each contrast from all others)"
    )
    evaluate.add_argument(
        "--against",
        action="append",
        default=[],
        metavar=f"{{{','.join(SHIPPED)}}}|DIR",
        help="a further model whose rows are in the same table: a method's, or that in a folder; repeatable",
    )
    evaluate.add_argument(
        "--out", type=Path, default=Path("eval"), metavar="DIR", help="the folder; continued if interrupted"
    )
    evaluate.add_argument(
        "--work", type=Path, metavar="DIR", help="the slices; can be deleted (default: in your user folder)"
    )
    evaluate.add_argument(
        "--report",
        action="store_true",
        help="also one HTML file: tables, how each subject scored, the worst cases with their pictures",
    )
    _model(evaluate)
    _method(evaluate)


def _calibrate(commands: Any) -> None:
    calibrate = _add(
        commands,
        "calibrate",
        "measure a trained model's uncertainty anew, on studies of your own that have every contrast",
        "calibrate data --dataset brats --out calibrated",
        _series(),
    )
    calibrate.add_argument(
        "data", metavar="DATA", help="the folder of studies, as synthesize takes them; of 20 patients or more"
    )
    calibrate.add_argument(
        "--dataset", metavar=DATASET, help=f"whose contrasts (default: the model's; without --model {DATASETS[0]})"
    )
    calibrate.add_argument(
        "--out", type=Path, default=Path("calibrated"), metavar="DIR", help="the folder of the calibrated model"
    )
    calibrate.add_argument(
        "--work", type=Path, metavar="DIR", help="the slices; can be deleted (default: in your user folder)"
    )
    _model(calibrate)


def _codebook(commands: Any) -> None:
    codebook = commands.add_parser("codebook", help="show a prior codebook", description="show a prior codebook")
    show = _add(
        codebook.add_subparsers(dest="codebook_command", required=True),
        "show",
        "print which transform of which contrast each contrast is started from",
        "codebook show model --picture codebook.png",
    )
    show.add_argument("path", nargs="?", type=Path, metavar="PATH", help="a model's folder, or its codebook.json")
    show.add_argument(
        "--dataset", default=BRATS.name, choices=DATASETS, help="without PATH: whose bundle's model is shown"
    )
    show.add_argument("--picture", type=Path, metavar="FILE", help="draw it as well, such as codebook.png")


def _demo(commands: Any) -> None:
    demo = _add(
        commands,
        "demo",
        "the whole method on phantoms: train, synthesise, evaluate, and show what comes out",
        "demo demo",
    )
    demo.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    demo.add_argument("--dataset", default=BRATS.name, choices=DATASETS, help="which bundle")
    demo.add_argument("--subjects", type=at_least(3), default=20, metavar="N", help="how many phantoms, 3 or more")
    demo.add_argument(
        "--spacing", type=float, metavar="MM", help="their voxel edge in mm, at most 10 (default: as demo.yaml says)"
    )
    demo.add_argument(
        "--iterations",
        type=at_least(1),
        metavar="N",
        help="of the training (default: as demo.yaml says)",
    )
    demo.add_argument(
        "--unroll-iterations",
        type=at_least(0),
        default=4,
        metavar="N",
        help="of the published stage 2; the paper has 50",
    )
    demo.add_argument(
        "--slices-per-subject", type=at_least(2), default=2, metavar="N", help="to evaluate, an even number"
    )
