"""How the subjects of a data set differ from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from apt_monai.phantom.fields import magnify, smooth_noise
from apt_monai.phantom.grids import HEAD_BOX, Grid, Volume
from apt_monai.phantom.template import TEMPLATE_CENTRE


@dataclass(frozen=True)
class Population:
    """How the subjects of a data set differ from one another; the defaults are those of BraTS. Ranges are uniform.

    Args:
        turn: standard deviation of the head's rotation about each axis, in degrees.
        size: mean size along x, y and z, relative to the template.
        size_spread: standard deviation of the size, of the whole and along each axis.
        bends: (amplitude, scale) in mm of the smooth deformations.
        ventricles: range of the strength with which :func:`magnify` widens the ventricles; below 0 it narrows them.
        sulci: mean and standard deviation of the logarithmic weight of CSF among the tissues; more widens the sulci.
        tumour: whether every subject has a tumour, or none.
        core: range of the tumour core's radius in mm.
        necrosis: range of the part of that radius up to which the core is necrotic; the rest is the enhancing rim.
        oedema: range of how far the oedema reaches, as a multiple of that radius.
        mass_effect: range of the strength with which the tumour pushes away what is around it.
    """

    turn: float = 2.5
    size: tuple[float, float, float] = (0.98, 0.98, 0.93)
    size_spread: float = 0.025
    bends: tuple[tuple[float, float], ...] = ((2.5, 50.0), (1.6, 18.0))
    ventricles: tuple[float, float] = (-0.2, 0.5)
    sulci: tuple[float, float] = (1.6, 0.3)
    tumour: bool = True
    core: tuple[float, float] = (11.0, 23.0)
    necrosis: tuple[float, float] = (0.55, 0.82)
    oedema: tuple[float, float] = (1.45, 2.3)
    mass_effect: tuple[float, float] = (0.15, 0.4)


def draw_points(axes: Sequence[NDArray[np.float64]], population: Population, rng: np.random.Generator) -> Volume:
    """MNI coordinates (3, X, Y, Z) that each head coordinate shows: turned, scaled, bent, the ventricles resized."""
    turn = Rotation.from_rotvec(np.radians(rng.normal(0, population.turn, 3))).as_matrix()
    size = np.array(population.size) * rng.normal(1, population.size_spread, 3) * rng.normal(1, population.size_spread)
    matrix = (turn / size).astype(np.float32)
    x, y, z = (axis.astype(np.float32) for axis in axes)
    points = np.empty((3, len(x), len(y), len(z)), np.float32)
    for i, (row, centre) in enumerate(zip(matrix, TEMPLATE_CENTRE, strict=True)):
        points[i] = row[0] * x[:, None, None] + row[1] * y[:, None] + row[2] * z + np.float32(centre)
        for amplitude, scale in population.bends:
            points[i] += np.float32(amplitude) * smooth_noise(axes, scale, rng)
    return magnify(points, (0, -14, 14), (20, 38, 20), rng.uniform(*population.ventricles))


def head_box(grid: Grid) -> tuple[tuple[NDArray[np.intp], ...], tuple[NDArray[np.float64], ...]]:
    """The part of a grid that can hold brain: an index of it, and its axes."""
    near = [np.flatnonzero(np.abs(axis) < half) for axis, half in zip(grid.axes, HEAD_BOX, strict=True)]
    return np.ix_(*near), tuple(axis[index] for axis, index in zip(grid.axes, near, strict=True))
