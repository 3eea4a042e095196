"""Evaluation: methods × subsets of acquired contrasts on the test slices, as tables and pictures.

Each :class:`apt_monai.methods.Method` is scored with PSNR and SSIM of every missing contrast in four regions: the
whole slice, the brain, the tumour where a slice has one, and the brain without it; and with what those don't tell:
HaarPSI, the structure without the intensity curve, detail, flicker from slice to slice, the coverage of its
uncertainty, the enhancing lesions that it misses and invents, and, of whole studies, BraSyn's 3D SSIM. All on the
acquired grid.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import monai
import numpy as np
import torch
from tqdm import tqdm

import apt_monai
from apt_monai.contrasts import ContrastSet
from apt_monai.distributed import gather, is_lead
from apt_monai.evaluation.method_slices import MethodSlices
from apt_monai.evaluation.pictures import draw_case, panel_rows, picture_name
from apt_monai.evaluation.prediction import synthesise
from apt_monai.evaluation.record import resume, write_record, write_rows
from apt_monai.evaluation.scores import COUNTS, SCORES, Row, score_study
from apt_monai.evaluation.significance import compare_rows
from apt_monai.evaluation.slices import EvaluationSlices, StudySlices
from apt_monai.evaluation.statistics import aggregate_rows
from apt_monai.evaluation.survey import TestSet, survey
from apt_monai.evaluation.tables import tables
from apt_monai.evaluation.worst import WorstCase, worst_cases
from apt_monai.files import json_sha256, write_text
from apt_monai.hardware import device_name
from apt_monai.methods import Method
from apt_monai.visualize import SynthesisRow

Cases = Sequence[Sequence[str]] | Literal["all"] | None
Made = dict[str, torch.Tensor]  # on the acquired grid: "image" and, where there are, "prior" and "uncertainty"


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Args:
        rows: one for each (method, acquired, target, slice).
        aggregate: one dictionary for each (method, acquired, target): ``"subjects"``, ``"slices"`` and, for each score,
            its ``_mean`` and ``_std`` over subjects, such as ``"psnr_brain_mean"``; and the sums ``"lesions"``,
            ``"missed"`` and ``"invented"``, NaN where the target is not taken with a contrast agent.
        differences: p-values of the main row against each other one; see
            :func:`apt_monai.evaluation.significance.compare_rows`.
        seconds: by method, the median seconds a slice.
        markdown: the tables, as in ``results.md``.
        files: what was written: CSV, JSON, Markdown and the pictures.
    """

    rows: list[Row]
    aggregate: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    seconds: dict[str, float]
    markdown: str
    files: list[Path]


def evaluate_methods(
    methods: Mapping[str, Method],
    slices: EvaluationSlices,
    cases: Cases,
    output_dir: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    budget: Mapping[str, Any] | None = None,
    worst: int = 0,
) -> Results:
    """Score every method on every subset of acquired contrasts; write and print the tables.

    A method sees the acquired channels only (the others are -1, their features 0) and the brain, never the tumour's
    outline, in slices of its own preprocessing. What it makes goes back to the acquired grid, and is scored there on
    intensities in [0, 1] of the truth's own scale with data range 1 (:mod:`apt_monai.evaluation.slices`), so that
    methods of different resolutions and scales share one table. A subject's score is the mean over its slices (without
    those that have no such region); tables give mean ± sample standard deviation over subjects.

    Into ``output_dir`` go ``results.csv`` (a row a slice and target), ``results.json`` (settings, means, seconds a
    slice), ``results.md`` (the tables) and pictures of the slice with the largest tumour (without any: the
    largest brain): ``panel.png`` for each contrast from all others, else ``panel_<acquired>.png`` for each case.

    With 6 subjects or more, the last of ``methods`` is compared with each other one: paired Wilcoxon tests over
    subjects of PSNR, SSIM and HaarPSI over the whole slice.

    ``results.csv`` grows with each finished (method, subset), and a run with the same methods, slices and subsets goes
    on where the last one stopped. Any other run starts anew, and says so in the log. A method is known by
    its ``fingerprint``.

    With several ranks, each takes studies in turn, all return the results, and rank 0 writes and prints.

    Args:
        methods: by the name that tables and pictures give them; the last one is the main row.
        slices: the slices, and the truth.
        cases: lists of acquired contrasts. None: each contrast from all others. ``"all"``: every subset.
        output_dir: the folder of the results; made if absent.
        device: where the methods' networks are.
        precision: in what they compute, for people to read; an evaluation may go on in another.
        budget: what the methods had to learn from, such as ``{"training subjects": 24, "iterations": 2500}``, for
            people to read below the tables.
        worst: of how many of the main row's worst cases a picture is drawn, ``worst_1.png`` the worst.

    Returns:
        The rows, their aggregate and the files.

    Raises:
        ValueError: no methods, slices or cases; an unknown contrast; a case with nothing to synthesise from, or nothing
            to synthesise; a method that breaks the contract.
        OSError: the folder cannot be written.

    Example::

        >>> import nibabel as nib
        >>> from apt_monai.methods import Copy
        >>> volume = np.random.default_rng(0).integers(1, 99, (12, 12, 6), dtype=np.int16)
        >>> for name in ("t1", "t2", "pd"):
        ...     nib.save(nib.Nifti1Image(volume, np.eye(4)), f"a_{name}.nii.gz")
        >>> study = {"subject": "a", "t1": "a_t1.nii.gz", "t2": "a_t2.nii.gz", "pd": "a_pd.nii.gz"}
        >>> slices = EvaluationSlices([study], "cache", "adni", slices_per_subject=2)
        >>> results = evaluate_methods({"copy": Copy(slices.preprocessing)}, slices, [["t1", "t2"]], "evaluation")
        ### Whole slice...
        >>> [(row.target, row.psnr_slice) for row in results.rows]
        [('pd', inf), ('pd', inf)]
    """
    contrasts = slices.contrasts
    if not methods:
        raise ValueError("there is no method to evaluate: name at least one")
    subsets = _check_cases(cases, contrasts)
    test_set = survey(slices)
    settings = {
        "apt_monai": apt_monai.__version__,
        "contrasts": list(contrasts.names),
        "cases": [list(acquired) for acquired in subsets],
        "scores": [*SCORES, *COUNTS],
        "test_slices_sha256": test_set.sha256,
        "methods": {name: method.fingerprint for name, method in methods.items()},
    }
    folder = Path(output_dir)
    rows = gather(resume(folder, settings, contrasts) if is_lead() else [])[0]  # what the lead sees decides for all
    run = _Run(methods, slices, subsets, test_set, device, folder, one_picture=cases is None)
    pictures = run.go_on(rows)

    order = {(n, "+".join(a)): i for i, (a, n) in enumerate((a, n) for a in subsets for n in methods)}
    rows.sort(key=lambda row: order[row.method, row.acquired])  # stable: slices stay in the studies' order
    lowest = worst_cases(rows, list(methods)[-1], worst)
    pictures += run.draw_worst(lowest)
    aggregate, differences = aggregate_rows(rows), compare_rows(rows, main=list(methods)[-1])
    seconds = {name: float(np.median([r.seconds for r in rows if r.method == name])) for name in methods}
    markdown = tables(aggregate, differences, contrasts, subsets, test_set, seconds, f"{device}, {precision}", budget)
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
            "main": list(methods)[-1],
            "differences": differences,
            "seconds_per_slice": seconds,
            "device": device_name(device),
            "precision": precision,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
            "pictures": [picture.name for picture in pictures],
            "worst": [asdict(case) for case in lowest],
        }
        write_record(folder, content)
        print(markdown)
    return Results(rows, aggregate, differences, seconds, markdown, files + pictures)


@dataclass(frozen=True)
class _Run:
    """The way through all (method, subset), from where an earlier run stopped."""

    methods: Mapping[str, Method]
    slices: EvaluationSlices
    subsets: Sequence[Sequence[str]]
    test_set: TestSet
    device: str | torch.device
    folder: Path
    one_picture: bool  # of all cases together, instead of one each
    own: dict[str, MethodSlices] = field(default_factory=dict)  # by method, its own slices, once they are needed

    def go_on(self, rows: list[Row]) -> list[Path]:
        """Add the rows that are still missing, draw what they change, and return all pictures' paths."""
        finished = {(row.method, row.acquired) for row in rows}
        pending = [(n, a) for a in self.subsets for n in self.methods if (n, "+".join(a)) not in finished]
        mine = sum(len(self.slices.rows[number]) for number in self._numbers())
        total = sum(self.methods[name].passes for name, _ in pending) * mine
        pictures: list[Path] = []
        panel: list[SynthesisRow] = []  # each target of the C - 1 cases, for one picture of them all
        with tqdm(total=total, desc="evaluate", unit="pass", disable=not (pending and is_lead())) as bar:
            for acquired in self.subsets:
                drawn: dict[str, Made] = {}
                for name in (n for n in self.methods if (n, acquired) in pending):
                    bar.set_postfix_str(f"{name}, {'+'.join(acquired)} given")
                    found, drawn[name] = self._score(name, acquired, bar)
                    rows += found
                    if is_lead():
                        write_rows(self.folder / "results.csv", rows)
                picture = self.folder / ("panel.png" if self.one_picture else picture_name(acquired))
                missing = gather(bool((pending if self.one_picture else drawn) or not picture.exists()))[0]
                if missing:
                    self._draw_again(acquired, drawn)
                if missing and is_lead():
                    made = {name: drawn[name] for name in self.methods}
                    lines = panel_rows(made, self._drawn_slice(), self.slices.contrasts, acquired)
                    if self.one_picture:
                        panel += lines
                    else:
                        draw_case(picture, lines, self._drawn_slice(), self.slices.contrasts, acquired)
                if picture not in pictures:
                    pictures.append(picture)
        if panel:
            draw_case(self.folder / "panel.png", panel, self._drawn_slice(), self.slices.contrasts, ())
        return pictures

    def draw_worst(self, cases: Sequence[WorstCase]) -> list[Path]:
        """Draw the worst slice of each of these cases, on the lead, which synthesises it again, by every method."""
        own = {name: self._slices_of(name) for name in self.methods if cases}
        contrasts = self.slices.contrasts
        subjects = [study["subject"] for study in self.slices.studies]
        for case in cases if is_lead() else ():
            number, acquired = subjects.index(case.subject), case.acquired.split("+")
            study = self.slices.study(number)
            position = study.indices.index(case.slice)
            one, made = study.at(position), {}
            for name, method in self.methods.items():
                batches = own[name].batches(number, [position])
                result, _ = synthesise(name, method, batches, contrasts, acquired, self.device)
                made[name] = own[name].back(number, result, one.brain)
            target = contrasts.labels[contrasts.index(case.target)]
            lines = [row for row in panel_rows(made, one, contrasts, acquired) if row.target == target]
            draw_case(self.folder / case.picture, lines, one, contrasts, acquired)
        return [self.folder / case.picture for case in cases]

    def _numbers(self) -> range:
        """This rank's studies: the ranks take them in turn."""
        return range(idist.get_rank(), len(self.slices.studies), idist.get_world_size())

    def _drawn_slice(self) -> StudySlices:
        """The slice that is drawn, alone."""
        number, position = self.test_set.drawn
        return self.slices.study(number).at(position)

    def _slices_of(self, name: str) -> MethodSlices:
        """A method's own slices; all ranks reach this together."""
        if name not in self.own:
            self.own[name] = MethodSlices(self.slices, self.methods[name])
        return self.own[name]

    def _draw_again(self, acquired: Sequence[str], drawn: dict[str, Made]) -> None:
        """What was finished in an earlier run synthesises the slice of the picture again, on the lead."""
        number, position = self.test_set.drawn
        for name in (n for n in self.methods if n not in drawn):
            own = self._slices_of(name)
            if is_lead():
                batches = own.batches(number, [position])
                result, _ = synthesise(name, self.methods[name], batches, self.slices.contrasts, acquired, self.device)
                drawn[name] = own.back(number, result, self._drawn_slice().brain)

    def _score(self, name: str, acquired: Sequence[str], bar: tqdm) -> tuple[list[Row], Made]:
        """The rows of one method in one case, and its result for the slice that is drawn, from all ranks' studies."""
        method, contrasts, own = self.methods[name], self.slices.contrasts, self._slices_of(name)
        found: list[list[Row]] = []  # by study of this rank
        example: Made = {}
        for number in self._numbers():
            study = self.slices.study(number)
            result, seconds = synthesise(name, method, own.batches(number), contrasts, acquired, self.device, bar)
            made = own.back(number, result, study.brain)
            found.append(score_study(name, study, made, contrasts, acquired, seconds))
            if number == self.test_set.drawn[0]:
                position = self.test_set.drawn[1]
                example = {key: value[position : position + 1] for key, value in made.items()}
        ranks = gather((found, example))
        in_order = itertools.zip_longest(*(found for found, _ in ranks), fillvalue=[])  # ranks take studies in turn
        rows = [row for studies in in_order for study_rows in studies for row in study_rows]
        return rows, next(drawn_there for _, drawn_there in ranks if drawn_there)


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
