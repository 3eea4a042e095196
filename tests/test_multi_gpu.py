"""Several ranks: two CPU processes give what one gives, and one that dies stops the run."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import tiny_bundle
import torch
from monai.networks.schedulers import DDPMScheduler
from tiny_bundle import ROOT, command, environment, files_of, finish, write_untrained_direct
from tiny_heads import make_pair, write_raw
from tiny_methods import SMALL
from tiny_studies import write_nifti

from apt_monai import distributed
from apt_monai.engines import ContextPrepareBatch, FusionPrepareBatch
from apt_monai.networks import MutualInformationFusion, PublishedDenoiser
from apt_monai.phantom import write_phantom_dataset

# Adam would hide a gradient of the wrong scale.
STEEPEST_DESCENT = {
    "optimizer#_target_": "torch.optim.SGD",
    "learning_rate": 0.1,
    "alignment#optimizer#_target_": "torch.optim.SGD",
    "mif_learning_rate": 0.1,
}


@pytest.fixture
def rank_1_of_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rank 1 of 2 sees, without a second process: nothing that ranks do together can be tried with it."""
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather", lambda item: [item, item])


def _batch(rows: slice = slice(None)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    batch = {
        "image": torch.rand(6, 4, 8, 8, generator=generator),
        "features": torch.rand(6, 4, 16, generator=generator),
    }
    return {key: value[rows] for key, value in batch.items()} | {"subject": [f"s{i}" for i in range(6)][rows]}


def test_a_rank_draws_the_random_numbers_that_one_process_draws_for_its_samples(
    request: pytest.FixtureRequest,
) -> None:
    fusion = MutualInformationFusion(16, 2)
    denoiser = PublishedDenoiser(torch.nn.Identity(), DDPMScheduler(1000, schedule="cosine"))
    _, whole_noise, _, whole_arguments = ContextPrepareBatch(denoiser, 1000, fusion, "subset", 5)(_batch(), "cpu")
    whole_subsets = FusionPrepareBatch(seed=5)(_batch())[2][0].reshape(2, 6, 4)
    request.getfixturevalue("rank_1_of_2")
    own = slice(1, None, 2)
    _, noise, _, arguments = ContextPrepareBatch(denoiser, 1000, fusion, "subset", 5)(_batch(own), "cpu")
    assert torch.equal(noise, whole_noise[own])
    assert torch.equal(arguments["timesteps"], whole_arguments["timesteps"][own])
    known, whole = arguments["condition"], whole_arguments["condition"]
    assert torch.equal(known.available, whole.available[own])
    torch.testing.assert_close(known.context, whole.context[own])
    assert torch.equal(FusionPrepareBatch(seed=5)(_batch(own))[2][0].reshape(2, 3, 4), whole_subsets[:, own])


@pytest.mark.usefixtures("rank_1_of_2")
def test_the_ranks_take_items_in_turn() -> None:
    assert distributed.own_share("abcde") == ["b", "d"]
    assert not distributed.is_lead()


@pytest.mark.usefixtures("rank_1_of_2")
def test_a_batch_is_shared_by_the_ranks() -> None:
    assert distributed.rank_batch_size("batch_size", 16, samples=1000) == 8
    assert distributed.rank_batch_size("batch_size", 16, samples=6) == 3
    with pytest.raises(ValueError, match="cannot share batches of 15 of 1000 samples: give a mif_batch_size that is a"):
        distributed.rank_batch_size("mif_batch_size", 15, samples=1000)
    with pytest.raises(ValueError, match="or start fewer ranks"):
        distributed.rank_batch_size("batch_size", 16, samples=1)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "99", "LOCAL_WORLD_SIZE": "100"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=r"started 100 processes on this machine, which has \d+ GPUs"):
        distributed.start_ranks("cuda")
    with pytest.raises(ValueError, match="'cuda:0', one GPU for all processes"):
        distributed.start_ranks("cuda:0")


# The real commands


def torchrun(config: str, run_id: str, ranks: int = 2, **overrides: Any) -> list[str]:
    """The bundle's command on several ranks."""
    words = command(config, run_id, **overrides)[2:]  # without "python -m"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", *words]


def train_options(folder: Path, data: Path) -> dict[str, Any]:
    """Where one training has its files, and batches that two and three ranks can share."""
    places = {"model_dir": folder / "model", "work_dir": folder / "work", "dataset_dir": data}
    return {**places, "batch_size": 12, "mif_batch_size": 36, **STEEPEST_DESCENT}


def same_weights(one: Path, other: Path) -> None:
    """Both trained networks to a small part of how far training has moved them, and the same codebook."""
    for name in ("fusion.pt", "model.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        start = torch.load(one.parent / "still" / "model" / name, weights_only=True)
        moved = max(float((a[key] - start[key]).abs().max()) for key in a)
        apart = max(float((a[key] - b[key]).abs().max()) for key in a)
        assert apart < 0.02 * moved, (name, apart, moved)
    texts = [(folder / "codebook.json").read_text(encoding="utf-8") for folder in (one, other)]
    assert texts[0] == texts[1]


def resume_half_a_table(path: Path, expected: list[dict[str, str]], options: dict[str, Any]) -> None:
    """Of a table without its last rows, two ranks make those alone, and it is the same again."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("U+A+I,")))
    done = finish(torchrun("evaluate", "evaluating", output_dir=path.parent, **options))
    assert done.returncode == 0 and "goes on where it stopped" in done.stdout, done.stdout
    with path.open(newline="") as file:
        assert [{**row, "seconds": ""} for row in csv.DictReader(file)] == expected


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, "brats", subjects=5, seed=0, spacing=10)
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """What one process trains, the whole of it in this one; in `still`, with a learning rate of 0."""
    folder = tmp_path_factory.mktemp("one")
    for place, changes in ((folder / "still", {"learning_rate": 0, "mif_learning_rate": 0}), (folder, {})):
        options = {**train_options(place, data), **changes}
        numbers = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        tiny_bundle.run("published", "training", **numbers)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_train_what_one_trains(one_rank: Path, data: Path, tmp_path: Path, ranks: int) -> None:
    """There are two slices to validate on: the third rank has none of its own."""
    done = finish(torchrun("published", "training", ranks, **train_options(tmp_path, data)))
    assert done.returncode == 0, done.stdout
    same_weights(one_rank / "model", tmp_path / "model")
    assert (tmp_path / "model" / "codebook.png").is_file()
    if ranks == 2:
        done = finish(torchrun("published", "training", **train_options(tmp_path, data)))  # nothing left to do
        assert done.returncode == 0 and "denoiser is finished" in done.stdout, done.stdout


@pytest.mark.slow
def test_two_ranks_train_our_own_method_as_one_does(data: Path, tmp_path: Path) -> None:
    """Crops, subsets and all: each rank takes its samples of the same batches."""
    rates = {"optimizer#_target_": "torch.optim.SGD", "learning_rate": 0.1, "batch_size": 12}
    for name, rate in (("still", 0.0), ("one", 0.1)):
        places = {"model_dir": str(tmp_path / name / "model"), "work_dir": str(tmp_path / name / "work")}
        tiny_bundle.run("train", "training", dataset_dir=str(data), **places, **{**rates, "learning_rate": rate})
    places = {"model_dir": tmp_path / "two" / "model", "work_dir": tmp_path / "two" / "work", "dataset_dir": data}
    done = finish(torchrun("train", "training", **places, **rates))
    assert done.returncode == 0, done.stdout
    still, one, two = (
        torch.load(tmp_path / name / "model" / "model.pt", weights_only=True) for name in ("still", "one", "two")
    )
    moved = max(float((one[key] - still[key]).abs().max()) for key in one)
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 0.02 * moved
    widths = [json.loads((tmp_path / name / "model" / "calibration.json").read_text()) for name in ("one", "two")]
    assert widths[0]["deviation"] == widths[1]["deviation"] and widths[1]["subjects"] == 1


@pytest.mark.slow
def test_two_ranks_train_a_gan_as_one_does(data: Path, tmp_path: Path) -> None:
    """Both its networks: a discriminator that differs between ranks would draw the generators apart."""
    sizes = {key: value for key, value in tiny_bundle.settings_of("train").items() if "#" not in key}
    sizes |= {
        "network_settings": SMALL["resvit"]["network"],
        "discriminator_settings": SMALL["resvit"]["discriminator"],
        "multiple": 32,
        "crop": 32,
        "precision": "float32",  # a sum in another order is another bfloat16
        "iterations": 2,
        "epoch_length": 2,  # instance norms of next to nothing amplify the last digit from step to step
        "batch_size": 12,
        "dataset_dir": data,
    }
    steepest = tmp_path / "steepest.yaml"
    steepest.write_text(
        "".join(
            f"{which}: {{_target_: torch.optim.SGD, params: $@{of}.parameters(), lr: '@learning_rate'}}\n"
            for which, of in (("optimizer", "network"), ("adversary_optimizer", "adversary"))
        )
    )
    configs = [str(tiny_bundle.configs_of() / name) for name in ("train.yaml", "methods/resvit.yaml")]
    configs.append(str(steepest))
    found = {}
    for name, ranks, rate in (("still", 1, 0.0), ("one", 1, 0.0005), ("two", 2, 0.0005)):
        places = {"model_dir": tmp_path / name / "model", "work_dir": tmp_path / name / "work"}
        options = {**sizes, **places, "learning_rate": rate, "config_file": configs}
        words = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in options.items())
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        done = finish([sys.executable, "-m", *launch, "monai.bundle", "run", "training", *words])
        assert done.returncode == 0, done.stdout
        found[name] = torch.load(tmp_path / name / "model" / "model.pt", weights_only=True)
    still, one, two = found.values()
    moved = max(float((one[key].float() - still[key].float()).abs().max()) for key in one)
    apart = max(float((one[key].float() - two[key].float()).abs().max()) for key in one)
    assert moved > 0 and apart < 0.02 * moved


@pytest.mark.slow
def test_two_ranks_write_the_volumes_and_the_table_that_one_writes(one_rank: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    write_phantom_dataset(studies, "brats", subjects=3, seed=4, spacing=10)
    common = {"model_dir": one_rank / "model", "work_dir": tmp_path / "work", "dataset_dir": studies}
    everyone = {**common, "split_file": "$None", "batch_size": 2, "cases": "[['t1','t2'],['flair','t1','t1ce']]"}
    tables = []
    for name, start in (("one", command), ("two", torchrun)):
        done = finish(start("evaluate", "evaluating", output_dir=tmp_path / name / "eval", **everyone))
        assert done.returncode == 0, done.stdout
        with (tmp_path / name / "eval" / "results.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 5 * 2 * 3 * 3  # methods, slices, studies, targets
    resume_half_a_table(tmp_path / "two" / "eval" / "results.csv", tables[0], everyone)

    for subject, absent in zip(sorted(studies.glob("BraTS*")), ("t1", "t2", "flair"), strict=True):
        next(subject.glob(f"*_{absent}.nii.gz")).unlink()
    for name, start in (("one", command), ("two", torchrun)):
        done = finish(start("inference", "run", output_dir=tmp_path / name / "out", **common))
        assert done.returncode == 0, done.stdout
    files = files_of(tmp_path / "one" / "out")
    assert files == files_of(tmp_path / "two" / "out") and len(files) == 6
    for file in files:
        assert (tmp_path / "one" / "out" / file).read_bytes() == (tmp_path / "two" / "out" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank's process in /proc")
def test_a_rank_that_dies_stops_the_run_and_the_next_run_resumes(data: Path, tmp_path: Path) -> None:
    words = torchrun("published", "training", **train_options(tmp_path, data), iterations=2000)
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        deadline = time.monotonic() + 240
        while not (tmp_path / "work" / "denoiser_checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(_process_of_rank(1, str(tmp_path)), signal.SIGKILL)
        output, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    summary = output[output.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in summary and "Signal 9 (SIGKILL) received" in summary
    assert not (tmp_path / "model" / "model.pt").exists()

    checkpoint = torch.load(tmp_path / "work" / "denoiser_checkpoint.pt", weights_only=True)
    few = checkpoint["iteration"] + 1  # the epoch after
    done = finish(torchrun("published", "training", **train_options(tmp_path, data), iterations=few))
    assert done.returncode == 0, done.stdout
    assert f"after epoch {checkpoint['epoch']} (iteration {checkpoint['iteration']})" in done.stdout
    assert (tmp_path / "model" / "model.pt").exists()
    resumed = torch.load(tmp_path / "work" / "denoiser_checkpoint.pt", weights_only=True)
    assert resumed["epoch"] == checkpoint["epoch"] + 1


def _process_of_rank(rank: int, folder: str) -> int:
    """The process whose environment has this rank and whose command names the folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ranks = f"RANK={rank}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ranks and folder.encode() in (process / "cmdline").read_bytes():
                return int(process.name)
        except OSError:  # it has ended, or is somebody else's
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_what_several_processes_cannot_share_is_the_last_word(data: Path, tmp_path: Path) -> None:
    options = {**train_options(tmp_path, data), "mif_batch_size": 35}
    done = finish(torchrun("published", "training", **options))
    assert done.returncode != 0
    summary = done.stdout[done.stdout.index("Root Cause") :]  # torchrun has the last word
    assert "give a mif_batch_size that is a multiple of 2" in summary, done.stdout
    assert not (tmp_path / "model" / "fusion.pt").exists()


@pytest.mark.slow
def test_ranks_share_the_preprocessing_of_a_cohort(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_raw(tmp_path / "raw" / name, ("t1",))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["apt_monai", "preprocess", "raw", "out", "--mask", "itk"]
    found = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "2 preprocessed" in found.stdout and "1 preprocessed" in found.stdout
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*.nii.gz"))
    assert made == [f"{name}/{name}_{what}.nii.gz" for name in ("a", "b", "c") for what in ("mask", "t1")]


@pytest.mark.slow
def test_ranks_share_raw_studies_from_their_preparation_to_their_reports(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_raw(tmp_path / "raw" / name, ("t1", "t2"))
        t2, brain = make_pair("t2")
        write_nifti(tmp_path / "raw" / name / f"{name}_mask.nii.gz", brain.astype(np.uint8), t2.affine)
    write_nifti(tmp_path / "raw" / "bad" / "bad_t2.nii.gz", np.full((8, 8, 8), 5, np.int16))
    model = write_untrained_direct(tmp_path / "model")
    start = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words = ["apt_monai", "synthesize", "raw", "--raw", "--report", "--target", "flair", "--set", "device=cpu"]
    for name, launch in (("one", []), ("two", start)):
        done = finish([sys.executable, "-m", *launch, *words, "--model", str(model), "--out", name], tmp_path)
        assert done.returncode == 1 and done.stdout.count("failed: bad: ") == 1, done.stdout
        assert "c_report_SYNTHETIC.html" in done.stdout[done.stdout.index("Synthesised, not acquired") :]
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    compared = [file for file in files if file.endswith((".nii.gz", ".html", ".png"))]
    assert {f"{name}/{name}_report_SYNTHETIC.html" for name in ("a", "b", "c")} <= set(compared)
    for file in compared:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
