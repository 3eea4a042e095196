"""Small sizes of the compared systems, as settings of ``model.json``, for tests."""

from __future__ import annotations

from typing import Any

import torch

from apt_monai.contrasts import get_contrast_set
from apt_monai.inferers import TwoStageInferer, noise_scheduler
from apt_monai.methods import METHODS, Method
from apt_monai.transforms.preprocessing import StudyPreprocessing

UNET = {
    "channels": [8, 8],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
ONE_PASS = {"start_step": 1000, "sampling_steps": 1, "unroll_iterations": 0, "guidance_scale": 0.0}
STEPS = {**ONE_PASS, "sampling_steps": 3, "next_step": "ddim"}
SMALL: dict[str, dict[str, Any]] = {
    "mmgan": {"network": {"widths": [8, 8, 8]}, "discriminator": {"widths": [8, 8]}, "multiple": 8},
    "hinet": {"network": {"widths": [4, 8]}, "discriminator": {"widths": [4]}, "multiple": 2},
    "resvit": {
        "network": {"width": 4, "blocks": 6, "hidden": 8, "layers": 1, "mlp": 8, "heads": 2, "tokens": 2},
        "discriminator": {"channels": 4, "num_layers_d": 1},
        "multiple": 32,
    },
    "adm": {"network": UNET, "multiple": 2, "schedule": "linear_beta", "sampling": STEPS},
    "syndiff": {
        "network": UNET,
        "discriminator": {"widths": [8, 8]},
        "multiple": 2,
        "schedule": "variance_preserving",
        "steps": 4,
        "sampling": {**ONE_PASS, "start_step": 4, "sampling_steps": 4, "unroll_step": 1, "next_step": "ddpm"},
    },
    "m2dn": {
        "network": {"widths": [8, 8], "own_width": 4, "code": 4, "blocks": 1, "groups": 4},
        "multiple": 2,
        "schedule": "linear_beta",
        "sampling": STEPS,
    },
    "regression": {"network": UNET, "multiple": 2},
}
ADVERSARIAL = [name for name, sizes in SMALL.items() if "discriminator" in sizes]


def small_settings(name: str, dataset: str = "brats") -> dict[str, Any]:
    """What ``model.json`` of a small model of the system holds."""
    sizes = SMALL[name]
    return {
        "method": name,
        "trained_on": "studies",
        "started_from": None,
        "contrasts": get_contrast_set(dataset).to_dict(),
        "image_size": None,
        "resolution": None,
        "intensity": {"deviations": 3.0},
        "network": sizes["network"],
        "multiple": sizes["multiple"],
        "scheduler": {
            "num_train_timesteps": sizes.get("steps", 1000),
            "schedule": sizes.get("schedule", "cosine"),
            "prediction_type": "sample",
        },
        "sampling": sizes.get("sampling", ONE_PASS),
        **({"discriminator": sizes["discriminator"]} if "discriminator" in sizes else {}),
    }


def small_method(name: str, dataset: str = "brats") -> Method:
    """An untrained small model of the system."""
    settings = small_settings(name, dataset)
    kind = METHODS[name]
    inferer = TwoStageInferer.from_settings(noise_scheduler(**settings["scheduler"]), settings["sampling"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind.build_network(settings)
    denoiser = kind.build_denoiser(network, settings, "float32")
    return kind(denoiser, inferer, StudyPreprocessing.from_settings(settings))
