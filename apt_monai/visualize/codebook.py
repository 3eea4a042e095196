"""The codebook as a picture: how similar each target is to each (source, curve), and each target beside its prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from apt_monai.codebook import PriorCodebook
from apt_monai.visualize.canvas import BACKGROUND, TEXT, brain_box, save, show


def draw_codebook(path: str | Path, codebook: PriorCodebook, examples: Mapping[str, Any] | None = None) -> Path:
    """The codebook: mean similarity of each target with each (source, curve), and each target beside its prior.

    Each cell has the mean cosine similarity and, below it, in which share of the training slices the pair was the most
    similar one (nothing where in none). A frame marks the best entry: the one that is used when all other contrasts
    were acquired.

    Args:
        path: the picture.
        codebook: the codebook.
        examples: slice samples, collated: of the one with the most brain, each contrast is shown beside its prior from
            the others.

    Returns:
        ``path``.

    Example::

        >>> from apt_monai.codebook import CodebookEntry
        >>> from apt_monai.contrasts import ADNI
        >>> entries = {t: [CodebookEntry(s, "same", 3, 0.8, 1.0) for s in ADNI.names if s != t] for t in ADNI.names}
        >>> book = PriorCodebook(ADNI, entries, {"same": (-1, -1 / 3, 1 / 3, 1)}, "abc", "folder", "def", 1, 3)
        >>> draw_codebook("codebook.png", book).name
        'codebook.png'
    """
    contrasts = codebook.contrasts
    similarity, columns = codebook.similarity_matrix()
    values = similarity.numpy()  # (C, C·curves)
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
    targets = len(contrasts)

    matrix_height = 1.9 + 0.52 * targets
    example_height = 0.0 if examples is None else 5.0
    figure = Figure(figsize=(2.6 + 0.54 * len(columns), matrix_height + example_height), facecolor=BACKGROUND)
    figure.set_layout_engine("constrained")
    if examples is None:
        top = figure
    else:
        [[top], [bottom]] = figure.subfigures(2, 1, squeeze=False, height_ratios=[matrix_height, example_height])
        bottom.set_facecolor(BACKGROUND)
        _draw_priors(bottom, codebook, examples, labels)
    top.set_facecolor(BACKGROUND)
    axes = top.subplots()
    axes.set_facecolor("#2a2a2a")
    low, high = np.nanmin(values), np.nanmax(values)
    heat = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    for row, target in enumerate(contrasts.names):
        for entry in codebook.entries[target]:
            column = columns.index((entry.source, entry.curve))
            bright = entry.similarity > (low + high) / 2
            share = entry.count / max(codebook.num_slices, 1)
            text = f"{entry.similarity:.3f}" + (f"\n{share:.0%}" if entry.count else "")
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="black" if bright else "white")
        best = codebook.entries[target][0]
        corner = columns.index((best.source, best.curve)) - 0.5, row - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#ff3b30", linewidth=2.5, clip_on=False, zorder=3))
    for edge in range(len(codebook.curves), len(columns), len(codebook.curves)):
        axes.axvline(edge - 0.5, color=BACKGROUND, linewidth=4)
    axes.set_xticks(range(len(columns)), [curve for _, curve in columns], rotation=40, ha="right", fontsize=7)
    axes.set_yticks(range(targets), [labels[t] for t in contrasts.names], fontsize=10)
    axes.tick_params(colors=TEXT, length=0)
    axes.set_ylabel("target", color=TEXT)
    for source in contrasts.names:
        middle = float(np.mean([i for i, (s, _) in enumerate(columns) if s == source]))
        axes.text(middle, -0.62, f"from {labels[source]}", ha="center", va="bottom", color=TEXT, fontsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = top.colorbar(heat, ax=axes, pad=0.01, aspect=15)
    bar.ax.tick_params(colors=TEXT, labelsize=7)
    bar.set_label("mean cosine similarity", color=TEXT, fontsize=8)
    training = f"{codebook.num_slices} slices of {codebook.num_subjects} subjects"
    title = f"Prior codebook, {contrasts.name}, {training}: similarity, and how often the most similar"
    figure.suptitle(title, color=TEXT, fontsize=11)
    return save(figure, path)


def _draw_priors(figure: Any, codebook: PriorCodebook, examples: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Each contrast of the example with the most brain above its prior from the other contrasts."""
    contrasts = codebook.contrasts
    one = int((examples["region"] > 0).flatten(1).sum(dim=1).argmax())
    image: torch.Tensor = examples["image"][one : one + 1].cpu()  # (1, C, H, W)
    brain = examples["region"][one : one + 1].cpu() > 0  # (1, 1, H, W)
    shown = (image[0].numpy() + 1) / 2  # (C, H, W)
    box = brain_box(list(shown))
    grid = figure.subplots(2, len(contrasts), squeeze=False)
    for column, target in enumerate(contrasts.names):
        others = [name for name in contrasts.names if name != target]
        entry = codebook.lookup(target, others)
        prior = codebook.apply(entry, image[0, contrasts.index(entry.source)], brain[0, 0])
        acquired_axes, prior_axes = grid[:, column]
        show(acquired_axes, shown[column][box])
        acquired_axes.set_title(f"{labels[target]}, acquired", color=TEXT, fontsize=10)
        show(prior_axes, ((prior.numpy() + 1) / 2)[box])
        caption = f"prior: {labels[entry.source]}, {entry.curve}, σ = {entry.scale:.2f}"
        prior_axes.set_title(caption, color=TEXT, fontsize=9)
