"""The benchmark compares like with like, and its sums are right. Nothing here tests how fast anything is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apt_monai.networks import write_untrained_encoder
from benchmarks import machine, networks, profiling, published, reading, report, synthesis
from benchmarks.stopwatch import Stopwatch, summarize_laps
from benchmarks.workloads import PARTS, VARIANTS, Variant, Workload

TINY = Workload(
    image_size=16,
    channels=(8, 8, 8),
    norm_num_groups=4,
    encoder_model=None,
    steps=(3, 2),
    batch_steps=(1, 1),
    batch_size=2,
    encoded_slices=1,
    alignment_batch=64,
    alignment_steps=1,
    study_shape=(24, 24, 12),
    cached_reads=4,
    nifti_reads=2,
    codebook_subjects=1,
    codebook_size=16,
    codebook_slices=4,
)
PUBLISHED, FLOAT32 = VARIANTS[0], VARIANTS[1]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_untrained_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.mark.parametrize("steps", [(1, 0), (3, 0), (11, 1)])  # with S = 11 there is a step below stage 2's
def test_published_way_gives_what_ours_gives(encoder_folder: str, steps: tuple[int, int]) -> None:
    method = networks.make_method(TINY, FLOAT32, *steps, encoder_folder, torch.device("cpu"))
    batch, available = networks.make_batch(TINY, 1, torch.device("cpu"))
    passes: list[int] = []
    repeated = published.synthesize_published_way(method, batch, available, passes.append)
    ours = method(batch, available)
    assert len(passes) == method.passes
    assert not torch.equal(ours["image"], ours["prior"])
    torch.testing.assert_close(repeated, ours["image"], rtol=0, atol=1e-4)


def test_published_way_takes_one_slice(encoder_folder: str) -> None:
    method = networks.make_method(TINY, FLOAT32, 1, 0, encoder_folder, torch.device("cpu"))
    with pytest.raises(ValueError, match="one slice"):
        published.synthesize_published_way(method, *networks.make_batch(TINY, 2, torch.device("cpu")))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.name}-{v.batched}")
def test_shares_of_the_parts_sum_to_one(encoder_folder: str, variant: Variant) -> None:
    found = synthesis.measure_synthesis(TINY, variant, encoder_folder)
    assert found["measured_passes"] == (2 if variant.batched else 5)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["forward"] > 0
    assert (found["shares"]["backward"] > 0) == (variant.guidance_scale > 0)
    assert found["peak_memory"] >= found["memory_before"] > 0


def test_encoding_is_part_of_every_published_pass_and_of_our_first_alone(
    encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laps: list[list[dict[str, float]]] = []
    summarize = synthesis.summarize_laps
    monkeypatch.setattr(synthesis, "summarize_laps", lambda found, *args: laps.append(found) or summarize(found, *args))
    for variant in (PUBLISHED, FLOAT32):
        synthesis.measure_synthesis(TINY, variant, encoder_folder)
    assert ["encode" in lap for lap in laps[0]] == [True] * 5
    assert ["encode" in lap for lap in laps[1]] == [True] + [False] * 4


def test_stopwatch_counts_the_way_back_to_the_input() -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    stopwatch, module, x = Stopwatch(torch.device("cpu")), Double(), torch.ones(3, requires_grad=True)
    stopwatch.watch(module, "forward", "backward")
    (gradient,) = torch.autograd.grad(module(x=x).sum(), x)
    stopwatch.lap()
    assert gradient.tolist() == [2, 2, 2]
    assert set(stopwatch.laps[0]) == {"forward", "backward", "rest"}
    assert min(stopwatch.laps[0].values()) > 0


def test_whole_synthesis_is_extrapolated_from_the_passes_after_the_first() -> None:
    laps = [
        {"encode": 4.0, "forward": 9.0, "backward": 9.0, "rest": 9.0},
        {"forward": 1.0, "backward": 2.0, "rest": 0.5},
        {"forward": 2.0, "backward": 2.0, "rest": 0.5},
    ]
    found = summarize_laps(laps, slices=8, passes=71)
    total = 4 + 71 * (1.5 + 2 + 0.5)
    assert found["seconds_once"] == 4
    assert found["seconds_a_pass"] == 4
    assert found["slices_a_second"] == pytest.approx(8 / total)
    assert found["shares"]["encode"] == pytest.approx(4 / total)
    assert found["measured_seconds"] == sum(sum(lap.values()) for lap in laps)


def test_single_pass_stands_for_all_and_is_encoded_once() -> None:
    assert summarize_laps([{"encode": 1.0, "forward": 1.0, "rest": 0.0}], 1, 10)["slices_a_second"] == 1 / 11


def test_slices_are_read_from_cache_and_files(tmp_path: Path) -> None:
    filled = reading.fill_slice_cache(TINY, str(tmp_path))
    found = reading.measure_slice_reading(TINY, filled["study"], str(tmp_path))
    assert found["ratio"] == pytest.approx(found["slices_a_second_cached"] / found["slices_a_second_nifti"])


def test_alignment_is_timed_from_features_and_with_the_encoder(encoder_folder: str, tmp_path: Path) -> None:
    found = reading.measure_alignment(TINY, encoder_folder, str(tmp_path))
    assert found["batch"] == TINY.alignment_batch
    assert found["ratio"] > 1
    assert found["peak_memory_encoding"] >= found["peak_memory_cached"]


def test_batch_that_would_not_fit_into_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "available_memory", lambda: 1000)
    single = {"name": VARIANTS[4].name, "batched": False, "memory_before": 100, "peak_memory": 600}
    found = profiling.measure_variant(TINY, VARIANTS[4], "", [single])
    assert "needs about" in found["left_out"]


def test_paper_network_is_the_papers() -> None:
    found = networks.describe_network(replace(Workload(), image_size=32))
    assert found["parameters"] == 178_813_956
    assert found["operations"] > 1e9


def _results() -> dict[str, Any]:
    def entry(variant: Variant, slices_a_second: float, peak: float) -> dict[str, Any]:
        shares = dict.fromkeys(PARTS, 0.25)
        figures = {"slices_a_second": slices_a_second, "shares": shares}
        return {**vars(variant), "batch_size": 1, **figures, "peak_memory": peak, "measured_passes": 3}

    epoch = {"seconds_a_slice_cached": 0.001, "seconds_a_slice_encoding": 0.2, "ratio": 200.0}
    epoch |= {"batch": 512, "timed_steps": 4, "encoded_slices": 4}
    reading = {"slices_a_second_cached": 400.0, "slices_a_second_nifti": 10.0, "ratio": 40.0, "seconds_to_fill": 5.0}
    built = [
        {"subjects": n, "slices": n, "seconds": 1.0, "peak_memory": 10**9, "slices_in_memory": n * 10**7}
        for n in (1, 4)
    ]
    entries = [
        entry(PUBLISHED, 0.9, 3e9),
        entry(FLOAT32, 1.2, 3e9),
        entry(VARIANTS[2], 2.6, 2e9),
        entry(VARIANTS[3], 9.0, 1e9),
        {**vars(VARIANTS[5]), "batch_size": 8, "left_out": "needs about 9 GB"},
    ]
    profiling.add_ratios(entries, again=1.1)
    return {
        "machine": machine.describe_machine(),
        "workload": vars(TINY),
        "network": {"parameters": 10**8, "operations": 5 * 10**11},
        "synthesis": entries,
        "alignment": {**epoch, "peak_memory_cached": 1, "peak_memory_encoding": 1},
        "slices": {**reading, **dict.fromkeys(("peak_memory_cached", "peak_memory_nifti", "peak_memory_fill"), 1)},
        "codebook": built,
    }


def test_report_says_what_was_reached_and_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "measure", lambda workload: _results())
    profiling.run_benchmarks(tmp_path / "bench")
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["results.json", "results.md"]
    assert json.loads((tmp_path / "bench" / "results.json").read_text())["slices"]["ratio"] == 40
    text = (tmp_path / "bench" / "results.md").read_text()
    assert "| 2.5× the published way with the paper's gradient | 2.60× | yes |" in text
    assert "| 10× the published way with α = 0 | 9.00× | no |" in text
    assert "| memory at batch 1 not above the published way (within 1 %) | 3.00 GB, 3.00 GB | yes |" in text
    assert "| 100× encoding in each epoch | 200× | yes |" in text
    assert "| 50× reading NIfTI files | 40× | no |" in text
    assert "does not grow with the subjects | +0 MB for 30 MB more of slices | yes |" in text
    assert "left out: needs about 9 GB" in text
    assert "0.9 and 1.1 slices" in text


@pytest.mark.slow
def test_everything_is_measured_in_processes_of_their_own() -> None:
    results = profiling.measure(TINY)
    assert results["synthesis"][0]["ratio"] == 1
    assert len(results["synthesis"]) == len(VARIANTS)
    assert [built["subjects"] for built in results["codebook"]] == [1, 4]
    assert "| published way | 1 |" in report.render(json.loads(json.dumps(results)))
