"""A tumour: its place and size, and what it does to the tissues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from apt_monai.phantom.grids import Volume
from apt_monai.phantom.population import Population
from apt_monai.phantom.template import load_template


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


def draw_tumour(population: Population, rng: np.random.Generator) -> Tumour:
    """A tumour in the white matter of one hemisphere, above the tentorium."""
    template = load_template()
    places = np.argwhere(template.white > 0.8) + template.origin
    x, y, z = places.T
    centre = rng.choice(places[(np.abs(x) > 18) & (y > -80) & (y < 55) & (z > -4) & (z < 48)])
    axes = rng.uniform(*population.core) * rng.uniform(0.75, 1.3, 3)
    ranges = (population.necrosis, population.oedema, population.mass_effect)
    return Tumour(centre.astype(np.float32), axes.astype(np.float32), *(rng.uniform(*each) for each in ranges))


def grow_tumour(
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
