"""Evaluation: scores, aggregation, resuming, files."""

from __future__ import annotations

import csv
import json
import logging
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.evaluation import Results, Row, evaluate_methods, pictures, run
from apt_monai.metrics import psnr, ssim

SIZE = 16


def make_batches(
    subjects: int = 2, slices: int = 2, contrasts: int = len(ADNI), tumour: bool = True
) -> list[dict[str, Any]]:
    """A batch a subject: a square brain; in its first slice a tumour."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for subject in range(subjects):
        region = torch.zeros(slices, 1, SIZE, SIZE, dtype=torch.uint8)
        region[:, :, 2:14, 2:14] = 1
        if tumour:
            region[0, :, 6:9, 6:9] = 2
        image = torch.rand(slices, contrasts, SIZE, SIZE, generator=generator) * 2 - 1
        image = torch.where(region > 0, image, -1.0)
        index = torch.arange(40, 40 + slices)
        batches.append({"subject": [f"case{subject}"] * slices, "slice": index, "image": image, "region": region})
    return batches


class Double:
    """A method by what evaluation knows of one: passes, fingerprint, and a call that gives this function's image."""

    def __init__(
        self, name: str, image: Callable[[dict[str, Any], torch.Tensor], torch.Tensor], passes: int = 1
    ) -> None:
        self.fingerprint, self.image, self.passes = name, image, passes

    def __call__(self, batch: dict[str, Any], available: torch.Tensor, progress: Any = None) -> dict[str, torch.Tensor]:
        for _ in range(self.passes if progress else 0):
            progress(1)
        return {"image": self.image(batch, available)}


class Constant(Double):
    """A method that fills what is missing with one value, and counts how often it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__(f"{value}", self.fill)
        self.value = value
        self.calls: list[int] = []

    def fill(self, batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(batch["image"]))
        return torch.where(available[:, :, None, None], batch["image"], self.value)


def perfect_from(batches: list[dict[str, Any]]) -> Any:
    """A method that knows the truth."""
    truth = {
        (s, int(i)): image for b in batches for s, i, image in zip(b["subject"], b["slice"], b["image"], strict=True)
    }

    def perfect(batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        return torch.stack([truth[key] for key in zip(batch["subject"], batch["slice"].tolist(), strict=True)])

    return Double("perfect", perfect)


def one(results: Results, **wanted: Any) -> dict[str, Any]:
    (entry,) = [e for e in results.aggregate if all(e[key] == value for key, value in wanted.items())]
    return entry


def test_rows_hold_the_metrics_of_each_region(tmp_path: Path) -> None:
    batches = make_batches()
    results = evaluate_methods({"flat": Constant(0.0)}, batches, ADNI, [["t1", "t2"]], tmp_path)
    assert len(results.rows) == 4
    row = next(r for r in results.rows if (r.subject, r.slice) == ("case1", 40))
    truth = (batches[1]["image"][:1, [ADNI.index("pd")]] + 1) / 2
    region = batches[1]["region"][:1]
    guess = torch.full_like(truth, 0.5)
    for name, where in (("slice", None), ("brain", region > 0), ("tumour", region == 2)):
        assert getattr(row, f"psnr_{name}") == pytest.approx(float(psnr(guess, truth, where)), abs=1e-5)
        assert getattr(row, f"ssim_{name}") == pytest.approx(float(ssim(guess, truth, where)), abs=1e-5)
    without = next(r for r in results.rows if r.slice == 41)
    assert math.isnan(without.psnr_tumour) and math.isnan(without.ssim_tumour)


def test_every_target_is_made_from_the_others_by_default(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, None, tmp_path)
    found = {(row.acquired, row.target) for row in results.rows}
    assert found == {("t2+pd", "t1"), ("t1+pd", "t2"), ("t1+t2", "pd")}


def test_all_cases_are_the_subsets_of_the_contrast_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw_synthesis", lambda *args: None)
    batches = make_batches(1, 1, len(BRATS))
    results = evaluate_methods({"flat": Constant(0.0)}, batches, BRATS, "all", tmp_path)
    assert len({row.acquired for row in results.rows}) == 14
    assert len(results.rows) == 4 * 1 + 6 * 2 + 4 * 3


def test_subject_means_come_before_the_mean_over_subjects(tmp_path: Path) -> None:
    batches = make_batches(subjects=3, slices=2)
    batches[0]["image"][1] = batches[0]["image"][0] * 0.2 - 0.8  # other scores in one slice
    batches.append({key: value[:1] for key, value in make_batches(4, 1)[3].items()})  # a subject of one slice
    results = evaluate_methods({"flat": Constant(-0.9)}, batches, ADNI, [["t1", "t2"]], tmp_path)
    by_subject: dict[str, list[float]] = {}
    for row in results.rows:
        by_subject.setdefault(row.subject, []).append(row.psnr_brain)
    means = [statistics.mean(values) for values in by_subject.values()]
    entry = one(results, target="pd")
    assert (entry["subjects"], entry["slices"]) == (4, 7)
    assert entry["psnr_brain_mean"] == pytest.approx(statistics.mean(means))
    assert entry["psnr_brain_std"] == pytest.approx(statistics.stdev(means))


def test_slices_without_a_tumour_do_not_count_in_tumour_means(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_batches(2, 3), ADNI, [["t1", "t2"]], tmp_path)
    expected = [row.psnr_tumour for row in results.rows if row.slice == 40]
    assert one(results, target="pd")["psnr_tumour_mean"] == pytest.approx(statistics.mean(expected))


def test_without_segmentations_there_is_no_tumour_table(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_batches(tumour=False), ADNI, None, tmp_path)
    assert "### Brain" in results.markdown and "### Tumour" not in results.markdown
    assert json.loads((tmp_path / "results.json").read_text())["aggregate"][0]["psnr_tumour_mean"] is None


def test_identical_images_have_infinite_psnr_in_every_file(tmp_path: Path) -> None:
    batches = make_batches()
    results = evaluate_methods({"perfect": perfect_from(batches)}, batches, ADNI, [["t1"]], tmp_path)
    assert one(results, target="pd")["psnr_slice_mean"] == math.inf
    assert json.loads((tmp_path / "results.json").read_text())["aggregate"][0]["psnr_slice_mean"] == "inf"
    assert "inf / 1.000" in results.markdown


def test_a_method_sees_neither_the_missing_contrasts_nor_the_tumour(tmp_path: Path) -> None:
    batches = make_batches()
    for batch in batches:
        batch["features"] = torch.ones(2, len(ADNI), 5)
    seen = []

    def spy(batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return torch.zeros_like(batch["image"])

    evaluate_methods({"spy": Double("spy", spy)}, batches, ADNI, [["t2"]], tmp_path)
    missing = [ADNI.index("t1"), ADNI.index("pd")]
    for batch in seen:
        assert (batch["image"][:, missing] == -1).all() and (batch["features"][:, missing] == 0).all()
        assert batch["region"].max() == 1
        assert (batch["features"][:, ADNI.index("t2")] == 1).all()
    assert batches[0]["region"].max() == 2


def test_the_files_say_what_was_done(tmp_path: Path) -> None:
    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    budget = {"iterations": 2500}
    results = evaluate_methods(methods, make_batches(), ADNI, [["t1", "t2"], ["pd"]], tmp_path, budget=budget)
    names = {"results.csv", "results.json", "results.md", "panel_t1_t2.png", "panel_pd.png"}
    assert {path.name for path in tmp_path.iterdir()} == names == {path.name for path in results.files}
    with (tmp_path / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(results.rows) == 2 * 4 * 3
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["complete"] and record["budget"] == budget
    assert set(record["seconds_per_slice"]) == {"dark", "grey"} and {"torch", "monai"} <= set(record["versions"])
    table = (tmp_path / "results.md").read_text()
    assert "4 slices of 2 subjects" in table and "data range 1" in table and "iterations 2500" in table
    assert "| all others | dark |" in table and "| PD | grey |" in table


def test_the_tables_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, None, tmp_path)
    assert results.markdown in capsys.readouterr().out


def test_a_finished_evaluation_is_not_run_again(tmp_path: Path) -> None:
    batches = make_batches()
    first = evaluate_methods({"flat": Constant(0.0)}, batches, ADNI, "all", tmp_path)
    method = Constant(0.0)
    again = evaluate_methods({"flat": method}, batches, ADNI, "all", tmp_path)
    assert method.calls == []
    assert again.markdown == first.markdown
    assert list(map(repr, again.rows)) == list(map(repr, first.rows))


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    batches = make_batches()
    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    whole = evaluate_methods(methods, batches, ADNI, [["t1"], ["t2"]], tmp_path / "whole")

    class Interrupted(Constant):
        def fill(self, *args: Any) -> torch.Tensor:
            if len(self.calls) == 3:  # in the second case
                raise KeyboardInterrupt
            return super().fill(*args)

    methods["grey"] = Interrupted(0.0)
    with pytest.raises(KeyboardInterrupt):
        evaluate_methods(methods, batches, ADNI, [["t1"], ["t2"]], tmp_path / "part")
    assert not json.loads((tmp_path / "part" / "results.json").read_text())["complete"]

    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    resumed = evaluate_methods(methods, batches, ADNI, [["t1"], ["t2"]], tmp_path / "part")
    assert methods["grey"].calls == [2, 2]  # one case of two batches
    assert methods["dark"].calls == [1]  # the slice that is drawn
    assert [scores(row) for row in resumed.rows] == [scores(row) for row in whole.rows]
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def scores(row: Row) -> str:
    """A row without its time, as a text (NaN differs from NaN)."""
    return repr(row).rpartition(", seconds=")[0]


@pytest.mark.parametrize("change", ["method", "slices", "cases"])
def test_other_settings_start_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str) -> None:
    evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, [["t1"], ["t2"]], tmp_path)
    method = Constant(0.1 if change == "method" else 0.0)
    batches = make_batches(3 if change == "slices" else 2)
    with caplog.at_level(logging.WARNING):
        results = evaluate_methods(
            {"flat": method}, batches, ADNI, [["t1"]] if change == "cases" else [["t1"], ["t2"]], tmp_path
        )
    assert method.calls and "starting anew" in caplog.text
    assert (tmp_path / "panel_t2.png").exists() == (change != "cases")
    assert {row.acquired for row in results.rows} == ({"t1"} if change == "cases" else {"t1", "t2"})


def test_the_order_and_the_batches_of_the_slices_do_not_matter(tmp_path: Path) -> None:
    batches = make_batches()
    first = evaluate_methods({"flat": Constant(0.0)}, batches, ADNI, None, tmp_path)
    single = [{key: value[i : i + 1] for key, value in batch.items()} for batch in batches[::-1] for i in (1, 0)]
    method = Constant(0.0)
    assert evaluate_methods({"flat": method}, single, ADNI, None, tmp_path).markdown == first.markdown
    assert method.calls == []


def test_the_progress_bar_counts_the_methods_network_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(run.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(run, "tqdm", Bar)
    methods = {"slow": Double("slow", Constant(0.5).fill, passes=71), "flat": Constant(0.0)}
    evaluate_methods(methods, make_batches(), ADNI, [["t1"]], tmp_path)
    assert bars[0].n == bars[0].total == 4 * 72


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([["t1", "flair"]], "unknown contrast 'flair'"),
        ([[]], "leaves nothing to synthesise from"),
        ([["t1", "t2", "pd"]], "leaves nothing to synthesise:"),
        ([], "cases is empty"),
        (["t1"], "a case is a list"),
        ("every", "valid are 'all'"),
    ],
)
def test_a_wrong_case_is_refused(tmp_path: Path, cases: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, cases, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_method_and_no_slice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method"):
        evaluate_methods({}, make_batches(), ADNI, None, tmp_path)
    with pytest.raises(ValueError, match="no test slices"):
        evaluate_methods({"flat": Constant(0.0)}, [], ADNI, None, tmp_path)


def test_a_loader_that_is_used_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave 0 slices, and 4 the first time"):
        evaluate_methods({"flat": Constant(0.0)}, iter(make_batches()), ADNI, None, tmp_path)


@pytest.mark.parametrize(("value", "message"), [(1.5, "goes from"), (math.nan, "goes from nan")])
def test_a_result_out_of_range_is_refused(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"method 'flat': its image {message}"):
        evaluate_methods({"flat": Constant(value)}, make_batches(), ADNI, None, tmp_path)


def test_a_result_of_another_shape_is_refused(tmp_path: Path) -> None:
    short = Double("short", lambda batch, available: batch["image"][:, :1])
    with pytest.raises(ValueError, match="method 'short'.*is needed"):
        evaluate_methods({"short": short}, make_batches(), ADNI, None, tmp_path)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    method = Constant(0.0)
    with pytest.raises(OSError, match="cannot write to the folder .*file"):
        evaluate_methods({"flat": method}, make_batches(), ADNI, None, tmp_path / "file")
    assert method.calls == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json: not the record"):
        evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, None, tmp_path)


def test_each_contrast_from_all_others_is_one_picture(tmp_path: Path) -> None:
    evaluate_methods({"flat": Constant(0.0)}, make_batches(), ADNI, None, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["panel.png"]
