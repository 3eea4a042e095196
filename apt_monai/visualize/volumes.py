"""The planes of a study's volumes, acquired and synthetic side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from apt_monai.errors import StudyError
from apt_monai.geometry import same_grid
from apt_monai.io.source import read_source
from apt_monai.visualize.canvas import BACKGROUND, CELL, FAINT, TEXT, WARNING, extent, mark_synthetic, save, show


def draw_volume(path: str | Path, volumes: Mapping[str, str | Path], title: str = "") -> Path:
    """Three orthogonal planes through the middle of the brain, for each volume of one study.

    A volume that apt_monai synthesised (SYNTHETIC in its file name or as its header's intent_name) is marked so in the
    picture. Each volume is shown in the robust range of what is not 0 in it (the 0.5th to the 99.5th percentile), as a
    synthetic one has no scale of its own.

    Args:
        path: the picture.
        volumes: by their titles, all on one grid, a column each; as :func:`apt_monai.io.read_volume` takes them.
        title: the picture's title.

    Returns:
        ``path``.

    Raises:
        ValueError: there are no volumes.
        StudyError: a volume cannot be read, or they are not on one grid.

    Example::

        >>> nib.save(nib.Nifti1Image(np.ones((6, 7, 8), np.float32), np.eye(4)), "a_t1.nii.gz")
        >>> draw_volume("planes.png", {"T1": "a_t1.nii.gz"}).name
        'planes.png'
    """
    if not volumes:
        raise ValueError("draw_volume needs at least one volume")
    loaded, affine, synthetic = _on_one_grid(volumes)

    spacing = nib.affines.voxel_sizes(affine)  # mm
    anywhere = np.logical_or.reduce([volume != 0 for volume in loaded.values()])
    box = tuple(extent(anywhere.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    middle = [(part.start + part.stop) // 2 for part in box]
    planes = [("axial", 2, "R", "L"), ("coronal", 1, "R", "L"), ("sagittal", 0, "A", "P")]
    sizes = np.array([part.stop - part.start for part in box]) * spacing
    heights = [sizes[1], sizes[2], sizes[2]]  # mm, of the three pictures
    width = max(sizes[0], sizes[1])
    figure = Figure(
        figsize=(CELL * 1.2 * len(loaded) + 0.4, CELL * 1.2 * sum(heights) / width + 0.7), facecolor=BACKGROUND
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(3, len(loaded), squeeze=False, gridspec_kw={"height_ratios": heights})
    for column, (name, volume) in enumerate(loaded.items()):
        inside = volume[volume != 0]
        low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
        for axes, (plane, axis, left, right) in zip(grid[:, column], planes, strict=True):
            cut = np.take(volume[box], middle[axis] - box[axis].start, axis=axis)
            across, up = (i for i in range(3) if i != axis)
            show(axes, cut, window=(float(low), float(high)), aspect=spacing[up] / spacing[across])
            if column == 0:
                axes.text(-0.03, 0.5, plane, transform=axes.transAxes, color=TEXT, fontsize=10, rotation=90,
                          ha="right", va="center")  # fmt: skip
                for x, side in ((0.02, left), (0.98, right)):
                    axes.text(x, 0.5, side, transform=axes.transAxes, color=FAINT, fontsize=8, va="center",
                              ha="left" if x < 0.5 else "right")  # fmt: skip
            if name in synthetic:
                mark_synthetic(axes)
        grid[0, column].set_title(name, color=WARNING if name in synthetic else TEXT, fontsize=11)
    if title:
        figure.suptitle(title, color=TEXT, fontsize=12)
    return save(figure, path)


def _on_one_grid(
    volumes: Mapping[str, str | Path],
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float64], set[str]]:
    """The volumes by their titles, RAS+, the affine that they share, and which of them were synthesised."""
    synthetic = set()
    loaded: dict[str, NDArray[np.float32]] = {}
    affine = np.eye(4)
    for name, path in volumes.items():
        source = read_source(path)
        image = nib.as_closest_canonical(nib.Nifti1Image(source.volume, source.affine))
        if source.synthetic:
            synthetic.add(name)
        if not loaded:
            affine, shape, first = image.affine, image.shape, path
        elif not same_grid(image.shape, image.affine, shape, affine):
            raise StudyError(f"{path}: is not on the grid of {first}; draw the volumes of one study")
        loaded[name] = np.asarray(image.dataobj)
    return loaded, affine, synthetic
