"""The digital head: real anatomy, tissues, and the physics that turns them into contrasts, with nothing to download.

The anatomy is the MNI152 template (Fonov et al., NeuroImage 54:313, 2011) that nilearn's wheel ships. Each subject is a
smooth random deformation of it; each tissue has a T1, a T2 and a proton density; the signal equations of spin echo and
inversion recovery turn these into contrasts. So the contrasts of a subject agree as those of a real head do (the same
edges, other intensities), and what gadolinium does is visible in T1Gd alone. The template is a brain without a head:
skull, scalp, eyes, face and neck are drawn around it, from layers of a given thickness and simple shapes.

Everything random comes from (seed, subject), in millimetres: a subject has the same anatomy and tumour on every grid,
and with the same libraries the same seed gives the same bytes.

Head coordinates are millimetres from the middle of the brain, x to the right, y to the front, z up (RAS+).

:mod:`apt_monai.phantom.datasets` writes data sets of such heads.

Example::

    >>> grid = Grid((22, 27, 23), np.diag([8.0, 8.0, 8.0, 1.0]))
    >>> head = make_head(grid, seed=0, subject=0)
    >>> ideal_signal(head, SEQUENCES["t2"]).shape == (head.brain.sum(),)
    True
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BSpline
from scipy.ndimage import binary_closing, distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from scipy.special import expit, softmax

Volume = NDArray[np.float32]
Real = float | NDArray[np.floating[Any]]


# Physics: tissues, sequences and the signal equations


@dataclass(frozen=True)
class Tissue:
    """What the signal equations know of a tissue.

    Args:
        t1: longitudinal relaxation time in ms.
        t2: transverse relaxation time in ms.
        pd: proton density relative to water, in [0, 1].
        gadolinium: concentration of contrast agent after injection, in mmol/L.
    """

    t1: float
    t2: float
    pd: float
    gadolinium: float = 0.0


#: The tissues at 3 T. Grey and white matter: T1 and T2 of Wansapura et al., J Magn Reson Imaging 9:531 (1999). Blood:
#: T1 and T2 of Stanisz et al., Magn Reson Med 54:507 (2005), its density lowered for the signal that flows away. CSF:
#: T1 of Rooney et al., Magn Reson Med 57:308 (2007). Proton densities: relative water contents, after Whittall et al.,
#: Magn Reson Med 37:34 (1997). The T2 of CSF, the tumour tissues and all concentrations are assumptions, not
#: measurements: set between white matter and water so that a tumour looks as it does in BraTS.
TISSUES: Mapping[str, Tissue] = MappingProxyType(
    {
        "csf": Tissue(4300.0, 2000.0, 1.0),
        "grey": Tissue(1331.0, 110.0, 0.82),
        "white": Tissue(832.0, 79.6, 0.70),
        "blood": Tissue(1932.0, 275.0, 0.40, gadolinium=1.5),
        "oedema": Tissue(1450.0, 170.0, 0.82),
        "enhancing": Tissue(1550.0, 140.0, 0.82, gadolinium=0.22),
        "necrosis": Tissue(2600.0, 380.0, 0.93),
    }
)

#: What surrounds the brain, at 3 T. Muscle: Stanisz et al., as above. T1 of fat and marrow: de Bazelaire et al.,
#: Radiology 230:652 (2004). Assumptions: the densities; the T2 of fat and marrow, longer than measured because the fast
#: spin echoes of a clinical scan show fat bright; all of skin, dura and bone, whose T2 is too short for a signal.
COVERINGS: Mapping[str, Tissue] = MappingProxyType(
    {
        "air": Tissue(1000.0, 1.0, 0.0),
        "skin": Tissue(1100.0, 45.0, 0.65),
        "fat": Tissue(382.0, 120.0, 0.64),
        "muscle": Tissue(1412.0, 50.0, 0.72),
        "bone": Tissue(1000.0, 1.0, 0.15),
        "marrow": Tissue(586.0, 90.0, 0.55),
        "dura": Tissue(1100.0, 45.0, 0.60),
    }
)

#: T1 relaxivity of gadobutrol in plasma at 3 T, in L/(mmol s): Szomolanyi et al., Invest Radiol 54:559 (2019).
RELAXIVITY = 4.97


@dataclass(frozen=True)
class PulseSequence:
    """A spin echo, or an inversion recovery where an inversion time is given.

    Args:
        tr: repetition time in ms.
        te: echo time in ms.
        ti: inversion time in ms; None for a spin echo.
        gadolinium: whether it is acquired after the contrast agent was injected.
    """

    tr: float
    te: float
    ti: float | None = None
    gadolinium: bool = False


_T1_WEIGHTED = PulseSequence(tr=2000.0, te=4.0, ti=950.0)
#: The sequence of each contrast, under the contrasts' names of both datasets.
SEQUENCES: Mapping[str, PulseSequence] = MappingProxyType(
    {
        "flair": PulseSequence(tr=9000.0, te=120.0, ti=2480.0),
        "t1": _T1_WEIGHTED,
        "t1ce": replace(_T1_WEIGHTED, gadolinium=True),
        "t2": PulseSequence(tr=4500.0, te=100.0),
        "pd": PulseSequence(tr=4500.0, te=15.0),
    }
)


def spin_echo(pd: Real, t1: Real, t2: Real, tr: float, te: float) -> Real:
    """The signal of a spin echo, relative to the equilibrium signal of water.

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        tr, te: repetition and echo time in ms.

    Example::

        >>> round(float(spin_echo(pd=0.7, t1=832.0, t2=79.6, tr=4500.0, te=100.0)), 3)
        0.198
    """
    # S = PD (1 - exp(-TR / T1)) exp(-TE / T2)
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(pd: Real, t1: Real, t2: Real, tr: float, te: float, ti: float) -> Real:
    """The signed signal of an inversion recovery, relative to the equilibrium signal of water.

    Args:
        pd: proton density, in [0, 1].
        t1, t2: relaxation times in ms.
        tr, te, ti: repetition, echo and inversion time in ms.

    Example::

        >>> round(float(inversion_recovery(pd=1.0, t1=4300.0, t2=2000.0, tr=9000.0, te=120.0, ti=2480.0)), 2)
        -0.0
    """
    # S = PD (1 - 2 exp(-TI / T1) + exp(-TR / T1)) exp(-TE / T2)
    return pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def _signal(sequence: PulseSequence, pd: Real, t1: Real, t2: Real) -> Real:
    if sequence.ti is None:
        return spin_echo(pd, t1, t2, sequence.tr, sequence.te)
    return inversion_recovery(pd, t1, t2, sequence.tr, sequence.te, sequence.ti)


def shorten_t1(t1: Real, concentration: Real) -> Real:
    """T1 in ms once a contrast agent of that concentration (mmol/L) has reached the tissue.

    Example::

        >>> round(float(shorten_t1(1550.0, 0.45)))
        347
    """
    # 1 / T1' = 1 / T1 + r1 c
    return 1 / (1 / t1 + RELAXIVITY / 1000 * concentration)


# Space: grids and smooth random fields

HEAD_EXTENT = 130.0  # mm: random fields cover head coordinates in [-130, 130], more than any field of view here
HEAD_BOX = (88.0, 108.0, 94.0)  # mm: no brain reaches further to the sides, to front and back, up and down


@dataclass(frozen=True)
class Grid:
    """A voxel grid that is aligned with the head: shape, and affine from voxel to world millimetres (RAS+).

    Args:
        shape: voxels along each axis.
        affine: 4×4, diagonal but for the origin.
        centre: head coordinates in mm of the middle of the field of view.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def spacing(self) -> float:
        """The largest voxel edge in mm."""
        return float(np.abs(np.diag(self.affine)[:3]).max())

    @property
    def axes(self) -> tuple[NDArray[np.float64], ...]:
        """Head coordinates in mm of the voxel centres along each axis."""
        each = zip(np.diag(self.affine)[:3], self.shape, self.centre, strict=True)
        return tuple(step * (np.arange(n) - (n - 1) / 2) + middle for step, n, middle in each)


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


@dataclass(frozen=True)
class Template:
    """The MNI152 template: probability maps on a 1 mm grid, and the MNI coordinates in mm of their first voxel.

    What of the brain is neither grey nor white matter is CSF.
    """

    brain: Volume
    grey: Volume
    white: Volume
    origin: NDArray[np.float32]

    def sample(self, name: str, points: Volume) -> Volume:
        """The values of one map at (3, …) MNI coordinates in mm, linear between voxels, 0 outside."""
        voxels = points - self.origin.reshape(3, *[1] * (points.ndim - 1))
        return map_coordinates(getattr(self, name), voxels, order=1, output=np.float32)


TEMPLATE_CENTRE = (0.0, -17.0, 5.0)  # MNI mm: the middle of the template's brain


@lru_cache(maxsize=2)
def load_template(spacing: float = 1.0) -> Template:
    """Read the template from nilearn's wheel, smoothed for sampling at a spacing in mm. No network is used.

    Raises:
        ImportError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError("the phantom's anatomy comes with nilearn: pip install 'apt_monai[phantom]'") from error
    t1 = datasets.load_mni152_template(resolution=1)
    grey, white = datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1)
    brain = binary_closing(np.asarray(t1.dataobj) > 0, iterations=4)  # the template's T1 is skull-stripped
    # What a voxel of that size averages, as a Gaussian of that width at half maximum
    blur = math.sqrt(max(spacing, 1.0) ** 2 - 1) / 2.355
    return Template(
        gaussian_filter(brain.astype(np.float32), math.hypot(1.5, blur), mode="constant"),
        gaussian_filter(np.asarray(grey.dataobj, np.float32), blur, mode="constant"),
        gaussian_filter(np.asarray(white.dataobj, np.float32), blur, mode="constant"),
        origin=t1.affine[:3, 3].astype(np.float32),
    )


@lru_cache(maxsize=1)
def _skull_distance() -> tuple[Volume, NDArray[np.float32]]:
    """Distance in mm from the template's smoothed brain surface, below 0 inside, on a 2 mm grid; MNI mm of its origin.

    The 60 mm around the template hold all that :func:`whole_head_signals` draws by distance.
    """
    template = load_template()
    inside = np.pad(template.brain[::2, ::2, ::2] > 0.5, 30)
    distance = 2 * (distance_transform_edt(~inside) - distance_transform_edt(inside))
    return gaussian_filter(distance.astype(np.float32), 1.5), template.origin - 60


# The subject


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


@dataclass(frozen=True)
class Head:
    """One subject on one grid. Arrays over brain voxels are ordered as ``brain`` selects them.

    Args:
        grid: where it is sampled.
        brain: bool (X, Y, Z), the brain mask.
        labels: uint8 (X, Y, Z), BraTS's segmentation: 1 necrotic core, 2 oedema, 4 enhancing rim, 0 elsewhere.
        tissues: each tissue's mean properties in this subject.
        fractions: float32 (voxels,) for each tissue, the share of a brain voxel that it fills; they sum to 1.
        texture: float32 (3, voxels), the factors on T1, T2 and proton density of every tissue but CSF.
        uptake: float32 (voxels,), the factor on the concentration of contrast agent.
    """

    grid: Grid
    brain: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    tissues: Mapping[str, Tissue]
    fractions: Mapping[str, Volume]
    texture: Volume
    uptake: Volume


@dataclass(frozen=True)
class Tumour:
    """A tumour's place and size: centre in MNI mm, semi-axes of the core in mm, the rest relative to the core.

    Args:
        centre: (3,) MNI coordinates in mm.
        axes: (3,) semi-axes of the core in mm.
        necrosis: where the necrotic core ends; the enhancing rim reaches from there to 1.
        oedema: where the oedema ends, above 1.
        mass_effect: the strength with which it pushes away what is around it.
    """

    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    necrosis: float
    oedema: float
    mass_effect: float


def _draw_tumour(population: Population, rng: np.random.Generator) -> Tumour:
    """A tumour in the white matter of one hemisphere, above the tentorium."""
    template = load_template()
    places = np.argwhere(template.white > 0.8) + template.origin
    x, y, z = places.T
    centre = rng.choice(places[(np.abs(x) > 18) & (y > -80) & (y < 55) & (z > -4) & (z < 48)])
    axes = rng.uniform(*population.core) * rng.uniform(0.75, 1.3, 3)
    ranges = (population.necrosis, population.oedema, population.mass_effect)
    return Tumour(centre.astype(np.float32), axes.astype(np.float32), *(rng.uniform(*each) for each in ranges))


def _draw_points(axes: Sequence[NDArray[np.float64]], population: Population, rng: np.random.Generator) -> Volume:
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


def _head_box(grid: Grid) -> tuple[tuple[NDArray[np.intp], ...], tuple[NDArray[np.float64], ...]]:
    """The part of a grid that can hold brain: an index of it, and its axes."""
    near = [np.flatnonzero(np.abs(axis) < half) for axis, half in zip(grid.axes, HEAD_BOX, strict=True)]
    return np.ix_(*near), tuple(axis[index] for axis, index in zip(grid.axes, near, strict=True))


def _grow_tumour(
    tumour: Tumour,
    points: Volume,
    fractions: Mapping[str, Volume],
    spacing: float,
    noise: Callable[[float, np.random.Generator], Volume],
    rng: np.random.Generator,
) -> dict[str, Volume]:
    """The tissue fractions once a tumour has grown: its core replaces every tissue, oedema most of the white matter.

    Args:
        tumour: place and size.
        points: MNI coordinates in mm, (3, voxels), before the mass pushed anything away.
        fractions: of the healthy tissues, (voxels,) each.
        spacing: of the grid in mm; no edge is sharper than that.
        noise: smooth noise of a scale in mm over the same voxels.
        rng: where the outlines are drawn from.
    """
    radius = float(tumour.axes.mean())
    edge = max(0.8, spacing / 2.355)  # mm
    # Depth: 0 at the centre, 1 at the core's outline. The falx holds it on its side of the midline
    depth = np.linalg.norm((points - tumour.centre[:, None]) / tumour.axes[:, None], axis=0)
    depth *= np.exp(0.07 * noise(4, rng) + 0.17 * noise(10, rng) + 0.2 * noise(22, rng))
    depth += np.clip(-np.sign(tumour.centre[0]) * points[0], 0, None) / 6
    core = expit((1 - depth) * radius / edge)
    necrosis = core * expit((tumour.necrosis * np.exp(0.2 * noise(9, rng)) - depth) * radius / edge)
    reach = tumour.oedema * np.exp(0.2 * noise(24, rng) + 0.12 * noise(10, rng))
    spread = expit((reach - depth) * radius / (2 * edge))
    swollen = {"white": 0.92 * spread, "grey": 0.3 * spread}  # oedema follows white matter and spares the cortex
    grown = {name: (1 - core) * (1 - swollen.get(name, 0)) * share for name, share in fractions.items()}
    grown["oedema"] = (1 - core) * sum(swollen[name] * fractions[name] for name in swollen)
    return grown | {"necrosis": necrosis, "enhancing": core - necrosis}


def make_head(grid: Grid, seed: int, subject: int, population: Population | None = None) -> Head:
    """One subject: anatomy, tumour, and the properties of every voxel, from (seed, subject) alone.

    Args:
        grid: where to sample it.
        seed: of the whole dataset, 0 or above.
        subject: number within the dataset, 0 or above.
        population: how subjects differ; those of BraTS if None.

    Example::

        >>> head = make_head(Grid((22, 27, 23), np.diag([8.0, 8.0, 8.0, 1.0])), seed=0, subject=0)
        >>> head.brain.shape, sorted(head.fractions)[:3]
        ((22, 27, 23), ['blood', 'csf', 'enhancing'])
    """
    population = population or Population()
    generators = np.random.default_rng([seed, subject]).spawn(7)
    shape_rng, fold_rng, tumour_rng, outline_rng, vessel_rng, tissue_rng, texture_rng = generators
    box, axes = _head_box(grid)
    template = load_template(grid.spacing)

    points = _draw_points(axes, population, shape_rng)
    tumour = _draw_tumour(population, tumour_rng) if population.tumour else None
    # Skull-stripping takes a little more here and a little less there
    inside = template.sample("brain", points) > 0.6 + 0.15 * np.clip(smooth_noise(axes, 12, shape_rng), -2, 2)
    points = points[:, inside]

    def noise(scale: float, rng: np.random.Generator) -> Volume:
        return smooth_noise(axes, scale, rng)[inside]

    shown = points
    if tumour is not None:  # the mass pushes what is around it away, but not the skull
        shown = magnify(points, tumour.centre, 1.3 * tumour.axes, tumour.mass_effect)
    grey, white = template.sample("grey", shown), template.sample("white", shown)
    # Every subject folds its own way: the probabilities are sharpened and weighted by smooth noise
    probability = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    fluid = fold_rng.normal(*population.sulci) + 0.6 * noise(9, fold_rng)
    weight = np.stack([fluid, 0.5 * noise(9, fold_rng), np.zeros_like(fluid)])
    csf, grey, white = softmax(1.8 * np.log(probability + 0.02) + weight, axis=0)
    # Vessels run where two smooth fields are both 0, outside the white matter
    distance = np.hypot(noise(16, vessel_rng), noise(16, vessel_rng))
    blood = 0.9 * np.exp(-0.5 * np.square(distance / 0.12)) * np.square(1 - white)
    fractions = {"csf": csf * (1 - blood), "grey": grey * (1 - blood), "white": white * (1 - blood), "blood": blood}
    labels = np.zeros(len(blood), np.uint8)
    if tumour is not None:
        fractions = _grow_tumour(tumour, points, fractions, grid.spacing, noise, outline_rng)
        parts = np.stack([fractions[name] for name in ("necrosis", "oedema", "enhancing")])
        ill = parts.sum(axis=0) > 0.5
        labels[ill] = np.array([1, 2, 4], np.uint8)[parts[:, ill].argmax(axis=0)]

    brain = np.zeros(grid.shape, bool)
    brain[box] = inside
    segmentation = np.zeros(grid.shape, np.uint8)
    segmentation[brain] = labels
    # Wetter tissue has longer T1 and T2 and more protons: one field for the three, and one of each one's own
    water = 0.7 * noise(3, texture_rng) + 0.7 * noise(12, texture_rng)
    texture = np.stack([np.exp(s * (water + 0.5 * noise(5, texture_rng))) for s in (0.035, 0.05, 0.012)])
    tissues = {
        name: replace(t, t1=t.t1 * tissue_rng.normal(1, 0.03), t2=t.t2 * tissue_rng.normal(1, 0.04))
        for name, t in TISSUES.items()
    }
    uptake = np.exp(0.5 * noise(6, texture_rng) + texture_rng.normal(0, 0.25))
    return Head(grid, brain, segmentation, tissues, fractions, texture.astype(np.float32), uptake)


# The scan


def ideal_signal(head: Head, sequence: PulseSequence) -> Volume:
    """The signal of each brain voxel without noise: the tissues' signals, mixed by the share that each fills.

    Args:
        head: the subject.
        sequence: what is acquired.

    Returns:
        float32 (voxels,), at least 0, relative to the equilibrium signal of water.
    """
    total = np.zeros(head.fractions["csf"].shape, np.float32)
    for name, share in head.fractions.items():
        there = np.flatnonzero(share > 1e-4)
        tissue = head.tissues[name]
        factors = head.texture[:, there] if name != "csf" else np.ones((3, 1), np.float32)
        t1, t2, pd = tissue.t1 * factors[0], tissue.t2 * factors[1], tissue.pd * factors[2]
        if sequence.gadolinium and tissue.gadolinium:
            t1 = shorten_t1(t1, tissue.gadolinium * head.uptake[there])
        total[there] += share[there] * _signal(sequence, pd, t1, t2)
    return np.abs(total)


def vary_timing(sequence: PulseSequence, rng: np.random.Generator) -> PulseSequence:
    """The sequence as one scanner runs it: its times vary by a few per cent."""
    tr, te = sequence.tr * rng.normal(1, 0.03), sequence.te * rng.normal(1, 0.04)
    ti = None if sequence.ti is None else sequence.ti * rng.normal(1, 0.01)
    return replace(sequence, tr=tr, te=te, ti=ti)


def magnitude_image(
    signal: Volume,
    rng: np.random.Generator,
    noise: tuple[float, float] = (0.01, 0.025),
    brightness: tuple[float, float] = (400.0, 1500.0),
    brain: NDArray[np.bool_] | None = None,
) -> Volume:
    """The signal with Rician noise, in the intensities of one scanner.

    Args:
        signal: without noise, of any shape.
        rng: where noise and gain are drawn from.
        noise: range of the noise's standard deviation, relative to the brightest tissue (the 99th percentile).
        brightness: range of the intensity that the brightest tissue (the 99.5th percentile) gets.
        brain: where the brightest tissue is looked for, of the signal's shape; everywhere if None.
    """
    where: Any = ... if brain is None else brain
    sigma = rng.uniform(*noise) * np.percentile(signal[where], 99)
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    noisy = np.hypot(signal + real, imaginary)
    return noisy * (rng.uniform(*brightness) / np.percentile(noisy[where], 99.5))


def acquire(
    head: Head,
    sequence: PulseSequence,
    rng: np.random.Generator,
    noise: tuple[float, float] = (0.01, 0.025),
    bias: float = 0.1,
    brightness: tuple[float, float] = (400.0, 1500.0),
) -> Volume:
    """One scan of a subject: the scanner's own timing, gain, bias field and Rician noise; 0 outside the brain.

    Args:
        head: the subject.
        sequence: what is acquired; its times vary by a few per cent.
        rng: where everything about this scan is drawn from.
        noise: range of the noise's standard deviation, relative to the brightest tissue.
        bias: standard deviation of the logarithm of the bias field.
        brightness: range of the intensity that the brightest tissue (the 99.5th percentile) gets.

    Returns:
        float32 (X, Y, Z), 0 outside the brain and at least 1 inside.
    """
    signal = ideal_signal(head, vary_timing(sequence, rng))
    box, axes = _head_box(head.grid)
    signal *= np.exp(bias * smooth_noise(axes, 90, rng)[head.brain[box]])
    scan = np.zeros(head.grid.shape, np.float32)
    scan[head.brain] = np.maximum(magnitude_image(signal, rng, noise, brightness), 1)
    return scan


# What surrounds the brain

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
    points = _draw_points(grid.axes, population, shape_rng)

    def noise(scale: float) -> Volume:
        return smooth_noise(grid.axes, scale, rng)

    flesh = np.exp(0.06 * noise(3) + 0.08 * noise(10))  # the texture of what is no fluid
    signals = {name: np.zeros(grid.shape, np.float32) for name in sequences}
    edge = max(0.35, 0.3 * grid.spacing)  # mm; the logistic edge is then about a voxel wide

    def paint(tissue: str, share: Volume, box: tuple[slice, ...] = (slice(None),) * 3) -> None:
        known = head.tissues.get(tissue) or COVERINGS[tissue]
        for name, sequence in sequences.items():
            brightness = float(np.abs(_signal(sequence, known.pd, known.t1, known.t2)))
            signal = signals[name][box]
            signal += share * (np.float32(brightness) * (1 if tissue == "csf" else flesh[box]) - signal)

    def paint_shapes(shapes: Sequence[Ellipsoid], within: Volume) -> None:
        for shape in shapes:
            for side in (1, -1) if shape.centre[0] else (1,):
                box = shape.box(grid, side)
                inside = expit(-shape.distance(points[:, box[0], box[1], box[2]], side) / edge)
                paint(shape.tissue, shape.share * inside * within[box], box)

    # Depths in mm: below the brain's surface outwards, and below the skin inwards
    field, origin = _skull_distance()
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

    paint("skin", expit(-skin / edge))
    paint("fat", expit(-(skin + 1.6) / edge))
    deep = expit(-(skin + 1.6 + fat) / edge)
    paint("muscle", deep)
    paint("fat", 0.8 * deep * expit(4 * (noise(7) + 0.5 * noise(20) - 0.6)))
    paint_shapes(_SOFT_PARTS, expit(-(skin + 1) / edge))
    paint("bone", expit((bone - depth) / edge))
    paint("marrow", 0.9 * expit((outer - depth) / edge))
    paint("bone", expit((diploe - depth) / edge))
    paint_shapes(_SINUSES, expit((depth - inner - 1) / edge) * expit(-(skin + 2) / edge))
    paint("dura", expit((inner - depth) / edge))
    paint("csf", expit((dura - depth) / edge))
    paint_shapes(_CANAL, expit(-(skin + 8) / edge))
    for name, sequence in sequences.items():
        signals[name][head.brain] = ideal_signal(head, sequence)
    return signals
