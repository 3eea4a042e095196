"""The qualitative panel: what was acquired, what each method made of it, and how far it is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from apt_monai.visualize.canvas import (
    TEXT,
    brain_box,
    canvas,
    mark_synthetic,
    save,
    show,
)

Slice = NDArray[np.float32]

MAX_ERROR = 0.3
"""The end of the error maps' colour scale, in intensities in [0, 1]: fixed, so that pictures can be compared."""

ERROR_COLOURS = "inferno"
FOOTER = "PSNR over the whole slice. SYNTHETIC images were computed, not acquired. Research use only."


@dataclass(frozen=True)
class SynthesisRow:
    """One target contrast of one slice, for :func:`draw_synthesis`. Arrays are (H, W) in [0, 1], x and y of RAS+.

    Args:
        target: the contrast's label, such as ``"T1Gd"``.
        truth: what was acquired.
        prior: what the codebook gave to start from; None where no method had a prior.
        synthesised: the result of each method, by the method's name.
        psnr: of each result, in dB, by the method's name.
        uncertainty: of the results that have one, the half width of the 90 % interval, by the method's name.
    """

    target: str
    truth: Slice
    prior: Slice | None
    synthesised: Mapping[str, Slice]
    psnr: Mapping[str, float]
    uncertainty: Mapping[str, Slice] = field(default_factory=dict)


def draw_synthesis(
    path: str | Path, rows: Sequence[SynthesisRow], title: str, acquired: Mapping[str, Slice] | None = None
) -> Path:
    """The qualitative panel (Figs. 4 and 5): a row a target with truth, prior, synthesised images and error maps.

    Error maps are the absolute difference to the truth, on a fixed scale from 0 to 0.3; on the same scale, beside them,
    is the uncertainty of the methods that give one. All images are cropped to the same box around the brain.

    Args:
        path: the picture, ``.png`` or another format of matplotlib's.
        rows: the targets, all with the same methods.
        title: what the picture shows.
        acquired: the acquired contrasts ``(H, W)`` in [0, 1] by label, shown in a first row of their own.

    Returns:
        ``path``.

    Raises:
        ValueError: there are no rows, or their methods or shapes differ.

    Example::

        >>> truth, result = np.full((2, 16, 16), 0.5, dtype=np.float32)
        >>> row = SynthesisRow("T2", truth, None, {"U": result}, {"U": 31.4})
        >>> draw_synthesis("panel.png", [row], "T2 from FLAIR").name
        'panel.png'
    """
    acquired = acquired or {}
    methods = list(rows[0].synthesised) if rows else []
    unsure = list(rows[0].uncertainty) if rows else []
    if not methods or any([*row.synthesised, *row.uncertainty] != methods + unsure for row in rows):
        raise ValueError("draw_synthesis needs at least one row, and the same methods in every row")
    images = [*acquired.values()]
    for row in rows:
        images += [
            row.truth,
            *row.synthesised.values(),
            *row.uncertainty.values(),
            *([] if row.prior is None else [row.prior]),
        ]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the slices of a panel must have one shape: found {sorted({i.shape for i in images})}")
    box = brain_box(images)

    priors = any(row.prior is not None for row in rows)
    columns = ["acquired", *(["prior"] if priors else []), *methods, *[f"|error|  {m}" for m in methods]]
    columns += [f"±90 %  {m}" for m in unsure]
    num_rows, num_columns = len(rows) + bool(acquired), max(len(columns), len(acquired))
    more = (0.9, 0.25 * (num_rows - len(rows)) + 0.8)
    figure, grid = canvas(num_rows, num_columns, images[0][box], title, FOOTER, more)

    if acquired:
        for axes, (label, image) in zip(grid[0], acquired.items(), strict=False):
            show(axes, image[box])
            axes.set_title(f"{label} (given)", color=TEXT, fontsize=9)
    for line, row in zip(grid[int(bool(acquired)) :], rows, strict=True):
        _draw_row(line, row, box, priors)
    for axes, name in zip(grid[int(bool(acquired))], columns, strict=False):
        axes.set_title(name, color=TEXT, fontsize=9)
    scale = ScalarMappable(Normalize(0, MAX_ERROR), ERROR_COLOURS)
    target_axes = [axes for line in grid[num_rows - len(rows) :] for axes in line]
    bar = figure.colorbar(scale, ax=target_axes, shrink=0.9 / len(rows), pad=0.01, aspect=12, extend="max")
    bar.set_label("|error|, intensities in [0, 1]", color=TEXT, fontsize=8)
    bar.ax.tick_params(colors=TEXT, labelsize=8)
    return save(figure, path)


def _draw_row(line: Sequence[Axes], row: SynthesisRow, box: tuple[slice, slice], priors: bool) -> None:
    """A row of the panel: truth, prior if any row has one, each method's image and error, the uncertainties."""
    truth, *cells = line
    show(truth, row.truth[box])
    truth.text(-0.06, 0.5, row.target, transform=truth.transAxes, color=TEXT, fontsize=12, rotation=90,
               ha="right", va="center")  # fmt: skip
    if priors:
        prior, *cells = cells
        if row.prior is not None:
            show(prior, row.prior[box])
    count = len(row.synthesised)
    images, errors, widths = cells[:count], cells[count : 2 * count], cells[2 * count :]
    for axes, (method, image) in zip(images, row.synthesised.items(), strict=True):
        show(axes, image[box])
        mark_synthetic(axes)
        _corner(axes, f"{row.psnr[method]:.1f} dB")
    for axes, image in zip(errors, row.synthesised.values(), strict=False):
        show(axes, np.abs(image - row.truth)[box], cmap=ERROR_COLOURS, window=(0, MAX_ERROR))
    for axes, width in zip(widths, row.uncertainty.values(), strict=False):
        show(axes, width[box], cmap=ERROR_COLOURS, window=(0, MAX_ERROR))


def _corner(axes: Axes, text: str) -> None:
    axes.text(0.98, 0.98, text, transform=axes.transAxes, color=TEXT, fontsize=8, ha="right", va="top")
