"""By what an evaluation knows its methods and slices again: hashes of weights, settings and tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch


def describe(value: Any) -> Any:
    """What a method is made of, as JSON can hold it: classes, settings, and hashes of weights."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, FunctionType) and not hasattr(value, "fingerprint"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(tensor_bytes(value)).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    description = {"class": f"{type(value).__module__}.{type(value).__qualname__}"}
    if hasattr(value, "fingerprint"):
        return description | {"fingerprint": str(value.fingerprint)}
    attributes = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    if isinstance(value, torch.nn.Module):
        simple = {k: v for k, v in attributes.items() if isinstance(v, (bool, int, float, str, torch.Tensor))}
        simple.pop("training")
        return description | {"sha256": sha256(describe([simple, value.state_dict()]))}
    if dataclasses.is_dataclass(value):
        return description | {"sha256": sha256(describe(attributes))}
    return description | describe(attributes)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    return f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
