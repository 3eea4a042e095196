"""The bundles with MONAI's own commands: training, inference and evaluation, each from its config.

What a bundle states is checked of both; what costs time is run once, with apt_brats, as both have the same wiring
(test_bundle_pair.py). apt_adni goes through it once in test_bundle_adni.py.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.networks.nets import DiffusionModelUNet
from tiny_bundle import (
    ADNI_BUNDLE,
    BRATS_BUNDLE,
    BUNDLES,
    ROOT,
    bundle_folder,
    command,
    configs_of,
    encoder_of,
    environment,
    files_of,
    metadata_of,
    run,
    run_command,
    settings_of,
    workflow,
    write_untrained_model,
)

from apt_monai.contrasts import BRATS
from apt_monai.data.readers import read_studies
from apt_monai.files import file_sha256
from apt_monai.models import load_model_settings
from apt_monai.networks import VisionEncoder
from apt_monai.weights import load_weights

MODEL = ["codebook.json", "codebook.png", "fusion.pt", "model.json", "model.pt", "split.json"]
PHANTOM = "phantom/brats-10mm-seed0"

of_both = pytest.mark.parametrize("bundle", BUNDLES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `work` of a whole training by command, and what the command said in `log.txt`."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_command("published", "training", model_dir=folder / "model", work_dir=folder / "work")
    assert done.returncode == 0, done.stdout[-4000:]
    (folder / "log.txt").write_text(done.stdout)
    return folder


def model_without(trained: Path, folder: Path, *names: str) -> dict[str, Any]:
    """A copy of the trained model without some files, to train those again from the same data."""
    model = folder / "model"
    shutil.copytree(trained / "model", model, ignore=shutil.ignore_patterns(*names))
    return {"model_dir": str(model), "work_dir": str(folder / "work"), "dataset_dir": str(trained / "work" / PHANTOM)}


def same_files(trained: Path, again: Path, *names: str) -> bool:
    return all((trained / "model" / name).read_bytes() == (again / "model" / name).read_bytes() for name in names)


def test_training_runs_the_three_stages_in_order(trained: Path) -> None:
    log = (trained / "log.txt").read_text()
    assert re.findall(r"(\w+): starting \(it will write \S+/(\S+)\)", log) == [
        ("mif", "fusion.pt"),
        ("codebook", "codebook.json"),
        ("denoiser", "model.pt"),
    ]
    assert files_of(trained / "model") == MODEL
    assert re.search(r"Epoch\[3\] Metrics -- val_psnr: \d+\.\d+", log)
    assert [name for name in files_of(trained / "work" / "logs") if "tfevents" in name]


def test_training_without_data_says_that_it_uses_the_phantom(trained: Path) -> None:
    assert "no dataset_dir given: using a DIGITAL PHANTOM, not patients" in (trained / "log.txt").read_text()
    assert len(read_studies(trained / "work" / PHANTOM, BRATS, require_all=True)) == 5


def test_training_again_skips_what_is_finished(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = [name for name in MODEL if name != "codebook.png"]
    before = {name: (trained / "model" / name).stat().st_mtime_ns for name in names}
    run("published", "training", model_dir=str(trained / "model"), work_dir=str(trained / "work"))
    assert re.findall(r"(\w+) is finished \(\S+/(\S+) exists", caplog.text) == [
        ("mif", "fusion.pt"),
        ("codebook", "codebook.json"),
        ("denoiser", "model.pt"),
    ]
    assert {name: (trained / "model" / name).stat().st_mtime_ns for name in names} == before


@pytest.mark.parametrize(
    ("run_id", "artefact"), [("mif", "fusion.pt"), ("codebook", "codebook.json"), ("train_denoiser", "model.pt")]
)
def test_a_stage_alone_gives_what_the_whole_training_gives(
    trained: Path, tmp_path: Path, run_id: str, artefact: str
) -> None:
    places = model_without(trained, tmp_path, artefact)
    run("published", run_id, **places)
    assert files_of(tmp_path / "model") == MODEL
    assert same_files(trained, tmp_path, artefact)


def test_an_interrupted_diffusion_training_resumes_to_the_same_weights(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    places = model_without(trained, tmp_path, "model.pt")

    def interrupt() -> None:
        raise KeyboardInterrupt

    first = workflow("published", "train_denoiser", **places)
    first.initialize()
    first.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=5), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert "model.pt" not in files_of(tmp_path / "model")

    run("published", "train_denoiser", **places)
    assert re.search(r"resumed \S+ after epoch 2 \(iteration 4\)", caplog.text)
    assert same_files(trained, tmp_path, "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_training_resumes_to_the_same_weights(trained: Path, tmp_path: Path, sent: signal.Signals) -> None:
    places = model_without(trained, tmp_path, "model.pt")
    checkpoint = tmp_path / "work" / "denoiser_checkpoint.pt"
    killed = subprocess.Popen(
        command("published", "training", **places, iterations=100, val_interval=1000),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a shell's background job ignores Ctrl-C, and so would everything that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        patience = time.monotonic() + 200
        while not checkpoint.exists() and killed.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        killed.send_signal(sent)
        assert killed.wait(60) != 0
    finally:
        killed.kill()
        killed.wait()
    assert checkpoint.exists() and "model.pt" not in files_of(tmp_path / "model")

    resumed = run_command("published", "training", **places, iterations=100, val_interval=1000)
    assert resumed.returncode == 0 and "resumed" in resumed.stdout, resumed.stdout[-4000:]
    whole = model_without(trained, tmp_path / "whole", "model.pt")
    run("published", "training", **whole, iterations=100, val_interval=1000)
    assert same_files(tmp_path / "whole", tmp_path, "model.pt")


@pytest.fixture
def incomplete(trained: Path, tmp_path: Path) -> Path:
    """A dataset of two studies: one lacks T1, the other lacks all but T1Gd."""
    dataset = tmp_path / "dataset"
    for subject, absent in (("BraTS2021_00000", ["t1"]), ("BraTS2021_00001", ["flair", "t1", "t2"])):
        ignored = shutil.ignore_patterns(*(f"*_{name}.nii.gz" for name in [*absent, "seg"]))
        shutil.copytree(trained / "work" / PHANTOM / subject, dataset / subject, ignore=ignored)
    return dataset


def test_inference_by_command_writes_what_is_absent_and_then_has_nothing_to_do(
    trained: Path, incomplete: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    places = {"dataset_dir": str(incomplete), "model_dir": str(trained / "model"), "output_dir": str(out)}
    acquired = {name: file_sha256(incomplete / name) for name in files_of(incomplete)}
    done = run_command("inference", "run", **places)
    assert done.returncode == 0, done.stdout[-4000:]
    written = [
        f"{subject}/{subject}_{name}_SYNTHETIC.{suffix}"
        for subject, names in (("BraTS2021_00000", ["t1"]), ("BraTS2021_00001", ["flair", "t1", "t2"]))
        for name in names
        for suffix in ("json", "nii.gz")
    ]
    assert files_of(out) == sorted(written)
    assert {name: file_sha256(incomplete / name) for name in files_of(incomplete)} == acquired

    for study in read_studies(incomplete, BRATS):
        source = nib.load(study["t1ce"])
        brain = np.any([nib.load(study[name]).get_fdata() != 0 for name in BRATS.names if name in study], axis=0)
        for path in (out / study["subject"]).glob("*.nii.gz"):
            image = nib.load(path)
            assert image.shape == source.shape
            assert np.array_equal(image.affine, source.affine)
            assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(source.affine)
            assert image.header.get_xyzt_units() == source.header.get_xyzt_units()
            assert image.header["descrip"].item().startswith(b"SYNTHETIC")
            volume = image.get_fdata()
            assert np.isfinite(volume).all() and volume.any()
            assert not volume[~brain].any()
            sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
            assert sidecar["synthetic"] is True
            assert sidecar["trained_on"] == "digital phantom"
            assert sidecar["model_sha256"] == file_sha256(trained / "model" / "model.pt")
            assert sidecar["codebook_sha256"] == file_sha256(trained / "model" / "codebook.json")
            assert sorted(sidecar["sources"]) == sorted(set(study) - {"subject"})
            assert sidecar["seed"] == 0 and sidecar["sampling"]["start_step"] == 20

    caplog.set_level(logging.INFO)
    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out)}
    run("inference", "run", **places)
    assert "0 studies to synthesise; 2 are finished" in caplog.text
    assert {name: (out / name).stat().st_mtime_ns for name in files_of(out)} == before


def test_an_interrupted_inference_goes_on_where_it_stopped(trained: Path, incomplete: Path, tmp_path: Path) -> None:
    def infer(out: Path) -> monai.bundle.ConfigWorkflow:
        made = workflow(
            "inference",
            "run",
            dataset_dir=str(incomplete),
            model_dir=str(trained / "model"),
            output_dir=str(out),
        )
        made.initialize()
        return made

    def interrupt() -> None:
        raise KeyboardInterrupt

    first = infer(tmp_path / "out")
    first.parser.get_parsed_content("evaluator").add_event_handler(Events.ITERATION_COMPLETED(once=1), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    finished = files_of(tmp_path / "out")
    assert finished and all(name.startswith("BraTS2021_00000/") for name in finished)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished}

    infer(tmp_path / "out").run()
    infer(tmp_path / "whole").run()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == before
    for name in files_of(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_inference_without_data_leaves_contrasts_of_the_phantom_out_and_says_so(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("inference", "run", model_dir=str(trained / "model"), work_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert "no dataset_dir given: using a DIGITAL PHANTOM, not patients" in caplog.text
    assert "phantom study BraTS2021_00000: flair is left out, to be synthesised" in caplog.text
    assert [name for name in files_of(tmp_path / "out") if name.endswith(".nii.gz")] == [
        "BraTS2021_00000/BraTS2021_00000_flair_SYNTHETIC.nii.gz",
        "BraTS2021_00001/BraTS2021_00001_t1_SYNTHETIC.nii.gz",
    ]


def test_evaluation_compares_the_papers_steps_on_the_test_subjects(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "evaluate",
        "evaluating",
        dataset_dir=str(trained / "work" / PHANTOM),
        model_dir=str(trained / "model"),
        work_dir=str(tmp_path),
        output_dir=str(tmp_path / "eval"),
    )
    rows = (tmp_path / "eval" / "results.csv").read_text().splitlines()
    methods, _, targets, subjects = zip(*(row.split(",")[:4] for row in rows[1:]), strict=True)
    assert set(methods) == {"copy", "prior", "U", "U+A", "U+A+I"} and set(targets) == set(BRATS.names)
    assert sorted(set(subjects)) == json.loads((trained / "model" / "split.json").read_text())["test"]
    assert len(rows) == 1 + 5 * 4 * len(set(subjects)) * 2  # two slices a subject
    files = files_of(tmp_path / "eval")
    assert {"results.json", "results.md"} < set(files)
    assert [name for name in files if name.endswith(".png")] == ["panel.png"]
    assert (tmp_path / "eval" / "results.md").read_text() in capsys.readouterr().out


def test_evaluation_without_data_uses_other_phantoms_than_training_and_says_so(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(
        "evaluate",
        "run",  # the same as evaluating
        model_dir=str(trained / "model"),
        work_dir=str(tmp_path),
        output_dir=str(tmp_path / "eval"),
        cases=[["t1", "t2"]],
    )
    assert "no dataset_dir given: using a DIGITAL PHANTOM, not patients" in caplog.text
    assert not (tmp_path / PHANTOM).exists()  # the one of training
    assert "results.md" in files_of(tmp_path / "eval")


@pytest.mark.parametrize("config", ["published", "inference"])
def test_required_properties_are_there(trained: Path, tmp_path: Path, config: str) -> None:
    made = workflow(
        config,
        "run",
        model_dir=str(trained / "model"),
        work_dir=str(trained / "work"),
        **({} if config == "published" else {"output_dir": str(tmp_path)}),
    )
    made.initialize()
    assert made.check_properties() == []


@pytest.mark.slow
@of_both
def test_the_network_of_the_full_size_has_the_shapes_that_the_metadata_states(bundle: str) -> None:
    """In multiples of 32; the shipped one is in test_monai_commands.py."""
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs_of(bundle) / "metadata.json"),
        config_file=str(configs_of(bundle) / "train.yaml"),
        device="cpu",
        n=4,
    )


def test_the_network_can_be_exported(tmp_path: Path) -> None:
    """With torch.export, as the bundle's README shows; MONAI's U-Net cannot be scripted."""
    model = write_untrained_model(tmp_path / "model")
    network = load_weights(DiffusionModelUNet(**load_model_settings(model)["network"]), model / "model.pt").eval()
    example = (torch.rand(2, 4, 16, 16), torch.tensor([0, 999]), torch.rand(2, 1, 8))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, example, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for images, timesteps, context in (
        example,
        (torch.rand(3, 4, 16, 16), torch.tensor([1, 2, 3]), torch.rand(3, 1, 8)),
    ):
        with torch.no_grad():
            expected = network(images, timesteps, context)
            assert torch.allclose(exported(images, timesteps, context), expected, atol=1e-5)


def config_of(bundle: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((configs_of(bundle) / name).read_text())


def targets_in(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from targets_in(value)


@of_both
def test_components_are_those_of_monai_torch_ignite_or_apt_monai(bundle: str) -> None:
    locator = monai.bundle.ComponentLocator()
    for path in sorted(configs_of(bundle).glob("*.yaml")):
        for target in (t for t in targets_in(config_of(bundle, path.name)) if not t.startswith("$")):
            name = target if "." in target else locator.get_component_module_name(target)
            assert str(name).split(".")[0] in ("monai", "torch", "ignite", "apt_monai"), f"{path}: {target}"


@of_both
@pytest.mark.parametrize(
    ("overlay", "configs"),
    [
        ("demo.yaml", ["train.yaml"]),
        ("tune.yaml", ["train.yaml"]),
        ("shipped.yaml", ["train.yaml"]),
        ("demo_published.yaml", ["train.yaml", "published.yaml"]),
    ],
)
def test_an_overlay_of_sizes_only_changes_what_the_training_has(bundle: str, overlay: str, configs: list[str]) -> None:
    sizes, training = config_of(bundle, overlay), {}
    for name in configs:
        training |= config_of(bundle, name)
    assert set(sizes) - {"started"} <= set(training)
    if isinstance(sizes["network_settings"], dict):
        assert set(sizes["network_settings"]) == set(training["network_settings"])
    parts = ("network", "inferer", "train", "validate", "mif", "codebook", "train_denoiser", "training")
    assert not set(sizes) & set(parts)


# Sections 3.4 and 4.1; the sampling is M, S, t of stage 2, N and alpha
PAPER: dict[str, dict[str, Any]] = {
    BRATS_BUNDLE: {"iterations": 250000, "test_subjects": 50, "sampling": (400, 20, 40, 50, 20)},
    ADNI_BUNDLE: {"iterations": 350000, "test_subjects": 30, "sampling": (200, 20, 20, 50, 50)},
}
SAMPLING = ("start_step", "sampling_steps", "unroll_step", "unroll_iterations", "guidance_scale")


@of_both
def test_the_published_training_has_the_papers_numbers(bundle: str) -> None:
    training = config_of(bundle, "train.yaml") | config_of(bundle, "published.yaml")
    paper = {
        "contrasts": BUNDLES[bundle].name,
        "image_size": 256,
        "train_fraction": 0.8,
        "test_subjects": PAPER[bundle]["test_subjects"],
        "mif_epochs": 500,
        "mif_batch_size": 512,
        "iterations": PAPER[bundle]["iterations"],
        "batch_size": 16,
        "learning_rate": 1e-4,
    }
    assert {key: training[key] for key in paper} == paper
    assert tuple(training["sampling"][key] for key in SAMPLING) == PAPER[bundle]["sampling"]
    assert training["scheduler_settings"]["schedule"] == "cosine"
    assert training["scheduler_settings"]["num_train_timesteps"] == 1000


@of_both
def test_the_shipped_model_samples_as_the_paper_does_wherever_it_is_used(bundle: str) -> None:
    shipped = load_model_settings(bundle_folder(bundle) / "models" / "published")["sampling"]
    assert tuple(shipped[key] for key in SAMPLING) == PAPER[bundle]["sampling"]
    inference, evaluation = config_of(bundle, "inference.yaml"), config_of(bundle, "evaluate.yaml")
    assert inference["sampling"] == evaluation["sampling"] == {}
    assert evaluation["slices_per_subject"] % 2 == 0  # pairs of neighbours, for the flicker


@of_both
def test_the_test_sizes_change_only_what_the_configs_have(bundle: str) -> None:
    """An override with a wrong name would add a key that nothing reads."""
    for name in ("train", "published", "inference", "evaluate"):
        config = config_of(bundle, f"{name}.yaml")
        if name == "published":
            config = config_of(bundle, "train.yaml") | config
        for key in settings_of(name, bundle):
            part = config
            for word in key.split("#"):
                assert word in part, f"{name}.yaml has no {key}"
                part = part[word]


@of_both
def test_metadata_says_what_the_configs_say(bundle: str) -> None:
    """Beside the rules of MONAI's specification, which test_monai_commands.py checks."""
    content, labels = metadata_of(bundle), BUNDLES[bundle].labels
    assert content["name"] == bundle
    assert all(label in content["task"] for label in labels)
    tensors = content["network_data_format"]["inputs"] | content["network_data_format"]["outputs"]
    assert set(tensors) == {"image", "pred"}
    for name, tensor in tensors.items():
        assert list(tensor["channel_def"]) == [str(i) for i in range(tensor["num_channels"])], name
        assert getattr(torch, tensor["dtype"]).is_floating_point
    which = tuple(f"whether {label} was acquired, 1 or -1" for label in labels)
    assert tuple(tensors["image"]["channel_def"].values()) == labels + which
    scales = tuple(f"{label}: logarithm of the expected absolute error" for label in labels)
    assert tuple(tensors["pred"]["channel_def"].values()) == labels + scales


@of_both
def test_the_bundle_has_its_licences(bundle: str) -> None:
    assert (bundle_folder(bundle) / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    data_licence = (bundle_folder(bundle) / "docs" / "data_license.txt").read_text()
    assert "MNI" in data_licence and f"Data licences of the bundle {bundle}\n" in data_licence


@of_both
def test_the_bundles_encoder_is_the_untrained_one(bundle: str) -> None:
    """BiomedCLIP's weights are not ours to ship."""
    assert VisionEncoder(encoder_of(bundle)).untrained
