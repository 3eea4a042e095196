"""A network's weights as a file: written whole, read with ``weights_only``, and only where every key and shape fits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from apt_monai.errors import ModelError
from apt_monai.files import complete_file

Module = TypeVar("Module", bound=nn.Module)


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
    _write(state, path)


def halve_weights(path: str | Path) -> None:
    """Rewrite a weights file in half precision, for shipping: half as large, and read as any other.

    Raises:
        OSError: the file cannot be read or written.

    Example::

        >>> linear = nn.Linear(300, 100)
        >>> save_weights(linear, "model.pt")
        >>> before = Path("model.pt").stat().st_size
        >>> halve_weights("model.pt")
        >>> round(before / Path("model.pt").stat().st_size)
        2
        >>> bool((load_weights(nn.Linear(300, 100), "model.pt").weight - linear.weight).abs().max() < 1e-4)
        True
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    _write({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, path)


def _write(state: dict[str, torch.Tensor], path: str | Path) -> None:
    buffer = io.BytesIO()  # given a path, torch.save keeps its name in the file, and hides a full disk in an error
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
        apt_monai.errors.ModelError: fusion.pt: weights that do not fit the network: 1 of another shape ...
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
