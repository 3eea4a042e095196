"""The paper's figures: one slice by every system (4, 5), and what the fused features alone hold (6)."""

from __future__ import annotations

from pathlib import Path

import torch

from apt_monai.comparison.run import Comparison
from apt_monai.comparison.tables import TABLES
from apt_monai.evaluation.method_slices import MethodSlices
from apt_monai.evaluation.pictures import panel_rows
from apt_monai.evaluation.prediction import synthesise
from apt_monai.evaluation.survey import survey
from apt_monai.inferers import slice_seed
from apt_monai.methods import APT
from apt_monai.networks import Conditions
from apt_monai.visualize.comparison import draw_comparison, draw_from_features

FIGURES = {"4": "brats", "5": "adni", "6": None}
"""By number, of which data set; None: of either."""
STUDIES = 3
"""How many figure 6 shows."""


def make_figure(comparison: Comparison, number: str) -> Path:
    """Draw one of the paper's figures; the picture.

    Raises:
        ValueError: the figure is of another data set.
    """
    plan = comparison.plan
    if FIGURES[number] not in (None, plan.contrasts.name):
        raise ValueError(f"figure {number} is of {FIGURES[number]}, and the data are {plan.contrasts.name}'s")
    path = plan.out / "figures" / f"figure_{number}.png"
    return _features(comparison, path) if number == "6" else _systems(comparison, path)


def _systems(comparison: Comparison, path: Path) -> Path:
    """Each contrast from the others, in the slice with the largest tumour, or else brain, of the test studies."""
    rows = TABLES["1"].rows
    for row in rows:
        comparison.cost(row.system)
    methods = {row.label: comparison.method(row) for row in rows}
    slices, contrasts = comparison.slices("test"), comparison.plan.contrasts
    number, position = survey(slices).drawn
    study, lines = slices.study(number).at(position), []
    own = {name: MethodSlices(slices, method) for name, method in methods.items()}
    for target in contrasts.names:
        acquired, made = [name for name in contrasts.names if name != target], {}
        for name, method in methods.items():
            batches = own[name].batches(number, [position])
            result, _ = synthesise(name, method, batches, contrasts, acquired, comparison.device)
            made[name] = own[name].back(number, result, study.brain)
        lines += panel_rows(made, study, contrasts, acquired)
    return draw_comparison(path, lines, f"Each contrast from the others · {study.subject}, slice {study.indices[0]}")


@torch.no_grad()
def _features(comparison: Comparison, path: Path) -> Path:
    """The first contrast from z of all contrasts, from pure noise, without guidance, prior or stage 2."""
    comparison.cost("published")
    method = comparison.model("published")
    assert isinstance(method, APT)
    total = method.inferer.scheduler.num_train_timesteps
    alone = method.variant(False, start_step=total, sampling_steps=50, unroll_iterations=0, guidance_scale=0.0)
    slices, contrasts, lines = comparison.slices("test"), comparison.plan.contrasts, []
    own = MethodSlices(slices, method)
    for number in range(min(STUDIES, len(slices.studies))):
        batch = next(iter(own.batches(number, [0])))
        available = torch.ones(1, len(contrasts), dtype=torch.bool, device=comparison.device)
        z = method.fusion(batch["features"].to(comparison.device), available)
        image = batch["image"].to(comparison.device)
        nothing = Conditions(torch.full_like(image, -1.0), ~available, context=z)
        seeds = [slice_seed(0, batch["subject"][0], int(batch["slice"][0]))]
        clean = alone.inferer.synthesize(alone.denoiser, nothing, seeds).clean
        acquired, made = ((tensor[0].cpu().numpy() + 1) / 2 for tensor in (image, clean))  # (C, H, W) in [0, 1]
        lines.append((batch["subject"][0], dict(zip(contrasts.labels, acquired, strict=True)), made[0]))
    return draw_from_features(path, lines, contrasts.labels[0])
