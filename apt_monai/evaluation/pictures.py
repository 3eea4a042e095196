"""The pictures of an evaluation: the slice that is drawn, by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from apt_monai.contrasts import ContrastSet
from apt_monai.evaluation.slices import StudySlices
from apt_monai.metrics import psnr
from apt_monai.visualize import SynthesisRow, draw_synthesis


def panel_rows(
    made: Mapping[str, Mapping[str, torch.Tensor]], study: StudySlices, contrasts: ContrastSet, acquired: Sequence[str]
) -> list[SynthesisRow]:
    """A row for each missing contrast of one case.

    Args:
        made: by method, ``"image"`` and, where there are, ``"prior"`` and ``"uncertainty"``: ``(1, C, X, Y)``.
        study: the slice that is drawn.
        contrasts: the contrast set.
        acquired: what the methods were given.
    """
    priors = [result["prior"] for result in made.values() if "prior" in result]
    rows = []
    for target, label in zip(contrasts.names, contrasts.labels, strict=True):
        if target not in acquired:
            c = contrasts.index(target)
            expected = study.truth[:, c : c + 1]  # (1, 1, X, Y)
            row = SynthesisRow(
                label,
                study.truth[0, c].numpy(),
                priors[0][0, c].numpy() if priors else None,
                {name: result["image"][0, c].numpy() for name, result in made.items()},
                {name: float(psnr(result["image"][:, c : c + 1], expected)) for name, result in made.items()},
                {n: result["uncertainty"][0, c].numpy() for n, result in made.items() if "uncertainty" in result},
            )
            rows.append(row)
    return rows


def draw_case(
    path: Path, rows: Sequence[SynthesisRow], study: StudySlices, contrasts: ContrastSet, acquired: Sequence[str]
) -> None:
    """The panel of one case, or, with nothing ``acquired``, of each contrast from all others."""
    truth = study.truth[0].numpy()  # (C, X, Y) in [0, 1]
    given = {contrasts.labels[contrasts.index(name)]: truth[contrasts.index(name)] for name in acquired}
    targets = f"{', '.join(row.target for row in rows)} from {', '.join(given)}" if given else "Each from the others"
    draw_synthesis(path, rows, f"{targets} · {study.subject}, slice {study.indices[0]}", given)


def picture_name(acquired: Sequence[str]) -> str:
    return f"panel_{'_'.join(acquired)}.png"
