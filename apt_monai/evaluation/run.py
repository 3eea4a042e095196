"""Evaluation: methods × subsets of acquired contrasts on the test slices, as tables and pictures.

Each :class:`apt_monai.methods.Method` is scored with PSNR and SSIM of every missing contrast in three regions: the
whole slice, the brain, and the tumour where a slice has one.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import monai
import numpy as np
import torch
from tqdm import tqdm

import apt_monai
from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.distributed import gather, is_lead
from apt_monai.evaluation.pictures import draw_case, panel_rows, picture_name
from apt_monai.evaluation.record import resume, write_record, write_rows
from apt_monai.evaluation.scores import Row, score_batch, synthesise
from apt_monai.evaluation.statistics import aggregate_rows
from apt_monai.evaluation.survey import TestSet, survey
from apt_monai.evaluation.tables import tables
from apt_monai.files import json_sha256, write_text
from apt_monai.hardware import device_name
from apt_monai.methods import Batch, Method
from apt_monai.visualize import SynthesisRow

Cases = Sequence[Sequence[str]] | Literal["all"] | None


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Args:
        rows: one for each (method, acquired, target, slice).
        aggregate: one dictionary for each (method, acquired, target): ``"subjects"``, ``"slices"`` and, for each score,
            its ``_mean`` and ``_std`` over subjects, such as ``"psnr_brain_mean"``.
        seconds: by method, the median seconds a slice.
        markdown: the tables, as in ``results.md``.
        files: what was written: CSV, JSON, Markdown and the pictures.
    """

    rows: list[Row]
    aggregate: list[dict[str, Any]]
    seconds: dict[str, float]
    markdown: str
    files: list[Path]


def evaluate_methods(
    methods: Mapping[str, Method],
    loader: Iterable[Batch],
    contrasts: str | ContrastSet,
    cases: Cases,
    output_dir: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    budget: Mapping[str, Any] | None = None,
) -> Results:
    """Score every method on every subset of acquired contrasts; write and print the tables.

    A method sees the acquired channels only (the others are -1, their features 0) and the brain, never the tumour's
    outline. Scores are taken on intensities in [0, 1] with data range 1. A subject's score is the mean over its slices
    (without those that have no such region); tables give mean ± sample standard deviation over subjects.

    Into ``output_dir`` go ``results.csv`` (a row a slice and target), ``results.json`` (settings, means, seconds a
    slice), ``results.md`` (the tables) and pictures of the slice with the largest tumour (without any: the
    largest brain): ``panel.png`` for each contrast from all others, else ``panel_<acquired>.png`` for each case.

    ``results.csv`` grows with each finished (method, subset), and a run with the same methods, slices and subsets goes
    on where the last one stopped. Any other run starts anew, and says so in the log. A method is known by
    its ``fingerprint``.

    With several ranks, each takes the loader's batches in turn, all return the results, and rank 0 writes and prints.

    Args:
        methods: by the name that tables and pictures give them.
        loader: batches of collated slice samples with all contrasts; the same slices each time it is iterated.
        contrasts: the contrast set, or its name.
        cases: lists of acquired contrasts. None: each contrast from all others. ``"all"``: every subset.
        output_dir: the folder of the results; made if absent.
        device: where the methods' networks are.
        precision: in what they compute, for people to read; an evaluation may go on in another.
        budget: what the methods had to learn from, such as ``{"training subjects": 24, "iterations": 2500}``, for
            people to read below the tables.

    Returns:
        The rows, their aggregate and the files.

    Raises:
        ValueError: no methods, slices or cases; an unknown contrast; a case with nothing to synthesise from, or nothing
            to synthesise; a loader that does not repeat itself; a method that breaks the contract.
        OSError: the folder cannot be written.

    Example::

        >>> class Grey:
        ...     passes, fingerprint = 1, "grey"
        ...     def __call__(self, batch, available, progress=None):
        ...         return {"image": torch.where(available[:, :, None, None], batch["image"], -0.5)}
        >>> image, region = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        >>> batch = {"subject": ["a"], "slice": torch.tensor([7]), "image": image, "region": region}
        >>> results = evaluate_methods({"grey": Grey()}, [batch], "adni", [["t1", "t2"]], "evaluation")
        ### Whole slice...
        >>> [row.target for row in results.rows]
        ['pd']
    """
    contrasts = get_contrast_set(contrasts)
    if not methods:
        raise ValueError("there is no method to evaluate: name at least one")
    subsets = _check_cases(cases, contrasts)
    test_set = survey(loader)
    settings = {
        "apt_monai": apt_monai.__version__,
        "contrasts": list(contrasts.names),
        "cases": [list(acquired) for acquired in subsets],
        "test_slices_sha256": test_set.sha256,
        "methods": {name: method.fingerprint for name, method in methods.items()},
    }
    folder = Path(output_dir)
    rows = gather(resume(folder, settings, contrasts) if is_lead() else [])[0]  # what the lead sees decides for all
    run = _Run(methods, loader, contrasts, subsets, test_set, device, folder, one_picture=cases is None)
    pictures = run.go_on(rows)

    order = {(n, "+".join(a)): i for i, (a, n) in enumerate((a, n) for a in subsets for n in methods)}
    rows.sort(key=lambda row: order[row.method, row.acquired])  # stable: slices stay in the loader's order
    aggregate = aggregate_rows(rows)
    seconds = {name: float(np.median([r.seconds for r in rows if r.method == name])) for name in methods}
    markdown = tables(aggregate, contrasts, subsets, test_set, seconds, f"{device}, {precision}", budget)
    files = [folder / name for name in ("results.csv", "results.json", "results.md")]
    if is_lead():
        write_rows(folder / "results.csv", rows)
        write_text(folder / "results.md", markdown)
        content = {
            "settings_sha256": json_sha256(settings),
            "settings": settings,
            "complete": True,
            "subjects": test_set.subjects,
            "slices": test_set.slices,
            "budget": dict(budget or {}),
            "aggregate": aggregate,
            "seconds_per_slice": seconds,
            "device": device_name(device),
            "precision": precision,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
            "pictures": [picture.name for picture in pictures],
        }
        write_record(folder, content)
        print(markdown)
    return Results(rows, aggregate, seconds, markdown, files + pictures)


@dataclass(frozen=True)
class _Run:
    """The way through all (method, subset), from where an earlier run stopped."""

    methods: Mapping[str, Method]
    loader: Iterable[Batch]
    contrasts: ContrastSet
    subsets: Sequence[Sequence[str]]
    test_set: TestSet
    device: str | torch.device
    folder: Path
    one_picture: bool  # of all cases together, instead of one each

    def go_on(self, rows: list[Row]) -> list[Path]:
        """Add the rows that are still missing, draw what they change, and return all pictures' paths."""
        finished = {(row.method, row.acquired) for row in rows}
        pending = [(n, a) for a in self.subsets for n in self.methods if (n, "+".join(a)) not in finished]
        passes = sum(self.methods[name].passes for name, _ in pending)
        total = passes * self.test_set.slices // idist.get_world_size()
        pictures: list[Path] = []
        panel: list[SynthesisRow] = []  # each target of the C - 1 cases, for one picture of them all
        with tqdm(total=total, desc="evaluate", unit="pass", disable=not (pending and is_lead())) as bar:
            for acquired in self.subsets:
                examples: dict[str, Batch] = {}
                for name in (n for n in self.methods if (n, acquired) in pending):
                    bar.set_postfix_str(f"{name}, {'+'.join(acquired)} given")
                    found, examples[name] = self._score(name, acquired, bar)
                    rows += found
                    if is_lead():
                        write_rows(self.folder / "results.csv", rows)
                picture = self.folder / ("panel.png" if self.one_picture else picture_name(acquired))
                if is_lead() and ((pending if self.one_picture else examples) or not picture.exists()):
                    drawn = self._panel_rows(acquired, examples)
                    if self.one_picture:
                        panel += drawn
                    else:
                        draw_case(picture, drawn, self.test_set.example, self.contrasts, acquired)
                if picture not in pictures:
                    pictures.append(picture)
        if panel:
            draw_case(self.folder / "panel.png", panel, self.test_set.example, self.contrasts, ())
        return pictures

    def _panel_rows(self, acquired: Sequence[str], examples: dict[str, Batch]) -> list[SynthesisRow]:
        """The rows of a picture of one case; what was finished in an earlier run synthesises its slice again."""
        example = self.test_set.example
        for name in (n for n in self.methods if n not in examples):
            examples[name], _ = synthesise(name, self.methods[name], example, self.contrasts, acquired, self.device)
        return panel_rows({name: examples[name] for name in self.methods}, example, self.contrasts, acquired)

    def _score(self, name: str, acquired: Sequence[str], bar: tqdm) -> tuple[list[Row], Batch]:
        """The rows of one method in one case, and its result for the slice that is drawn, from all ranks' batches."""
        method, contrasts = self.methods[name], self.contrasts
        found: list[list[Row]] = []  # by batch of this rank
        drawn = self.test_set.example
        example: Batch = {}
        slices = 0
        for batch in itertools.islice(self.loader, idist.get_rank(), None, idist.get_world_size()):
            result, seconds = synthesise(name, method, batch, contrasts, acquired, self.device, bar)
            found.append(
                score_batch(name, batch, result["image"], contrasts, acquired, seconds / len(batch["subject"]))
            )
            slices += len(batch["subject"])
            for i, subject in enumerate(batch["subject"]):
                if (subject, int(batch["slice"][i])) == (drawn["subject"][0], int(drawn["slice"][0])):
                    example = {key: value[i : i + 1] for key, value in result.items()}
        ranks = gather((found, slices, example))
        in_order = itertools.zip_longest(*(found for found, _, _ in ranks), fillvalue=[])  # ranks take batches in turn
        rows = [row for batches in in_order for batch_rows in batches for row in batch_rows]
        slices = sum(count for _, count, _ in ranks)
        example = next((drawn_there for _, _, drawn_there in ranks if drawn_there), {})
        if slices != self.test_set.slices or not example:
            raise ValueError(
                f"the loader gave {slices} slices, and {self.test_set.slices} the first time: "
                "it must give the same each time"
            )
        return rows, example


def _check_cases(cases: Cases, contrasts: ContrastSet) -> list[tuple[str, ...]]:
    """The subsets of acquired contrasts, each in the set's order."""
    if cases is None:
        return [tuple(name for name in contrasts.names if name != target) for target in contrasts.names]
    if isinstance(cases, str):
        if cases != "all":
            raise ValueError(f"cases is {cases!r}: valid are 'all', None, or lists of acquired contrasts")
        return contrasts.subsets()
    subsets = []
    for names in cases:
        if isinstance(names, str):
            raise ValueError(f"the case {names!r} is a text: a case is a list of acquired contrasts, such as [{names}]")
        contrasts.check(names)
        acquired = tuple(name for name in contrasts.names if name in names)
        if not 0 < len(acquired) < len(contrasts):
            raise ValueError(
                f"the case {list(names)} leaves nothing to synthesise {'from' if not acquired else ''}".rstrip()
                + f": name 1 to {len(contrasts) - 1} of {', '.join(contrasts.names)}"
            )
        if acquired not in subsets:
            subsets.append(acquired)
    if not subsets:
        raise ValueError("cases is empty: give lists of acquired contrasts, None or 'all'")
    return subsets
