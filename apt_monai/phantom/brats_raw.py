"""Tumour studies as a scanner gives them: the whole head, four series on four grids, the head moved between them."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from apt_monai.contrasts import BRATS
from apt_monai.phantom.acquisition import vary_timing
from apt_monai.phantom.adni import adni_t1_grid, draw_movement, master_grid
from apt_monai.phantom.grids import Grid, centred_affine, resample
from apt_monai.phantom.head import make_head
from apt_monai.phantom.population import Population
from apt_monai.phantom.raw import RawSeries, write_raw_study
from apt_monai.phantom.sequences import SEQUENCES
from apt_monai.phantom.studies import Request, subject_generator

#: The head is that of T1Gd: a 3D scan of the whole head, on the grid of ADNI's MPRAGE.
head_grid = adni_t1_grid

#: The series' descriptions, and which contrast each is, as in a series mapping.
BRATS_SERIES: dict[str, str | dict[str, int]] = {"Ax_FLAIR": "flair", "Sag_T1": "t1", "3D_T1_Gd": "t1ce", "Ax_T2": "t2"}


def axial_grid(spacing: float, thickness: float) -> Grid:
    """Axial slices of 0.9375 × spacing mm, stored as (L, A, S), that cover the brain: 240×240×172 mm.

    Args:
        spacing: above 0 and at most 10.
        thickness: of the slices in mm; they are never thinner than spacing.

    Example::

        >>> axial_grid(1.0, 5.0).shape, axial_grid(3.0, 4.0).shape
        ((256, 256, 34), (85, 85, 43))
    """
    steps = np.array([-0.9375 * spacing, 0.9375 * spacing, max(thickness, spacing)])
    x, y, z = (round(n / abs(step)) for n, step in zip((240, 240, 172), steps, strict=True))
    centre = (0.0, 0.0, 2.0)
    return Grid((x, y, z), centred_affine((x, y, z), steps, centre), centre)


def sagittal_grid(spacing: float, thickness: float) -> Grid:
    """Sagittal slices of spacing mm, stored as (R, A, S), that cover the brain: 180×240×240 mm.

    Example::

        >>> sagittal_grid(1.0, 4.0).shape
        (45, 240, 240)
    """
    steps = np.array([max(thickness, spacing), spacing, spacing])
    x, y, z = (round(n / step) for n, step in zip((180, 240, 240), steps, strict=True))
    centre = (0.0, 0.0, -18.0)
    return Grid((x, y, z), centred_affine((x, y, z), steps, centre), centre)


def draw_tilt(rng: np.random.Generator, nod: float = -12.0, spread: float = 4.0) -> NDArray[np.float64]:
    """How axial slices are turned to lie along the base of the brain: the 4×4 matrix of a rotation, mostly of a nod.

    Args:
        rng: where it is drawn from.
        nod: mean of the angle about the axis to the right, in degrees.
        spread: its standard deviation; about the other axes a quarter of it.

    Example::

        >>> tilt = draw_tilt(np.random.default_rng(0))
        >>> bool(np.isclose(np.linalg.det(tilt), 1))
        True
    """
    tilt = np.eye(4)
    angles = rng.normal((nod, 0, 0), (spread, spread / 4, spread / 4))
    tilt[:3, :3] = Rotation.from_rotvec(np.radians(angles)).as_matrix()
    return tilt


def brats_series(spacing: float, seed: int, subject: int) -> tuple[RawSeries, ...]:
    """The series of one study, drawn from (seed, subject); the head lies in the scanner as it does in T1Gd."""
    grids = {
        "flair": axial_grid(spacing, 5.0),
        "t1": sagittal_grid(spacing, 4.0),
        "t1ce": head_grid(spacing),
        "t2": axial_grid(spacing, 4.0),
    }
    found = []
    for description, contrast in ((series, str(name)) for series, name in BRATS_SERIES.items()):
        draw = partial(subject_generator, seed, subject)
        movement = np.eye(4) if contrast == "t1ce" else draw_movement(draw(f"{contrast} movement"))
        axial = contrast in ("flair", "t2")
        tilt = draw_tilt(draw(f"{contrast} tilt")) if axial else np.eye(4)
        slices = 2 if axial else 0
        found.append(RawSeries(contrast, description, (contrast,), grids[contrast], movement, tilt, slices))
    return tuple(found)


def write_brats_raw_study(request: Request) -> None:
    """One study as the scanner gives it, and beside the studies what is true of it."""
    who, population = (request.seed, request.subject), Population()
    grid = head_grid(request.spacing)
    master = master_grid(grid, margin=10)
    head = make_head(master, *who, population)
    sequences = {name: vary_timing(SEQUENCES[name], subject_generator(*who, f"{name} timing")) for name in BRATS.names}
    series = brats_series(request.spacing, *who)
    record = {"to_t1ce": {each.name: each.movement.tolist() for each in series}}
    labels = np.rint(resample(head.labels.astype(np.float32), master, grid)).astype(np.uint8)  # the same voxels
    write_raw_study(request, head, population, sequences, series, record, {"seg": (labels, grid)})
