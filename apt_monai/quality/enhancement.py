"""Whether what a contrast agent enhances is bright in the contrast that is said to have been acquired with one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy import stats

from apt_monai.contrasts import ContrastSet
from apt_monai.quality.findings import Finding
from apt_monai.quality.volumes import Volumes

FEWEST = 500  # voxels, below which nothing is measured

Enhancements = dict[tuple[str, str], float]


def measure_enhancement(volumes: Volumes, contrasts: ContrastSet) -> Enhancements:
    """How much more is brighter with the agent than the scan without it foretells, than the other way round.

    Vessels and enhancing tumours are bright in one of the two alone. How bright tissue is in one scan is foretold from
    the other, and the voxels are counted that are far brighter, and far darker. Swapping the two changes the sign.

    Args:
        volumes: the study, on one grid.
        contrasts: the contrast set; it says which two are one contrast without and with an agent.

    Returns:
        By those two of the study, without and with: above 0 where they have their right names, in logarithms of a
        ratio of counts; nothing where the brain has too few voxels.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> t1, noise = np.random.default_rng(0).normal(500, [[[[50]]], [[[5]]]], (2, 20, 20, 20))
        >>> t1ce = t1 + noise
        >>> t1ce[5:8, 5:8, 5:8] += 400
        >>> there, affine = t1 > 0, np.diag([4.0, 4.0, 4.0, 1.0])
        >>> right = measure_enhancement(Volumes({"t1": t1, "t1ce": t1ce}, there, affine), BRATS)
        >>> wrong = measure_enhancement(Volumes({"t1": t1ce, "t1ce": t1}, there, affine), BRATS)
        >>> right["t1", "t1ce"] > 1, wrong["t1", "t1ce"] == -right["t1", "t1ce"]
        (True, True)
    """
    pairs = [pair for pair in contrasts.agent_pairs if set(pair) <= set(volumes.contrasts)]
    if not pairs:
        return {}
    small = volumes.coarse(2.0)
    if np.count_nonzero(small.brain) < FEWEST:
        return {}
    found = {}
    for pair in pairs:
        without, enhanced = (small.contrasts[name][small.brain].astype(np.float64) for name in pair)
        found[pair] = _brighter(enhanced, without) - _brighter(without, enhanced)
    return found


def _brighter(values: np.ndarray, other: np.ndarray, bins: int = 24, far: float = 5.0, few: int = 5) -> float:
    """Of what another scan does not foretell: how many voxels are far brighter to how many are far darker, log.

    Args:
        values: of one scan, (voxels,).
        other: of the other, at the same voxels.
        bins: of the other's ranks; the medians within each are what is foretold, with lines between them.
        far: how many robust deviations.
        few: added to both counts, so that single voxels don't tell.
    """
    ranks = (stats.rankdata(other) - 0.5) / len(other)
    order = np.minimum((ranks * bins).astype(int), bins - 1)
    x, y = np.array([(np.median(other[order == i]), np.median(values[order == i])) for i in np.unique(order)]).T
    slope = (y[-1] - y[0]) / max(x[-1] - x[0], 1e-9)  # of what lies beyond the outermost medians
    ends = np.array([other.min(), other.max()])
    low, high = y[[0, -1]] + slope * (ends - x[[0, -1]])
    away = values - np.interp(other, [ends[0], *x, ends[1]], [low, *y, high])
    limit = far * 1.4826 * np.median(np.abs(away))
    return float(np.log((np.count_nonzero(away > limit) + few) / (np.count_nonzero(away < -limit) + few)))


def learn_enhancement(
    studies: Iterable[Enhancements], least: float = 0.3, slack: float = 1.5, quiet: float = 0.98
) -> Enhancements:
    """From how far below 0 on two contrasts may be swapped.

    Of many studies a few may be farther: one odd head among a hundred would otherwise hide swapped contrasts.

    Args:
        studies: what :func:`measure_enhancement` gave of each training study.
        least: the least limit.
        slack: how many times what most training studies need the limit is.
        quiet: the part of the training studies that "most" means.

    Example::

        >>> learn_enhancement([{("t1", "t1ce"): 4.0}, {("t1", "t1ce"): -0.4}])
        {('t1', 't1ce'): 0.468}
    """
    below: dict[tuple[str, str], list[float]] = {}
    for study in studies:
        for pair, value in study.items():
            below.setdefault(pair, []).append(-value)
    return {pair: max(least, round(slack * float(np.quantile(each, quiet)), 3)) for pair, each in below.items()}


def check_enhancement(
    volumes: Volumes, contrasts: ContrastSet, limits: Mapping[tuple[str, str], float]
) -> list[Finding]:
    """A finding for each two contrasts, without and with a contrast agent, that may be swapped.

    Where nothing enhances and vessels are thinner than voxels, there is none, swapped or not.

    Args:
        volumes: the study, on one grid.
        contrasts: the contrast set.
        limits: what :func:`learn_enhancement` gave.
    """
    labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
    found = []
    for pair, value in measure_enhancement(volumes, contrasts).items():
        if pair in limits and value < -limits[pair]:
            without, enhanced = (labels[name] for name in pair)
            text = (
                f"{without} and {enhanced} may be swapped: what is bright in one alone is bright in {without} "
                f"({-value:.2f}, from {limits[pair]:.2f} on)"
            )
            found.append(
                Finding("warning", "name", ", ".join(pair), text, "see whether files were swapped or misnamed")
            )
    return found
