"""The paper's tables and figures: what they are made of, what they say of a row, and the commands that make them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_apt import codebook, make_method
from tiny_bundle import ROOT

from apt_monai.cli import main
from apt_monai.codebook import PriorCodebook
from apt_monai.comparison.cost import parameters, training_flops
from apt_monai.comparison.paper import paper_numbers
from apt_monai.comparison.priors import ZeroPrior, shuffled, starting_from
from apt_monai.comparison.run import TRIVIAL, Comparison, Protocol, markdown, slug
from apt_monai.comparison.summary import holm, interval, summarise
from apt_monai.comparison.systems import LABELS, Plan, overlays_of
from apt_monai.comparison.tables import TABLES, TableRow
from apt_monai.contrasts import ADNI, BRATS
from apt_monai.evaluation.scores import Row
from apt_monai.phantom import write_phantom_dataset
from apt_monai.places import TRAINABLE, find_bundle

ROW = Row("", "t1+t2", "pd", "a", 3, *[0.5] * 18, seconds=0.1)


def scores(psnr: dict[str, float], target: str = "pd", **changes: float) -> list[Row]:
    return [
        replace(ROW, subject=subject, target=target, psnr_slice=value, **changes) for subject, value in psnr.items()
    ]


def test_the_rows_of_each_table_are_known_methods_with_folders_of_their_own() -> None:
    assert set(LABELS) == set(TRAINABLE)
    rows = [row for table in TABLES.values() for row in table.rows]
    assert {row.system for row in rows} == {*TRAINABLE, *TRIVIAL}
    for table in TABLES.values():
        assert len({slug(row.label) for row in table.rows}) == len(table.rows)
    labels = {}  # a label that is in two tables is the same row, as both share its cell
    for row in rows:
        assert labels.setdefault(slug(row.label), row) == row


@pytest.mark.parametrize("contrasts", [BRATS, ADNI], ids=lambda contrasts: contrasts.name)
def test_the_papers_numbers_stand_beside_every_row_that_the_paper_has(contrasts) -> None:  # type: ignore[no-untyped-def]
    for number, table in TABLES.items():
        for row in table.rows:
            known = paper_numbers(contrasts.name, number, row.label)
            if row.system in TRIVIAL or row.system in ("regression", "direct"):
                assert not known
            else:
                assert list(known) == list(contrasts.names) and all(10 < p < 30 < 100 * s for p, s in known.values())
    subsets = "6" if contrasts is BRATS else "7"
    for acquired in contrasts.subsets():
        if len(acquired) < len(contrasts) - 1:
            known = paper_numbers(contrasts.name, subsets, "+".join(acquired))
            assert set(known) == set(contrasts.names) - set(acquired)


def test_every_systems_overlays_are_in_both_bundles() -> None:
    for bundle in ("apt_brats", "apt_adni"):
        for method in LABELS:
            for small in (True, False):
                for name in overlays_of(method, small):
                    assert (find_bundle(bundle) / "configs" / name).is_file()


def test_holm_multiplies_the_smallest_p_by_all_and_never_falls() -> None:
    p = {"a": 0.04, "b": 0.001, "c": 0.03, "d": math.nan}
    assert {key: value for key, value in holm(p).items() if key != "d"} == {"b": 0.003, "c": 0.06, "a": 0.06}
    assert math.isnan(holm(p)["d"])


def test_an_interval_holds_the_mean_and_needs_three_subjects() -> None:
    low, high = interval([20.0, 21.0, 22.0, 25.0, 23.0])
    assert 20 < low < 22.2 < high < 25
    assert math.isnan(interval([1.0, 2.0])[0])


def test_each_row_is_tested_against_the_best_other_and_the_mean_is_over_targets_first() -> None:
    subjects = "abcdefgh"
    best = {s: 30.0 + i for i, s in enumerate(subjects)}
    second = {s: value - 1 - 0.1 * i for i, (s, value) in enumerate(best.items())}
    cells = {
        "best": scores(best) + scores(best) + scores({s: v + 2 for s, v in best.items()}, "t1"),  # one target twice
        "second": scores(second) + scores({s: v + 2 for s, v in second.items()}, "t1"),
        "third": scores(dict.fromkeys(subjects, 10.0)) + scores(dict.fromkeys(subjects, 10.0), "t1"),
    }
    entries = {entry["row"]: entry for entry in summarise(cells, ADNI.names)}
    assert entries["best"]["scores"]["psnr_slice"]["mean"]["mean"] == pytest.approx(33.5 + 1)
    assert list(entries["best"]["scores"]["psnr_slice"]) == ["t1", "pd", "mean"]
    two_sided = 2 / 2 ** len(subjects)  # the exact Wilcoxon test, all differences of one sign
    assert {name: entry["p"]["psnr_slice"] for name, entry in entries.items()} == pytest.approx(
        dict.fromkeys(cells, 3 * two_sided)
    )


def test_a_table_says_cost_and_paper_and_leaves_out_what_no_row_has() -> None:
    found = summarise({"APT": scores({"a": 20.0, "b": 22.0}, coverage=math.nan, lesions=0.0)}, ADNI.names)
    cost = {"parameters": 1_500_000, "iterations": 30, "batch_size": 16, "tflop": 2.5, "seconds": 61.0}
    entry = {**found[0], "cost": cost, "paper": paper_numbers("adni", "1", "APT")}
    text = markdown("1", TABLES["1"], [entry], ADNI.names, "2.5 TFLOP of training each")
    assert "| APT | acquired | acquired | 21.00 ± 1.41 / 0.500 ± 0.000 |" in text
    assert "| 1.50 | 30 × 16 | 2.5 | 61 | 0.1 |" in text
    assert "nan" not in text and "| 21.00 / 0.500 |" in text, "two subjects have no interval and no p"
    assert "on patients, another data set" in text and "| APT | 20.82 / 0.804 |" in text
    assert "coverage" not in text.lower().split("means over all targets")[0] and "1 of" not in text


def test_the_operations_of_a_training_step_are_those_of_its_convolutions() -> None:
    network = {
        "spatial_dims": 2,
        "in_channels": 8,
        "out_channels": 8,
        "init_filters": 8,
        "blocks_down": [1],
        "blocks_up": [],
    }
    settings = {
        "method": "direct", "contrasts": BRATS.to_dict(), "network": network, "multiple": 1, "gain": 1.0,
        "scheduler": {"num_train_timesteps": 1000, "schedule": "cosine", "prediction_type": "sample"},
    }  # fmt: skip
    forward = 2 * 16 * 16 * (9 * 8 * 8 * 3 + 8 * 8)  # three 3 × 3 convolutions of 8 channels, and one of 1 × 1
    weights_of_the_first = 9 * 8 * 8 * 2 * 16 * 16  # whose input needs no gradient
    assert training_flops(settings, 16, 4) == 4 * (3 * forward - weights_of_the_first)
    assert parameters(settings) == 9 * 8 * 8 * 3 + 8 * 8 + 8 + 2 * 8 * 3


def test_table_3_starts_from_zero_or_a_random_entry_of_the_codebook_and_results_know_it() -> None:
    method = make_method()
    assert isinstance(method.codebook, PriorCodebook)
    image, available = torch.ones(1, 4, 8, 8), torch.tensor([[True, True, False, True]])
    zero = starting_from(method, "zero")
    assert isinstance(zero.codebook, ZeroPrior)
    assert (zero.codebook.prior(image, available, torch.ones(1, 1, 8, 8) > 0)[0, 2] == 0).all()
    orders = {tuple(shuffled(codebook(), seed).entries["t1ce"]) for seed in range(9)}
    assert len(orders) > 1 and all(set(order) == set(codebook().entries["t1ce"]) for order in orders)
    made = {starting_from(method, start).fingerprint for start in ("codebook", "zero", "random")}
    assert len(made) == 3 and starting_from(method, "noise") is method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "1"], "give either --data DATA"),
        (["table", "1", "--data", "d", "--phantom", "5"], "give either --data DATA"),
        (["table", "1", "--phantom", "5", "--given", "unet=d"], "--given unet: no such method"),
        (["table", "6", "--data", "d", "--dataset", "adni"], "table 6 is of brats"),
        (["figure", "5", "--data", "d", "--dataset", "brats"], "figure 5 is of adni"),
    ],
)
def test_a_comparison_that_cannot_be_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_where_every_model_is_given_nothing_is_chosen_on_the_studies_that_are_tested_on(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "data", "adni", subjects=2, seed=0, spacing=10)
    comparison = Comparison(Plan(ADNI, tmp_path / "data", tmp_path / "out", None), Protocol(2), {})
    assert len(comparison.slices("test").studies) == 2 and not comparison.slices("validation").studies
    assert comparison.method(TableRow("copy", "copy")).ranking == {}  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # nine systems are trained
def test_tables_and_figures_train_evaluate_and_go_on_by_one_command(tmp_path: Path) -> None:
    common = ["--phantom", "8", "--dataset", "adni", "--budget", "0.06", "--slices-per-subject", "2", "--out", "study"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "apt_monai", *words, *common], cwd=tmp_path, capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    printed = run("table", "1", "7")
    tables = tmp_path / "study" / "tables"
    for row in ("copy", "prior", *LABELS.values()):
        assert f"| {row} |" in printed
    rows = json.loads((tables / "table_1.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["copy", "prior", *LABELS.values()]
    assert all(row["cost"]["iterations"] >= 1 and row["cost"]["tflop"] <= 0.061 for row in rows[2:])
    subsets = {row["row"] for row in json.loads((tables / "table_7.json").read_text())["rows"]}
    assert subsets >= {"APT: t1", "direct: t1+pd"}
    cells = {path: path.read_bytes() for path in (tmp_path / "study" / "cells").rglob("results.csv")}
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "models").rglob("model.pt")}
    assert len(weights) == len(LABELS)
    run("figure", "6")
    run("table", "1")
    assert all(path.read_bytes() == content for path, content in cells.items())
    assert all(path.stat().st_mtime_ns == time for path, time in weights.items())
    assert (tmp_path / "study" / "figures" / "figure_6.png").stat().st_size > 10_000
