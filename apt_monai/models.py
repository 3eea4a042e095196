"""A model's folder: its settings, and the method that it holds, put together.

A finished model folder holds ``model.json``, the settings without which nothing else there can be read (the method, the
contrast set, the slices' size, the arguments of its networks, how it samples), and the files that its method names
(:attr:`apt_monai.methods.base.Method.files`); often also ``split.json`` and a folder with the vision encoder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from apt_monai.distributed import lead_first
from apt_monai.errors import ModelError
from apt_monai.files import file_sha256, write_text
from apt_monai.hardware import choose_device, choose_precision
from apt_monai.methods import METHODS, Method
from apt_monai.places import FORMAT, read_settings
from apt_monai.weights import load_weights

logger = logging.getLogger(__name__)

PHANTOM = "digital phantom"
"""What ``trained_on`` says of a model that has never seen a patient."""


def load(
    folder: str | Path,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> Method:
    """Put a model together: the one place where it is done.

    Args:
        folder: a finished model folder.
        device: where to compute; None: the GPU if there is one, else the CPU.
        precision: ``"auto"`` or one of :data:`apt_monai.hardware.PRECISIONS`.
        seed: of the noise.
        sampling: what takes the place of the model's own sampling settings.

    Raises:
        ModelError: the folder holds no finished model, one of an older layout or of an unknown method, or weights that
            do not fit its settings.
        CodebookError: of a codebook that does not fit.
        ValueError: an unknown precision or sampling setting.

    Example::

        >>> from apt_monai.places import find_model
        >>> published = find_model(None, "apt_adni", method="published")
        >>> method = load(published, "cpu", sampling={"unroll_iterations": 0})
        >>> method.contrasts.names, method.passes
        (('t1', 't2', 'pd'), 20)
    """
    folder = Path(folder)
    settings = load_model_settings(folder)
    method = METHODS[settings["method"]]
    absent = [name for name in method.files if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{folder}: is not a finished model, it lacks {', '.join(absent)}; "
            "run the training to its end (run id 'training' of train.yaml), or give the folder of a finished one"
        )
    if settings["trained_on"] == PHANTOM:
        logger.warning(
            "PHANTOM WEIGHTS: the model in %s was trained on a digital phantom and has NEVER SEEN A PATIENT: train on "
            "your own data (run id 'training' of train.yaml) for real work.",
            folder,
        )
    device = choose_device(device)
    settings["sampling"] = {**settings["sampling"], **(sampling or {})}
    return method.load(folder, settings, device, choose_precision(device, precision), seed)


def known_by(folder: str | Path | None) -> dict[str, str] | None:
    """What a model that a training begins with is known by: what it was trained on, and its weights' hash.

    Raises:
        ModelError: the folder holds no model.
    """
    if folder is None:
        return None
    settings, weights = load_model_settings(folder), Path(folder) / "model.pt"
    if not weights.is_file():
        raise ModelError(f"{weights}: is not there; start_from must be the folder of a finished model")
    return {"trained_on": settings["trained_on"], "model_sha256": file_sha256(weights)}


def begin_with(network: Module, folder: str | Path | None, settings: Mapping[str, Any]) -> Module:
    """A network with a trained model's weights to begin with; without a folder, as it is.

    Args:
        network: as ``settings`` say.
        folder: the trained model's folder.
        settings: of the model to be trained. What says what the weights mean must be the same in both: the method, the
            contrasts' names, the intensity scale and the network.

    Raises:
        ModelError: the folder holds no model, or one of other settings.
    """
    if folder is None:
        return network
    theirs = load_model_settings(folder)
    meaning = {
        key: (theirs.get(key), settings.get(key)) for key in ("method", "resolution", "intensity", "network", "gain")
    }
    meaning["contrasts"] = (list(theirs["contrasts"]["contrasts"]), list(settings["contrasts"]["contrasts"]))
    differing = [f"{key}: {old!r} there, {new!r} now" for key, (old, new) in meaning.items() if old != new]
    if differing:
        raise ModelError(
            f"{folder}: training cannot begin with a model of other settings ({'; '.join(differing)}); use those, as "
            "tune.yaml does, or begin with nothing (start_from: null)"
        )
    return load_weights(network, Path(folder) / "model.pt")


def save_model_settings(model_dir: str | Path, settings: Mapping[str, Any]) -> None:
    """Write a model folder's ``model.json``, or check that the one which is there says the same.

    A vision encoder inside the model folder is noted relative to it, so that the folder can be moved; one elsewhere
    is noted with its absolute path.

    Args:
        model_dir: the model folder; it is made where it does not exist.
        settings: what makes the weights readable, as JSON can hold it. ``"encoder_source"``, where given, is the name
            on the hub or the folder of the vision encoder.

    Raises:
        ModelError: the settings are not JSON, or the folder holds a model of other settings.
        OSError: the file cannot be written.

    Example::

        >>> save_model_settings("model", {"image_size": 64})
        >>> save_model_settings("model", {"image_size": 256})
        Traceback (most recent call last):
        ...
        apt_monai.errors.ModelError: model/model.json: holds a model of other settings (image_size: 64 there, ...
    """
    model_dir = Path(model_dir)
    path = model_dir / "model.json"
    noted = {"format": FORMAT, **settings}
    source = noted.get("encoder_source")
    if isinstance(source, str | Path) and Path(source).is_dir():
        folder, root = Path(source).resolve(), model_dir.resolve()
        noted["encoder_source"] = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    try:
        text = json.dumps(noted, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: settings that are not JSON ({error}); give numbers, texts, lists, dicts") from error
    new = json.loads(text)

    with lead_first():
        if path.exists():
            old = read_settings(model_dir)
            differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if differing:
                found = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
                raise ModelError(
                    f"{path}: holds a model of other settings ({found}); "
                    "use those settings, or choose another model folder for a new training"
                )
            return
        write_text(path, text + "\n")


def load_model_settings(model_dir: str | Path) -> dict[str, Any]:
    """Read a model folder's ``model.json``.

    Args:
        model_dir: the model folder.

    Returns:
        The settings as :func:`save_model_settings` was given them; an ``"encoder_source"`` inside the model folder is
        an absolute path.

    Raises:
        ModelError: the file is missing, or is not a JSON object, or of another layout, or of an unknown method.

    Example::

        >>> settings = {"method": "apt", "contrasts": {}, "image_size": 64, "sampling": {}, "trained_on": "studies"}
        >>> save_model_settings("model", settings)
        >>> load_model_settings("model")["image_size"]
        64
    """
    model_dir = Path(model_dir)
    path = model_dir / "model.json"
    settings = read_settings(model_dir)
    lacking = [key for key in ("method", "contrasts", "sampling", "trained_on") if key not in settings]
    if settings.get("method", "apt") not in METHODS:
        raise ModelError(f"{path}: is of the method {settings['method']!r}; this version knows {', '.join(METHODS)}")
    if lacking:
        raise ModelError(f"{path}: lacks {', '.join(lacking)}; restore the file or train again")
    source = settings.get("encoder_source")
    if isinstance(source, str) and (model_dir / source).is_dir():
        settings["encoder_source"] = str((model_dir / source).resolve())
    return settings
