"""What grows in a brain: masses of several kinds, and hyperintensities of the white matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from apt_monai.phantom.fields import magnify
from apt_monai.phantom.grids import Volume
from apt_monai.phantom.tumour import Tumour, grow_tumour

#: BraTS's label of each tissue of a lesion.
LABELS: Mapping[str, int] = {"necrosis": 1, "oedema": 2, "enhancing": 4}

#: The kinds of a mass: what its core consists of, where it is not a necrosis within an enhancing rim.
CORES: Mapping[str, str | None] = {"ring": None, "solid": "enhancing", "core": "necrosis", "oedema": "oedema"}

Noise = Callable[[float, np.random.Generator], Volume]


class Lesion(Protocol):
    """What :func:`apt_monai.phantom.head.make_head` knows of a lesion; points are MNI coordinates (3, voxels) in mm."""

    def displace(self, points: Volume) -> Volume:
        """The points that are seen at those points, once it has pushed tissue away."""

    def grow(
        self, points: Volume, fractions: Mapping[str, Volume], spacing: float, noise: Noise, rng: np.random.Generator
    ) -> dict[str, Volume]:
        """The tissue fractions (voxels,) once it has grown; they still sum to 1. See :func:`grow_tumour`."""


@dataclass(frozen=True)
class Mass:
    """A tumour with what surrounds it.

    Args:
        tumour: its place and size.
        kind: a name of :data:`CORES`. ``"ring"``: necrosis within an enhancing rim; ``"solid"``: all of the core
            enhances; ``"core"``: nothing does, as in low grades; ``"oedema"``: oedema alone.
    """

    tumour: Tumour
    kind: str = "ring"

    def displace(self, points: Volume) -> Volume:
        return magnify(points, self.tumour.centre, 1.3 * self.tumour.axes, self.tumour.mass_effect)

    def grow(
        self, points: Volume, fractions: Mapping[str, Volume], spacing: float, noise: Noise, rng: np.random.Generator
    ) -> dict[str, Volume]:
        healthy = {name: share for name, share in fractions.items() if name not in LABELS}
        grown = grow_tumour(self.tumour, points, healthy, spacing, noise, rng)
        spared = 1 - grown["necrosis"] - grown["enhancing"]
        core = CORES[self.kind]
        if core is not None:
            inside = 1 - spared
            grown |= {name: np.zeros_like(inside) for name in ("necrosis", "enhancing")}
            grown[core] = grown[core] + inside
        for name in LABELS:  # what other lesions have left
            if name in fractions:
                grown[name] = grown[name] + spared * fractions[name]
        return grown


@dataclass(frozen=True)
class Hyperintensities:
    """White-matter hyperintensities as of small vessels: caps and spots, most of them around the ventricles.

    Args:
        threshold: how high a random field of variance 1 has to be there; 2.2 for many, 3.4 for few.
        nearness: how much lower the threshold is beside the ventricles.
    """

    threshold: float
    nearness: float = 1.7

    def displace(self, points: Volume) -> Volume:
        return points

    def grow(
        self, points: Volume, fractions: Mapping[str, Volume], spacing: float, noise: Noise, rng: np.random.Generator
    ) -> dict[str, Volume]:
        offset = (points - np.array([[0], [-14], [14]], np.float32)) / np.array([[26], [44], [26]], np.float32)
        near = np.exp(-0.5 * np.square(offset).sum(axis=0))
        field = 0.7 * noise(7, rng) + 0.7 * noise(16, rng)
        ill = 0.9 * expit(6 * (field + self.nearness * near - self.threshold)) * fractions["white"]
        return {**fractions, "white": fractions["white"] - ill, "oedema": fractions.get("oedema", 0) + ill}


def label_lesions(fractions: Mapping[str, Volume]) -> NDArray[np.uint8]:
    """BraTS's label of each voxel: the largest part of a lesion where lesions fill more than half of it, else 0.

    Example::

        >>> label_lesions({"grey": np.array([0.1, 0.9]), "oedema": np.array([0.9, 0.1])})
        array([2, 0], dtype=uint8)
    """
    none = np.zeros_like(next(iter(fractions.values())))
    labels = np.zeros(len(none), np.uint8)
    parts = np.stack([fractions.get(name, none) for name in LABELS])
    ill = parts.sum(axis=0) > 0.5
    labels[ill] = np.array(list(LABELS.values()), np.uint8)[parts[:, ill].argmax(axis=0)]
    return labels
