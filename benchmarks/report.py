"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apt_monai.contrasts import BRATS
from apt_monai.inferers import TwoStageInferer
from benchmarks.networks import paper_scheduler
from benchmarks.workloads import EPOCH_SLICES, MISSING, PARTS


def render(results: Mapping[str, Any]) -> str:
    """The results of :func:`measure` as Markdown."""
    workload, machine, network = results["workload"], results["machine"], results["network"]
    alignment, slices, codebook = results["alignment"], results["slices"], results["codebook"]
    passes, published = TwoStageInferer(paper_scheduler()).passes, results["synthesis"][0]
    targets = [(wanted, found, "yes" if reached else "no") for wanted, found, reached in _targets(results)]
    synthesis = [_synthesis_row(entry) for entry in results["synthesis"]]
    reading = [
        (label, f"{slices[f'slices_a_second_{key}']:.4g}", gigabytes(slices[f"peak_memory_{key}"]))
        for label, key in (("slice cache", "cached"), ("NIfTI files", "nifti"))
    ]
    built = [
        (
            b["subjects"],
            b["slices"],
            f"{b['seconds']:.1f}",
            gigabytes(b["peak_memory"]),
            gigabytes(b["slices_in_memory"]),
        )
        for b in codebook
    ]
    return f"""# Benchmark

{machine["device"]}; {machine["processor"]}, {machine["cores"]} cores, torch threads: {machine["threads"]},
{gigabytes(machine["memory"])} of memory; torch {machine["torch"]}, MONAI {machine["monai"]},
Python {machine["python"]}, {machine["system"]}.

Images and weights are random. Each measurement ran in a process of its own; peak memory is that process's, with the
weights and, on a CPU, the libraries.

{_table(("to reach", "measured", "reached"), targets)}

## One slice through both stages

U-Net of {network["parameters"] / 1e6:.0f} M parameters, {network["operations"] / 1e9:.0f} GFLOP a forward pass at
{workload["image_size"]}²; {MISSING} from the other contrasts. The published way: the encoder at every step, one slice
at a time, float32, channels-first, weights that ask for gradients; the same network, steps and noise. bfloat16 is
autocast, with channels-last weights.

{_table(("", "batch", "slices a second", "ratio", *PARTS, "peak memory", "passes timed"), synthesis)}

"forward" and "backward" are the U-Net's. Slices a second and shares are for the paper's {passes} passes: what is done
once, and {passes} times the mean of the passes timed, leaving out the first of several. The published way was
measured before and after the others,
{published["slices_a_second_first"]:.4g} and {published["slices_a_second_again"]:.4g} slices a second,
to show how steady the machine was; ratios are to the mean.

## One epoch of the alignment (MIF)

{_table(("", "ms a slice", "hours an epoch", "peak memory"), _epochs(alignment))}

Ratio {alignment["ratio"]:.0f}×. An epoch is extrapolated from the cost of a slice to {EPOCH_SLICES} slices:
{alignment["timed_steps"]} steps of {alignment["batch"]} slices from cached features (read, forward, backward, Adam),
and the encoder on {alignment["encoded_slices"]} slices of {len(BRATS)} contrasts.

## Random slices

{_table(("", "slices a second", "peak memory"), reading)}

Ratio {slices["ratio"]:.0f}×, on a study of {len(BRATS)} contrasts (`.nii.gz`) and
{"×".join(map(str, workload["study_shape"]))} voxels. The cache gives preprocessed slices, the files raw ones. Filling
the cache took {slices["seconds_to_fill"]:.1f} s and {gigabytes(slices["peak_memory_fill"])}, once a study.

## Memory of the codebook

{_table(("subjects", "slices", "seconds", "peak memory", "the slices themselves"), built)}

Slices of {workload["codebook_size"]}² and a stand-in for the encoder: only the growth is of interest.
"""


def _synthesis_row(entry: Mapping[str, Any]) -> tuple[object, ...]:
    if "left_out" in entry:
        return (entry["name"], entry["batch_size"], f"left out: {entry['left_out']}", *[""] * 7)
    return (
        entry["name"],
        entry["batch_size"],
        f"{entry['slices_a_second']:.4g}",
        f"{entry['ratio']:.2f}×",
        *(f"{100 * entry['shares'][part]:.1f} %" for part in PARTS),
        gigabytes(entry["peak_memory"]),
        entry["measured_passes"],
    )


def _epochs(alignment: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            label,
            f"{1000 * alignment[f'seconds_a_slice_{key}']:.3g}",
            f"{alignment[f'seconds_a_slice_{key}'] * EPOCH_SLICES / 3600:.3g}",
            gigabytes(alignment[f"peak_memory_{key}"]),
        )
        for label, key in (("from cached features", "cached"), ("encoding each time", "encoding"))
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _targets(results: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What was to be reached, what was measured, and whether: the fastest, and at batch 1 the largest, of ours."""
    targets = []
    done = [entry for entry in results["synthesis"] if "ratio" in entry]
    ours = [entry for entry in done if not entry["published"]]
    for guided, label, wanted in ((True, "the paper's gradient", 2.5), (False, "α = 0", 10.0)):
        ratio = max(entry["ratio"] for entry in ours if (entry["guidance_scale"] > 0) == guided)
        targets.append((f"{wanted:g}× the published way with {label}", f"{ratio:.2f}×", ratio >= wanted))
    limit = done[0]["peak_memory"]
    peak = max(entry["peak_memory"] for entry in ours if entry["batch_size"] == 1)
    found = f"{gigabytes(peak)}, {gigabytes(limit)}"  # resident memory of the same run varies by some MB
    targets.append(("memory at batch 1 not above the published way (within 1 %)", found, peak <= 1.01 * limit))
    for key, label, wanted in (("alignment", "encoding in each epoch", 100.0), ("slices", "reading NIfTI files", 50.0)):
        ratio = results[key]["ratio"]
        targets.append((f"{wanted:g}× {label}", f"{ratio:.0f}×", ratio >= wanted))
    few, many = results["codebook"]
    growth = many["peak_memory"] - few["peak_memory"]
    added = many["slices_in_memory"] - few["slices_in_memory"]
    found = f"{growth / 1e6:+.0f} MB for {added / 1e6:.0f} MB more of slices"
    targets.append(("the codebook's memory does not grow with the subjects", found, growth < 0.25 * added))
    return targets


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
