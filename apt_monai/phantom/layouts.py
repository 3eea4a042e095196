"""On which voxels a study of the varied phantom is, and how its anatomy is seen on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import ndtr

from apt_monai.phantom.grids import HEAD_BOX, Grid, Volume, centred_affine


@dataclass(frozen=True)
class Resolution:
    """How voxels and fields of view differ. All in mm; ranges are uniform.

    Args:
        edge: range of the in-plane voxel edge, logarithmically uniform.
        coarse_edge: the edge of some studies.
        coarse: the part of the studies that have it.
        thick: the part of the studies that have thick slices.
        thickness: range of the thickness of thick slices; never below the edge.
        thin: range of the thickness of the others, relative to the edge.
        thin_limits: the least and the largest of that thickness.
        width: range of the in-plane field of view.
        height: range of the field of view from below to above.
        largest: no voxel is larger along any axis.
        anatomy: the range to which the voxels are limited on which the anatomy is made, in plane and along the slices.
    """

    edge: tuple[float, float] = (0.6, 2.0)
    coarse_edge: float = 3.0
    coarse: float = 0.15
    thick: float = 0.5
    thickness: tuple[float, float] = (2.0, 6.0)
    thin: tuple[float, float] = (0.9, 1.2)
    thin_limits: tuple[float, float] = (1.0, 2.0)
    width: tuple[float, float] = (224.0, 256.0)
    height: tuple[float, float] = (150.0, 172.0)
    largest: float = 10.0
    anatomy: tuple[tuple[float, float], tuple[float, float]] = ((0.9, 1.5), (1.5, 2.0))


def draw_layout(rng: np.random.Generator, usual: Grid, scale: float, resolution: Resolution | None = None) -> Grid:
    """The grid of a study: of the same middle and orientation as the plain phantom's, of other voxels.

    Args:
        rng: where it is drawn from.
        usual: the plain phantom's grid.
        scale: what the drawn edges are multiplied by, for smaller volumes of the same heads.
        resolution: how the grids differ.

    Example::

        >>> usual = Grid((240, 240, 155), np.diag([-1.0, -1.0, 1.0, 1.0]))
        >>> grid = draw_layout(np.random.default_rng(0), usual, 1.0)
        >>> bool(grid.affine[0, 0] == grid.affine[1, 1] < 0)
        True
    """
    resolution = resolution or Resolution()
    edge = math.exp(rng.uniform(*np.log(resolution.edge)))
    if rng.random() < resolution.coarse:
        edge = resolution.coarse_edge
    thickness = float(np.clip(edge * rng.uniform(*resolution.thin), *resolution.thin_limits))
    if rng.random() < resolution.thick:
        thickness = max(edge, rng.uniform(*resolution.thickness))
    # Two decimals, as scanners have them
    steps = np.round([min(each * scale, resolution.largest) for each in (edge, edge, thickness)], 2)
    width, height = rng.uniform(*resolution.width), rng.uniform(*resolution.height)
    x, y, z = (math.ceil(extent / step) for extent, step in zip((width, width, height), steps, strict=True))
    middle = usual.affine[:3, :3] @ (np.array(usual.shape) - 1) / 2 + usual.affine[:3, 3]
    signs = np.sign(np.diag(usual.affine)[:3])
    return Grid((x, y, z), centred_affine((x, y, z), signs * steps, middle), usual.centre)


def anatomy_grid(layout: Grid, scale: float, resolution: Resolution | None = None) -> Grid:
    """A grid for the anatomy of a study: as fine as its voxels and the template ask for, and no finer; around 0."""
    limits = (resolution or Resolution()).anatomy
    steps = np.abs(np.diag(layout.affine)[:3])
    fine = np.array([float(np.clip(step, *scale * np.array(limits[axis == 2]))) for axis, step in enumerate(steps)])
    shape = []
    for axis, half, step, own in zip(layout.axes, HEAD_BOX, steps, fine, strict=True):
        reach = min(half, float(np.abs(axis).max()) + step / 2)
        shape.append(2 * math.ceil(reach / own) + 1)
    x, y, z = shape
    return Grid((x, y, z), centred_affine((x, y, z), fine, (0, 0, 0)))


def axis_weights(
    source: NDArray[np.float64], target: NDArray[np.float64], blur: float = 0.0, points: int = 24
) -> csr_matrix:
    """What each target voxel sees of the source voxels along one axis.

    Linear between source voxels; where the target's are clearly larger, the mean over each; and a Gaussian.

    Args:
        source, target: coordinates in mm, evenly spaced; the source's ascend.
        blur: standard deviation of the Gaussian in mm.
        points: at how many points a target voxel is sampled.

    Returns:
        float32 (len(target), len(source)); each row sums to 1 unless the source ends there.
    """
    step = source[1] - source[0]
    edge = abs(target[1] - target[0]) if len(target) > 1 else step
    width = edge if edge > 1.2 * step else 0.0
    reach = width / 2 + 2.5 * blur
    offsets = reach * (2 * (np.arange(points) + 0.5) / points - 1) if reach > 0 else np.zeros(1)
    if blur > 0 and width > 0:
        weights = ndtr((offsets + width / 2) / blur) - ndtr((offsets - width / 2) / blur)
    elif blur > 0:
        weights = np.exp(-0.5 * np.square(offsets / blur))
    else:
        weights = np.ones(len(offsets))
    weights = weights / weights.sum()
    at = (target[:, None] + offsets - source[0]) / step
    low = np.floor(at).astype(int)
    rows = np.broadcast_to(np.arange(len(target))[:, None], at.shape)
    values = [weights * (1 - (at - low)), weights * (at - low)]
    columns = [low, low + 1]
    data, column, row = (np.stack(each).ravel() for each in (values, columns, [rows, rows]))
    inside = (column >= 0) & (column < len(source))
    shape = (len(target), len(source))
    return csr_matrix((data[inside].astype(np.float32), (row[inside], column[inside])), shape=shape)


def see(volume: Volume, weights: tuple[csr_matrix, csr_matrix, csr_matrix]) -> Volume:
    """A volume with the weights of :func:`axis_weights` applied along each axis."""
    for each in weights:  # each turn takes the first axis and moves it to the end
        rest = volume.shape[1:]
        volume = (each @ volume.reshape(len(volume), -1)).reshape(each.shape[0], *rest)
        volume = np.ascontiguousarray(np.moveaxis(volume, 0, -1))
    return volume
