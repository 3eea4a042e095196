"""Smooth random fields and smooth movements of sampling points, in millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BSpline

from apt_monai.phantom.grids import HEAD_EXTENT, Volume


def smooth_noise(axes: Sequence[NDArray[np.float64]], scale: float, rng: np.random.Generator) -> Volume:
    """A smooth random field of mean 0 and variance 1: a cubic B-spline with a normal control value every `scale` mm.

    The control values do not depend on the axes: a coarse grid sees the same field as a fine one.

    Args:
        axes: head coordinates in mm along x, y and z.
        scale: distance of the control values in mm.
        rng: where the control values are drawn from.

    Returns:
        float32 of shape (len(x), len(y), len(z)).
    """
    n = math.ceil(2 * HEAD_EXTENT / scale) + 3
    knots = scale * (np.arange(n + 4) - 3) - HEAD_EXTENT
    field = rng.standard_normal((n, n, n), dtype=np.float32)
    for axis in axes:  # each turn evaluates the first axis and moves it to the end
        inside = np.clip(axis, -HEAD_EXTENT, HEAD_EXTENT)
        basis = BSpline.design_matrix(inside, knots, 3).astype(np.float32)
        rest = field.shape[1:]
        field = (basis @ field.reshape(len(field), -1)).reshape(len(axis), *rest)
        field = np.ascontiguousarray(np.moveaxis(field, 0, -1))
    # The mean over a cell of a cubic B-spline's sum of squares is 151 / 315 along each axis
    return field * np.float32((151 / 315) ** -1.5)


def magnify(points: Volume, centre: ArrayLike, widths: ArrayLike, strength: float) -> Volume:
    """Move sampling points so that what lies around a centre appears 1 / (1 - strength) times as large there.

    Args:
        points: (3, …) coordinates in mm.
        centre: in mm.
        widths: standard deviations in mm of the Gaussian within which it acts.
        strength: in (-2, 1), below 0 to shrink.
    """
    column = (3, *[1] * (points.ndim - 1))
    offset = points - np.asarray(centre, np.float32).reshape(column)
    inner = np.exp(-0.5 * np.square(offset / np.asarray(widths, np.float32).reshape(column)).sum(axis=0))
    return points - np.float32(strength) * inner * offset
