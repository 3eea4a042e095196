"""Pictures to check a raw study by: were the scans put on each other, is the mask the brain, what was synthesised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from apt_monai.contrasts import ContrastSet
from apt_monai.io import read_volume
from apt_monai.io.sidecar import sidecar_path
from apt_monai.preprocessing.output import DETAILS_FOLDER, MASK_ENDING, TRANSFORMS_NAME
from apt_monai.preprocessing.resampling import resample
from apt_monai.preprocessing.scan import Matrix, Scan
from apt_monai.visualize.canvas import BACKGROUND, CELL, TEXT, WARNING, display_orientation, mark_synthetic, save, show

EDGE_MM = 1.5  # of a pixel
AROUND_MM = 25.0  # what is shown around the brain: the skull
PLANES = ("axial", "coronal", "sagittal")

Box = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_registration(path: str | Path, study: Mapping[str, str], prepared: str | Path, contrasts: ContrastSet) -> Path:
    """Every scan of a raw study, moved onto the others, with the outline of the brain mask: three planes each.

    Args:
        path: the picture.
        study: the raw scans by contrast, as they were preprocessed.
        prepared: the study's folder of the preprocessing.
        contrasts: the contrast set.

    Returns:
        ``path``.

    Raises:
        StudyError: a scan cannot be read.
    """
    folder = Path(prepared)
    record = json.loads((folder / DETAILS_FOLDER / TRANSFORMS_NAME).read_text(encoding="utf-8"))
    mask = Scan(*read_volume(folder / f"{record['subject']}{MASK_ENDING}"))
    box = _box(mask)
    outline = _planes(mask, np.eye(4), box)
    columns = []
    for name, scan in record["scans"].items():
        label = contrasts.labels[contrasts.index(name)]
        columns.append((label, _planes(Scan(*read_volume(study[name])), np.array(scan["to_scanner"]), box), False))
    template = record["template"]["name"] if record.get("template") else f"{record['reference']}'s own"
    title = f"{record['subject']}: registered scans, brain mask; pose: {template}"
    return save(_figure(columns, title, [outline] * len(columns), outlined=True), path)


def draw_restored(path: str | Path, study: Mapping[str, str], written: Sequence[Path], contrasts: ContrastSet) -> Path:
    """Each synthesised volume on a scan's grid, beside that scan as it was acquired: three planes each.

    Args:
        path: the picture.
        study: the raw scans by contrast.
        written: the volumes, whose sidecars say on which scan's grid they are.
        contrasts: the contrast set.

    Returns:
        ``path``.

    Raises:
        StudyError: a volume cannot be read.
    """
    columns, brains = [], []
    for file in written:
        sidecar = json.loads(sidecar_path(file).read_text(encoding="utf-8"))
        name = sidecar["resampled_to"]["scan"]
        volume = Scan(*read_volume(file))
        box = _box(volume)
        acquired = _planes(Scan(*read_volume(study[name])), np.eye(4), box)
        columns.append((f"{contrasts.labels[contrasts.index(name)]}, acquired", acquired, False))
        made = _planes(volume, np.eye(4), box)
        columns.append((f"{sidecar['label']}, synthetic", made, True))
        brains += [[(plane > 0).astype(np.float32) for plane in made]] * 2
    return save(_figure(columns, f"{study['subject']}: on the scanner's own grid", brains), path)


def _box(scan: Scan) -> Box:
    """The box of what is above 0, in mm, with the skull around it."""
    voxels = np.nonzero(scan.volume > 0)
    ends = np.array([[axis.min() - 0.5, axis.max() + 0.5] for axis in voxels])
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1)
    places = scan.affine[:3, :3] @ corners + scan.affine[:3, 3:]
    return places.min(axis=1) - AROUND_MM, places.max(axis=1) + AROUND_MM


def _planes(scan: Scan, matrix: Matrix, box: Box) -> list[NDArray[np.float32]]:
    """The three planes through the middle of a box of output space, RAS+; the matrix leads to the scan's space."""
    low, high = box
    shape = np.ceil((high - low) / EDGE_MM).astype(int)
    planes = []
    for axis in (2, 1, 0):
        affine = np.diag([EDGE_MM, EDGE_MM, EDGE_MM, 1.0])
        affine[:3, 3] = low + EDGE_MM / 2
        affine[axis, 3] = (low[axis] + high[axis]) / 2
        cut = shape.copy()
        cut[axis] = 1
        planes.append(np.squeeze(resample(scan, cut.tolist(), affine, matrix, order=1), axis=axis))
    return planes


def _figure(
    columns: Sequence[tuple[str, list[NDArray[np.float32]], bool]],
    title: str,
    brains: Sequence[Sequence[NDArray[np.float32]]],
    outlined: bool = False,
) -> Figure:
    """A column for each (title, its planes, whether it was synthesised), in the window of its brain."""
    heights = [plane.shape[1] for plane in columns[0][1]]
    width = max(plane.shape[0] for plane in columns[0][1])
    size = (CELL * 1.3 * len(columns) + 0.4, CELL * 1.3 * sum(heights) / width + 0.7)
    figure = Figure(figsize=size, facecolor=BACKGROUND)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(3, len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for column, (name, planes, synthetic) in enumerate(columns):
        seen = np.concatenate([plane[brain > 0.5] for plane, brain in zip(planes, brains[column], strict=True)])
        top = float(np.percentile(seen, 99.5)) if seen.size else 1.0
        for row, (axes, plane) in enumerate(zip(grid[:, column], planes, strict=True)):
            show(axes, plane, window=(0.0, top))
            if outlined:
                axes.contour(display_orientation(brains[column][row]), levels=[0.5], colors=[WARNING], linewidths=0.8)
            if synthetic:
                mark_synthetic(axes)
            if column == 0:
                axes.text(-0.03, 0.5, PLANES[row], transform=axes.transAxes, color=TEXT, fontsize=10, rotation=90,
                          ha="right", va="center")  # fmt: skip
        grid[0, column].set_title(name, color=WARNING if synthetic else TEXT, fontsize=10)
    figure.suptitle(title, color=TEXT, fontsize=11)
    return figure
