"""The pictures of an evaluation: the slice that is drawn, by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from apt_monai.contrasts import ContrastSet
from apt_monai.methods import Batch
from apt_monai.metrics import psnr
from apt_monai.visualize import SynthesisRow, draw_synthesis


def panel_rows(
    results: Mapping[str, Batch], example: Batch, contrasts: ContrastSet, acquired: Sequence[str]
) -> list[SynthesisRow]:
    """A row for each missing contrast of one case."""
    truth = (example["image"][0].cpu().numpy() + 1) / 2  # (C, H, W) in [0, 1]
    made = {name: (result["image"][0].numpy() + 1) / 2 for name, result in results.items()}
    priors = [(result["prior"][0].numpy() + 1) / 2 for result in results.values() if "prior" in result]
    rows = []
    for target, label in zip(contrasts.names, contrasts.labels, strict=True):
        if target not in acquired:
            c = contrasts.index(target)
            expected = torch.from_numpy(truth[c])[None, None]  # (1, 1, H, W)
            decibels = {name: float(psnr(torch.from_numpy(m[c])[None, None], expected)) for name, m in made.items()}
            prior = priors[0][c] if priors else None
            rows.append(SynthesisRow(label, truth[c], prior, {name: m[c] for name, m in made.items()}, decibels))
    return rows


def draw_case(
    path: Path, rows: Sequence[SynthesisRow], example: Batch, contrasts: ContrastSet, acquired: Sequence[str]
) -> None:
    """The panel of one case, or, with nothing ``acquired``, of each contrast from all others."""
    truth = (example["image"][0].cpu().numpy() + 1) / 2  # (C, H, W) in [0, 1]
    given = {contrasts.labels[contrasts.index(name)]: truth[contrasts.index(name)] for name in acquired}
    targets = f"{', '.join(row.target for row in rows)} from {', '.join(given)}" if given else "Each from the others"
    title = f"{targets} · {example['subject'][0]}, slice {int(example['slice'][0])}"
    draw_synthesis(path, rows, title, given)


def picture_name(acquired: Sequence[str]) -> str:
    return f"panel_{'_'.join(acquired)}.png"
