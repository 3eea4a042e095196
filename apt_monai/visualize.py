"""Figures: the qualitative panel, the codebook, the planes of a volume. Each function writes one picture file.

Slices are shown as radiologists see them: front up, the patient's right on the left. Every synthesised image carries
the word SYNTHETIC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from apt_monai.codebook import PriorCodebook
from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.files import complete_file
from apt_monai.metrics import psnr

Slice = NDArray[np.float32]

MAX_ERROR = 0.3
"""The end of the error maps' colour scale, in intensities in [0, 1]: fixed, so that pictures can be compared."""

ERROR_COLOURS = "inferno"
FOOTER = "PSNR over the whole slice. SYNTHETIC images were computed, not acquired. Research use only."
CELL = 1.75  # inches, the edge of one image
MARGIN = 0.07  # of the brain's extent, the background left around it
BACKGROUND, TEXT, FAINT, WARNING = "#101010", "#f2f2f2", "#9a9a9a", "#ffb000"


@dataclass(frozen=True)
class SynthesisRow:
    """One target contrast of one slice, for :func:`draw_synthesis`. Arrays are (H, W) in [0, 1], x and y of RAS+.

    Args:
        target: the contrast's label, such as ``"T1Gd"``.
        truth: what was acquired.
        prior: what the codebook gave to start from; None where no method had a prior.
        synthesised: the result of each method, by the method's name.
        psnr: of each result, in dB, by the method's name.
    """

    target: str
    truth: Slice
    prior: Slice | None
    synthesised: Mapping[str, Slice]
    psnr: Mapping[str, float]


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


def draw_synthesis(
    path: str | Path, rows: Sequence[SynthesisRow], title: str, acquired: Mapping[str, Slice] | None = None
) -> Path:
    """The qualitative panel (Figs. 4 and 5): a row a target with truth, prior, synthesised images and error maps.

    Error maps are the absolute difference to the truth, on a fixed scale from 0 to 0.3. All images are cropped to the
    same box around the brain.

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
    if not methods or any(list(row.synthesised) != methods for row in rows):
        raise ValueError("draw_synthesis needs at least one row, and the same methods in every row")
    images = [*acquired.values()]
    for row in rows:
        images += [row.truth, *row.synthesised.values(), *([] if row.prior is None else [row.prior])]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the slices of a panel must have one shape: found {sorted({i.shape for i in images})}")
    box = _brain_box(images)

    priors = any(row.prior is not None for row in rows)
    columns = ["acquired", *(["prior"] if priors else []), *methods, *[f"|error|  {m}" for m in methods]]
    num_rows, num_columns = len(rows) + bool(acquired), max(len(columns), len(acquired))
    height, width = display_orientation(images[0][box]).shape
    figure = Figure(
        figsize=(CELL * num_columns + 0.9, CELL * height / width * num_rows + 0.25 * (num_rows - len(rows)) + 0.8),
        facecolor=BACKGROUND,
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
    figure.suptitle(title, color=TEXT, fontsize=12)
    figure.supxlabel(FOOTER, color=FAINT, fontsize=8)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    if acquired:
        for axes, (label, image) in zip(grid[0], acquired.items(), strict=False):
            _show(axes, image[box])
            axes.set_title(f"{label} (given)", color=TEXT, fontsize=9)
    for line, row in zip(grid[int(bool(acquired)) :], rows, strict=True):
        _draw_row(line, row, box, priors)
    for axes, name in zip(grid[int(bool(acquired))], columns, strict=False):
        axes.set_title(name, color=TEXT, fontsize=9)
    scale = ScalarMappable(Normalize(0, MAX_ERROR), ERROR_COLOURS)
    target_axes = list(grid[num_rows - len(rows) :].flat)
    bar = figure.colorbar(scale, ax=target_axes, shrink=0.9 / len(rows), pad=0.01, aspect=12, extend="max")
    bar.set_label("|error|, intensities in [0, 1]", color=TEXT, fontsize=8)
    bar.ax.tick_params(colors=TEXT, labelsize=8)
    return _save(figure, path)


def _draw_row(line: Sequence[Axes], row: SynthesisRow, box: tuple[slice, slice], priors: bool) -> None:
    """A row of the panel: truth, prior if any row has one, each method's image, each method's error."""
    truth, *cells = line
    _show(truth, row.truth[box])
    truth.text(-0.06, 0.5, row.target, transform=truth.transAxes, color=TEXT, fontsize=12, rotation=90,
               ha="right", va="center")  # fmt: skip
    if priors:
        prior, *cells = cells
        if row.prior is not None:
            _show(prior, row.prior[box])
    images, errors = cells[: len(row.synthesised)], cells[len(row.synthesised) :]
    for axes, (method, image) in zip(images, row.synthesised.items(), strict=True):
        _show(axes, image[box])
        _mark_synthetic(axes)
        _corner(axes, f"{row.psnr[method]:.1f} dB")
    for axes, image in zip(errors, row.synthesised.values(), strict=False):
        _show(axes, np.abs(image - row.truth)[box], cmap=ERROR_COLOURS, window=(0, MAX_ERROR))


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
    return _save(figure, path)


def _draw_priors(figure: Any, codebook: PriorCodebook, examples: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Each contrast of the example with the most brain above its prior from the other contrasts."""
    contrasts = codebook.contrasts
    one = int((examples["region"] > 0).flatten(1).sum(dim=1).argmax())
    image: torch.Tensor = examples["image"][one : one + 1].cpu()  # (1, C, H, W)
    brain = examples["region"][one : one + 1].cpu() > 0  # (1, 1, H, W)
    shown = (image[0].numpy() + 1) / 2  # (C, H, W)
    box = _brain_box(list(shown))
    grid = figure.subplots(2, len(contrasts), squeeze=False)
    for column, target in enumerate(contrasts.names):
        others = [name for name in contrasts.names if name != target]
        entry = codebook.lookup(target, others)
        prior = codebook.apply(entry, image[0, contrasts.index(entry.source)], brain[0, 0])
        acquired_axes, prior_axes = grid[:, column]
        _show(acquired_axes, shown[column][box])
        acquired_axes.set_title(f"{labels[target]}, acquired", color=TEXT, fontsize=10)
        _show(prior_axes, ((prior.numpy() + 1) / 2)[box])
        caption = f"prior: {labels[entry.source]}, {entry.curve}, σ = {entry.scale:.2f}"
        prior_axes.set_title(caption, color=TEXT, fontsize=9)


def draw_volume(path: str | Path, volumes: Mapping[str, str | Path], title: str = "") -> Path:
    """Three orthogonal planes through the middle of the brain, for each volume of one study.

    A volume that apt_monai synthesised (SYNTHETIC in its file name or as its header's intent_name) is marked so in the
    picture. Each volume is shown in the robust range of what is not 0 in it (the 0.5th to the 99.5th percentile), as a
    synthetic one has no scale of its own.

    Args:
        path: the picture.
        volumes: NIfTI files by their titles, all on one grid; a column each.
        title: the picture's title.

    Returns:
        ``path``.

    Raises:
        ValueError: there are no volumes, one is not 3D, or they are not on one grid.

    Example::

        >>> nib.save(nib.Nifti1Image(np.ones((6, 7, 8), np.float32), np.eye(4)), "a_t1.nii.gz")
        >>> draw_volume("planes.png", {"T1": "a_t1.nii.gz"}).name
        'planes.png'
    """
    if not volumes:
        raise ValueError("draw_volume needs at least one volume")
    loaded: dict[str, NDArray[np.float32]] = {}
    synthetic: set[str] = set()
    first_path, affine = next(iter(volumes.values())), np.eye(4)
    for name, file in volumes.items():
        image = nib.as_closest_canonical(nib.load(file))
        if image.ndim != 3:
            raise ValueError(f"{file}: is {image.ndim}D, shape {image.shape}; a 3D volume is needed")
        if not loaded:
            affine = image.affine
        elif image.shape != next(iter(loaded.values())).shape or not np.allclose(image.affine, affine, atol=1e-3):
            raise ValueError(f"{file}: is not on the grid of {first_path}; draw the volumes of one study")
        loaded[name] = image.get_fdata(dtype=np.float32)
        if "SYNTHETIC" in Path(file).name.upper() or image.header["intent_name"].item() == b"SYNTHETIC":
            synthetic.add(name)

    spacing = nib.affines.voxel_sizes(affine)  # mm
    anywhere = np.logical_or.reduce([volume != 0 for volume in loaded.values()])
    box = tuple(_extent(anywhere.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
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
            _show(axes, cut, window=(float(low), float(high)), aspect=spacing[up] / spacing[across])
            if column == 0:
                axes.text(-0.03, 0.5, plane, transform=axes.transAxes, color=TEXT, fontsize=10, rotation=90,
                          ha="right", va="center")  # fmt: skip
                for x, side in ((0.02, left), (0.98, right)):
                    axes.text(x, 0.5, side, transform=axes.transAxes, color=FAINT, fontsize=8, va="center",
                              ha="left" if x < 0.5 else "right")  # fmt: skip
            if name in synthetic:
                _mark_synthetic(axes)
        grid[0, column].set_title(name, color=WARNING if name in synthetic else TEXT, fontsize=11)
    if title:
        figure.suptitle(title, color=TEXT, fontsize=12)
    return _save(figure, path)


def _show(
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


def _mark_synthetic(axes: Axes) -> None:
    axes.text(0.5, 0.02, "SYNTHETIC", transform=axes.transAxes, color=WARNING, fontsize=7, weight="bold", ha="center")


def _corner(axes: Axes, text: str) -> None:
    axes.text(0.98, 0.98, text, transform=axes.transAxes, color=TEXT, fontsize=8, ha="right", va="top")


def _extent(occupied: NDArray[np.bool_]) -> slice:
    """The stretch of an axis that is occupied, with a margin; all of it if nothing is."""
    found = np.flatnonzero(occupied)
    if not found.size:
        return slice(0, len(occupied))
    start, stop = int(found[0]), int(found[-1]) + 1
    margin = round(MARGIN * (stop - start)) + 1
    return slice(max(start - margin, 0), min(stop + margin, len(occupied)))


def _brain_box(images: Sequence[NDArray[Any]]) -> tuple[slice, slice]:
    """The box that holds whatever is not background (0) in any of the images."""
    anywhere = np.logical_or.reduce([image > 0 for image in images])
    return _extent(anywhere.any(axis=1)), _extent(anywhere.any(axis=0))


def _save(figure: Figure, path: str | Path) -> Path:
    with complete_file(path) as partial:
        figure.savefig(partial, dpi=130, facecolor=figure.get_facecolor())
    return Path(path)


class SynthesisPicture:
    """A handler for :class:`apt_monai.engines.SynthesisEvaluator`: draws the first slice of each validation.

    Writes ``validation.png`` into ``log_dir`` and the same picture to TensorBoard, so that progress can be looked at.

    Args:
        log_dir: TensorBoard's folder.
        contrasts: the contrast set, or its name.
    """

    def __init__(self, log_dir: str | Path, contrasts: str | ContrastSet) -> None:
        self.log_dir = Path(log_dir)
        self.contrasts = get_contrast_set(contrasts)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self.draw)

    def draw(self, engine: Engine) -> None:
        """Draw the first slice of the batch."""
        output: Any = engine.state.output
        first = {key: (value[0].cpu().numpy() + 1) / 2 for key, value in output.items()}  # (C, H, W)
        rows = []
        for c, label in enumerate(self.contrasts.labels):
            truth, result = first["image"][c], first["synthesised"][c]
            prior = first["prior"][c] if "prior" in first else None
            quality = float(psnr(*(torch.from_numpy(i)[None, None] for i in (result, truth))))
            rows.append(SynthesisRow(label, truth, prior, {"synthesised": result}, {"synthesised": quality}))
        title = f"epoch {engine.state.epoch}: each contrast from the others"
        path = draw_synthesis(self.log_dir / "validation.png", rows, title)
        with SummaryWriter(str(self.log_dir)) as writer:
            picture = torch.from_numpy(matplotlib.image.imread(path)[..., :3])
            writer.add_image("validation", picture, engine.state.epoch, dataformats="HWC")
