"""The reference of a training set is learned from its files, at the end of a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import StudyError
from apt_monai.quality.appearance import Reference, learn, measure
from apt_monai.quality.enhancement import learn_enhancement, measure_enhancement
from apt_monai.quality.volumes import Volumes
from apt_monai.transforms.study import LoadStudyd

logger = logging.getLogger(__name__)

REFERENCE = "quality.json"
"""What the file is called in a model's folder."""


def learn_reference(
    studies: Sequence[Mapping[str, str]], contrasts: ContrastSet, most: int = 200, coarsest: float = 7.0
) -> Reference:
    """What the contrasts of prepared studies look like.

    Args:
        studies: the training set; the brain's ``"mask"`` is used, a ``"seg"`` is not.
        contrasts: the contrast set.
        most: how many are looked at, evenly spread.
        coarsest: studies of longer voxels, in mm, are left out.

    Raises:
        StudyError: a study cannot be used.
        ValueError: fewer than 8 studies with every contrast are left.
    """
    load, found, enhancements = LoadStudyd(contrasts), [], []
    rows = np.unique(np.linspace(0, len(studies) - 1, min(most, len(studies))).round().astype(int))
    for row in tqdm(rows, "quality", unit="study"):
        loaded = load({key: path for key, path in studies[row].items() if key != "seg"})
        image = loaded["image"].numpy()
        values = {name: image[contrasts.index(name)] for name in loaded["paths"]}
        volumes = Volumes(values, loaded["region"].numpy()[0] > 0, loaded["image"].affine.numpy())
        if volumes.edges.max() <= coarsest:
            found.append(measure(volumes))
            enhancements.append(measure_enhancement(volumes, contrasts))
    return replace(learn(found, contrasts), swapped=learn_enhancement(enhancements))


def write_reference(studies: Sequence[Mapping[str, str]], contrasts: ContrastSet, path: str | Path) -> None:
    """Learn the reference and write it; with too few studies to learn from, the log says so and nothing is written.

    Raises:
        StudyError: a study cannot be used.
        OSError: the file cannot be written.
    """
    try:
        reference = learn_reference(studies, contrasts)
    except StudyError:
        raise
    except ValueError as error:
        logger.warning("quality control will not judge how contrasts look: %s", error)
        return
    reference.save(path)
