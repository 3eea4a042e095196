"""The command line, ``python -m apt_monai``: phantoms, the demo and the benchmark.

Training, inference and evaluation are the bundle's own commands (``python -m monai.bundle run ...``); the demo runs
these and prints each before it runs.

Example::

    >>> main(["phantom", "phantom", "--subjects", "1", "--spacing", "8"])
    1 studies in phantom: train with --dataset_dir phantom
    0
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apt_monai.contrasts import BRATS, ContrastSet
from apt_monai.data import load_split, read_studies, synthetic_path
from apt_monai.data.phantom import write_phantom_dataset
from apt_monai.model_store import MODEL_FILES, complete_file, find_bundle_root
from apt_monai.profiling import run_benchmarks
from apt_monai.visualize import draw_volume

DEMO_SEED = 1  # of the phantom: the shipped weights were trained on that of seed 0, so every subject is new to them

OWN, SHIPPED = "own", "shipped"  # whose weights: also the names of folders

RESEARCH_NOTICE = """\
These are digital phantoms, not patients, and the vision encoder is untrained: the figures show that the method runs,
not how well it does on patients. Research software, not a medical device: not for diagnosis or treatment."""


class DemoError(RuntimeError):
    """A step of the demo that failed; what went wrong is what that step printed."""


# The demo


class Demo:
    """The whole method on phantoms, step by step; what is learned and synthesised is so by the bundle's own commands.

    Args:
        out: the demo's folder.
        subjects: how many phantoms, 3 or more.
        spacing: their voxel edge in mm.
        iterations: of the diffusion model's training; None: as in demo.yaml.
        unroll_iterations: N, the iterations of stage 2.
        slices_per_subject: how many slices of each test subject are evaluated.
    """

    contrasts = BRATS

    def __init__(
        self,
        out: str | Path,
        subjects: int,
        spacing: float,
        iterations: int | None,
        unroll_iterations: int,
        slices_per_subject: int,
    ) -> None:
        self.out = Path(out).absolute()
        self.subjects = subjects
        self.spacing = spacing
        self.iterations = iterations
        self.slices_per_subject = slices_per_subject
        # What makes synthesis fast enough for a demo; the configs' defaults are the paper's
        self.sampling = {
            "sampling#guidance_gradient": "image",  # a third of the cost, see TwoStageInferer
            "sampling#unroll_iterations": unroll_iterations,
        }
        bundle = Path(find_bundle_root("apt_brats"))
        self.configs = bundle / "configs"
        shipped = bundle / "models"
        self.models = {OWN: self.out / "model"}
        if all((shipped / name).is_file() for name in MODEL_FILES):
            self.models[SHIPPED] = shipped
        else:
            print(f"No shipped weights in {shown(shipped)}: this shows the demo's own training alone.", flush=True)

    def run(self) -> None:
        """Every step, then what came out. A step that an earlier run finished is over at once."""
        steps: list[tuple[str, Callable[[], None]]] = [("phantoms", self.make_phantoms), ("training", self.train)]
        steps += [(f"synthesis, {weights}", partial(self.synthesise, weights)) for weights in self.models]
        steps += [(f"evaluation, {weights}", partial(self.evaluate, weights)) for weights in self.models]
        steps.append(("pictures", self.draw))
        seconds: dict[str, float] = {}
        for number, (name, step) in enumerate(steps, start=1):
            print(f"\n== {number}/{len(steps)}  {name}", flush=True)
            start = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - start
        print(self.summary(seconds))

    def make_phantoms(self) -> None:
        """A BraTS dataset, in OUT/data."""
        write_phantom_dataset(self.out / "data", self.contrasts.name, self.subjects, DEMO_SEED, self.spacing)

    def train(self) -> None:
        """Both networks and the codebook, in OUT/model."""
        overrides: dict[str, Any] = {
            "dataset_dir": self.out / "data",
            "model_dir": self.out / "model",
            "work_dir": self.out / "work",
        }
        if self.iterations is not None:
            overrides["iterations"] = self.iterations
        run_bundle("training", [self.configs / "train.yaml", self.configs / "demo.yaml"], overrides)

    def synthesise(self, weights: str) -> None:
        """The contrasts that studies lack, in OUT/synthetic: of all with the shipped weights, of one with our own."""
        incoming = self.out / "incoming"
        missing = self.hide_contrasts(incoming)
        overrides = {
            "dataset_dir": incoming / next(iter(missing)) if weights == OWN and SHIPPED in self.models else incoming,
            "model_dir": self.models[weights],
            "output_dir": self.out / "synthetic" / weights,
        }
        run_bundle("run", [self.configs / "inference.yaml"], overrides | self.sampling)

    def evaluate(self, weights: str) -> None:
        """Each contrast from the others, on the test subjects; tables and pictures in OUT/eval."""
        overrides = {
            "dataset_dir": self.out / "data",
            "split_file": self.out / "model" / "split.json",
            "model_dir": self.models[weights],
            "work_dir": self.out / "work",
            "output_dir": self.out / "eval" / weights,
            "slices_per_subject": self.slices_per_subject,
        }
        run_bundle("evaluating", [self.configs / "evaluate.yaml"], overrides | self.sampling)

    def missing_contrasts(self) -> dict[str, str]:
        """The contrast that each of up to four test subjects is to lack, another one each, by subject."""
        split = load_split(self.out / "model" / "split.json", self.studies())
        return dict(zip(split["test"], self.contrasts.names, strict=False))

    def studies(self) -> dict[str, dict[str, str]]:
        """The phantoms' data list, by subject."""
        return {study["subject"]: study for study in read_studies(self.out / "data", self.contrasts)}

    def hide_contrasts(self, incoming: Path) -> dict[str, str]:
        """Copy test studies without one contrast each, as if it had not been acquired; that contrast by subject."""
        missing, studies = self.missing_contrasts(), self.studies()
        for subject, absent in missing.items():
            for name in self.contrasts.names:
                source = Path(studies[subject][name])
                copy = incoming / subject / source.name
                if name != absent and not copy.exists():
                    with complete_file(copy) as temporary:
                        shutil.copyfile(source, temporary)
        return missing

    def draw(self) -> None:
        """Each synthetic volume beside the acquired one that was held back, in OUT/pictures."""
        studies = self.studies()
        for subject, contrast in self.missing_contrasts().items():
            label = self.contrasts.labels[self.contrasts.index(contrast)]
            volumes = {f"{label}, acquired": studies[subject][contrast]}
            for weights in self.models:
                volume = synthetic_path(self.out / "synthetic" / weights, subject, contrast)
                if volume.exists():
                    volumes[f"{label}, {weights} weights"] = str(volume)
            picture = self.out / "pictures" / f"{subject}_{contrast}.png"
            draw_volume(picture, volumes, f"{subject} (phantom)")

    def summary(self, seconds: Mapping[str, float]) -> str:
        """The table, where everything is, how long it took, and what it is not."""
        results = {
            weights: json.loads((self.out / "eval" / weights / "results.json").read_text(encoding="utf-8"))
            for weights in self.models
        }
        out = shown(self.out)
        subjects, slices = results[OWN]["subjects"], results[OWN]["slices"]
        times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        return f"""
== Result

{demo_table(results, self.contrasts)}

PSNR in dB / SSIM of each contrast from the other three, over the whole slice; {slices} slices of {subjects} subjects.
U: the conditional diffusion model; +A: from the codebook's prior; +I: with the iterations of stage 2.
Sampled without guidance and with a short stage 2, to be quick; the bundle's own settings are slower and better.
Of the weights, "{OWN}" are this demo's short training, "{SHIPPED}" those that come with the bundle.

Pictures
  synthetic volumes beside the acquired ones    {out}/pictures/*.png
  acquired, prior, synthesised, error map       {out}/eval/*/panel.png
  the prior codebook                            {out}/model/codebook.png
NIfTI files, each with a JSON file that says where it comes from
  synthetic volumes                             {out}/synthetic/*/*/*_SYNTHETIC.nii.gz
  what they were made from                      {out}/incoming
  what was held back                            {out}/data
Tables with standard deviations, brain and tumour alone
                                                {out}/eval/*/results.md

{sum(seconds.values()) / 60:.1f} minutes: {times}.

{RESEARCH_NOTICE}"""


def shown(path: Path) -> str:
    """A path as one writes it in the working directory: relative to it where it lies inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run_bundle(run_id: str, configs: Sequence[Path], overrides: Mapping[str, object]) -> None:
    """Print a command of the bundle, and run it in a process of its own.

    Args:
        run_id: what to run, such as ``"training"``.
        configs: the config files, later ones over earlier ones.
        overrides: values that take the place of the config's, by key.

    Raises:
        DemoError: the command failed.
    """
    files = [shown(path) for path in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file"]
    command.append(files[0] if len(files) == 1 else json.dumps(files, ensure_ascii=False))
    for key, value in overrides.items():
        command += [f"--{key}", shown(value) if isinstance(value, Path) else str(value)]
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DemoError(
            f"the command above ('{run_id}') ended with exit status {status}; the last lines before this one say why. "
            "Once that is put right, the same demo command goes on from there"
        )


def demo_table(results: Mapping[str, Mapping[str, Any]], contrasts: ContrastSet) -> str:
    """The evaluations of several models as one Markdown table, of the cases in which one contrast is missing.

    Args:
        results: the content of each model's ``results.json``, by the name of its weights.
        contrasts: the contrast set.

    Example::

        >>> entry = {"method": "U", "acquired": "t1+t2", "target": "pd", "psnr_slice_mean": 30, "ssim_slice_mean": 0.9}
        >>> from apt_monai.contrasts import ADNI
        >>> print(demo_table({"shipped": {"aggregate": [entry]}}, ADNI))
        | weights | method | T1 | T2 | PD |
        | --- | --- | --- | --- | --- |
        | shipped | U |  |  | 30.00 / 0.900 |
    """
    header = ["weights", "method", *contrasts.labels]
    rows = [header, ["---"] * len(header)]
    for weights, content in results.items():
        for method in dict.fromkeys(entry["method"] for entry in content["aggregate"]):
            cells = dict.fromkeys(contrasts.names, "")
            for entry in content["aggregate"]:
                if entry["method"] == method and len(entry["acquired"].split("+")) == len(contrasts) - 1:
                    psnr, ssim = float(entry["psnr_slice_mean"]), float(entry["ssim_slice_mean"])
                    cells[entry["target"]] = f"{psnr:.2f} / {ssim:.3f}"
            rows.append([weights, method, *cells.values()])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# The commands


def _phantom(arguments: argparse.Namespace) -> None:
    studies = write_phantom_dataset(
        arguments.out, arguments.dataset, arguments.subjects, arguments.seed, arguments.spacing
    )
    print(f"{len(studies)} studies in {arguments.out}: train with --dataset_dir {arguments.out}")


def _demo(arguments: argparse.Namespace) -> None:
    Demo(
        arguments.out,
        arguments.subjects,
        arguments.spacing,
        arguments.iterations,
        arguments.unroll_iterations,
        arguments.slices_per_subject,
    ).run()


def _bench(arguments: argparse.Namespace) -> None:
    run_benchmarks(arguments.output, full=arguments.full)
    print((Path(arguments.output) / "results.md").read_text(encoding="utf-8"))
    print(f"Written to {arguments.output}/results.md and results.json")


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


def build_parser() -> argparse.ArgumentParser:
    """The parser; each subcommand's function is its ``command``."""
    parser = argparse.ArgumentParser(
        prog="python -m apt_monai",
        description="APT on MONAI: synthesis of missing brain-MR contrasts. Research software, not a medical device. "
        "Training, inference and evaluation are commands of the bundle: python -m monai.bundle run, see the README.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    commands = parser.add_subparsers(dest="name", required=True)

    def add(name: str, what: str, command: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=what, description=what, parents=[common], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        added.set_defaults(command=command)
        return added

    phantom = add("phantom", "write a dataset of digital phantoms, as NIfTI files in BraTS's format", _phantom)
    phantom.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    phantom.add_argument("--dataset", default=BRATS.name, choices=[BRATS.name], help="whose format and contrasts")
    phantom.add_argument("--subjects", type=at_least(1), default=20, metavar="N", help="how many, 1 or more")
    phantom.add_argument(
        "--seed", type=at_least(0), default=0, metavar="S", help="0 or above; the same seed, the same bytes"
    )
    phantom.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="voxel edge in mm, at most 10; BraTS has 1"
    )

    demo = add("demo", "the whole method on phantoms: train, synthesise, evaluate, and show what comes out", _demo)
    demo.add_argument("out", metavar="OUT", help="the folder; made if absent, continued if interrupted")
    demo.add_argument("--subjects", type=at_least(3), default=20, metavar="N", help="how many phantoms, 3 or more")
    demo.add_argument("--spacing", type=float, default=3.0, metavar="MM", help="their voxel edge in mm, at most 10")
    demo.add_argument(
        "--iterations", type=at_least(1), metavar="N", help="of the diffusion model's training; None: as demo.yaml says"
    )
    demo.add_argument(
        "--unroll-iterations", type=at_least(0), default=10, metavar="N", help="of stage 2; the paper has 50"
    )
    demo.add_argument("--slices-per-subject", type=at_least(1), default=2, metavar="N", help="to evaluate")

    bench = add("bench", "measure speed and memory against the published way", _bench)
    bench.add_argument("--full", action="store_true", help="the paper's numbers of steps: about an hour on two cores")
    bench.add_argument("--output", default="bench", metavar="DIR", help="where results.md and results.json go")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit status: 0; 2 after an error, which is one line on the standard error; 130 if interrupted.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, DemoError) as error:
        if arguments.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
