"""MONAI's own commands and interfaces on both bundles: what the MONAI world does with any bundle, it does with ours.

The commands run as processes of their own in an empty folder, what MONAI calls an API in this one. `run` itself is in
test_bundle.py. Where something cannot work, a test says why, and notices when that changes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import mlflow
import monai.bundle
import numpy as np
import onnx
import pytest
import torch
import yaml
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.nets import SegResNet
from monai.utils import path_to_sqlite_uri
from onnx.reference import ReferenceEvaluator
from tiny_bundle import (
    ADNI_BUNDLE,
    BRATS_BUNDLE,
    BUNDLES,
    ROOT,
    bundle_folder,
    configs_of,
    finish,
    metadata_of,
    run_command,
    settings_of,
    write_untrained_direct,
    write_untrained_model,
)
from tiny_studies import write_study

from apt_monai.models import load_model_settings
from apt_monai.weights import load_weights

BOTH = pytest.mark.parametrize("bundle", BUNDLES)
BOTH_BUT_ONE_SLOW = pytest.mark.parametrize("bundle", [BRATS_BUNDLE, pytest.param(ADNI_BUNDLE, marks=pytest.mark.slow)])


def monai_command(folder: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle …`` in a folder."""
    return finish([sys.executable, "-m", "monai.bundle", *map(str, words)], folder)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.rstrip().splitlines()[-1]


def network_of(model: Path) -> SegResNet:
    return load_weights(SegResNet(**load_model_settings(model)["network"]), model / "model.pt").eval()


def inputs_of(network: SegResNet, batch: int, size: int = 16) -> torch.Tensor:
    """What a network of these settings takes."""
    return torch.rand(batch, network.in_channels, size, size, generator=torch.Generator().manual_seed(batch))


# What the model zoo asks for

ZOO_KEYS = {
    "inference.yaml": ["bundle_root", "device", "dataset_dir", "output_dir", "network_def", "inferer", "preprocessing"],
    "train.yaml": [
        *("bundle_root", "device", "dataset_dir", "output_dir", "network_def", "val_interval"),
        *("train#trainer", "train#trainer#max_epochs", "train#dataset", "train#dataset#data", "train#handlers"),
        *("validate#evaluator", "validate#dataset", "validate#dataset#data", "validate#handlers"),
        *("train#inferer", "validate#inferer", "validate#key_metric"),
    ],
}


@BOTH
def test_the_bundle_has_the_model_zoos_files_none_above_25_megabytes(bundle: str) -> None:
    folder = bundle_folder(bundle)
    asked = ["LICENSE", "configs/metadata.json", "configs/inference.yaml", "configs/train.yaml", "models/model.pt"]
    assert [name for name in [*asked, "docs/README.md", "docs/data_license.txt"] if not (folder / name).is_file()] == []
    shipped = [path for part in ("configs", "docs", "models") for path in (folder / part).glob("*") if path.is_file()]
    assert {path.name: path.stat().st_size for path in shipped if path.stat().st_size > 25_000_000} == {}
    assert not list(folder.rglob("*.py"))


@BOTH
@pytest.mark.parametrize("config", ZOO_KEYS)
def test_the_configs_have_the_model_zoos_keys(bundle: str, config: str) -> None:
    parser = monai.bundle.ConfigParser(yaml.safe_load((configs_of(bundle) / config).read_text()))
    assert [key for key in ZOO_KEYS[config] if key not in parser] == []


@BOTH
def test_the_metadata_names_every_package_that_is_needed(bundle: str) -> None:
    """With a version that this package accepts; monai, torch and numpy have keys of their own."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    requirements = setup["options"]["install_requires"].split()
    extras = re.search(r"monai\[(.*)\]", setup["options"]["install_requires"])
    assert extras is not None
    wanted = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements} - {"monai", "torch", "numpy"}
    wanted |= {{"ignite": "pytorch-ignite"}.get(extra, extra) for extra in extras[1].split(",")} | {"apt_monai"}
    metadata = metadata_of(bundle)
    assert set(metadata["required_packages_version"]) == wanted
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in metadata["required_packages_version"].values())
    assert metadata["version"] in metadata["changelog"]


# verify_metadata

TENSOR = {
    "type": "object",
    "required": [
        *("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"),
    ],
    "properties": {
        "type": {"type": "string"},
        "format": {"type": "string"},
        "modality": {"type": "string"},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {
            "type": "array",
            "items": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^[\d\s*pn]+$"}]},
        },
        "dtype": {"type": "string", "pattern": r"^(float|int|uint)\d+$"},
        "value_range": {"anyOf": [{"maxItems": 0}, {"minItems": 2, "maxItems": 2, "items": {"type": "number"}}]},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {r"^\d+$": {"type": "string"}}, "minProperties": 1},
    },
}
VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), VERSION),
        **dict.fromkeys(("schema", "name", "task", "description", "authors", "copyright"), {"type": "string"}),
        "changelog": {"type": "object", "patternProperties": {r"^\d+\.\d+\.\d+$": {"type": "string"}}},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                **dict.fromkeys(("inputs", "outputs"), {"type": "object", "additionalProperties": TENSOR}),
                "inputs": {"type": "object", "required": ["image"], "additionalProperties": TENSOR},
                "outputs": {"type": "object", "required": ["pred"], "additionalProperties": TENSOR},
            },
        },
    },
}
"""The rules of https://docs.monai.io/en/latest/mb_specification.html; MONAI's own schema is on the network."""


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@BOTH_BUT_ONE_SLOW
def test_verify_metadata_finds_no_error(bundle: str, schema: Path, tmp_path: Path) -> None:
    metadata = configs_of(bundle) / "metadata.json"
    done = monai_command(tmp_path, "verify_metadata", "--meta_file", metadata, "--filepath", schema)
    assert done.returncode == 0 and last_line(done).endswith("metadata is verified with no error."), done.stdout[-2000:]


@BOTH
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", None),
        ("monai_version", "1.6"),
        ("network_data_format", {"inputs": {}, "outputs": {}}),
        ("network_data_format#inputs#image#num_channels", "4"),
        ("network_data_format#inputs#image#channel_def", None),
        ("network_data_format#outputs#pred#spatial_shape", [0, 8]),
    ],
)
def test_verify_metadata_refuses_what_the_specification_refuses(
    bundle: str, schema: Path, tmp_path: Path, key: str, value: Any
) -> None:
    metadata = metadata_of(bundle)
    *outer, name = key.split("#")
    part = metadata
    for word in outer:
        part = part[word]
    part[name] = value
    if value is None:
        del part[name]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


# verify_net_in_out


@BOTH_BUT_ONE_SLOW
def test_verify_net_in_out_finds_no_error(bundle: str, tmp_path: Path) -> None:
    model = write_untrained_direct(tmp_path / "model", bundle)
    configs = configs_of(bundle)
    files = ["--meta_file", configs / "metadata.json", "--config_file", configs / "inference.yaml"]
    done = monai_command(tmp_path, "verify_net_in_out", "network_def", *files, "--model_dir", model)
    assert last_line(done).endswith("data shape of network is verified with no error."), done.stdout[-2000:]


@BOTH
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("outputs#pred#num_channels", 2, "output channel number"), ("inputs#image#num_channels", 2, "to have . channels")],
)
def test_verify_net_in_out_finds_a_wrong_number_of_channels(
    bundle: str, tmp_path: Path, key: str, value: int, message: str
) -> None:
    model = write_untrained_direct(tmp_path / "model", bundle)
    with pytest.raises((ValueError, RuntimeError), match=message):
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(configs_of(bundle) / "metadata.json"),
            config_file=str(configs_of(bundle) / "inference.yaml"),
            model_dir=str(model),
            device="cpu",
            **{f"_meta_#network_data_format#{key}": value},
        )


# Exports


def export_arguments(bundle: str, model: Path, name: str) -> dict[str, Any]:
    return {
        "net_id": "network_def",
        "filepath": str(model / name),
        "ckpt_file": str(model / "model.pt"),
        "meta_file": str(configs_of(bundle) / "metadata.json"),
        "config_file": str(configs_of(bundle) / "inference.yaml"),
        "model_dir": str(model),
    }


@BOTH_BUT_ONE_SLOW
def test_onnx_export_gives_the_same_network_for_any_batch_size(bundle: str, tmp_path: Path) -> None:
    """As the bundles' READMEs show it."""
    model = write_untrained_direct(tmp_path / "model", bundle)
    network = network_of(model)
    monai.bundle.onnx_export(
        **export_arguments(bundle, model, "model.onnx"),
        use_trace=True,
        input_shape=list(inputs_of(network, batch=2).shape),
        converter_kwargs={
            "dynamo": True,
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_shapes": {"x": {0: torch.export.Dim("batch", min=1, max=64)}},
        },
    )
    exported = ReferenceEvaluator(onnx.load(model / "model.onnx"))
    for size in (2, 3):
        given = inputs_of(network, batch=size)
        with torch.no_grad():
            expected = network(given).numpy()
        (pred,) = exported.run(None, {"image": given.numpy()})
        assert expected.std() > 0.01
        np.testing.assert_allclose(pred, expected, atol=1e-4 * np.abs(expected).max())


@BOTH_BUT_ONE_SLOW
def test_ckpt_export_gives_the_same_network_as_torchscript(bundle: str, tmp_path: Path) -> None:
    model = write_untrained_direct(tmp_path / "model", bundle)
    arguments = export_arguments(bundle, model, "model.ts")
    done = monai_command(
        tmp_path, "ckpt_export", *(word for key, value in arguments.items() for word in (f"--{key}", value))
    )
    assert done.returncode == 0, done.stdout[-3000:]
    given = inputs_of(network_of(model), batch=3)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(model / "model.ts")(given), network_of(model)(given))


# load, download


@pytest.fixture
def unzipped(bundle: str, tmp_path: Path) -> Path:
    """The folder into which MONAI has put a bundle that was a zip file elsewhere."""
    folder = bundle_folder(bundle)
    own = shutil.ignore_patterns("trained", "work")
    shutil.copytree(folder, tmp_path / "packed" / bundle, ignore=own)
    archive = shutil.make_archive(str(tmp_path / "served" / bundle), "zip", tmp_path / "packed", bundle)
    monai.bundle.download(name=bundle, url=Path(archive).as_uri(), bundle_dir=tmp_path / "bundles", progress=False)
    return tmp_path / "bundles"


def same_output(network: torch.nn.Module, other: SegResNet) -> bool:
    with torch.no_grad():
        given = inputs_of(other, batch=1)
        return torch.equal(network.eval()(given), other(given))


@BOTH
def test_load_gives_the_weights_and_the_network_from_a_folder(bundle: str) -> None:
    bundles = ROOT / "bundles"
    expected = torch.load(bundles / bundle / "models" / "model.pt", weights_only=True)
    weights = monai.bundle.load(bundle, bundle_dir=bundles, device="cpu")
    assert isinstance(weights, dict) and list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    network = monai.bundle.load(bundle, bundle_dir=bundles, workflow_type="infer", device="cpu")
    assert same_output(network, network_of(bundles / bundle / "models"))


@BOTH
def test_load_gives_the_network_of_a_zip_file(bundle: str, unzipped: Path) -> None:
    network = monai.bundle.load(bundle, bundle_dir=unzipped, workflow_type="infer", device="cpu")
    assert same_output(network, network_of(bundle_folder(bundle) / "models"))


@BOTH
def test_load_gives_any_network_another_models_weights(bundle: str, tmp_path: Path) -> None:
    """As after a training of one's own: in place of the shipped network and weights."""
    model = write_untrained_direct(tmp_path / bundle / "models" / "trained", bundle)
    given = SegResNet(**load_model_settings(model)["network"])
    network = monai.bundle.load(
        bundle, model=given, bundle_dir=tmp_path, model_file="models/trained/model.pt", device="cpu"
    )
    assert same_output(network, network_of(model))


@BOTH
def test_the_network_that_load_makes_is_that_of_the_shipped_model(bundle: str) -> None:
    """MONAI's load reads JSON configs alone, and needs this one file for it: infer.json."""
    (definition,) = json.loads((configs_of(bundle) / "infer.json").read_text()).values()
    shipped = json.loads((bundle_folder(bundle) / "models" / "model.json").read_text())
    assert definition == {"_target_": "SegResNet"} | shipped["network"]


@BOTH_BUT_ONE_SLOW
def test_an_unzipped_bundle_runs_in_its_folder_with_any_value_overridden(bundle: str, unzipped: Path) -> None:
    """Nested values, an overlay file and an args file, from the least to the most important."""
    (unzipped / "overlay.yaml").write_text("sampling#start_step: 30\nsampling#sampling_steps: 4\nseed: 1\n")
    folder = unzipped / bundle
    args = {
        "config_file": ["configs/inference.yaml", "../overlay.yaml"],
        "sampling#sampling_steps": 2,
        "seed": 2,
        "device": "cpu",
        "phantom_subjects": 1,
        "phantom_spacing": 10,
    }
    (unzipped / "args.yaml").write_text(yaml.safe_dump(args))
    done = monai_command(folder, "run", "--args_file", "../args.yaml", "--seed", 3, "--sampling#unroll_iterations", 0)
    assert done.returncode == 0, done.stdout[-3000:]
    (sidecar,) = (folder / "synthetic").rglob("*.json")  # the defaults: the bundle's weights, ./synthetic
    content = json.loads(sidecar.read_text())
    assert content["seed"] == 3
    shipped = load_model_settings(bundle_folder(bundle) / "models")["sampling"]
    assert content["sampling"] == shipped | {"start_step": 30, "sampling_steps": 2, "unroll_iterations": 0}


@BOTH
def test_create_workflow_synthesises_one_patient_from_python(bundle: str, tmp_path: Path) -> None:
    names = BUNDLES[bundle].names
    write_study(tmp_path / "dataset" / "a", names[1:], shape=(16, 16, 4), seg=False)
    workflow = monai.bundle.create_workflow(
        config_file=str(configs_of(bundle) / "inference.yaml"),
        workflow_type="infer",
        logging_file=False,
        **settings_of("inference", bundle),
        dataset_dir=str(tmp_path / "dataset"),
        model_dir=str(write_untrained_model(tmp_path / "model", bundle)),
        output_dir=str(tmp_path / "out"),
    )
    workflow.run()
    output = workflow.evaluator.state.output
    workflow.finalize()
    assert output["synthesised"].shape[0] == len(names) and output["written"].keys() == {names[0]}
    assert len(workflow.dataset) == 1 and workflow.version == metadata_of(bundle)["version"]
    assert (tmp_path / "out" / "a" / f"a_{names[0]}_SYNTHETIC.nii.gz").is_file()


# MLflow


def mlflow_runs(folder: Path) -> Iterator[tuple[mlflow.entities.Run, mlflow.MlflowClient]]:
    """Every run in a folder's mlruns.db, the oldest first."""
    client = mlflow.MlflowClient(tracking_uri=path_to_sqlite_uri(str(folder / "mlruns.db")))
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
            yield found, client


def executed_config(run: mlflow.entities.Run, client: mlflow.MlflowClient) -> dict[str, Any]:
    (artefact,) = client.list_artifacts(run.info.run_id)
    return json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / artefact.path).read_text())


@pytest.mark.slow
@BOTH
def test_mlflow_follows_both_trainings_with_the_bundles_settings(bundle: str, tmp_path: Path) -> None:
    settings = configs_of(bundle) / "mlflow.yaml"
    places = {"model_dir": tmp_path / "model", "work_dir": tmp_path / "work", "output_dir": f"$'{tmp_path}/tracked'"}
    done = run_command("published", "training", bundle, **places, tracking=settings)
    assert done.returncode == 0, done.stdout[-4000:]
    (fusion, client), (diffusion, _) = mlflow_runs(tmp_path / "tracked")
    for run, tag, iterations in ((fusion, "anatomical_consistency_loss", 2), (diffusion, "denoiser_loss", 6)):
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, tag)
        assert len(losses) >= iterations and all(np.isfinite(loss.value) for loss in losses)
        assert executed_config(run, client)["contrasts"] == BUNDLES[bundle].name
    psnr = client.get_metric_history(diffusion.info.run_id, "val_psnr")
    assert [value.step for value in psnr] == [1, 2, 3] and all(0 < value.value < 100 for value in psnr)
    assert diffusion.data.params["max_epochs"] == "3"


@pytest.mark.slow
def test_tracking_mlflow_follows_the_denoisers_training(tmp_path: Path) -> None:
    """MONAI's default settings: the trainer and the evaluator under MONAI's ids, ``train`` and ``validate``."""
    overrides = federated_settings(BRATS_BUNDLE, tmp_path)
    done = monai_command(
        tmp_path,
        *("run", "train_denoiser", "--config_file", configs_of(BRATS_BUNDLE) / "train.yaml", "--tracking", "mlflow"),
        *(word for key, value in overrides.items() for word in (f"--{key}", value)),
    )
    assert done.returncode == 0, done.stdout[-4000:]
    ((run, client),) = mlflow_runs(tmp_path / "work" / "logs")
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert losses and all(np.isfinite(loss.value) for loss in losses)
    assert 0 < run.data.metrics["val_psnr"] < 100
    assert executed_config(run, client)["train"]["handlers"][-1]["_target_"] == "MLFlowHandler"


@pytest.mark.slow
def test_tracking_mlflow_notes_the_config_of_an_inference(tmp_path: Path) -> None:
    write_study(tmp_path / "dataset" / "a", ("t1", "t2"), shape=(16, 16, 4), seg=False)
    workflow = monai.bundle.create_workflow(
        config_file=str(configs_of(BRATS_BUNDLE) / "inference.yaml"),
        workflow_type="infer",
        logging_file=False,
        tracking="mlflow",
        save_execute_config=str(tmp_path / "config.json"),
        **settings_of("inference", BRATS_BUNDLE),
        dataset_dir=str(tmp_path / "dataset"),
        model_dir=str(write_untrained_model(tmp_path / "model")),
        output_dir=str(tmp_path / "out"),
    )
    workflow.run()
    ((run, client),) = mlflow_runs(tmp_path / "out")
    assert executed_config(run, client)["dataset_dir"] == str(tmp_path / "dataset")


# Federated learning


def federated_settings(bundle: str, folder: Path) -> dict[str, Any]:
    """Overrides of train.yaml to train a tiny network on a phantom."""
    return settings_of("train", bundle) | {"model_dir": str(folder / "model"), "work_dir": str(folder / "work")}


@BOTH_BUT_ONE_SLOW
def test_a_federated_client_trains_rounds_and_evaluates(bundle: str, tmp_path: Path) -> None:
    settings = federated_settings(bundle, tmp_path) | {"checkpoint_interval": 0}
    client = MonaiAlgo(
        bundle_root=str(bundle_folder(bundle)),
        local_epochs=1,
        config_train_filename="configs/train.yaml",
        train_kwargs=settings,
        config_evaluate_filename="configs/train.yaml",
        eval_kwargs=dict(settings),
    )
    client.initialize({ExtraItems.CLIENT_NAME: "hospital"})
    weights = {name: value.clone() for name, value in client.trainer.network.state_dict().items()}
    for epoch in (1, 2):
        weights = {name: value + 0.01 for name, value in weights.items()}  # what the server made of all clients'
        client.train(ExchangeObject(weights=weights))
        assert client.trainer.state.epoch == epoch
        update = client.get_weights()
        assert update.weight_type == WeightType.WEIGHT_DIFF and update.weights.keys() == weights.keys()
        assert update.statistics["num_executed_iterations"] == client.trainer.state.epoch_length
        change = torch.stack([difference.abs().max() for difference in update.weights.values()]).max()
        assert 0 < change < 0.009  # from the global weights, not from those of the round before
        trained = client.trainer.network.state_dict()
        assert all(torch.allclose(weights[k] + d, trained[k], atol=1e-6) for k, d in update.weights.items())
        metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
        assert 0 < metrics["val_psnr"] < 100
        assert all(torch.equal(v, weights[k]) for k, v in client.evaluator.network.state_dict().items())
    client.finalize()
    assert not list((tmp_path / "work").glob("*_checkpoint.pt"))
