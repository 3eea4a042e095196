"""One slice through both stages of inference."""

from __future__ import annotations

from typing import Any

from apt_monai.inferers import TwoStageInferer
from benchmarks.machine import best_device, peak_memory
from benchmarks.networks import make_batch, make_method, paper_scheduler
from benchmarks.published import synthesize_published_way
from benchmarks.stopwatch import Stopwatch, summarize_laps
from benchmarks.workloads import Variant, Workload


def measure_synthesis(workload: Workload, variant: Variant, encoder_folder: str) -> dict[str, Any]:
    """Time one way of synthesising; see :func:`summarize_laps` for the figures, memory in bytes.

    ``memory_before`` is that of the process with the networks, before the first pass.
    """
    device = best_device()
    slices = workload.batch_size if variant.batched else 1
    s, n = workload.batch_steps if variant.batched else workload.steps
    method = make_method(workload, variant, s, n, encoder_folder, device)
    batch, available = make_batch(workload, slices, device)
    stopwatch = Stopwatch(device)
    stopwatch.watch(method.network, "forward", "backward")
    stopwatch.watch(method.fusion, "encode")
    if method.encoder is not None:
        stopwatch.watch(method.encoder, "encode")
    before = peak_memory(device)
    if variant.published:
        synthesize_published_way(method, batch, available, stopwatch.lap)
    else:
        method(batch, available, stopwatch.lap)
    return {
        **summarize_laps(stopwatch.laps, slices, TwoStageInferer(paper_scheduler()).passes),
        "memory_before": before,
        "peak_memory": peak_memory(device),
    }
