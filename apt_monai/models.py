"""The model folder: settings, weights and hashes, each file complete or not there.

A finished model folder holds

- ``model.json``: the settings without which the weights cannot be read (contrasts, image size, the arguments of the
  network and of the schedule, where the vision encoder comes from);
- ``model.pt``: the U-Net's averaged weights; ``fusion.pt``: the fusion's weights;
- ``codebook.json``: the prior codebook;

and often ``split.json`` and a folder with the vision encoder.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from torch import nn

from apt_monai.distributed import gather, lead_first
from apt_monai.files import complete_file, write_text

logger = logging.getLogger(__name__)

MODEL_FILES = ("model.json", "model.pt", "fusion.pt", "codebook.json")
"""What a finished model folder holds at least."""

Module = TypeVar("Module", bound=nn.Module)


class ModelError(ValueError):
    """A model that cannot be used. The message names the file, what was found and what to do."""


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

        >>> save_model_settings("model", {"contrasts": "brats", "image_size": 64})
        >>> save_model_settings("model", {"contrasts": "brats", "image_size": 256})
        Traceback (most recent call last):
        ...
        apt_monai.models.ModelError: model/model.json: holds a model of other settings (image_size: 64 there, ...
    """
    model_dir = Path(model_dir)
    path = model_dir / "model.json"
    noted = dict(settings)
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
            old = _read_settings(path)
            differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if differing:
                found = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing)
                raise ModelError(
                    f"{path}: holds a model of other settings ({found}); "
                    "use those settings, or choose another model folder for a new training"
                )
            return
        write_text(path, text + "\n")


def load_model_settings(model_dir: str | Path, contrasts: str | None = None) -> dict[str, Any]:
    """Read a model folder's ``model.json``.

    Args:
        model_dir: the model folder.
        contrasts: the contrast set that the model must be of; None: any.

    Returns:
        The settings as :func:`save_model_settings` was given them; an ``"encoder_source"`` inside the model folder is
        an absolute path.

    Raises:
        ModelError: the file is missing, or is not a JSON object, or the model is of other contrasts.

    Example::

        >>> save_model_settings("model", {"contrasts": "brats", "image_size": 64})
        >>> load_model_settings("model", contrasts="brats")["image_size"]
        64
    """
    model_dir = Path(model_dir)
    settings = _read_settings(model_dir / "model.json")
    if contrasts is not None and settings.get("contrasts") != contrasts:
        raise ModelError(
            f"{model_dir / 'model.json'}: is a model of {settings.get('contrasts')!r}, and this bundle is for "
            f"{contrasts!r}; give a model of this bundle's training, or use the other bundle"
        )
    source = settings.get("encoder_source")
    if isinstance(source, str) and (model_dir / source).is_dir():
        settings["encoder_source"] = str((model_dir / source).resolve())
    return settings


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give a folder that a training has written") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); restore the file or train again") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: is a JSON {type(settings).__name__}, settings by name are needed; restore the file")
    return settings


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Save a module's weights as CPU tensors, a plain ``state_dict``.

    The same weights give the same bytes, whatever the file is called.

    Args:
        module: the module.
        path: the file, by custom ``.pt``; its folder is made where it does not exist.

    Raises:
        OSError: the file cannot be written.

    Example::

        >>> save_weights(nn.Linear(2, 1), "fusion.pt")
        >>> sorted(torch.load("fusion.pt", weights_only=True))
        ['bias', 'weight']
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    buffer = (
        io.BytesIO()
    )  # given a path, torch.save keeps its name in the file, and hides a full disk in a RuntimeError
    torch.save(state, buffer)
    with complete_file(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_weights(module: Module, path: str | Path) -> Module:
    """Load weights that :func:`save_weights` saved; every key and shape must fit.

    Args:
        module: the network that the weights are for; its weights stay as they are if the file's do not fit.
        path: the file.

    Returns:
        ``module``.

    Raises:
        ModelError: the file is missing, truncated or no ``state_dict``, or its weights do not fit the network.

    Example::

        >>> save_weights(nn.Linear(2, 1), "fusion.pt")
        >>> load_weights(nn.Linear(2, 1), "fusion.pt")
        Linear(in_features=2, out_features=1, bias=True)
        >>> load_weights(nn.Linear(3, 1), "fusion.pt")
        Traceback (most recent call last):
        ...
        apt_monai.models.ModelError: fusion.pt: weights that do not fit the network: 1 of another shape ...
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such weights file; train the model first, or correct the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles on
        raise ModelError(
            f"{path}: cannot be read as PyTorch weights, it is truncated, corrupt or not only tensors "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
            "copy the file again, or delete it and train again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: is not a state_dict (tensors by name); give a file that save_weights wrote")

    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    found = [
        f"{len(keys)} {problem} ({', '.join(keys[:3])}{', ...' if keys[3:] else ''})"
        for problem, keys in problems.items()
        if keys
    ]
    if found:
        raise ModelError(
            f"{path}: weights that do not fit the network: {'; '.join(found)}; "
            "use the settings that the weights were trained with (model.json beside them)"
        )
    module.load_state_dict(state)
    return module


def find_model_dir(model_dir: str | Path | None, bundle_root: str | Path) -> Path:
    """The model folder to work with, and a log line that says which.

    Args:
        model_dir: the folder to use; None: the bundle's own training (``models/trained``) if it is finished, else the
            weights that come with the bundle (``models``), which were trained on the digital phantom alone.
        bundle_root: the bundle's folder.

    Returns:
        A folder with every file of :data:`MODEL_FILES`.

    Raises:
        ModelError: the folder lacks one of these files.

    Example::

        >>> for name in MODEL_FILES:
        ...     with complete_file(f"bundle/models/{name}") as partial:
        ...         partial.touch()
        >>> find_model_dir(None, "bundle").as_posix()
        'bundle/models'
    """
    shipped, trained = Path(bundle_root) / "models", Path(bundle_root) / "models" / "trained"
    folder = Path(model_dir or (shipped if _absent_files(trained) else trained))
    absent = _absent_files(folder)
    if absent:
        raise ModelError(
            f"{folder}: is not a finished model, it lacks {', '.join(absent)}; "
            "run the bundle's training (run id 'training' of train.yaml), or give the folder of a finished one"
        )
    if folder.resolve() == shipped.resolve():
        logger.warning(
            "PHANTOM WEIGHTS: using %s, the weights that come with the bundle. They were trained on a digital phantom "
            "and have NEVER SEEN A PATIENT: train on your own data (run id 'training' of train.yaml) for real work.",
            folder,
        )
    else:
        logger.info("using the model in %s", folder)
    return folder


def _absent_files(folder: Path) -> list[str]:
    return [name for name in MODEL_FILES if not (folder / name).is_file()]


def run_unless_finished(name: str, artefact: str | Path, run: Callable[[], Any]) -> None:
    """Run a step of the training, unless the file that it ends with is there.

    Args:
        name: what the log calls the step.
        artefact: the file that the step writes last.
        run: the step. With several ranks each runs it, and goes on when all have.

    Example::

        >>> run_unless_finished("codebook", "codebook.json", lambda: Path("codebook.json").touch())
        >>> run_unless_finished("codebook", "codebook.json", lambda: print("again"))  # does not run
    """
    if gather(Path(artefact).exists())[0]:  # what the lead sees decides for all
        logger.info("%s is finished (%s exists; delete it to run again)", name, artefact)
        return
    logger.info("%s: starting (it will write %s)", name, artefact)
    run()
    idist.barrier()


def find_bundle_root(name: str) -> str:
    """The folder of a bundle: the working directory if it is the bundle, else ``bundles/<name>`` in the working
    directory, else in the checkout that this package is run from, else inside the installed package.

    MONAI does not tell a config where it lies; ``--bundle_root DIR`` on the command line overrides what is found here.

    Raises:
        ModelError: there is no such bundle in any of these places, or its metadata.json cannot be read.

    Example::

        >>> with complete_file("bundles/apt_example/configs/metadata.json") as partial:
        ...     _ = partial.write_text('{"name": "apt_example"}')
        >>> Path(find_bundle_root("apt_example")).relative_to(Path.cwd()).as_posix()
        'bundles/apt_example'
    """
    package = Path(__file__).resolve().parent
    places = [Path.cwd(), *(folder / "bundles" / name for folder in (Path.cwd(), package.parent, package))]
    for place in places:
        metadata = place / "configs" / "metadata.json"
        if metadata.is_file() and _read_settings(metadata).get("name") == name:
            return str(place)
    raise ModelError(
        f"the bundle {name} is neither the working directory nor in bundles/{name}; "
        "run from the repository or from the bundle's folder (or give the bundle's command --bundle_root DIR)"
    )
