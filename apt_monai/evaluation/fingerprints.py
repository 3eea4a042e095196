"""By what an evaluation knows its slices again."""

from __future__ import annotations

import torch


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    return f"{plain.dtype} {tuple(plain.shape)} ".encode() + plain.reshape(-1).view(torch.uint8).numpy().tobytes()
