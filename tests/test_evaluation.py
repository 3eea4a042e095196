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
from scipy.stats import wilcoxon
from tiny_studies import write_study

from apt_monai.contrasts import ADNI, BRATS, ContrastSet
from apt_monai.evaluation import EvaluationSlices, Results, Row, evaluate_methods, merge_rows, pictures, run
from apt_monai.evaluation.scores import COUNTS, SCORES
from apt_monai.evaluation.significance import compare_rows, paired_p
from apt_monai.methods import Copy
from apt_monai.metrics import haarpsi, psnr, ssim
from apt_monai.transforms import StudyPreprocessing

SHAPE = (16, 15, 8)


def make_slices(
    folder: Path,
    subjects: int = 2,
    per_subject: int | None = 2,
    contrasts: ContrastSet = ADNI,
    seg: bool = True,
    **kwargs: Any,
) -> EvaluationSlices:
    """Studies with a brain-shaped block and, in slices 2 and 3, a tumour, beside the folder; the chosen slices."""
    place = folder.with_name(f"{folder.name}-data")
    studies = [write_study(place / f"case{i}", contrasts.names, SHAPE, seed=i, seg=seg) for i in range(subjects)]
    return EvaluationSlices(studies, place / "cache", contrasts, per_subject, **kwargs)


class Double:
    """A method by what evaluation knows of one: passes, fingerprint, and a call that gives this function's image."""

    encoder = None

    def __init__(
        self,
        name: str,
        image: Callable[[dict[str, Any], torch.Tensor], torch.Tensor],
        passes: int = 1,
        preprocessing: StudyPreprocessing | None = None,
    ) -> None:
        self.fingerprint, self.image, self.passes = name, image, passes
        self.preprocessing = preprocessing or StudyPreprocessing(ADNI, None)

    def __call__(self, batch: dict[str, Any], available: torch.Tensor, progress: Any = None) -> dict[str, torch.Tensor]:
        for _ in range(self.passes if progress else 0):
            progress(1)
        return {"image": self.image(batch, available)}


class Constant(Double):
    """A method that fills what is missing with one value, and counts how often it was asked."""

    def __init__(self, value: float, contrasts: ContrastSet = ADNI) -> None:
        super().__init__(f"{value}", self.fill, preprocessing=StudyPreprocessing(contrasts, None))
        self.value = value
        self.calls: list[int] = []

    def fill(self, batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(batch["image"]))
        return torch.where(available[:, :, None, None], batch["image"], self.value)


def perfect_in(preprocessing: StudyPreprocessing, studies: list[dict[str, str]]) -> Double:
    """A method that knows the truth in its own slices."""
    loaded = {study["subject"]: preprocessing(study)["image"].as_tensor() for study in studies}

    def perfect(batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        wanted = zip(batch["subject"], batch["slice"].tolist(), strict=True)
        steps = torch.stack([loaded[subject][..., index] for subject, index in wanted]).mul(32767).round()
        return steps / 32767  # as the cache keeps it

    return Double("perfect", perfect, preprocessing=preprocessing)


def one(results: Results, **wanted: Any) -> dict[str, Any]:
    (entry,) = [e for e in results.aggregate if all(e[key] == value for key, value in wanted.items())]
    return entry


def test_rows_hold_the_metrics_of_each_region(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=None)
    results = evaluate_methods({"flat": Constant(0.0)}, slices, [["t1", "t2"]], tmp_path / "out")
    assert len(results.rows) == 2 * 7
    row = next(r for r in results.rows if (r.subject, r.slice) == ("case1", 3))
    study = slices.study(1).at(2)
    assert study.indices == (3,)
    truth, region = study.truth[:, ADNI.index("pd")][:, None], study.region
    guess = torch.full_like(truth, 0.5).masked_fill(region == 0, 0)
    for name, where in (("slice", None), ("brain", region > 0), ("healthy", region == 1), ("tumour", region == 2)):
        assert getattr(row, f"psnr_{name}") == pytest.approx(float(psnr(guess, truth, where)), abs=1e-5)
        assert getattr(row, f"ssim_{name}") == pytest.approx(float(ssim(guess, truth, where)), abs=1e-5, nan_ok=True)
    assert row.haarpsi == pytest.approx(float(haarpsi(guess, truth)), abs=1e-5)
    without = next(r for r in results.rows if r.slice == 5)
    assert math.isnan(without.psnr_tumour) and math.isnan(without.ssim_tumour)


def test_every_target_is_made_from_the_others_by_default(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), None, tmp_path)
    found = {(row.acquired, row.target) for row in results.rows}
    assert found == {("t2+pd", "t1"), ("t1+pd", "t2"), ("t1+t2", "pd")}


def test_all_cases_are_the_subsets_of_the_contrast_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw_synthesis", lambda *args: None)
    slices = make_slices(tmp_path, 1, contrasts=BRATS)
    results = evaluate_methods({"flat": Constant(0.0, BRATS)}, slices, "all", tmp_path)
    assert len({row.acquired for row in results.rows}) == 14
    assert len(results.rows) == 2 * (4 * 1 + 6 * 2 + 4 * 3)


def test_subject_means_come_before_the_mean_over_subjects(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, 4)
    slices.rows[2] = [3, 4, 5]  # a subject of other slices
    results = evaluate_methods({"flat": Constant(-0.9)}, slices, [["t1", "t2"]], tmp_path)
    by_subject: dict[str, list[float]] = {}
    for row in results.rows:
        by_subject.setdefault(row.subject, []).append(row.psnr_brain)
    means = [statistics.mean(values) for values in by_subject.values()]
    entry = one(results, target="pd")
    assert (entry["subjects"], entry["slices"]) == (4, 9)
    assert entry["psnr_brain_mean"] == pytest.approx(statistics.mean(means))
    assert entry["psnr_brain_std"] == pytest.approx(statistics.stdev(means))


def test_slices_without_a_tumour_do_not_count_in_tumour_means(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path, 2, None), [["t1", "t2"]], tmp_path)
    expected = [row.psnr_tumour for row in results.rows if row.slice in (2, 3)]
    assert one(results, target="pd")["psnr_tumour_mean"] == pytest.approx(statistics.mean(expected))


def test_lesions_are_summed_where_the_target_is_taken_with_a_contrast_agent(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=None, contrasts=BRATS)
    results = evaluate_methods({"flat": Constant(-1.0, BRATS)}, slices, None, tmp_path)
    entry = one(results, target="t1ce")
    rows = [row for row in results.rows if row.target == "t1ce"]
    assert entry["lesions"] == sum(row.lesions for row in rows) == entry["missed"] and entry["invented"] == 0
    assert math.isnan(one(results, target="flair")["lesions"])
    assert (
        "### Enhancing lesions" in results.markdown and f"of {entry['lesions']:.0f}, invented 0 |" in results.markdown
    )


def test_without_segmentations_there_is_no_tumour_table(tmp_path: Path) -> None:
    results = evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path, seg=False), None, tmp_path)
    assert "### Brain\n" in results.markdown
    assert "### Tumour" not in results.markdown and "### Brain without tumour" not in results.markdown
    assert json.loads((tmp_path / "results.json").read_text())["aggregate"][0]["psnr_tumour_mean"] is None


def test_identical_images_have_infinite_psnr_in_every_file(tmp_path: Path) -> None:
    slices = make_slices(tmp_path)
    results = evaluate_methods(
        {"perfect": perfect_in(slices.preprocessing, slices.studies)}, slices, [["t1"]], tmp_path
    )
    assert one(results, target="pd")["psnr_slice_mean"] == math.inf
    assert json.loads((tmp_path / "results.json").read_text())["aggregate"][0]["psnr_slice_mean"] == "inf"
    assert "inf / 1.000" in results.markdown


def test_a_method_sees_neither_the_missing_contrasts_nor_the_tumour(tmp_path: Path) -> None:
    class Ones(torch.nn.Module):
        fingerprint = "ones"

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(*images.shape[:2], 5)

    seen = []

    def look(batch: dict[str, Any], available: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return torch.zeros_like(batch["image"])

    spy = Double("spy", look)
    spy.encoder = Ones()
    slices = make_slices(tmp_path, per_subject=None)
    evaluate_methods({"spy": spy}, slices, [["t2"]], tmp_path)
    missing = [ADNI.index("t1"), ADNI.index("pd")]
    assert seen
    for batch in seen:
        assert (batch["image"][:, missing] == -1).all() and (batch["features"][:, missing] == 0).all()
        assert batch["region"].max() == 1
        assert (batch["features"][:, ADNI.index("t2")] == 1).all()
    assert slices.study(0).region.max() == 2


def test_the_files_say_what_was_done(tmp_path: Path) -> None:
    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    budget = {"iterations": 2500}
    results = evaluate_methods(methods, make_slices(tmp_path), [["t1", "t2"], ["pd"]], tmp_path, budget=budget)
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
    results = evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), None, tmp_path)
    assert results.markdown in capsys.readouterr().out


def test_a_finished_evaluation_is_not_run_again(tmp_path: Path) -> None:
    slices = make_slices(tmp_path)
    first = evaluate_methods({"flat": Constant(0.0)}, slices, "all", tmp_path)
    method = Constant(0.0)
    again = evaluate_methods({"flat": method}, slices, "all", tmp_path)
    assert method.calls == []
    assert again.markdown == first.markdown
    assert list(map(repr, again.rows)) == list(map(repr, first.rows))


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    slices = make_slices(tmp_path)
    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    whole = evaluate_methods(methods, slices, [["t1"], ["t2"]], tmp_path / "whole")

    class Interrupted(Constant):
        def fill(self, *args: Any) -> torch.Tensor:
            if len(self.calls) == 3:  # in the second case
                raise KeyboardInterrupt
            return super().fill(*args)

    methods["grey"] = Interrupted(0.0)
    with pytest.raises(KeyboardInterrupt):
        evaluate_methods(methods, slices, [["t1"], ["t2"]], tmp_path / "part")
    assert not json.loads((tmp_path / "part" / "results.json").read_text())["complete"]

    methods = {"dark": Constant(-0.5), "grey": Constant(0.0)}
    resumed = evaluate_methods(methods, slices, [["t1"], ["t2"]], tmp_path / "part")
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
    evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), [["t1"], ["t2"]], tmp_path)
    method = Constant(0.1 if change == "method" else 0.0)
    slices = make_slices(tmp_path, 3 if change == "slices" else 2)
    with caplog.at_level(logging.WARNING):
        results = evaluate_methods(
            {"flat": method}, slices, [["t1"]] if change == "cases" else [["t1"], ["t2"]], tmp_path
        )
    assert method.calls and "starting anew" in caplog.text
    assert (tmp_path / "panel_t2.png").exists() == (change != "cases")
    assert {row.acquired for row in results.rows} == ({"t1"} if change == "cases" else {"t1", "t2"})


def test_the_order_and_the_batches_of_the_slices_do_not_matter(tmp_path: Path) -> None:
    slices = make_slices(tmp_path)
    first = evaluate_methods({"flat": Constant(0.0)}, slices, None, tmp_path)
    single = EvaluationSlices(slices.studies[::-1], slices.cache_dir, ADNI, 2, batch_size=1)
    method = Constant(0.0)
    assert evaluate_methods({"flat": method}, single, None, tmp_path).markdown == first.markdown
    assert method.calls == []


def test_the_progress_bar_counts_the_methods_network_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(run.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(run, "tqdm", Bar)
    methods = {"slow": Double("slow", Constant(0.5).fill, passes=71), "flat": Constant(0.0)}
    evaluate_methods(methods, make_slices(tmp_path), [["t1"]], tmp_path)
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
        evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), cases, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_method_and_no_slice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method"):
        evaluate_methods({}, make_slices(tmp_path), None, tmp_path)
    with pytest.raises(ValueError, match="no test slices"):
        evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path, 0), None, tmp_path)


@pytest.mark.parametrize(("value", "message"), [(1.5, "goes from"), (math.nan, "goes from nan")])
def test_a_result_out_of_range_is_refused(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"method 'flat': its image {message}"):
        evaluate_methods({"flat": Constant(value)}, make_slices(tmp_path), None, tmp_path)


def test_a_result_of_another_shape_is_refused(tmp_path: Path) -> None:
    short = Double("short", lambda batch, available: batch["image"][:, :1])
    with pytest.raises(ValueError, match="method 'short'.*is needed"):
        evaluate_methods({"short": short}, make_slices(tmp_path), None, tmp_path)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    method = Constant(0.0)
    with pytest.raises(OSError, match="cannot write to the folder .*file"):
        evaluate_methods({"flat": method}, make_slices(tmp_path), None, tmp_path / "file")
    assert method.calls == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="results.json: not the record"):
        evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), None, tmp_path)


def test_each_contrast_from_all_others_is_one_picture(tmp_path: Path) -> None:
    evaluate_methods({"flat": Constant(0.0)}, make_slices(tmp_path), None, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["panel.png"]


def test_methods_of_other_grids_and_scales_share_a_table(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=4)
    native, smaller = StudyPreprocessing(ADNI, None, deviations=8), StudyPreprocessing(ADNI, 12, lower=5)
    methods = {"smaller": perfect_in(smaller, slices.studies), "native": perfect_in(native, slices.studies)}
    results = evaluate_methods(methods, slices, [["t1", "t2"]], tmp_path)
    native_psnr, smaller_psnr = (one(results, method=name)["psnr_slice_mean"] for name in ("native", "smaller"))
    assert native_psnr > 80  # but for the steps in which the cache keeps intensities
    assert 5 < smaller_psnr < 40


def test_what_a_scale_clipped_is_what_is_lost(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=4)
    narrow = StudyPreprocessing(ADNI, None, deviations=1)
    results = evaluate_methods({"narrow": perfect_in(narrow, slices.studies)}, slices, [["t1", "t2"]], tmp_path)
    low, high = narrow(slices.studies[0])["intensity_range"][ADNI.index("pd")].tolist()
    zero, top = slices.entries[0].intensity_range[ADNI.index("pd")].tolist()
    study, rows = slices.study(0), [row for row in results.rows if row.subject == "case0"]
    truth = study.truth[:, ADNI.index("pd")][:, None].double()
    clipped = truth.clamp((low - zero) / (top - zero), (high - zero) / (top - zero)).masked_fill(~study.brain, 0)
    expected = psnr(clipped.float(), truth.float())
    assert [row.psnr_slice for row in rows] == pytest.approx(expected.tolist(), abs=0.01)


def test_a_copy_of_the_truth_has_its_detail_and_its_flicker(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=4)
    methods = {"perfect": perfect_in(slices.preprocessing, slices.studies), "flat": Constant(0.0)}
    results = evaluate_methods(methods, slices, [["t1", "t2"]], tmp_path)
    perfect, flat = one(results, method="perfect"), one(results, method="flat")
    assert perfect["detail_mean"] == perfect["flicker_mean"] == 1 and perfect["structure_mean"] > 60
    assert flat["detail_mean"] == flat["flicker_mean"] == 0
    assert math.isnan(perfect["coverage_mean"])
    assert (
        "### Structure PSNR, HaarPSI, detail, flicker, coverage" in results.markdown
        and ", 1.000, 1.00, 1.00, – |" in results.markdown
    )


def test_a_wrong_intensity_curve_is_no_wrong_structure(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, per_subject=4)
    truth = perfect_in(slices.preprocessing, slices.studies)
    gamma = Double("gamma", lambda *args: ((truth.image(*args) + 1) / 2) ** 0.7 * 2 - 1)
    entry = one(evaluate_methods({"gamma": gamma}, slices, [["t1", "t2"]], tmp_path), target="pd")
    assert entry["structure_mean"] > entry["psnr_slice_mean"] + 20


def test_an_interval_covers_what_lies_in_it(tmp_path: Path) -> None:
    """In a method's own scale, whose half widths are other ones on the truth's."""
    slices = make_slices(tmp_path, per_subject=4)
    truth = perfect_in(StudyPreprocessing(ADNI, None, deviations=6), slices.studies)

    class Unsure(Double):
        def __call__(self, batch: dict[str, Any], available: torch.Tensor, progress: Any = None) -> dict[str, Any]:
            right = self.image(batch, available)
            return {"image": (right + 0.1).clamp(max=1), "uncertainty": torch.full_like(right, float(self.fingerprint))}

    methods = {name: Unsure(name, truth.image, 1, truth.preprocessing) for name in ("0.09", "0.11")}
    results = evaluate_methods(methods, slices, [["t1", "t2"]], tmp_path)
    assert one(results, method="0.11")["coverage_mean"] == 1
    assert one(results, method="0.09")["coverage_mean"] < 0.05  # what is clipped to 1


def test_an_uncertainty_below_zero_is_refused(tmp_path: Path) -> None:
    class Wrong(Constant):
        def __call__(self, *args: Any) -> dict[str, torch.Tensor]:
            made = super().__call__(*args)
            return made | {"uncertainty": -torch.ones_like(made["image"])}

    with pytest.raises(ValueError, match="its uncertainty goes from -1 to -1; it must be at least 0"):
        evaluate_methods({"wrong": Wrong(0.0)}, make_slices(tmp_path), None, tmp_path)


def test_noise_in_the_truth_is_no_detail_where_the_noiseless_truth_is_known(tmp_path: Path) -> None:
    slices = make_slices(tmp_path, 1, 4)
    clean = [write_study(tmp_path.with_name(f"{tmp_path.name}-clean") / "case0", ADNI.names, SHAPE, seed=7)]
    known = EvaluationSlices(slices.studies, slices.cache_dir, ADNI, 4, noiseless=clean)
    method = perfect_in(slices.preprocessing, clean)
    results = evaluate_methods({"clean": method}, known, [["t1", "t2"]], tmp_path)
    entry = one(results, target="pd")
    assert entry["detail_mean"] == pytest.approx(1, abs=0.1) and entry["psnr_slice_mean"] < 20
    with pytest.raises(ValueError, match="no noiseless study of case0: give one of each subject"):
        EvaluationSlices(slices.studies, slices.cache_dir, ADNI, 4, noiseless=[{**clean[0], "subject": "another"}])


def make_row(method: str, subject: str, psnr_slice: float) -> Row:
    scores = dict.fromkeys([*SCORES, *COUNTS, "seconds"], 0.5) | {"psnr_slice": psnr_slice}
    return Row(method, "t1+t2", "pd", subject, 1, **scores)


def test_p_values_are_those_of_subjects_means_from_six_subjects_on() -> None:
    values = {"main": [9.0, 8.0, 7.5, 6.0, 5.0, 9.5], "other": [8.0, 7.5, 7.0, 6.5, 4.0, 6.0]}
    rows = [make_row(name, f"s{i}", v) for name, found in values.items() for i, v in enumerate(found) for _ in "ab"]
    (entry,) = compare_rows(rows, "main")
    assert (entry["against"], entry["subjects"], entry["ssim_slice_p"], entry["haarpsi_p"]) == ("other", 6, 1.0, 1.0)
    assert entry["psnr_slice_p"] == pytest.approx(wilcoxon(values["main"], values["other"]).pvalue)
    assert compare_rows([row for row in rows if row.subject != "s5"], "main") == []
    assert math.isnan(paired_p([math.inf, *range(5)], [0.0] * 6))


def test_the_last_method_is_compared_with_each_other_one(tmp_path: Path) -> None:
    methods = {"dark": Constant(-0.5), "grey": Constant(0.0), "bright": Constant(0.3)}
    results = evaluate_methods(methods, make_slices(tmp_path, 6), None, tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["main"] == "bright" and len(record["differences"]) == 2 * 3
    assert "### bright against each other row, p" in results.markdown and "over 6 subjects" in results.markdown


def test_rows_of_the_same_name_are_told_apart_by_the_models_folders() -> None:
    trivial, first, second = (Copy(StudyPreprocessing(ADNI, size)) for size in (8, 9, 10))
    merged = merge_rows({"copy": trivial}, [("a/published", first), ("b/published", first)], second)
    assert list(merged) == ["copy", "published: copy", "published (2): copy"]


def test_uncertainty_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsure(Constant):
        def __call__(self, *args: Any) -> dict[str, torch.Tensor]:
            made = super().__call__(*args)
            return made | {"uncertainty": torch.full_like(made["image"], 0.2)}

    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "draw_synthesis", lambda path, rows, *args: drawn.extend(rows))
    methods = {"flat": Constant(0.0), "unsure": Unsure(0.1)}
    evaluate_methods(methods, make_slices(tmp_path), None, tmp_path)
    assert [list(row.uncertainty) for row in drawn] == [["unsure"]] * 3
    assert drawn[0].uncertainty["unsure"].max() == pytest.approx(0.1) and drawn[0].truth.shape == SHAPE[:2]
