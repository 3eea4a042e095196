"""A model's folder: what is saved comes back and is put together; what is of another kind is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundle import ADNI_BUNDLE, write_untrained_direct, write_untrained_model

from apt_monai.errors import ModelError
from apt_monai.models import load, load_model_settings, save_model_settings

SETTINGS: dict[str, Any] = {
    "method": "apt",
    "trained_on": "studies",
    "contrasts": {},
    "image_size": 64,
    "network": {"channels": [8, 16]},
    "encoder_source": "hf-hub:o/n",
    "sampling": {},
}


def test_a_file_in_the_folders_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(OSError, match="cannot write model.json in the folder"):
        save_model_settings(tmp_path / "model", SETTINGS)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    save_model_settings(tmp_path / "m", SETTINGS)
    assert load_model_settings(tmp_path / "m").items() >= SETTINGS.items()


def test_equal_settings_leave_the_file_alone(tmp_path: Path) -> None:
    save_model_settings(tmp_path, {**SETTINGS, "channels": (8, 16)})
    before = (tmp_path / "model.json").stat()
    save_model_settings(tmp_path, {**SETTINGS, "channels": [8, 16]})
    after = (tmp_path / "model.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    save_model_settings(tmp_path, SETTINGS)
    with pytest.raises(ModelError, match=r"model.json.*image_size: 64 there, 256 now; steps: None there, 3 now\)"):
        save_model_settings(tmp_path, {**SETTINGS, "image_size": 256, "steps": 3})
    assert load_model_settings(tmp_path).items() >= SETTINGS.items()


def test_an_encoder_inside_the_model_folder_moves_with_it(tmp_path: Path) -> None:
    encoder = tmp_path / "old" / "vision_encoder"
    encoder.mkdir(parents=True)
    save_model_settings(tmp_path / "old", {**SETTINGS, "encoder_source": str(encoder)})
    (tmp_path / "old").rename(tmp_path / "new")
    found = load_model_settings(tmp_path / "new")["encoder_source"]
    assert Path(found).is_absolute() and Path(found) == tmp_path / "new" / "vision_encoder"
    save_model_settings(tmp_path / "new", {**SETTINGS, "encoder_source": found})


def test_an_encoder_elsewhere_is_noted_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    save_model_settings("model", {**SETTINGS, "encoder_source": "encoder"})
    assert load_model_settings("model")["encoder_source"] == str(tmp_path / "encoder")


def test_settings_that_are_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not JSON"):
        save_model_settings(tmp_path, {"device": torch.device("cpu")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_put_together_as_the_method_that_it_names(tmp_path: Path) -> None:
    write_untrained_model(tmp_path / "model", ADNI_BUNDLE)
    method = load(tmp_path / "model", "cpu", "float32", seed=3, sampling={"unroll_iterations": 0})
    assert method.name == "apt" and method.contrasts.names == ("t1", "t2", "pd") and method.passes == 2
    assert method.precision == "float32" and method.device == torch.device("cpu")
    provenance = method.provenance
    assert provenance["seed"] == 3 and provenance["sampling"]["unroll_iterations"] == 0
    (tmp_path / "model").rename(tmp_path / "moved")
    again = load(tmp_path / "moved", "cpu", "bfloat16", seed=3, sampling={"unroll_iterations": 0})
    assert again.fingerprint == method.fingerprint  # whatever the place and the precision
    assert load(tmp_path / "moved", "cpu").fingerprint != method.fingerprint


def test_weights_that_saw_only_phantoms_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_untrained_model(tmp_path / "model")
    load(model, "cpu")
    assert "PATIENT" not in caplog.text
    content = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(content | {"trained_on": "digital phantom"}))
    load(model, "cpu")
    (record,) = [record for record in caplog.records if "NEVER SEEN A PATIENT" in record.message]
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "model.json: is of the method 'magic'; this version knows apt"),
        ({"sampling": None}, "model.json: lacks sampling; restore the file or train again"),
        ({"fusion": None}, r"model.json: settings of no apt model \(KeyError\('fusion'\)\)"),
        ({"network": {"layers": 3}}, "model.json: settings of no apt model .*layers"),
        ({"contrasts": {"name": "x"}}, "contrasts: no contrast set: a name and a mapping of contrasts are needed"),
    ],
)
def test_settings_of_no_model_are_one_clear_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = write_untrained_model(tmp_path / "model")
    content = {**json.loads((model / "model.json").read_text()), **change}
    (model / "model.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        load(model, "cpu")


def test_an_unfinished_model_says_what_it_lacks(tmp_path: Path) -> None:
    model = write_untrained_model(tmp_path / "model")
    (model / "fusion.pt").unlink()
    with pytest.raises(ModelError, match="model: is not a finished model, it lacks fusion.pt; run the training"):
        load(model, "cpu")


@pytest.mark.parametrize("write", [write_untrained_model, write_untrained_direct])
def test_a_sampling_setting_that_is_none_is_named(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(ValueError, match="sampling has no steps: valid are start_step"):
        load(write(tmp_path / "model"), "cpu", sampling={"steps": 3})
