"""The compared systems by the bundles' commands: an overlay over train.yaml, for a GAN and for a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from tiny_bundle import ADNI_BUNDLE, config_of, configs_of, files_of, settings_of
from tiny_methods import SMALL

from apt_monai.models import load


def training(name: str, folder: Path, **overrides: Any) -> ConfigWorkflow:
    """The training of a small model of the system, initialised, with the phantoms of another training."""
    sizes = {key: value for key, value in settings_of("train", ADNI_BUNDLE).items() if "#" not in key}
    sizes |= {"network_settings": SMALL[name]["network"], "multiple": SMALL[name]["multiple"], "batch_size": 8}
    if "discriminator" in SMALL[name]:
        sizes["discriminator_settings"] = SMALL[name]["discriminator"]
    made = ConfigWorkflow(
        config_file=[*config_of("train", ADNI_BUNDLE), str(configs_of(ADNI_BUNDLE) / "methods" / f"{name}.yaml")],
        logging_file=False,
        run_id="training",
        workflow_type="train",
        **{**sizes, "model_dir": str(folder / "model"), "work_dir": str(folder / "work"), **overrides},
    )
    made.initialize()
    return made


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hinet", "adm"])
def test_a_training_leaves_a_model_and_an_interrupted_one_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = training(name, tmp_path / "whole")
    whole.run()
    assert files_of(tmp_path / "whole" / "model") == ["model.json", "model.pt", "split.json"]
    assert load(tmp_path / "whole" / "model", "cpu").name == name
    first = training(name, tmp_path / "cut")
    first.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=5), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    training(name, tmp_path / "cut").run()
    one, other = (torch.load(tmp_path / f / "model" / "model.pt", weights_only=True) for f in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_monais_required_properties_are_there(tmp_path: Path) -> None:
    assert not training("syndiff", tmp_path).check_properties()
