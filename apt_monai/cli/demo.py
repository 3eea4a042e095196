"""The demo: our own method trained on phantoms, for either dataset, and what comes out of it and of shipped weights.

What is learned and synthesised is so by the bundle's own commands; each is printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from apt_monai import places
from apt_monai.cli.launch import config_files, run_bundle, shown
from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.data.splits import load_split
from apt_monai.data.writers import synthetic_path
from apt_monai.files import complete_file
from apt_monai.phantom import write_phantom_dataset
from apt_monai.visualize import draw_volume

DEMO_SEED = 1  # of the phantom: the shipped weights were trained on that of seed 0, so every subject is new to them

OWN, SHIPPED, PUBLISHED = "own", "shipped", "published"  # whose weights: also the names of folders

RESEARCH_NOTICE = """\
These are digital phantoms, not patients: the figures show that the method runs, not how well it does on patients.
Research software, not a medical device: not for diagnosis or treatment."""


def run(arguments: argparse.Namespace) -> int:
    """Every step of the demo, then what came out."""
    Demo(
        arguments.out,
        arguments.dataset,
        arguments.subjects,
        arguments.spacing,
        arguments.iterations,
        arguments.unroll_iterations,
        arguments.slices_per_subject,
    ).run()
    return 0


class Demo:
    """Training, synthesis and evaluation on phantoms, step by step, each by the bundle's own commands.

    Args:
        out: the demo's folder.
        dataset: whose bundle, and so whose contrasts: ``"brats"`` or ``"adni"``.
        subjects: how many phantoms, 3 or more.
        spacing: their voxel edge in mm; None: as in demo.yaml.
        iterations: of the training; None: as in demo.yaml.
        unroll_iterations: N, the iterations of stage 2, of the published method.
        slices_per_subject: how many slices of each test subject are evaluated.

    Raises:
        ValueError: there is no such dataset or bundle.
    """

    def __init__(
        self,
        out: str | Path,
        dataset: str,
        subjects: int,
        spacing: float | None,
        iterations: int | None,
        unroll_iterations: int,
        slices_per_subject: int,
    ) -> None:
        self.out = Path(out).absolute()
        self.contrasts = get_contrast_set(dataset)
        self.training_configs = config_files(f"apt_{dataset}", "train", ["demo.yaml"])
        self.subjects = subjects
        sizes = ConfigParser.load_config_file(self.training_configs[-1])
        self.spacing: float = sizes["phantom_spacing"] if spacing is None else spacing
        self.iterations = iterations
        self.slices_per_subject = slices_per_subject
        # What makes the published method fast enough for a demo
        self.sampling: dict[str, Any] = {
            "guidance_scale": 0.0,  # a third of the cost, see TwoStageInferer
            "sampling_steps": 5,
            "unroll_iterations": unroll_iterations,
        }
        bundle = self.training_configs[0].parents[1]
        self.models = {OWN: self.out / "model"}
        for weights, method in ((SHIPPED, "direct"), (PUBLISHED, "published")):
            folder = bundle / places.SHIPPED[method]
            if (folder / places.LAST_WRITTEN).is_file():
                self.models[weights] = folder
            else:
                print(f"No shipped weights in {shown(folder)}: the demo shows none of them.", flush=True)

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
        """A dataset of phantoms, in OUT/data."""
        write_phantom_dataset(self.out / "data", self.contrasts.name, self.subjects, DEMO_SEED, self.spacing)

    def train(self) -> None:
        """The network, in OUT/model."""
        overrides: dict[str, Any] = {
            "dataset_dir": self.out / "data",
            "model_dir": self.out / "model",
            "work_dir": self.out / "work",
        }
        if self.iterations is not None:
            overrides["iterations"] = self.iterations
        run_bundle("training", self.training_configs, overrides)

    def synthesise(self, weights: str) -> None:
        """The contrasts that studies lack, in OUT/synthetic; by the published method, which is slow, of one study."""
        incoming = self.out / "incoming"
        missing = self.hide_contrasts(incoming)
        overrides = {
            "dataset_dir": incoming / next(iter(missing)) if weights == PUBLISHED else incoming,
            "model_dir": self.models[weights],
            "output_dir": self.out / "synthetic" / weights,
        }
        run_bundle(
            "run", config_files(f"apt_{self.contrasts.name}", "inference"), overrides | self.sampling_of(weights)
        )

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
        run_bundle(
            "evaluating",
            config_files(f"apt_{self.contrasts.name}", "evaluate"),
            overrides | self.sampling_of(weights),
        )

    def sampling_of(self, weights: str) -> dict[str, Any]:
        """What makes the published method fast enough for a demo; ours is."""
        return {"sampling": self.sampling} if weights == PUBLISHED else {}

    def missing_contrasts(self) -> dict[str, str]:
        """The contrast that each of up to two test subjects is to lack, another one each, by subject."""
        split = load_split(self.out / "model" / "split.json", self.studies())
        return dict(zip(split["test"][:2], self.contrasts.names, strict=False))

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

PSNR in dB / SSIM of each contrast from all others, over the whole slice; {slices} slices of {subjects} subjects.
copy: an acquired contrast in the missing one's place, the best that there was on other subjects; direct: our method.
Of the weights, "{OWN}" are this demo's short training; "{SHIPPED}" come with the bundle and have seen phantoms of many
scanners; "{PUBLISHED}" are shipped weights of the paper's method (U: the conditional diffusion model; +A: from the
codebook's prior; +I: with the iterations of stage 2), sampled without guidance and briefly, to be quick: its own
settings are slower and better. The demo leaves its training out.

Pictures
  synthetic volumes beside the acquired ones    {out}/pictures/*.png
  acquired, synthesised, error map, uncertainty {out}/eval/*/panel.png
NIfTI files, each with a JSON file that says where it comes from
  synthetic volumes, and their uncertainty      {out}/synthetic/*/*/*_SYNTHETIC*.nii.gz
  what they were made from                      {out}/incoming
  what was held back                            {out}/data
Tables with standard deviations, brain and tumour alone
                                                {out}/eval/*/results.md

{sum(seconds.values()) / 60:.1f} minutes: {times}.

{RESEARCH_NOTICE}"""


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
