"""Whether a contrast looks like its name, and a study like those that the model was trained on.

What a contrast looks like is told by some numbers: of each contrast its histogram, how bright it is at which depth
below the brain's surface, and at which distance from its darkest and brightest voxels; of each two, which ranks of one
go with which ranks of the other. A :class:`Reference` holds their means and covariances in a training set, as a linear
discriminant analysis does, and is kept with the model. Names are told by all numbers of two contrasts together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, stats

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import ModelError
from apt_monai.files import write_text
from apt_monai.quality.enhancement import check_enhancement
from apt_monai.quality.findings import Finding
from apt_monai.quality.volumes import Volumes

QUANTILES = (1, 5, 10, 25, 75, 90, 95, 99)
DEPTHS = (4.0, 8.0, 14.0, 22.0, 32.0)  # mm below the brain's surface, where one shell ends
BINS = 8  # of ranks
DARK = 0.3  # the rank below which CSF is, where it is dark
ENDS = ((0.0, 0.12), (0.0, 0.3), (0.75, 1.0), (0.9, 1.0))  # ranks of the darkest and the brightest voxels
NEAR = (0.1, 3.5, 5.0, 7.0, 10.0, 15.0)  # mm from those, where one shell ends; the first holds them alone
FEWEST = 500  # voxels, below which nothing is measured
FEWEST_STUDIES = 8  # to learn from

Features = dict[tuple[str, ...], np.ndarray]


def measure(volumes: Volumes) -> Features:
    """What the contrasts of a study look like.

    Args:
        volumes: the study, on one grid.

    Returns:
        By ``(contrast,)`` and by ``(contrast, other)``, in both orders, some numbers; none where the brain has too few
        voxels or a contrast is constant.

    Example::

        >>> block = np.random.default_rng(0).uniform(100, 200, (20, 20, 20))
        >>> found = measure(Volumes({"t1": block, "t2": block**2}, block > 0, np.diag([4.0, 4.0, 4.0, 1.0])))
        >>> sorted(found), found["t1",].shape, found["t1", "t2"].shape
        ([('t1',), ('t1', 't2'), ('t2',), ('t2', 't1')], (72,), (9,))
    """
    small = volumes.ras().coarse()
    brain = small.brain
    values = {name: volume[brain] for name, volume in small.contrasts.items()}
    if np.count_nonzero(brain) < FEWEST or any(np.ptp(each) == 0 for each in values.values()):
        return {}
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=small.edges)[1:-1, 1:-1, 1:-1][brain]
    shells = np.digitize(depth, DEPTHS)
    ranks = {name: stats.rankdata(each) / len(each) for name, each in values.items()}
    found: Features = {}
    for name, each in values.items():
        median = np.median(each)
        spread = 1.4826 * np.median(np.abs(each - median)) or float(each.std())
        quantiles = np.arcsinh((np.percentile(each, QUANTILES) - median) / spread)
        bright = ranks[name] > DARK  # of a contrast in which CSF is dark, grey and white matter
        profiles = [_means(ranks[name][part], shells[part], len(DEPTHS) + 1) for part in (ranks[name] > 0, bright)]
        found[name,] = np.concatenate([quantiles, *profiles, *_surroundings(ranks[name], depth, small)])
        for other in ranks:
            if other != name:
                bins = np.minimum((ranks[name] * BINS).astype(int), BINS - 1)
                correlation = np.corrcoef(ranks[name], ranks[other])[0, 1]
                found[name, other] = np.concatenate([[correlation], _means(ranks[other], bins, BINS)])
    return found


def _surroundings(ranks: np.ndarray, depth: np.ndarray, volumes: Volumes) -> list[np.ndarray]:
    """How bright and how deep are the voxels at which distance from the darkest and the brightest.

    Cortex lies between CSF and white matter: away from dark CSF T1 becomes brighter and brighter, FLAIR does not.

    Args:
        ranks: of one contrast, from 0 to 1, (voxels,).
        depth: of the same voxels, in mm.
        volumes: the grid and the brain that they are of.
    """
    found = []
    for low, high in ENDS:
        others = np.ones(volumes.brain.shape, bool)
        others[volumes.brain] = (ranks < low) | (ranks > high)
        near = ndimage.distance_transform_edt(others, sampling=volumes.edges)[volumes.brain]
        shells = np.digitize(near, NEAR)
        count = len(NEAR) + 1
        found += [_means(ranks, shells, count)[1:], _means(depth / DEPTHS[-1], shells, count)]
    return found


def _means(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """The mean of each group; the middle of the ranks for an empty one."""
    sizes = np.bincount(groups, minlength=count)
    return np.where(sizes > 0, np.bincount(groups, values, count) / np.maximum(sizes, 1), 0.5)


@dataclass(frozen=True)
class Reference:
    """What the contrasts of a training set look like.

    Args:
        means: by ``(contrast,)`` and ``(contrast, other)``, the mean of the numbers of :func:`measure`.
        precisions: inverses of covariances that all contrasts share: of the numbers of ``"one"`` contrast, of those
            that a ``"pair"`` alone has, and of those of a pair and of each of it, ``"joint"``.
        margin: for 1, 2, … C contrasts, how much farther than under other names they must be for a finding.
        unlike: for 1, 2, … C contrasts, the distance from which on a study is unlike the training set.
        subjects: how many studies they were learned from.
        swapped: by two contrasts, without and with a contrast agent, from where on they may be swapped
            (:func:`apt_monai.quality.enhancement.learn_enhancement`); one that is not there is not judged.
    """

    means: Mapping[tuple[str, ...], np.ndarray]
    precisions: Mapping[str, np.ndarray]
    margin: tuple[float, ...]
    unlike: tuple[float, ...]
    subjects: int
    swapped: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def distance(self, kind: str, names: tuple[str, ...], features: np.ndarray) -> float:
        """How far some numbers are from what is usual under these names: 1 is as training studies are on average.

        Args:
            kind: ``"one"``, ``"pair"`` or ``"joint"``.
            names: one or two.
            features: as :func:`gather` gives them.
        """
        away = features - gather(self.means, kind, names)
        return float(away @ self.precisions[kind] @ away) / len(away)

    def unlikeness(self, features: Features) -> float:
        """The mean distance of a study's contrasts and pairs of contrasts from what is usual under their names."""
        ones = [self.distance("one", key, each) for key, each in features.items() if len(key) == 1]
        pairs = [self.distance("pair", key, each) for key, each in features.items() if len(key) == 2]
        return float(np.mean([np.mean(each) for each in (ones, pairs) if each]))

    def suspect(self, features: Features, contrasts: ContrastSet) -> tuple[dict[str, str], float]:
        """The names that fit best, and by how much better than the study's own they fit.

        A contrast with and without an agent look alike (:mod:`apt_monai.quality.enhancement` tells them apart): names
        that differ in nothing else are not other names.

        Args:
            features: what :func:`measure` gave.
            contrasts: the contrast set.

        Returns:
            By the study's names the others that fit best, and how much nearer those are: below 0, the study's own fit.
        """
        looks = {name: name for name in contrasts.names} | {with_: without for without, with_ in contrasts.agent_pairs}
        own = tuple(key[0] for key in features if len(key) == 1)
        size = min(2, len(own))
        kind, parts = ("one", "joint")[size - 1], list(combinations(own, size))
        table = {
            (part, names): self.distance(kind, names, gather(features, kind, part))
            for part in parts
            for names in permutations(contrasts.names, size)
        }
        right, other, best = np.inf, np.inf, own
        for chosen in permutations(contrasts.names, len(own)):
            called = dict(zip(own, chosen, strict=True))
            score = float(np.mean([table[part, tuple(called[name] for name in part)] for part in parts]))
            if all(looks[name] == looks[called[name]] for name in own):
                right = min(right, score)
            elif score < other:
                other, best = score, chosen
        return {n: m if looks[n] != looks[m] else n for n, m in zip(own, best, strict=True)}, right - other

    def check(self, volumes: Volumes, contrasts: ContrastSet) -> list[Finding]:
        """The findings about what a study's contrasts look like."""
        features = measure(volumes)
        if not features:
            return []
        labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
        names, better = self.suspect(features, contrasts)
        wrong = {name: other for name, other in names.items() if name != other}
        found = []
        margin, unlike = self.margin[len(names) - 1], self.unlike[len(names) - 1]
        if better > margin:
            for name, other in wrong.items():
                text = (
                    f"it looks like {labels[other]} rather than {labels[name]} (by {better:.2f}, from {margin:.2f} on)"
                )
                found.append(Finding("warning", "name", name, text, "see whether files were swapped or misnamed"))
        if not found:
            found = check_enhancement(volumes, contrasts, self.swapped)
        distance = self.unlikeness(features)
        if distance > unlike and not found:
            text = f"it is unlike the {self.subjects} studies that were looked at in training: its distance is "
            advice = "look at the images, and trust the result less"
            found.append(
                Finding("warning", "unlike training", "study", f"{text}{distance:.1f} (up to {unlike:.1f})", advice)
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write it as JSON, complete or not at all."""
        content = {
            "subjects": self.subjects,
            "margin": list(self.margin),
            "unlike": list(self.unlike),
            "swapped": {"/".join(key): each for key, each in self.swapped.items()},
            "means": {"/".join(key): _rounded(each) for key, each in self.means.items()},
            "precisions": {kind: _rounded(each[np.tril_indices(len(each))]) for kind, each in self.precisions.items()},
        }
        write_text(Path(path), json.dumps(content, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, contrasts: ContrastSet) -> Reference:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or of other contrasts.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            means = {tuple(key.split("/")): np.array(each, float) for key, each in content["means"].items()}
            precisions = {kind: _symmetric(each) for kind, each in content["precisions"].items()}
            margin, unlike = (tuple(float(each) for each in content[key]) for key in ("margin", "unlike"))
            pairs = [(*key.split("/"), float(each)) for key, each in content.get("swapped", {}).items()]
            swapped = {(without, enhanced): each for without, enhanced, each in pairs}
            found = cls(means, precisions, margin, unlike, int(content["subjects"]), swapped)
            keys = _keys(contrasts.names)
            if set(means) != {*keys["one"], *keys["pair"]} or any(
                gather(means, kind, key).shape != precisions[kind].shape[:1] for kind in keys for key in keys[kind]
            ):
                raise ValueError("of other contrasts")
            if not len(margin) == len(unlike) == len(contrasts):
                raise ValueError("margin and unlike need a number for each number of contrasts")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path}: no statistics of {', '.join(contrasts.names)} ({error!r}); delete it and run the training's "
                "run id 'learn_quality' again"
            ) from error
        return found


def gather(features: Mapping[tuple[str, ...], np.ndarray], kind: str, names: tuple[str, ...]) -> np.ndarray:
    """The numbers of one contrast, of a pair alone, or of a pair and of each of it.

    Args:
        features: by ``(contrast,)`` and ``(contrast, other)``.
        kind: ``"one"``, ``"pair"`` or ``"joint"``.
        names: one or two.

    Example::

        >>> numbers = {("a",): np.ones(1), ("b",): np.full(1, 2.0), ("a", "b"): np.ones(2), ("b", "a"): np.zeros(2)}
        >>> gather(numbers, "pair", ("b", "a")).tolist(), gather(numbers, "joint", ("b", "a")).tolist()
        ([0.0, 0.0], [2.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    """
    if kind != "joint":
        return features[names]
    one, other = names
    return np.concatenate([features[key] for key in ((one,), (other,), (one, other), (other, one))])


def _keys(names: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """By kind of numbers, of which contrasts there are some."""
    ones: list[tuple[str, ...]] = [(name,) for name in names]
    pairs: list[tuple[str, ...]] = list(permutations(names, 2))
    return {"one": ones, "pair": pairs, "joint": pairs}


def _symmetric(lower: Sequence[float]) -> np.ndarray:
    """A matrix from its lower triangle, row by row."""
    size = round((np.sqrt(8 * len(lower) + 1) - 1) / 2)
    found = np.zeros((size, size))
    found[np.tril_indices(size)] = lower
    return np.tril(found) + np.tril(found, -1).T


def _rounded(values: np.ndarray) -> Any:
    return np.vectorize(lambda value: float(f"{value:.5g}"))(values).tolist()


def learn(
    studies: Iterable[Features],
    contrasts: ContrastSet,
    margin: float = 0.03,
    slack: float = 1.5,
    quiet: float = 0.98,
    folds: int = 5,
) -> Reference:
    """The reference of a training set.

    Its limits are what most studies of each fold need, whatever contrasts they have, when the others are known.

    Args:
        studies: what :func:`measure` gave of each; those with every contrast count.
        contrasts: the contrast set.
        margin: the least margin.
        slack: how many times farther than most of the held-out studies one must be to be unlike them.
        quiet: the part of the held-out studies that is within the margin, and that "most" means.
        folds: how many parts are held out, one after the other.

    Raises:
        ValueError: there are too few studies.
    """
    keys = _keys(contrasts.names)
    whole = [features for features in studies if {*keys["one"], *keys["pair"]} <= set(features)]
    if len(whole) < FEWEST_STUDIES:
        raise ValueError(
            f"{len(whole)} studies with every contrast and a whole brain: at least {FEWEST_STUDIES} are needed"
        )
    better: list[list[float]] = [[] for _ in contrasts.names]
    distances: list[list[float]] = [[] for _ in contrasts.names]
    for fold in range(folds):
        fitted = _fit([each for i, each in enumerate(whole) if i % folds != fold], keys)
        for features in whole[fold::folds]:
            for chosen in [contrasts.names, *contrasts.subsets()]:
                part = {key: each for key, each in features.items() if set(key) <= set(chosen)}
                better[len(chosen) - 1].append(fitted.suspect(part, contrasts)[1])
                distances[len(chosen) - 1].append(fitted.unlikeness(part))
    final = _fit(whole, keys)
    margins = tuple(max(margin, round(float(np.quantile(each, quiet)), 3)) for each in better)
    unlike = tuple(round(slack * float(np.quantile(each, quiet)), 3) for each in distances)
    return Reference(final.means, final.precisions, margins, unlike, len(whole))


def _fit(studies: Sequence[Features], keys: Mapping[str, list[tuple[str, ...]]], prior: float = 10.0) -> Reference:
    """Means and precisions; numbers are taken for uncorrelated as if so many studies had shown it."""
    shrinkage = min(1.0, prior / len(studies))
    means = {key: np.mean([each[key] for each in studies], axis=0) for key in [*keys["one"], *keys["pair"]]}
    precisions = {}
    for kind, own in keys.items():
        away = np.concatenate([[gather(f, kind, key) - gather(means, kind, key) for f in studies] for key in own])
        covariance = away.T @ away / len(away)
        scale = np.diag(np.maximum(np.diag(covariance), 1e-6))  # numbers of one unit: shrunk towards their variances
        precisions[kind] = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * scale)
    return Reference(means, precisions, (), (), len(studies))
