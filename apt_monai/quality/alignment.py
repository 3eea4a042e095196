"""Whether two contrasts show the brain in one pose: would they tell more of each other if one were moved?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from apt_monai.quality.findings import Finding
from apt_monai.quality.volumes import Volumes

FEWEST = 500  # voxels, below which nothing is measured


def check_alignment(
    volumes: Volumes,
    gain: float = 1.15,
    shifts: tuple[float, ...] = (5.0, 10.0),
    angles: tuple[float, ...] = (5.0, 10.0),
    bins: int = 16,
    least: float = 0.03,
) -> list[Finding]:
    """The contrasts of a prepared study that are not registered to the others.

    Both of two contrasts are compared in the inner brain, by their ranks: their mutual information as they are, and
    with one of them shifted or turned. A contrast is named where moving it helps with most of the others.

    Args:
        volumes: the study, on one grid.
        gain: what the mutual information must be multiplied by for a finding.
        shifts: in mm, along each axis and back.
        angles: in degrees, about each axis and back.
        bins: of each contrast's ranks.
        least: what some other contrast should tell of each beyond chance, in nats.
    """
    small = volumes.ras().coarse(4.0)
    inner = ndimage.distance_transform_edt(np.pad(small.brain, 1), sampling=small.edges)[1:-1, 1:-1, 1:-1] > max(shifts)
    count = np.count_nonzero(inner)
    if count < FEWEST or len(small.contrasts) < 2:
        return []
    ranks = {name: _ranks(volume, small.brain, bins) for name, volume in small.contrasts.items()}
    told = dict.fromkeys(ranks, 0.0)  # the most that another contrast tells of it
    better: dict[str, list[tuple[float, str]]] = {name: [] for name in ranks}
    for one, other in combinations(ranks, 2):
        fixed = ranks[one][inner]
        start = _information(fixed, ndimage.gaussian_filter(ranks[other], 0.5)[inner], bins)
        told = {name: max(most, start) if name in (one, other) else most for name, most in told.items()}
        best = (0.0, "")
        for matrix, offset, what in _moves(small, shifts, angles):
            moved = ndimage.affine_transform(ranks[other], matrix, offset, order=1, mode="nearest")
            best = max(best, (_information(fixed, moved[inner], bins) / max(start, 1e-9), what))
        for name in (one, other):
            better[name].append(best)
    # what two contrasts of k ranks share by chance in n voxels is (k - 1)² / 2n nats, and half as much again as
    # neighbouring voxels are alike
    chance = 1.5 * (bins - 1) ** 2 / (2 * count)
    alone = [name for name, most in told.items() if most - chance < least]
    found = [
        Finding("warning", "no common anatomy", name, f"it tells nearly nothing of the others ({told[name]:.2f} "
                f"nats, at least {least + chance:.2f} usually)", "see whether it is of the same patient and registered")
        for name in (alone if len(ranks) > 2 else alone[:1])
    ]  # fmt: skip
    counts = {name: sum(ratio > gain for ratio, _ in each) for name, each in better.items()}
    worst = max(counts.values())
    for name, each in better.items():
        # two contrasts alone: which of them moved is not known, and the second is named
        if counts[name] == worst and 2 * worst > len(each) and (len(ranks) > 2 or name != next(iter(ranks))):
            ratio, what = max(each)
            text = f"{what} it would tell {ratio:.2f} times as much of another contrast"
            advice = "it does not seem to be registered to the others: register the study (`preprocess`)"
            found.append(Finding("warning", "alignment", name, text, advice))
    return found


def _ranks(volume: np.ndarray, brain: np.ndarray, bins: int) -> np.ndarray:
    """A volume's intensities as shares of the brain below them, times the number of bins; outside, the middle."""
    order = np.searchsorted(np.sort(volume[brain]), volume[brain]) / np.count_nonzero(brain)
    ranks = np.full(volume.shape, bins / 2, np.float32)
    ranks[brain] = order * bins
    return ranks


def _information(a: np.ndarray, b: np.ndarray, bins: int) -> float:
    """Mutual information of two samples within 0 to ``bins``, in nats."""
    joint = np.histogram2d(a, b, bins, [[0, bins]] * 2)[0] / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())


def _moves(
    volumes: Volumes, shifts: tuple[float, ...], angles: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """What :func:`scipy.ndimage.affine_transform` takes for each move, and its name."""
    edges = volumes.edges
    centre = (np.array(volumes.brain.shape) - 1) / 2
    for axis in range(3):
        for shift in (sign * size for size in shifts for sign in (1, -1)):
            offset = np.zeros(3)
            offset[axis] = shift / edges[axis]
            yield np.eye(3), offset, f"shifted by {abs(shift):g} mm along {'xyz'[axis]}"
        for angle in (sign * size for size in angles for sign in (1, -1)):
            turn = Rotation.from_euler("xyz"[axis], angle, degrees=True).as_matrix()
            matrix = np.diag(1 / edges) @ turn @ np.diag(edges)
            yield matrix, centre - matrix @ centre, f"turned by {abs(angle):g}° about {'xyz'[axis]}"
