"""The digital head: real anatomy, tissues, and the physics that turns them into contrasts, with nothing to download.

The anatomy is the MNI152 template (Fonov et al., NeuroImage 54:313, 2011) that nilearn's wheel ships. Each subject is a
smooth random deformation of it; each tissue has a T1, a T2 and a proton density; the signal equations of spin echo and
inversion recovery turn these into contrasts. So the contrasts of a subject agree as those of a real head do (the same
edges, other intensities), and what gadolinium does is visible in T1Gd alone. The template is a brain without a head:
skull, scalp, eyes, face and neck are drawn around it, from layers of a given thickness and simple shapes.

Everything random comes from (seed, subject), in millimetres: a subject has the same anatomy and tumour on every grid,
and with the same libraries the same seed gives the same bytes.

Head coordinates are millimetres from the middle of the brain, x to the right, y to the front, z up (RAS+).

:mod:`apt_monai.phantom.datasets` writes data sets of such heads, :mod:`apt_monai.phantom.acquisition` scans them.

Example::

    >>> grid = Grid((22, 27, 23), np.diag([8.0, 8.0, 8.0, 1.0]))
    >>> head = make_head(grid, seed=0, subject=0)
    >>> head.fractions["grey"].shape == (head.brain.sum(),)
    True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Grid, Volume
from apt_monai.phantom.lesions import Lesion, Mass, label_lesions
from apt_monai.phantom.population import Population, draw_points, head_box
from apt_monai.phantom.sequences import TISSUES, Tissue
from apt_monai.phantom.template import load_template
from apt_monai.phantom.tumour import draw_tumour


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


def make_head(
    grid: Grid,
    seed: int,
    subject: int,
    population: Population | None = None,
    lesions: Sequence[Lesion] | None = None,
    detail: float | None = None,
) -> Head:
    """One subject: anatomy, tumour, and the properties of every voxel, from (seed, subject) alone.

    Args:
        grid: where to sample it.
        seed: of the whole dataset, 0 or above.
        subject: number within the dataset, 0 or above.
        population: how subjects differ; those of BraTS if None.
        lesions: what grows in the brain, one after the other; the population's tumour if None.
        detail: the spacing in mm that the template is smoothed for; the grid's if None.

    Example::

        >>> head = make_head(Grid((22, 27, 23), np.diag([8.0, 8.0, 8.0, 1.0])), seed=0, subject=0)
        >>> head.brain.shape, sorted(head.fractions)[:3]
        ((22, 27, 23), ['blood', 'csf', 'enhancing'])
    """
    population = population or Population()
    generators = np.random.default_rng([seed, subject]).spawn(7)
    shape_rng, fold_rng, tumour_rng, outline_rng, vessel_rng, tissue_rng, texture_rng = generators
    box, axes = head_box(grid)
    template = load_template(grid.spacing if detail is None else detail)

    points = draw_points(axes, population, shape_rng)
    if lesions is None:
        lesions = (Mass(draw_tumour(population, tumour_rng)),) if population.tumour else ()
    # Skull-stripping takes a little more here and a little less there
    inside = template.sample("brain", points) > 0.6 + 0.15 * np.clip(smooth_noise(axes, 12, shape_rng), -2, 2)
    points = points[:, inside]

    def noise(scale: float, rng: np.random.Generator) -> Volume:
        return smooth_noise(axes, scale, rng)[inside]

    shown = points
    for lesion in lesions:  # a mass pushes what is around it away, but not the skull
        shown = lesion.displace(shown)
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
    for lesion in lesions:
        fractions = lesion.grow(points, fractions, grid.spacing, noise, outline_rng)

    brain = np.zeros(grid.shape, bool)
    brain[box] = inside
    segmentation = np.zeros(grid.shape, np.uint8)
    segmentation[brain] = label_lesions(fractions)
    # Wetter tissue has longer T1 and T2 and more protons: one field for the three, and one of each one's own
    water = 0.7 * noise(3, texture_rng) + 0.7 * noise(12, texture_rng)
    texture = np.stack([np.exp(s * (water + 0.5 * noise(5, texture_rng))) for s in (0.035, 0.05, 0.012)])
    tissues = {
        name: replace(t, t1=t.t1 * tissue_rng.normal(1, 0.03), t2=t.t2 * tissue_rng.normal(1, 0.04))
        for name, t in TISSUES.items()
    }
    uptake = np.exp(0.5 * noise(6, texture_rng) + texture_rng.normal(0, 0.25))
    return Head(grid, brain, segmentation, tissues, fractions, texture.astype(np.float32), uptake)
