"""What this machine is good at: the precision that it computes natively, the memory format.

Some CPUs compute bfloat16 several times faster than float32, others emulate it and are 14 to 20 times slower. So the
machine is asked, and ``precision: auto`` in a config is the answer. What was chosen stands in the log, in sidecars and
results; it is no part of what decides that a volume or a training is finished, which may go on elsewhere.
"""

from __future__ import annotations

import logging
import platform
from typing import Any

import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "bfloat16")
NORMS = (torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)  # the second: batch and instance norm


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """A device by name; None is the GPU if there is one, else the CPU.

    Example::

        >>> choose_device("cpu")
        device(type='cpu')
    """
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def native_precision(device: str | torch.device) -> str:
    """The fastest precision that a device computes natively, ``"bfloat16"`` or ``"float32"``.

    CUDA: bfloat16 from compute capability 8.0 (Ampere) on. CPU: bfloat16 where torch says that the processor has
    instructions for it (AVX-512 BF16, AMX, or Arm's through oneDNN). Any other device, Apple's MPS among them: float32.

    Example::

        >>> native_precision("cpu") in PRECISIONS
        True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    if kind == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def choose_precision(device: str | torch.device, precision: str = "auto") -> str:
    """A config's ``precision`` made definite: ``"auto"`` is what the device computes natively.

    Raises:
        ValueError: neither ``"auto"`` nor one of :data:`PRECISIONS`.

    Example::

        >>> choose_precision("cpu", "float32")
        'float32'
    """
    if precision == "auto":
        precision = native_precision(device)
    elif precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: valid are auto, {', '.join(PRECISIONS)}")
    logger.info("computing in %s on %s", precision, device_name(device))
    return precision


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """A block in which networks compute in a precision.

    Example::

        >>> with autocast("cpu", "float32"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def memory_format(device: str | torch.device, network: torch.nn.Module) -> torch.memory_format:
    """Channels last, in which convolutions are faster, on GPUs, and on CPUs for a network that does not normalise.

    Measured on one thread of a CPU with native bfloat16, forward and backward: SegResNet without a norm takes half the
    time with channels last, with group norm half as long again.

    Example::

        >>> memory_format("cpu", torch.nn.Conv2d(1, 1, 3)), memory_format("cpu", torch.nn.GroupNorm(1, 1))
        (torch.channels_last, torch.contiguous_format)
    """
    kind = torch.device(device).type
    normalises = any(isinstance(module, NORMS) for module in network.modules())
    return torch.channels_last if kind == "cuda" or (kind == "cpu" and not normalises) else torch.contiguous_format


def device_name(device: str | torch.device) -> str:
    """A device for people to read.

    Example::

        >>> device_name("cpu").startswith("cpu (")
        True
    """
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def describe(device: str | torch.device, precision: str) -> dict[str, Any]:
    """What a result was computed on, for its sidecar.

    Example::

        >>> sorted(describe("cpu", "float32"))
        ['device', 'precision', 'threads']
    """
    return {"device": device_name(device), "precision": precision, "threads": torch.get_num_threads()}


def _cpu_has_bfloat16() -> bool:
    if platform.machine().lower() in ("arm64", "aarch64"):
        # oneDNN's answer is about instructions here; on x86 it is yes for emulation as well
        return platform.system() != "Darwin" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)
