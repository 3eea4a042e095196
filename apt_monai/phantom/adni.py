"""ADNI-like studies: as a scanner gives them, with the whole head, and as preprocessing leaves them at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from apt_monai.contrasts import ADNI
from apt_monai.files import complete_folder
from apt_monai.phantom.acquisition import ideal_signal, magnitude_image, vary_timing
from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Grid, centred_affine, check_shape, check_spacing, resample, slice_parts
from apt_monai.phantom.head import make_head
from apt_monai.phantom.population import Population
from apt_monai.phantom.raw import RawSeries, write_raw_study
from apt_monai.phantom.sequences import SEQUENCES, PulseSequence
from apt_monai.phantom.studies import Request, save_scan, subject_generator

#: The series' descriptions, and which contrasts each is, as in a series mapping.
ADNI_SERIES: dict[str, str | dict[str, int]] = {"MPRAGE": "t1", "PD_T2_FSE": {"pd": 1, "t2": 2}}


def adni_t1_grid(spacing: float = 1.0) -> Grid:
    """The grid of the raw T1: 208 sagittal slices of 256×256 voxels of 1 mm, stored as (R, A, S), from crown to neck.

    That is how dcm2niix stores a sagittal MPRAGE. World and head coordinates are the same.

    Args:
        spacing: voxel edge in mm, above 0 and at most 10; the field of view stays.

    Raises:
        ValueError: the spacing is not valid.

    Example::

        >>> adni_t1_grid().shape
        (208, 256, 256)
    """
    check_spacing(spacing)
    x, y, z = (round(n / spacing) for n in (208, 256, 256))
    centre = (0.0, 8.0, -26.0)  # the whole vault, the face and the upper neck
    return Grid((x, y, z), centred_affine((x, y, z), np.full(3, spacing), centre), centre)


def adni_axial_grid(spacing: float = 1.0, shape: Sequence[int] | None = None) -> Grid:
    """The grid of PD and T2: 54 axial slices of 3 mm of 256×256 voxels of 0.9375 mm, stored as (L, A, S).

    Args:
        spacing: above 0 and at most 10. Voxels are 0.9375 × spacing mm wide; slices are spacing mm thick, but never
            thinner than 3 mm.
        shape: voxels along each axis; as many as cover the whole brain if None. Other shapes keep the centre.

    Raises:
        ValueError: the spacing or the shape is not valid.

    Example::

        >>> adni_axial_grid().shape, adni_axial_grid(3.0).shape, adni_axial_grid(6.0).shape
        ((256, 256, 54), (85, 85, 54), (43, 43, 27))
    """
    check_spacing(spacing)
    steps = np.array([-0.9375 * spacing, 0.9375 * spacing, max(3.0, spacing)])
    if shape is None:
        shape = tuple(round(n / abs(step)) for n, step in zip((240, 240, 162), steps, strict=True))
    checked = check_shape(shape)
    centre = (0.0, 0.0, 2.0)
    return Grid(checked, centred_affine(checked, steps, centre), centre)


#: ADNI's subjects have no tumour; in about every second one ventricles and sulci are widened.
HEALTHY = Population(ventricles=(-0.1, 0.25), sulci=(1.4, 0.2), tumour=False)
ATROPHIC = Population(ventricles=(0.5, 0.8), sulci=(2.3, 0.25), tumour=False)


#: ADNI's MPRAGE, and its fast spin echo whose two echoes are PD and T2.
ADNI_SEQUENCES: Mapping[str, PulseSequence] = MappingProxyType(
    {"t1": SEQUENCES["t1"], "t2": PulseSequence(tr=3000.0, te=100.0), "pd": PulseSequence(tr=3000.0, te=12.0)}
)


def adni_population(seed: int, subject: int) -> Population:
    """:data:`HEALTHY` or :data:`ATROPHIC`, one as likely as the other, drawn from (seed, subject)."""
    return ATROPHIC if subject_generator(seed, subject, "atrophy").random() < 0.5 else HEALTHY


def draw_movement(rng: np.random.Generator, turn: float = 2.0, shift: float = 2.5) -> NDArray[np.float64]:
    """A rigid movement of the head between two scans: the 4×4 matrix from the second scan's to the first's world mm.

    Args:
        rng: where it is drawn from.
        turn: standard deviation of the rotation about each axis, in degrees.
        shift: standard deviation of the translation along each axis, in mm.

    Example::

        >>> movement = draw_movement(np.random.default_rng(0))
        >>> bool(np.isclose(np.linalg.det(movement[:3, :3]), 1))
        True
    """
    movement = np.eye(4)
    movement[:3, :3] = Rotation.from_rotvec(np.radians(rng.normal(0, turn, 3))).as_matrix()
    movement[:3, 3] = rng.normal(0, shift, 3)
    return movement


def adni_sequences(seed: int, subject: int) -> dict[str, PulseSequence]:
    """Each contrast's sequence as the scanner runs it; PD and T2 are two echoes of one scan and share its TR."""
    varied = {
        name: vary_timing(ADNI_SEQUENCES[name], subject_generator(seed, subject, f"{name} timing"))
        for name in ADNI.names
    }
    varied["pd"] = replace(varied["pd"], tr=varied["t2"].tr)
    return varied


def master_grid(target: Grid, margin: float) -> Grid:
    """A grid for the anatomy: the target's voxels, in slices of the in-plane voxel's size, margin mm wider along x."""
    steps = np.diag(target.affine)[:3].copy()
    parts = slice_parts(target)
    steps[2] /= parts
    x, y, z = target.shape
    shape = (x + 2 * math.ceil(margin / abs(steps[0])), y, z * parts)
    middle = target.affine[:3, :3] @ (np.array(target.shape) - 1) / 2 + target.affine[:3, 3]
    return Grid(shape, centred_affine(shape, steps, middle), target.centre)


def write_adni_study(request: Request) -> None:
    """One study as preprocessing leaves it: skull-stripped, on one grid."""
    grid, name = adni_axial_grid(request.spacing, request.shape), request.folder.name
    master = master_grid(grid, margin=0)
    who = (request.seed, request.subject)
    with complete_folder(request.folder) as folder:
        head = make_head(master, *who, adni_population(*who))
        weight = resample(head.brain.astype(np.float32), master, grid, parts=slice_parts(grid))
        brain = weight > 0.5
        for contrast, sequence in adni_sequences(*who).items():
            volume = np.zeros(master.shape, np.float32)
            volume[head.brain] = ideal_signal(head, sequence)
            signal = resample(volume, master, grid, parts=slice_parts(grid))[brain] / weight[brain]
            rng = subject_generator(*who, contrast)
            # What bias correction leaves
            signal *= np.exp(0.04 * smooth_noise(grid.axes, 90, rng)[brain])
            scan = np.zeros(grid.shape, np.float32)
            scan[brain] = np.maximum(magnitude_image(signal, rng, noiseless=not request.noise), 1)
            save_scan(scan, grid, folder / f"{name}_{contrast}.nii.gz")


def write_adni_raw_study(request: Request) -> None:
    """One study as the scanner gives it, and beside the studies what is true of it."""
    t1_grid, axial_grid = adni_t1_grid(request.spacing), adni_axial_grid(request.spacing)
    who = (request.seed, request.subject)
    population = adni_population(*who)
    movement = draw_movement(subject_generator(*who, "movement"))
    mprage, spin_echoes = ADNI_SERIES
    series = (
        RawSeries("t1", mprage, ("t1",), t1_grid, np.eye(4), np.eye(4), slices=0),
        RawSeries("axial", spin_echoes, ("pd", "t2"), axial_grid, movement, np.eye(4)),
    )
    head = make_head(master_grid(t1_grid, margin=10), *who, population)
    record = {"axial_to_t1": movement.tolist(), "atrophy": population is ATROPHIC}
    write_raw_study(request, head, population, adni_sequences(*who), series, record)
