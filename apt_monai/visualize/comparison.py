"""Pictures of many methods side by side, and of what the fused features alone hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from apt_monai.visualize.canvas import (
    TEXT,
    brain_box,
    canvas,
    mark_synthetic,
    save,
    show,
)
from apt_monai.visualize.synthesis import ERROR_COLOURS, FOOTER, MAX_ERROR, Slice, SynthesisRow


def draw_comparison(path: str | Path, rows: Sequence[SynthesisRow], title: str) -> Path:
    """Figures 4 and 5: for each target a line of images, a column a method, and below it their errors.

    Args:
        path: the picture.
        rows: the targets, all with the same methods; images ``(H, W)`` in [0, 1].
        title: what the picture shows.

    Returns:
        ``path``.

    Example::

        >>> truth, result = np.full((2, 16, 16), 0.5, dtype=np.float32)
        >>> row = SynthesisRow("T2", truth, None, {"Hi-Net": result, "APT": result}, {"Hi-Net": 30.0, "APT": 31.0})
        >>> draw_comparison("figure.png", [row], "T2 from FLAIR").name
        'figure.png'
    """
    methods = list(rows[0].synthesised)
    box = brain_box([image for row in rows for image in (row.truth, *row.synthesised.values())])
    figure, grid = canvas(2 * len(rows), 1 + len(methods), rows[0].truth[box], title, FOOTER)
    for number, row in enumerate(rows):
        images, errors = grid[2 * number], grid[2 * number + 1]
        show(images[0], row.truth[box])
        _name(images[0], row.target)
        for axes, below, method in zip(images[1:], errors[1:], methods, strict=True):
            image = row.synthesised[method]
            show(axes, image[box])
            mark_synthetic(axes)
            axes.text(0.98, 0.98, f"{row.psnr[method]:.1f} dB", transform=axes.transAxes, color=TEXT, fontsize=8,
                      ha="right", va="top")  # fmt: skip
            show(below, np.abs(image - row.truth)[box], cmap=ERROR_COLOURS, window=(0, MAX_ERROR))
    for axes, name in zip(grid[0], ["acquired", *methods], strict=True):
        axes.set_title(name, color=TEXT, fontsize=9)
    return save(figure, path)


def draw_from_features(
    path: str | Path, studies: Sequence[tuple[str, Mapping[str, Slice], Slice]], target: str
) -> Path:
    """Figure 6: a line a study: its acquired contrasts, and what the diffusion model makes of their features alone.

    Args:
        path: the picture.
        studies: for each its name, the acquired contrasts ``(H, W)`` in [0, 1] by label, and the synthesised one.
        target: the label of what was synthesised.

    Returns:
        ``path``.

    Example::

        >>> image = np.full((16, 16), 0.5, dtype=np.float32)
        >>> draw_from_features("figure.png", [("a", {"T1": image}, image)], "FLAIR").name
        'figure.png'
    """
    labels = list(studies[0][1])
    title = f"{target} from the fused features of {', '.join(labels)} alone"
    boxes = [brain_box([*acquired.values()]) for _, acquired, _ in studies]
    shape = next(iter(studies[0][1].values()))[boxes[0]]
    figure, grid = canvas(
        len(studies), len(labels) + 1, shape, title, FOOTER.removeprefix("PSNR over the whole slice. ")
    )
    for line, box, (name, acquired, synthesised) in zip(grid, boxes, studies, strict=True):
        for axes, image in zip(line, [*acquired.values(), synthesised], strict=True):
            show(axes, image[box])
        mark_synthetic(line[-1])
        _name(line[0], name)
    for axes, label in zip(grid[0], [*labels, f"{target} from z"], strict=True):
        axes.set_title(label, color=TEXT, fontsize=9)
    return save(figure, path)


def _name(axes: Axes, text: str) -> None:
    axes.text(-0.06, 0.5, text, transform=axes.transAxes, color=TEXT, fontsize=11, rotation=90, ha="right", va="center")
