"""Seconds by part of a computation, and a whole synthesis from its first passes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workloads import PARTS


class Stopwatch:
    """Seconds that each part of a computation takes, lap by lap.

    Args:
        device: what to wait for before the clock is read.

    Example::

        >>> stopwatch, module = Stopwatch(torch.device("cpu")), nn.Linear(4, 4)
        >>> stopwatch.watch(module, "linear")
        >>> _ = module(torch.rand(1, 4))
        >>> stopwatch.lap()
        >>> sorted(stopwatch.laps[0])
        ['linear', 'rest']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[dict[str, float]] = []
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._start = self.now()

    def now(self) -> float:
        """The clock, in seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, module: nn.Module, part: str, backward_part: str | None = None) -> None:
        """Count a module's forward passes as ``part``.

        Args:
            module: any module.
            part: the name of its forward passes.
            backward_part: the name of the way back from its output's gradient to that of its input ``x``, which must
                be given by that keyword.
        """
        started: list[float] = []

        def before(*_: Any) -> None:
            started.append(self.now())

        def after(_module: nn.Module, _args: Any, inputs: Mapping[str, Any], output: Tensor) -> None:
            self._parts[part] += self.now() - started.pop()
            if backward_part is not None and output.requires_grad:
                output.register_hook(before)
                inputs["x"].register_hook(arrived)

        def arrived(_gradient: Tensor) -> None:
            self._parts[str(backward_part)] += self.now() - started.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, with_kwargs=True)

    def lap(self, _count: int = 1) -> None:
        """End a lap; what no part accounts for is its ``"rest"``. To be given as a ``progress`` function."""
        now = self.now()
        self.laps.append({**self._parts, "rest": now - self._start - sum(self._parts.values())})
        self._parts.clear()
        self._start = now


def summarize_laps(laps: Sequence[Mapping[str, float]], slices: int, passes: int) -> dict[str, Any]:
    """Figures of a whole synthesis from the laps of its first passes.

    The first lap is slower (first use of memory and kernels), so passes cost what the others cost on average; of the
    first one only the encoding beyond theirs counts, which is done once. A single lap stands for all, encoded once.

    Args:
        laps: seconds by part, one lap a network pass.
        slices: how many slices went through together.
        passes: how many passes a whole synthesis takes.

    Returns:
        ``measured_passes``, ``measured_seconds``, ``seconds_once``, ``seconds_a_pass`` (of the whole batch),
        ``slices_a_second`` and ``shares`` (by part, sum 1) of the whole synthesis.

    Example::

        >>> laps = [{"encode": 3.0, "forward": 5.0, "rest": 0.0}, {"forward": 2.0, "rest": 0.0}]
        >>> summarize_laps(laps, slices=1, passes=10)["slices_a_second"] == 1 / (3 + 10 * 2)
        True
    """
    steady = laps[1:] or [{**laps[0], "encode": 0.0}]
    a_pass = {part: sum(lap.get(part, 0.0) for lap in steady) / len(steady) for part in PARTS}
    once = max(0.0, laps[0].get("encode", 0.0) - a_pass["encode"])
    whole = {part: passes * seconds for part, seconds in a_pass.items()}
    whole["encode"] += once
    total = sum(whole.values())
    return {
        "measured_passes": len(laps),
        "measured_seconds": sum(sum(lap.values()) for lap in laps),
        "seconds_once": once,
        "seconds_a_pass": sum(a_pass.values()),
        "slices_a_second": slices / total,
        "shares": {part: seconds / total for part, seconds in whole.items()},
    }
