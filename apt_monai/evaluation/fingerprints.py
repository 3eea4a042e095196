"""By what an evaluation knows its slices and settings again: hashes of tensors and of what JSON can hold."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    return f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
