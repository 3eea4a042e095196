"""Whose contrasts a command is about, and which bundle's configs it takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apt_monai.contrasts import CONTRAST_SETS, ContrastSet, get_contrast_set
from apt_monai.places import read_settings


def datasets_with(names: Sequence[str]) -> list[str]:
    """The datasets that have all these contrasts."""
    return [contrasts.name for contrasts in CONTRAST_SETS.values() if set(names) <= set(contrasts.names)]


def bundle_of(contrasts: ContrastSet) -> str:
    """The bundle whose configs a contrast set takes; all that they differ in is kept with a model."""
    known = CONTRAST_SETS.get(contrasts.name) == contrasts
    return f"apt_{contrasts.name if known else next(iter(CONTRAST_SETS))}"


def contrasts_of(arguments: argparse.Namespace, names: Sequence[str] = ()) -> ContrastSet:
    """The contrast set of the model, or else the one that was named, or else the first that has all these contrasts."""
    if arguments.model is not None:
        trained = get_contrast_set(read_settings(arguments.model).get("contrasts", ""))
        if arguments.dataset is not None and get_contrast_set(arguments.dataset) != trained:
            raise ValueError(
                f"{arguments.model}: is a model of {trained.name}, not of {arguments.dataset}; name another"
            )
        return trained
    if arguments.dataset is not None:
        return get_contrast_set(arguments.dataset)
    fitting = datasets_with(names)
    if fitting:
        return CONTRAST_SETS[fitting[0]]
    sets = "; ".join(f"{contrasts.name} has {', '.join(contrasts.names)}" for contrasts in CONTRAST_SETS.values())
    raise ValueError(f"no dataset has {', '.join(names)} together: {sets}; leave out what the model does not know")
