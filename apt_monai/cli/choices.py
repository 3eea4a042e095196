"""Which dataset's bundle a command takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apt_monai.contrasts import CONTRAST_SETS, get_contrast_set


def datasets_with(names: Sequence[str]) -> list[str]:
    """The datasets that have all these contrasts."""
    return [contrasts.name for contrasts in CONTRAST_SETS.values() if set(names) <= set(contrasts.names)]


def dataset_of(arguments: argparse.Namespace, names: Sequence[str] = ()) -> str:
    """The dataset that was named, or else that of the model, or else the first that has all these contrasts."""
    if arguments.model is not None:
        from apt_monai.models import load_model_settings  # torch: a second or two

        trained = get_contrast_set(str(load_model_settings(arguments.model).get("contrasts"))).name
        if arguments.dataset not in (None, trained):
            raise ValueError(f"{arguments.model}: is a model of {trained}, not of {arguments.dataset}; name another")
        return trained
    if arguments.dataset is not None:
        return arguments.dataset
    fitting = datasets_with(names)
    if fitting:
        return fitting[0]
    sets = "; ".join(f"{contrasts.name} has {', '.join(contrasts.names)}" for contrasts in CONTRAST_SETS.values())
    raise ValueError(f"no dataset has {', '.join(names)} together: {sets}; leave out what the model does not know")
