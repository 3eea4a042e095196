"""What surrounds the brain: skull, scalp, eyes, face and neck, from layers of a given thickness and simple shapes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.special import expit

from apt_monai.phantom.acquisition import ideal_signal
from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Grid, Volume
from apt_monai.phantom.head import Head
from apt_monai.phantom.population import Population, draw_points
from apt_monai.phantom.sequences import COVERINGS, PulseSequence, sequence_signal
from apt_monai.phantom.template import TEMPLATE_CENTRE, skull_distance

_STRAY = 25.0  # mm: no deformation, turn or size moves a shape further than this


@dataclass(frozen=True)
class Ellipsoid:
    """A simple shape of one tissue, in MNI mm; symmetric ones are drawn on both sides of the midline.

    Args:
        tissue: a name of :data:`COVERINGS` or :data:`TISSUES`.
        centre: (x, y, z) in mm; x above 0 is drawn on the other side, too.
        radii: semi-axes in mm.
        share: how much of what is there it replaces, at most.
    """

    tissue: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    share: float = 1.0

    def distance(self, points: Volume, side: int = 1) -> Volume:
        """About the distance in mm of MNI coordinates (3, …) from its surface, below 0 inside."""
        column = (3, *[1] * (points.ndim - 1))
        centre = np.array(self.centre, np.float32) * np.array([side, 1, 1], np.float32)
        offset = (points - centre.reshape(column)) / np.array(self.radii, np.float32).reshape(column)
        return (np.sqrt(np.square(offset).sum(axis=0)) - 1) * np.float32(min(self.radii))

    def box(self, grid: Grid, side: int = 1) -> tuple[slice, ...]:
        """The part of a grid in which any subject's may lie."""
        centre = np.array(self.centre) * [side, 1, 1] - TEMPLATE_CENTRE
        found = []
        for axis, middle, radius in zip(grid.axes, centre, self.radii, strict=True):
            near = np.flatnonzero(np.abs(axis - middle) < radius + _STRAY)
            found.append(slice(near[0], near[-1] + 1) if len(near) else slice(0))
        return tuple(found)


#: The outline of the head below the skull: face, chin, nose, lips and neck.
_OUTLINE = (
    Ellipsoid("skin", (0, 28, -58), (66, 64, 72)),
    Ellipsoid("skin", (0, 60, -112), (34, 34, 26)),
    Ellipsoid("skin", (0, 92, -58), (13, 18, 22)),
    Ellipsoid("skin", (0, 92, -92), (22, 8, 14)),
    Ellipsoid("skin", (0, -42, -150), (60, 62, 110)),
)


#: What lies outside the skull, in the order in which it is drawn.
_SOFT_PARTS = (
    Ellipsoid("fat", (30, 50, -38), (16, 26, 16)),
    Ellipsoid("muscle", (20, 46, -38), (3, 20, 6)),
    Ellipsoid("muscle", (40, 46, -38), (3, 20, 6)),
    Ellipsoid("muscle", (30, 46, -27), (6, 20, 2.5)),
    Ellipsoid("muscle", (30, 46, -49), (6, 20, 2.5)),
    Ellipsoid("white", (26, 44, -38), (2.5, 16, 2.5)),
    Ellipsoid("bone", (32, 63, -38), (12.8, 12.8, 12.8), share=0.7),
    Ellipsoid("csf", (32, 63, -38), (12, 12, 12)),
    Ellipsoid("bone", (32, 72, -38), (4.5, 2, 4.5), share=0.8),
    Ellipsoid("fat", (46, 45, -78), (14, 22, 18), share=0.8),
    Ellipsoid("marrow", (44, 42, -108), (5, 30, 14)),
    Ellipsoid("marrow", (0, 78, -112), (22, 6, 11)),
    Ellipsoid("bone", (0, 66, -94), (24, 16, 9), share=0.85),
    Ellipsoid("muscle", (0, 44, -98), (21, 30, 17)),
    Ellipsoid("air", (0, 50, -82), (16, 22, 1.5)),
    Ellipsoid("bone", (0, 52, -77), (24, 26, 3)),
    Ellipsoid("bone", (28, 52, -64), (15, 17, 17)),
    Ellipsoid("air", (28, 52, -64), (13, 15, 15)),
    Ellipsoid("air", (0, 60, -58), (13, 26, 18)),
    Ellipsoid("muscle", (0, 60, -58), (1.3, 24, 18)),
    Ellipsoid("muscle", (6, 56, -62), (2.8, 20, 4), share=0.9),
    Ellipsoid("muscle", (6, 56, -52), (2.2, 17, 3.5), share=0.9),
    Ellipsoid("air", (0, 8, -80), (10, 6, 20)),
    Ellipsoid("air", (0, 4, -122), (8, 7, 34)),
    Ellipsoid("fat", (0, -112, -110), (40, 14, 40), share=0.7),
    Ellipsoid("bone", (0, -20, -140), (14, 13, 66)),
    Ellipsoid("marrow", (0, -20, -140), (12.5, 11.5, 65)),
)


#: Air-filled spaces within the bone: sphenoid and frontal sinus, mastoid cells, ear canal.
_SINUSES = (
    Ellipsoid("air", (7, 22, -42), (8, 12, 9)),
    Ellipsoid("air", (9, 78, -14), (9, 4, 9)),
    Ellipsoid("air", (56, -32, -46), (9, 13, 15), share=0.8),
    Ellipsoid("air", (64, -20, -44), (16, 3, 3)),
)


#: The spinal canal, below the brain stem.
_CANAL = (
    Ellipsoid("dura", (0, -46, -142), (10.5, 9.5, 80)),
    Ellipsoid("csf", (0, -46, -142), (9.5, 8.5, 79)),
    Ellipsoid("white", (0, -46, -142), (6, 4.5, 80)),
)


@dataclass(frozen=True)
class _Layers:
    """Where the layers of a head are, in mm: depth is from the brain's surface outwards, ``skin`` is 0 on the skin's
    surface and below 0 inside; the others are the depths at which layers end, but for ``fat``, a thickness."""

    depth: Volume
    dura: Volume
    inner: Volume
    diploe: Volume
    outer: Volume
    bone: Volume
    fat: Volume
    skin: Volume


def _draw_layers(points: Volume, noise: Callable[[float], Volume], rng: np.random.Generator) -> _Layers:
    """The layers at MNI coordinates (3, X, Y, Z): an adult's thicknesses, which vary smoothly."""
    field, origin = skull_distance()
    voxels = (points - origin.reshape(3, 1, 1, 1)) / 2
    depth = map_coordinates(field, voxels, order=1, mode="nearest", output=np.float32)
    del voxels
    dura = 2.6 + rng.normal(0, 0.3) + 0.6 * noise(30)
    inner = dura + 1.0
    diploe = inner + 1.6
    outer = diploe + np.clip(2.6 + rng.normal(0, 0.5) + 1.1 * noise(35), 0.2, None)
    bone = outer + 1.6
    fat = np.clip(4.0 + rng.normal(0, 0.8) + 1.0 * noise(40), 1.0, None)
    temples = 7 * np.exp(-0.5 * np.square((points[1] - 15) / 28) - 0.5 * np.square((points[2] + 18) / 26))
    muscle = 1.0 + temples * np.exp(-0.5 * np.square((np.abs(points[0]) - 68) / 22))
    skin = depth - (bone + muscle + fat + 1.6)
    for shape in _OUTLINE:  # a smooth union, rounded over 10 mm
        other = shape.distance(points)
        mix = np.clip(0.5 + (skin - other) / 20, 0, 1)
        skin = skin + mix * (other - skin) - 10 * mix * (1 - mix)
    return _Layers(depth, dura, inner, diploe, outer, bone, fat, skin)


def whole_head_signals(
    head: Head,
    seed: int,
    subject: int,
    population: Population,
    sequences: Mapping[str, PulseSequence],
) -> dict[str, Volume]:
    """The signal of each voxel of the whole head without noise: the brain, and around it what a scanner sees as well.

    From the brain outwards: CSF, dura, the two tables of the skull with marrow between them, muscle, fat and skin;
    below the skull a face and a neck with eyes, sinuses, airways, jaw, spine and spinal cord. The layers have the
    thickness of an adult's, which varies smoothly over the head and from subject to subject.

    Args:
        head: the subject's brain, as :func:`make_head` makes it; its grid may be larger than the brain.
        seed, subject, population: those of the head: brain and coverings are deformed alike.
        sequences: what is acquired.

    Returns:
        For each sequence float32 (X, Y, Z), at least 0, relative to the equilibrium signal of water; as
        good as 0 in air.
    """
    grid = head.grid
    shape_rng = np.random.default_rng([seed, subject]).spawn(7)[0]
    rng = np.random.default_rng([seed, subject, zlib.crc32(b"coverings")])
    points = draw_points(grid.axes, population, shape_rng)

    def noise(scale: float) -> Volume:
        return smooth_noise(grid.axes, scale, rng)

    flesh = np.exp(0.06 * noise(3) + 0.08 * noise(10))  # the texture of what is no fluid
    signals = {name: np.zeros(grid.shape, np.float32) for name in sequences}
    edge = max(0.35, 0.3 * grid.spacing)  # mm; the logistic edge is then about a voxel wide

    def paint(tissue: str, share: Volume, box: tuple[slice, ...] = (slice(None),) * 3) -> None:
        known = head.tissues.get(tissue) or COVERINGS[tissue]
        for name, sequence in sequences.items():
            brightness = float(np.abs(sequence_signal(sequence, known.pd, known.t1, known.t2)))
            signal = signals[name][box]
            signal += share * (np.float32(brightness) * (1 if tissue == "csf" else flesh[box]) - signal)

    def paint_shapes(shapes: Sequence[Ellipsoid], within: Volume) -> None:
        for shape in shapes:
            for side in (1, -1) if shape.centre[0] else (1,):
                box = shape.box(grid, side)
                inside = expit(-shape.distance(points[:, box[0], box[1], box[2]], side) / edge)
                paint(shape.tissue, shape.share * inside * within[box], box)

    layers = _draw_layers(points, noise, rng)
    depth, skin = layers.depth, layers.skin
    paint("skin", expit(-skin / edge))
    paint("fat", expit(-(skin + 1.6) / edge))
    deep = expit(-(skin + 1.6 + layers.fat) / edge)
    paint("muscle", deep)
    paint("fat", 0.8 * deep * expit(4 * (noise(7) + 0.5 * noise(20) - 0.6)))
    paint_shapes(_SOFT_PARTS, expit(-(skin + 1) / edge))
    paint("bone", expit((layers.bone - depth) / edge))
    paint("marrow", 0.9 * expit((layers.outer - depth) / edge))
    paint("bone", expit((layers.diploe - depth) / edge))
    paint_shapes(_SINUSES, expit((depth - layers.inner - 1) / edge) * expit(-(skin + 2) / edge))
    paint("dura", expit((layers.inner - depth) / edge))
    paint("csf", expit((layers.dura - depth) / edge))
    paint_shapes(_CANAL, expit(-(skin + 8) / edge))
    for name, sequence in sequences.items():
        signals[name][head.brain] = ideal_signal(head, sequence)
    return signals
