"""The model folder: what is saved comes back, what does not fit is refused, nothing half-written is left."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from test_files import almost_full_disk
from torch import nn

from apt_monai.files import file_sha256
from apt_monai.models import (
    MODEL_FILES,
    ModelError,
    find_bundle_root,
    find_model_dir,
    load_model_settings,
    load_weights,
    run_unless_finished,
    save_model_settings,
    save_weights,
)

SETTINGS = {"contrasts": "brats", "image_size": 64, "network": {"channels": [8, 16]}, "encoder_source": "hf-hub:o/n"}


def make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (folder / name).touch()


def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write fusion.pt in the folder .*File too large"), almost_full_disk(5000):
        save_weights(nn.Linear(100, 100), tmp_path / "fusion.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(OSError, match="cannot write model.json in the folder"):
        save_model_settings(tmp_path / "model", SETTINGS)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    save_model_settings(tmp_path / "m", SETTINGS)
    assert load_model_settings(tmp_path / "m") == SETTINGS


def test_equal_settings_leave_the_file_alone(tmp_path: Path) -> None:
    save_model_settings(tmp_path, {"channels": (8, 16)})
    before = (tmp_path / "model.json").stat()
    save_model_settings(tmp_path, {"channels": [8, 16]})
    after = (tmp_path / "model.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    save_model_settings(tmp_path, SETTINGS)
    with pytest.raises(ModelError, match=r"model.json.*image_size: 64 there, 256 now; steps: None there, 3 now\)"):
        save_model_settings(tmp_path, {**SETTINGS, "image_size": 256, "steps": 3})
    assert load_model_settings(tmp_path) == SETTINGS


def test_an_encoder_inside_the_model_folder_moves_with_it(tmp_path: Path) -> None:
    encoder = tmp_path / "old" / "vision_encoder"
    encoder.mkdir(parents=True)
    save_model_settings(tmp_path / "old", {"encoder_source": str(encoder)})
    (tmp_path / "old").rename(tmp_path / "new")
    found = load_model_settings(tmp_path / "new")["encoder_source"]
    assert Path(found).is_absolute() and Path(found) == tmp_path / "new" / "vision_encoder"
    save_model_settings(tmp_path / "new", {"encoder_source": found})


def test_an_encoder_elsewhere_is_noted_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    save_model_settings("model", {"encoder_source": "encoder"})
    assert load_model_settings("model")["encoder_source"] == str(tmp_path / "encoder")


def test_settings_that_are_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not JSON"):
        save_model_settings(tmp_path, {"device": torch.device("cpu")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("{", "cannot be read as JSON"), ("[1]", "JSON list")]
)
def test_unreadable_settings_are_one_clear_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelError, match=f"model.json: .*{message}"):
        load_model_settings(tmp_path)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    save_weights(saved, tmp_path / "model.pt")
    loaded = load_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "model.pt")
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 2, 3)
    save_weights(module, tmp_path / "a.pt")
    save_weights(module.to(memory_format=torch.channels_last), tmp_path / "folder" / "another name.pt")
    assert file_sha256(tmp_path / "a.pt") == file_sha256(tmp_path / "folder" / "another name.pt")


def test_weights_that_do_not_fit_are_refused_and_named(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model.pt: weights that do not fit.*weight \(2, 3\) instead of \(2, 4\)"):
        load_weights(nn.Linear(4, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"1 unexpected \(bias\)"):
        load_weights(nn.Linear(3, 2, bias=False), tmp_path / "model.pt")
    network = nn.Sequential(*(nn.Linear(3, 2) for _ in range(3)))
    with pytest.raises(ModelError, match=r"6 missing \(0.weight, 0.bias, 1.weight, ...\); 2 unexpected"):
        load_weights(network, tmp_path / "model.pt")


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_truncated_weights_are_one_clear_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(30, 20), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="model.pt: cannot be read as PyTorch weights"):
        load_weights(nn.Linear(30, 20), path)


def test_a_file_with_more_than_tensors_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not only tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(3, 2).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not a state_dict"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_missing_weights_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights file"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_finished_training_goes_before_the_shipped_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_model(tmp_path / "models")
    (tmp_path / "models" / "trained").mkdir()
    assert find_model_dir(None, tmp_path) == tmp_path / "models"
    assert "NEVER SEEN A PATIENT" in caplog.text and caplog.records[-1].levelno == logging.WARNING
    caplog.clear()
    for name in MODEL_FILES:
        (tmp_path / "models" / "trained" / name).touch()
    assert find_model_dir(None, tmp_path) == tmp_path / "models" / "trained"
    assert "PATIENT" not in caplog.text and str(tmp_path / "models" / "trained") in caplog.text


def test_a_given_model_folder_is_checked_and_used(tmp_path: Path) -> None:
    make_model(tmp_path / "models")
    make_model(tmp_path / "mine")
    assert find_model_dir(str(tmp_path / "mine"), tmp_path) == tmp_path / "mine"
    (tmp_path / "mine" / "codebook.json").unlink()
    with pytest.raises(ModelError, match=r"mine: is not a finished model, it lacks codebook.json"):
        find_model_dir(tmp_path / "mine", tmp_path)


def test_a_bundle_without_weights_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks model.json, model.pt, .*run the bundle's training"):
        find_model_dir(None, tmp_path)


def test_a_finished_step_is_skipped_until_its_file_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    artefact, runs = tmp_path / "codebook.json", []

    def step() -> None:
        runs.append(1)
        artefact.write_text(json.dumps({}))

    run_unless_finished("codebook", artefact, step)
    run_unless_finished("codebook", artefact, step)
    assert len(runs) == 1 and "codebook is finished" in caplog.text
    artefact.unlink()
    run_unless_finished("codebook", artefact, step)
    assert len(runs) == 2


def make_bundle(folder: Path, name: str = "apt_test") -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": name}))
    return folder


def test_a_bundle_is_the_working_directory_or_in_its_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "apt_test")
    for place in (tmp_path, bundle):
        monkeypatch.chdir(place)
        assert Path(find_bundle_root("apt_test")).samefile(bundle)


def test_a_bundle_of_the_checkout_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path, "another")
    monkeypatch.chdir(tmp_path)
    assert Path(find_bundle_root("apt_brats")).samefile(Path(__file__).parents[1] / "bundles" / "apt_brats")


def test_a_bundle_that_is_nowhere_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the bundle apt_test is neither .* --bundle_root DIR"):
        find_bundle_root("apt_test")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_bundle_with_damaged_metadata_is_one_clear_error(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "configs" / "metadata.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="metadata.json: "):
        find_bundle_root("apt_test")
