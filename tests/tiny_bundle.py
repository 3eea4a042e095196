"""The bundles at a size for tests: their settings, their commands, and a model that nobody trained.

Every function takes the bundle by name, ``bundle="apt_adni"``; without one it is ``apt_brats``.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.networks.nets import DiffusionModelUNet, SegResNet

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import ADNI, BRATS, ContrastSet
from apt_monai.methods import Calibration
from apt_monai.models import load_model_settings, save_model_settings
from apt_monai.networks import MutualInformationFusion, VisionEncoder
from apt_monai.transforms.bezier import BEZIER_CURVES
from apt_monai.weights import save_weights

ROOT = Path(__file__).resolve().parent.parent
BRATS_BUNDLE, ADNI_BUNDLE = "apt_brats", "apt_adni"
BUNDLES: dict[str, ContrastSet] = {BRATS_BUNDLE: BRATS, ADNI_BUNDLE: ADNI}
#: The width of the phantoms' slices at 10 mm, so that nothing is resampled
IMAGE_SIZES = {BRATS_BUNDLE: 24, ADNI_BUNDLE: 26}

NETWORK: dict[str, Any] = {
    "channels": [8, 8],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
SAMPLING = {"start_step": 20, "sampling_steps": 2, "unroll_step": 10, "unroll_iterations": 1}


def bundle_folder(bundle: str = BRATS_BUNDLE) -> Path:
    return ROOT / "bundles" / bundle


def configs_of(bundle: str = BRATS_BUNDLE) -> Path:
    return bundle_folder(bundle) / "configs"


def encoder_of(bundle: str = BRATS_BUNDLE) -> str:
    return str(bundle_folder(bundle) / "models" / "vision_encoder")


def settings_of(config: str, bundle: str = BRATS_BUNDLE) -> dict[str, Any]:
    """What takes the place of a config's values."""
    common: dict[str, Any] = {
        "device": "cpu",
        "phantom_spacing": 10,
    }
    training = {"num_workers": 0, "phantom_subjects": 5, "validation_subjects": 1, "iterations": 6}  # three epochs
    if config == "train":
        tiny = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "norm": ["GROUP", {"num_groups": 4}]}
        changes = {f"network_settings#{key}": value for key, value in tiny.items()}
        return common | training | changes | {"crop": 16, "resolution": "$None", "phantom_varied": False}
    if config == "published":
        return (
            common
            | training
            | {
                "encoder_source": encoder_of(bundle),
                "image_size": IMAGE_SIZES[bundle],
                "mif_epochs": 2,
                **{f"network_settings#{key}": value for key, value in NETWORK.items()},
                **{f"sampling#{key}": value for key, value in SAMPLING.items()},
            }
        )
    return (
        common
        | {"phantom_subjects": 2, "sampling": dict(SAMPLING)}
        | ({"slices_per_subject": 2, "validation_phantoms": 1} if config == "evaluate" else {})
    )


def config_of(config: str, bundle: str = BRATS_BUNDLE) -> list[str]:
    """The files of a config; ``"published"`` is the training of the published method."""
    names = ["train", "published"] if config == "published" else [config]
    return [str(configs_of(bundle) / f"{name}.yaml") for name in names]


def workflow(config: str, run_id: str, bundle: str = BRATS_BUNDLE, **overrides: Any) -> ConfigWorkflow:
    """What ``python -m monai.bundle run RUN_ID --config_file CONFIG.yaml`` makes, in this process."""
    return ConfigWorkflow(
        config_file=config_of(config, bundle),
        logging_file=False,
        run_id=run_id,
        workflow_type="train" if config in ("train", "published") else "infer",
        **{**settings_of(config, bundle), **overrides},
    )


def run(config: str, run_id: str, bundle: str = BRATS_BUNDLE, **overrides: Any) -> None:
    """A run id from beginning to end, in this process."""
    made = workflow(config, run_id, bundle, **overrides)
    made.initialize()
    made.run()
    made.finalize()


def command(config: str, run_id: str, bundle: str = BRATS_BUNDLE, **overrides: Any) -> list[str]:
    """The same as a command."""
    options = {"config_file": config_of(config, bundle), **settings_of(config, bundle), **overrides}
    words = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in options.items())
    return [sys.executable, "-m", "monai.bundle", "run", run_id, *words]


def environment() -> dict[str, str]:
    """One thread, and the checkout's package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def finish(words: Sequence[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end; standard output and error come together."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )


def run_command(
    config: str, run_id: str, bundle: str = BRATS_BUNDLE, **overrides: Any
) -> subprocess.CompletedProcess[str]:
    """Run the bundle's command in the repository."""
    return finish(command(config, run_id, bundle, **overrides))


def metadata_of(bundle: str) -> dict[str, Any]:
    return json.loads((configs_of(bundle) / "metadata.json").read_text())


def write_untrained_model(folder: Path, bundle: str = BRATS_BUNDLE, trained_on: str = "nothing") -> Path:
    """A finished model folder whose weights are random."""
    contrasts, source = BUNDLES[bundle], encoder_of(bundle)
    channels = {"in_channels": len(contrasts), "out_channels": len(contrasts)}
    network = {"spatial_dims": 2, "with_conditioning": True} | channels | NETWORK
    settings = {
        "method": "apt",
        "trained_on": trained_on,
        "contrasts": contrasts.to_dict(),
        "image_size": 16,
        "encoder_source": source,
        "fusion": {"embed_dim": 512, "num_heads": 8, "mlp_ratio": 1, "out_dim": 8},
        "network": network | {"cross_attention_dim": 8},
        "scheduler": {"num_train_timesteps": 1000, "schedule": "cosine", "prediction_type": "epsilon"},
        "sampling": yaml.safe_load((configs_of(bundle) / "published.yaml").read_text())["sampling"] | SAMPLING,
    }
    save_model_settings(folder, settings)
    settings = load_model_settings(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(DiffusionModelUNet(**settings["network"]), folder / "model.pt")
        save_weights(MutualInformationFusion(**settings["fusion"]), folder / "fusion.pt")
    entries = {
        target: [
            CodebookEntry(other, curve, count=1, similarity=0.5, scale=1.0)
            for other in contrasts.names
            for curve in BEZIER_CURVES
            if other != target
        ]
        for target in contrasts.names
    }
    encoder = VisionEncoder(source)
    codebook = PriorCodebook(contrasts, entries, BEZIER_CURVES, encoder.fingerprint, source, "", 1, 1)
    codebook.save(folder / "codebook.json")
    return folder


def write_untrained_direct(folder: Path, bundle: str = BRATS_BUNDLE) -> Path:
    """A finished model folder of our own method whose weights are random."""
    contrasts = BUNDLES[bundle]
    channels = {"in_channels": 2 * len(contrasts), "out_channels": 2 * len(contrasts)}
    network = {"spatial_dims": 2, "init_filters": 8} | channels
    settings = {
        "method": "direct",
        "trained_on": "nothing",
        "contrasts": contrasts.to_dict(),
        "image_size": None,
        "resolution": None,
        "intensity": {"deviations": 6.0},
        "multiple": 2,
        "gain": 2.0,
        "network": network | {"blocks_down": [1, 1], "blocks_up": [1], "norm": ["GROUP", {"num_groups": 4}]},
        "scheduler": {"num_train_timesteps": 1000, "schedule": "cosine", "prediction_type": "epsilon"},
        "sampling": {"start_step": 1000, "sampling_steps": 1, "unroll_iterations": 0, "guidance_scale": 0.0},
    }
    save_model_settings(folder, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(SegResNet(**load_model_settings(folder)["network"]), folder / "model.pt")
    factors = {name: (1.0,) * (len(contrasts) - 1) for name in contrasts.names}
    Calibration(factors, dict.fromkeys(contrasts.names, 0.2), 1).save(folder / "calibration.json")
    return folder


def files_of(folder: Path) -> list[str]:
    """Every file in a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
