"""Whether a contrast looks like its name, and a study like those that the model was trained on.

What a contrast looks like is told by a few numbers: of each contrast its histogram, and how bright it is at which depth
below the brain's surface; of each two, which ranks of one go with which ranks of the other. A :class:`Reference` holds
their means and covariance in a training set, as a linear discriminant analysis does, and is kept with the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
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
        ([('t1',), ('t1', 't2'), ('t2',), ('t2', 't1')], (20,), (9,))
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
        found[name,] = np.concatenate([quantiles, *profiles])
        for other in ranks:
            if other != name:
                bins = np.minimum((ranks[name] * BINS).astype(int), BINS - 1)
                correlation = np.corrcoef(ranks[name], ranks[other])[0, 1]
                found[name, other] = np.concatenate([[correlation], _means(ranks[other], bins, BINS)])
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
        precisions: by 1 and 2 (contrasts), the inverse of the covariance that all means of that kind share.
        margin: for 1, 2, … C contrasts, how much farther than under other names they must be for a finding.
        unlike: for 1, 2, … C contrasts, the distance from which on a study is unlike the training set.
        subjects: how many studies they were learned from.
        swapped: by two contrasts, without and with a contrast agent, from where on they may be swapped
            (:func:`apt_monai.quality.enhancement.learn_enhancement`); one that is not there is not judged.
    """

    means: Mapping[tuple[str, ...], np.ndarray]
    precisions: Mapping[int, np.ndarray]
    margin: tuple[float, ...]
    unlike: tuple[float, ...]
    subjects: int
    swapped: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def distance(self, names: tuple[str, ...], features: np.ndarray) -> float:
        """How far some numbers are from what is usual under these names: 1 is as training studies are on average."""
        away = features - self.means[names]
        return float(away @ self.precisions[len(names)] @ away) / len(away)

    def unlikeness(self, features: Features, names: Mapping[str, str] | None = None) -> float:
        """The mean distance of a study's contrasts and pairs of contrasts, were its contrasts to have these names."""
        called = {key: tuple((names or {}).get(name, name) for name in key) for key in features}
        singles = [self.distance(called[key], each) for key, each in features.items() if len(key) == 1]
        pairs = [self.distance(called[key], each) for key, each in features.items() if len(key) == 2]
        return float(np.mean([np.mean(kind) for kind in (singles, pairs) if kind]))

    def suspect(self, features: Features) -> tuple[dict[str, str], float]:
        """The names that fit best, and by how much better than the study's own they fit (0: its own fit best)."""
        own = tuple(dict.fromkeys(key[0] for key in features))
        known = [key[0] for key in self.means if len(key) == 1]
        scores = {
            chosen: self.unlikeness(features, dict(zip(own, chosen, strict=True)))
            for chosen in permutations(known, len(own))
        }
        best = min(scores, key=lambda chosen: scores[chosen])
        return dict(zip(own, best, strict=True)), scores[own] - scores[best]

    def check(self, volumes: Volumes, contrasts: ContrastSet) -> list[Finding]:
        """The findings about what a study's contrasts look like."""
        features = measure(volumes)
        if not features:
            return []
        labels = dict(zip(contrasts.names, contrasts.labels, strict=True))
        names, better = self.suspect(features)
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
            "precisions": {str(kind): _rounded(each) for kind, each in self.precisions.items()},
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
            precisions = {int(kind): np.array(each, float) for kind, each in content["precisions"].items()}
            margin, unlike = (tuple(float(each) for each in content[key]) for key in ("margin", "unlike"))
            pairs = [(*key.split("/"), float(each)) for key, each in content.get("swapped", {}).items()]
            swapped = {(without, enhanced): each for without, enhanced, each in pairs}
            found = cls(means, precisions, margin, unlike, int(content["subjects"]), swapped)
            wanted = {(name,) for name in contrasts.names} | set(permutations(contrasts.names, 2))
            if set(means) != wanted or any(each.shape != (len(precisions[len(key)]),) for key, each in means.items()):
                raise ValueError("of other contrasts")
            if not len(margin) == len(unlike) == len(contrasts):
                raise ValueError("margin and unlike need a number for each number of contrasts")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path}: no statistics of {', '.join(contrasts.names)} ({error!r}); delete it and run the training's "
                "run id 'learn_quality' again"
            ) from error
        return found


def _rounded(values: np.ndarray) -> Any:
    return np.vectorize(lambda value: float(f"{value:.5g}"))(values).tolist()


def learn(studies: Iterable[Features], contrasts: ContrastSet, margin: float = 0.15, slack: float = 1.5) -> Reference:
    """The reference of a training set.

    Its limits are what the studies of one half need, whatever contrasts they have, when the other half is known.

    Args:
        studies: what :func:`measure` gave of each; those with every contrast count.
        contrasts: the contrast set.
        margin: the least margin.
        slack: how many times the largest of a held-out study each limit is.

    Raises:
        ValueError: there are too few studies.
    """
    keys = [(name,) for name in contrasts.names] + list(permutations(contrasts.names, 2))
    whole = [features for features in studies if set(keys) <= set(features)]
    if len(whole) < FEWEST_STUDIES:
        raise ValueError(
            f"{len(whole)} studies with every contrast and a whole brain: at least {FEWEST_STUDIES} are needed"
        )
    margins, distances = [0.0] * len(contrasts), [0.0] * len(contrasts)
    for half in (0, 1):
        fitted = _fit(whole[half::2], keys)
        for features in whole[1 - half :: 2]:
            for chosen in [contrasts.names, *contrasts.subsets()]:
                part = {key: each for key, each in features.items() if set(key) <= set(chosen)}
                n = len(chosen) - 1
                margins[n] = max(margins[n], fitted.suspect(part)[1])
                distances[n] = max(distances[n], fitted.unlikeness(part))
    final = _fit(whole, keys)
    limits = [
        tuple(round(max(least, slack * each), 3) for each in values)
        for values, least in ((margins, margin), (distances, 0))
    ]
    return Reference(final.means, final.precisions, limits[0], limits[1], len(whole))


def _fit(studies: Sequence[Features], keys: Sequence[tuple[str, ...]], shrinkage: float = 0.2) -> Reference:
    means = {key: np.mean([features[key] for features in studies], axis=0) for key in keys}
    precisions = {}
    for kind in (1, 2):
        own = [key for key in keys if len(key) == kind]
        away = np.concatenate([[features[key] - means[key] for features in studies] for key in own])
        covariance = away.T @ away / len(away)
        scale = np.diag(np.maximum(np.diag(covariance), 1e-6))  # numbers of one unit: shrunk towards their variances
        precisions[kind] = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * scale)
    return Reference(means, precisions, (), (), len(studies))
