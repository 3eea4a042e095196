"""The systems of a comparison: how each is trained at an equal budget, by the bundle's own training."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from apt_monai.cli.launch import config_files, run_bundle
from apt_monai.cli.train import overlay_of
from apt_monai.comparison.cost import parameters, training_flops
from apt_monai.contrasts import ContrastSet
from apt_monai.files import write_text
from apt_monai.models import load_model_settings

logger = logging.getLogger(__name__)

LABELS = {
    "mmgan": "MM-GAN",
    "hinet": "Hi-Net",
    "resvit": "ResViT",
    "adm": "ADM",
    "syndiff": "SynDiff",
    "m2dn": "M2DN",
    "regression": "regression U-Net",
    "published": "APT",
    "direct": "direct",
}
"""What tables call the methods, in the order of their rows."""

EPOCH = 150
"""About how many iterations lie between checkpoints."""
SMALL = {"direct": ["demo.yaml"], "published": ["demo_published.yaml", "methods/small_published.yaml"]}
"""The overlays of sizes for phantoms and CPUs; of the compared systems methods/small.yaml."""


@dataclass(frozen=True)
class Plan:
    """What all systems of a comparison have in common.

    Args:
        contrasts: the contrast set.
        data: the folder of studies.
        out: where models and slices go.
        budget: floating-point operations of each training, in 10¹² (TFLOP), at the sizes for phantoms and CPUs; None:
            each system's own sizes and iterations.
        train_fraction: of the studies.
        validation_subjects: how many.
        seed: of split and training.
    """

    contrasts: ContrastSet
    data: Path
    out: Path
    budget: float | None
    train_fraction: float = 0.8
    validation_subjects: int = 4
    seed: int = 0

    def model(self, method: str) -> Path:
        """A system's model folder."""
        return self.out / "models" / method

    @property
    def bundle(self) -> str:
        """The bundle whose configs are taken."""
        return f"apt_{self.contrasts.name}"


def overlays_of(method: str, small: bool) -> list[str]:
    """The configs over train.yaml for a system, at the sizes for phantoms or its own.

    Example::

        >>> overlays_of("resvit", small=True)
        ['methods/resvit.yaml', 'methods/small.yaml']
    """
    sizes = SMALL.get(method, ["methods/small.yaml"]) if small else []
    return [*([] if method == "direct" else [overlay_of(method)]), *sizes]


def train_system(plan: Plan, method: str) -> dict[str, Any]:
    """Train a system, unless it is trained, and say what that cost.

    Returns:
        ``"parameters"``, ``"iterations"``, ``"batch_size"``, ``"tflop"`` (of the denoiser's training) and
        ``"seconds"``, as they are kept in ``cost.json`` beside the model.

    Raises:
        ValueError: the budget is below one iteration.
    """
    folder = plan.model(method)
    record = folder / "cost.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    configs = config_files(plan.bundle, "train", overlays_of(method, plan.budget is not None))
    overrides: dict[str, Any] = {
        "dataset_dir": plan.data,
        "model_dir": folder,
        "work_dir": plan.out / "work" / method,
        "cache#cache_dir": str(plan.out / "slices"),
        "train_fraction": plan.train_fraction,
        "validation_subjects": plan.validation_subjects,
        "test_subjects": None,
        "val_interval": 1000000,
        "seed": plan.seed,
    }
    each, batch_size, iterations = _iteration(configs, plan)
    if plan.budget is not None:
        iterations = int(plan.budget * 1e12 / each)
        if iterations < 1:
            raise ValueError(f"a budget of {plan.budget:g} TFLOP is below one iteration of {method} ({each / 1e12:g})")
        epochs = max(1, round(iterations / EPOCH))
        iterations = max(1, iterations // epochs) * epochs
        overrides |= {"epoch_length": iterations // epochs, "epochs": epochs}  # no epoch too many
    logger.info("%s: %d iterations of %.1f GFLOP", method, iterations, each / 1e9)
    start = time.perf_counter()
    run_bundle("training", configs, overrides)
    cost = {
        "parameters": parameters(load_model_settings(folder)),
        "iterations": iterations,
        "batch_size": batch_size,
        "tflop": round(iterations * each / 1e12, 2),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_text(record, json.dumps(cost, indent=1) + "\n")
    return cost


def _iteration(configs: list[Path], plan: Plan) -> tuple[float, int, int]:
    """The operations of one iteration of a training, its batch size, and the config's own iterations."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in configs])
    settings: dict[str, Any] = {"contrasts": plan.contrasts.to_dict(), **parser.get_parsed_content("own_settings")}
    for key in ("method", "network", "scheduler"):
        settings[key] = parser.get_parsed_content(key if key == "method" else f"{key}_settings")
    side = int(parser.get_parsed_content("crop") or parser.get_parsed_content("image_size"))
    batch_size = int(parser.get_parsed_content("batch_size"))
    return training_flops(settings, side, batch_size), batch_size, int(parser.get_parsed_content("iterations"))
