"""Our own method by the bundles' commands: train.yaml, inference and evaluation as ever."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from tiny_bundle import configs_of, files_of, run, workflow

from apt_monai.data.readers import read_studies
from apt_monai.files import file_sha256
from apt_monai.models import load

BUNDLE = "apt_adni"
PHANTOM = "phantom/adni-10mm-seed0"


def training(model: Path, work: Path, **overrides: Any) -> ConfigWorkflow:
    """The training in this process, initialised."""
    made = workflow("train", "training", BUNDLE, model_dir=str(model), work_dir=str(work), **overrides)
    made.initialize()
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `work` of a whole training on the phantom."""
    folder = tmp_path_factory.mktemp("direct")
    made = training(folder / "model", folder / "work")
    made.run()
    made.finalize()
    return folder


def test_training_needs_no_vision_encoder_and_leaves_settings_weights_and_split(trained: Path) -> None:
    assert files_of(trained / "model") == ["calibration.json", "model.json", "model.pt", "split.json"]
    method = load(trained / "model", "cpu")
    assert method.name == "direct" and method.passes == 1 and method.encoder is None
    assert method.weights["trained_on"] == "digital phantom"


def test_an_interrupted_training_resumes_to_the_same_weights(trained: Path, tmp_path: Path) -> None:

    def interrupt() -> None:
        raise KeyboardInterrupt

    first = training(tmp_path / "model", tmp_path / "work")
    first.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=5), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert "model.pt" not in files_of(tmp_path / "model")
    training(tmp_path / "model", tmp_path / "work").run()
    whole, resumed = (torch.load(f / "model" / "model.pt", weights_only=True) for f in (trained, tmp_path))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_inference_and_evaluation_are_the_same_commands(trained: Path, tmp_path: Path) -> None:
    study = read_studies(trained / "work" / PHANTOM, "adni", require_all=True)[0]
    (tmp_path / "data" / "a").mkdir(parents=True)
    shutil.copy(study["t2"], tmp_path / "data" / "a" / "a_t2.nii.gz")
    places = {"model_dir": str(trained / "model"), "work_dir": str(tmp_path / "work"), "sampling": {}}
    run("inference", "run", BUNDLE, dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"), **places)
    assert [name for name in files_of(tmp_path / "out") if name.endswith(".nii.gz")] == [
        "a/a_pd_SYNTHETIC.nii.gz",
        "a/a_pd_SYNTHETIC_uncertainty.nii.gz",
        "a/a_t1_SYNTHETIC.nii.gz",
        "a/a_t1_SYNTHETIC_uncertainty.nii.gz",
    ]
    written = nib.load(tmp_path / "out" / "a" / "a_t1_SYNTHETIC.nii.gz")
    assert written.shape == nib.load(study["t2"]).shape and written.get_fdata().any()
    sidecar = json.loads((tmp_path / "out" / "a" / "a_t1_SYNTHETIC.json").read_text())
    assert sidecar["method"] == "direct" and sidecar["sampling"]["sampling_steps"] == 1

    run("evaluate", "run", BUNDLE, output_dir=str(tmp_path / "eval"), **places)
    rows = (tmp_path / "eval" / "results.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"copy", "direct"}


def test_monais_required_properties_are_there(trained: Path) -> None:
    assert training(trained / "model", trained / "work").check_properties() == []


def test_a_training_goes_on_from_trained_weights_with_their_network_and_scale(trained: Path, tmp_path: Path) -> None:
    places = {"model_dir": str(tmp_path / "model"), "work_dir": str(tmp_path / "work")}
    data = {"dataset_dir": str(trained / "work" / PHANTOM), "start_from": str(trained / "model")}
    sizes = {"crop": 16, "iterations": 6, "validation_subjects": 1, "device": "cpu"}
    still = {"learning_rate": 0.0, "val_interval": 100}
    made = ConfigWorkflow(
        config_file=[str(configs_of(BUNDLE) / name) for name in ("train.yaml", "tune.yaml")],
        logging_file=False,
        run_id="training",
        workflow_type="train",
        **places,
        **data,
        **sizes,
        **still,
    )
    made.initialize()
    made.run()
    before, after = (torch.load(f / "model" / "model.pt", weights_only=True) for f in (trained, tmp_path))
    for key in before:
        torch.testing.assert_close(after[key], before[key])  # a learning rate of 0
    settings = json.loads((tmp_path / "model" / "model.json").read_text())
    assert settings["network"] == json.loads((trained / "model" / "model.json").read_text())["network"]
    assert settings["started_from"]["model_sha256"] == file_sha256(trained / "model" / "model.pt")
    assert settings["trained_on"] == settings["started_from"]["trained_on"] == "digital phantom"


def test_weights_of_another_network_or_scale_are_no_start(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        training(tmp_path / "model", tmp_path / "work", start_from=str(trained / "model"), gain=1.0)
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert "begin with a model of other settings (gain: 2.0 there, 1.0 now)" in str(cause)


def test_the_learning_rate_falls_to_nothing_by_the_end(tmp_path: Path) -> None:
    made = training(tmp_path / "model", tmp_path / "work")
    rates: list[float] = []
    optimizer = made.parser.get_parsed_content("optimizer")
    made.parser.get_parsed_content("train#trainer").add_event_handler(
        Events.ITERATION_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"])
    )
    made.run()
    steps = len(rates)
    cosine = [0.0005 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    assert rates == pytest.approx(cosine) and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
