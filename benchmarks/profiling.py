"""What the method costs, in time and memory, against the published way: ``make bench``.

Four measurements, each against what it replaces:

- one slice through both stages of inference (section 3.4), against the published way of doing the same computation;
- one epoch of the alignment (section 3.1) from cached features, against encoding every slice in every epoch;
- random slices from the slice cache, against reading them from the NIfTI files;
- the memory of building the codebook (section 3.3) for n subjects, against 4 n.

Every measurement has a process of its own, so that its peak memory is its own, and uses all threads that torch has by
default. Images and weights are random: neither changes what a pass costs. Ratios compare figures of one run; where a
figure is extrapolated the report says so."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from apt_monai.contrasts import BRATS
from apt_monai.data.slice_cache import SliceCache
from apt_monai.files import write_text
from apt_monai.transforms import StudyPreprocessing
from benchmarks.machine import available_memory, describe_machine
from benchmarks.networks import describe_network, write_encoder
from benchmarks.reading import (
    fill_slice_cache,
    measure_alignment,
    measure_codebook,
    measure_slice_reading,
    write_studies,
)
from benchmarks.report import gigabytes, render
from benchmarks.synthesis import measure_synthesis
from benchmarks.workloads import FEW_STEPS, PAPER, VARIANTS, Variant, Workload


def run_benchmarks(output: str | Path, full: bool = False) -> dict[str, Any]:
    """Measure everything and write ``results.json`` and ``results.md``.

    Args:
        output: the folder of the two files; made if absent.
        full: every synthesis with the paper's number of steps, which takes about an hour on two CPU cores. Otherwise
            few steps, in about three minutes, extrapolated to the paper's.

    Returns:
        The content of ``results.json``.

    Raises:
        OSError: the folder cannot be written.

    Example::

        >>> results = run_benchmarks("bench")  # doctest: +SKIP
        >>> results["alignment"]["ratio"] > 100  # doctest: +SKIP
        True
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    results = measure(PAPER if full else FEW_STEPS)
    write_text(output / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(output / "results.md", render(results))
    return results


def measure(workload: Workload) -> dict[str, Any]:
    """Every measurement, in processes of their own; see :func:`run_benchmarks`.

    Args:
        workload: the sizes.

    Returns:
        ``machine``, ``workload``, ``network``, ``synthesis`` (a list, one entry a variant), ``alignment``, ``slices``
        and ``codebook``; seconds and bytes.
    """
    with (
        tempfile.TemporaryDirectory(prefix="apt_monai-bench-") as scratch,
        tqdm(total=len(VARIANTS) + 5, desc="bench", unit="measurement") as bar,
    ):
        results: dict[str, Any] = {
            "machine": describe_machine(),
            "workload": asdict(workload),
            "network": describe_network(workload),
        }
        encoder = write_encoder(Path(scratch) / "encoder", workload.encoder_model)

        results["synthesis"] = []
        for variant in VARIANTS:
            bar.set_postfix_str(variant.name)
            results["synthesis"].append(measure_variant(workload, variant, encoder, results["synthesis"]))
            bar.update()
        bar.set_postfix_str(f"{VARIANTS[0].name}, again")
        again = _in_own_process(measure_synthesis, workload, VARIANTS[0], encoder)["slices_a_second"]
        bar.update()
        add_ratios(results["synthesis"], again)

        bar.set_postfix_str("alignment")
        results["alignment"] = _in_own_process(measure_alignment, workload, encoder, scratch)
        bar.update()

        bar.set_postfix_str("random slices")
        filled = _in_own_process(fill_slice_cache, workload, scratch)
        results["slices"] = _in_own_process(measure_slice_reading, workload, filled["study"], scratch)
        results["slices"].update(seconds_to_fill=filled["seconds"], peak_memory_fill=filled["peak_memory"])
        bar.update()

        n = workload.codebook_subjects
        size = workload.codebook_size
        studies = write_studies(Path(scratch) / "codebook", 4 * n, (size, size, workload.codebook_slices), ".nii")
        cache = SliceCache(Path(scratch) / "codebook-cache", StudyPreprocessing(BRATS, size=size))
        cache.prepare(studies, progress=False)
        results["codebook"] = []
        for count in (n, 4 * n):
            bar.set_postfix_str(f"codebook of {count} subjects")
            results["codebook"].append(_in_own_process(measure_codebook, workload, studies[:count], cache))
            bar.update()
    return results


def measure_variant(
    workload: Workload, variant: Variant, encoder: str, measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One variant's figures; or why it was left out, where it would not fit into memory."""
    slices = workload.batch_size if variant.batched else 1
    entry = {**asdict(variant), "batch_size": slices}
    for single in measured:
        if variant.batched and (single["name"], single["batched"]) == (variant.name, False):
            needed = single["memory_before"] + slices * (single["peak_memory"] - single["memory_before"])
            if needed > available_memory():
                reason = f"needs about {gigabytes(needed)}, and {gigabytes(available_memory())} of memory are available"
                return {**entry, "left_out": reason}
    try:
        return {**entry, **_in_own_process(measure_synthesis, workload, variant, encoder)}
    except BrokenProcessPool:
        if variant.published:
            raise
        return {**entry, "left_out": "its process was ended from outside, most likely for want of memory"}


def add_ratios(synthesis: Sequence[dict[str, Any]], again: float) -> None:
    """Ratios to the published way, the first entry, whose speed becomes the mean of before and after the others."""
    first = synthesis[0]["slices_a_second"]
    synthesis[0].update(slices_a_second=(first + again) / 2, slices_a_second_first=first, slices_a_second_again=again)
    for entry in synthesis:
        if "slices_a_second" in entry:
            entry["ratio"] = entry["slices_a_second"] / synthesis[0]["slices_a_second"]


def _in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process that has imported this module and holds nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()
