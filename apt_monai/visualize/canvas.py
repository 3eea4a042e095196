"""What all pictures share: colours, how a slice lies in a picture, the mark of what is synthetic, the writing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from apt_monai.files import complete_file

CELL = 1.75  # inches, the edge of one image
MARGIN = 0.07  # of the brain's extent, the background left around it
BACKGROUND, TEXT, FAINT, WARNING = "#101010", "#f2f2f2", "#9a9a9a", "#ffb000"


def display_orientation(image: NDArray[Any]) -> NDArray[Any]:
    """A slice ``(x, y)`` of a RAS+ volume as the rows of a picture: front up, the patient's right on the left.

    Coronal ``(x, z)`` planes become superior up and right on the left; sagittal ``(y, z)`` planes superior up and
    front on the left.

    Example::

        >>> image = np.zeros((3, 3))
        >>> image[2, 2] = 1  # the right front corner
        >>> display_orientation(image)[0].tolist()
        [1.0, 0.0, 0.0]
    """
    return image.T[::-1, ::-1]


def canvas(
    rows: int, columns: int, cell: NDArray[Any], title: str, footer: str, more: tuple[float, float] = (0.4, 0.9)
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of so many cells, of the shape of one image; more: the inches beside them, across and up."""
    height, width = display_orientation(cell).shape
    size = (CELL * columns + more[0], CELL * height / width * rows + more[1])
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
    figure.suptitle(title, color=TEXT, fontsize=12)
    figure.supxlabel(footer, color=FAINT, fontsize=8)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, [list(line) for line in grid]


def show(
    axes: Axes,
    image: NDArray[Any],
    cmap: str = "gray",
    window: tuple[float, float] = (0.0, 1.0),
    aspect: float = 1.0,
) -> None:
    """One plane, in display orientation; what is below or above the window takes the colour of its end."""
    low, high = window
    axes.set_axis_off()
    axes.imshow(display_orientation(image), cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")


def mark_synthetic(axes: Axes) -> None:
    """The word SYNTHETIC at the lower edge of one image."""
    axes.text(0.5, 0.02, "SYNTHETIC", transform=axes.transAxes, color=WARNING, fontsize=7, weight="bold", ha="center")


def extent(occupied: NDArray[np.bool_]) -> slice:
    """The stretch of an axis that is occupied, with a margin; all of it if nothing is."""
    found = np.flatnonzero(occupied)
    if not found.size:
        return slice(0, len(occupied))
    start, stop = int(found[0]), int(found[-1]) + 1
    margin = round(MARGIN * (stop - start)) + 1
    return slice(max(start - margin, 0), min(stop + margin, len(occupied)))


def brain_box(images: Sequence[NDArray[Any]]) -> tuple[slice, slice]:
    """The box that holds whatever is not background (0) in any of the images."""
    anywhere = np.logical_or.reduce([image > 0 for image in images])
    return extent(anywhere.any(axis=1)), extent(anywhere.any(axis=0))


def save(figure: Figure, path: str | Path) -> Path:
    """Write a picture, whole or not at all; returns ``path``."""
    with complete_file(path) as partial:
        figure.savefig(partial, dpi=130, facecolor=figure.get_facecolor())
    return Path(path)
