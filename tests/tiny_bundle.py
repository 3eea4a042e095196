"""The bundle at a size for tests: its settings, its commands, and a model that nobody trained."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import DiffusionModelUNet

from apt_monai.codebook import CodebookEntry, PriorCodebook
from apt_monai.contrasts import BRATS
from apt_monai.model_store import load_model_settings, save_model_settings, save_weights
from apt_monai.networks import MutualInformationFusion, VisionEncoder
from apt_monai.transforms.bezier import BEZIER_CURVES

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "apt_brats"
CONFIGS = BUNDLE / "configs"
ENCODER = str(BUNDLE / "models" / "vision_encoder")

NETWORK: dict[str, Any] = {
    "channels": [8, 8],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
SAMPLING = {"start_step": 20, "sampling_steps": 2, "unroll_step": 10, "unroll_iterations": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "train": {
        "device": "cpu",
        "encoder_source": ENCODER,
        "image_size": 24,  # the phantom's own grid
        "num_workers": 0,
        "phantom_subjects": 5,
        "phantom_spacing": 10,
        "mif_epochs": 2,
        "iterations": 6,  # three epochs
        **{f"network_settings#{key}": value for key, value in NETWORK.items()},
        **{f"sampling#{key}": value for key, value in SAMPLING.items()},
    },
    "inference": {
        "device": "cpu",
        "phantom_subjects": 2,
        "phantom_spacing": 10,
        **{f"sampling#{key}": value for key, value in SAMPLING.items()},
    },
}
SETTINGS["evaluate"] = SETTINGS["inference"] | {"slices_per_subject": 2}


def workflow(config: str, run_id: str, **overrides: Any) -> ConfigWorkflow:
    """What ``python -m monai.bundle run RUN_ID --config_file CONFIG.yaml`` makes, in this process."""
    return ConfigWorkflow(
        config_file=str(CONFIGS / f"{config}.yaml"),
        logging_file=False,
        run_id=run_id,
        workflow_type="train" if config == "train" else "infer",
        **{**SETTINGS[config], **overrides},
    )


def run(config: str, run_id: str, **overrides: Any) -> None:
    """A run id from beginning to end, in this process."""
    made = workflow(config, run_id, **overrides)
    made.initialize()
    made.run()
    made.finalize()


def command(config: str, run_id: str, **overrides: Any) -> list[str]:
    """The same as a command."""
    options = {"config_file": CONFIGS / f"{config}.yaml", **SETTINGS[config], **overrides}
    words = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in options.items())
    return [sys.executable, "-m", "monai.bundle", "run", run_id, *words]


def environment() -> dict[str, str]:
    """One thread, and the checkout's package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_command(config: str, run_id: str, **overrides: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in the repository; standard output and error come together."""
    return subprocess.run(
        command(config, run_id, **overrides),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )


def write_untrained_model(folder: Path) -> Path:
    """A finished model folder whose weights are random."""
    network = {"spatial_dims": 2, "in_channels": 4, "out_channels": 4, "with_conditioning": True} | NETWORK
    settings = {
        "contrasts": "brats",
        "image_size": 16,
        "encoder_source": ENCODER,
        "fusion": {"embed_dim": 512, "num_heads": 8, "mlp_ratio": 1, "out_dim": 8},
        "network": network | {"cross_attention_dim": 8},
        "scheduler": {"num_train_timesteps": 1000, "schedule": "cosine", "prediction_type": "epsilon"},
    }
    save_model_settings(folder, settings)
    settings = load_model_settings(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(DiffusionModelUNet(**settings["network"]), folder / "model.pt")
        save_weights(MutualInformationFusion(**settings["fusion"]), folder / "fusion.pt")
    entries = {
        target: [
            CodebookEntry(source, curve, count=1, similarity=0.5, scale=1.0)
            for source in BRATS.names
            for curve in BEZIER_CURVES
            if source != target
        ]
        for target in BRATS.names
    }
    encoder = VisionEncoder(ENCODER)
    PriorCodebook(BRATS, entries, BEZIER_CURVES, encoder.fingerprint, ENCODER, "", 1, 1).save(folder / "codebook.json")
    return folder


def files_of(folder: Path) -> list[str]:
    """Every file in a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
