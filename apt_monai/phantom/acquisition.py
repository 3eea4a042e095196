"""The scan: a head's signal in a sequence, and what the scanner adds: timing, gain, bias field and noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Volume
from apt_monai.phantom.head import Head
from apt_monai.phantom.population import head_box
from apt_monai.phantom.sequences import PulseSequence, sequence_signal, shorten_t1


def ideal_signal(head: Head, sequence: PulseSequence) -> Volume:
    """The signal of each brain voxel without noise: the tissues' signals, mixed by the share that each fills.

    Args:
        head: the subject.
        sequence: what is acquired.

    Returns:
        float32 (voxels,), at least 0, relative to the equilibrium signal of water.
    """
    total = np.zeros(head.fractions["csf"].shape, np.float32)
    for name, share in head.fractions.items():
        there = np.flatnonzero(share > 1e-4)
        tissue = head.tissues[name]
        factors = head.texture[:, there] if name != "csf" else np.ones((3, 1), np.float32)
        t1, t2, pd = tissue.t1 * factors[0], tissue.t2 * factors[1], tissue.pd * factors[2]
        if sequence.gadolinium and tissue.gadolinium:
            t1 = shorten_t1(t1, tissue.gadolinium * head.uptake[there])
        total[there] += share[there] * sequence_signal(sequence, pd, t1, t2)
    return np.abs(total)


def vary_timing(sequence: PulseSequence, rng: np.random.Generator) -> PulseSequence:
    """The sequence as one scanner runs it: its times vary by a few per cent."""
    tr, te = sequence.tr * rng.normal(1, 0.03), sequence.te * rng.normal(1, 0.04)
    ti = None if sequence.ti is None else sequence.ti * rng.normal(1, 0.01)
    return replace(sequence, tr=tr, te=te, ti=ti)


def magnitude_image(
    signal: Volume,
    rng: np.random.Generator,
    noise: tuple[float, float] = (0.01, 0.025),
    brightness: tuple[float, float] = (400.0, 1500.0),
    brain: NDArray[np.bool_] | None = None,
    noiseless: bool = False,
) -> Volume:
    """The signal with Rician noise, in the intensities of one scanner.

    Args:
        signal: without noise, of any shape.
        rng: where noise and gain are drawn from.
        noise: range of the noise's standard deviation, relative to the brightest tissue (the 99th percentile).
        brightness: range of the intensity that the brightest tissue (the 99.5th percentile) gets.
        brain: where the brightest tissue is looked for, of the signal's shape; everywhere if None.
        noiseless: the same scan, of the same gain, without its noise.
    """
    where: Any = ... if brain is None else brain
    sigma = rng.uniform(*noise) * np.percentile(signal[where], 99)
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    noisy = np.hypot(signal + real, imaginary)
    gain = rng.uniform(*brightness) / np.percentile(noisy[where], 99.5)
    return (signal if noiseless else noisy) * gain


def acquire(
    head: Head,
    sequence: PulseSequence,
    rng: np.random.Generator,
    noise: tuple[float, float] = (0.01, 0.025),
    bias: float = 0.1,
    brightness: tuple[float, float] = (400.0, 1500.0),
    noiseless: bool = False,
) -> Volume:
    """One scan of a subject: the scanner's own timing, gain, bias field and Rician noise; 0 outside the brain.

    Args:
        head: the subject.
        sequence: what is acquired; its times vary by a few per cent.
        rng: where everything about this scan is drawn from.
        noise: range of the noise's standard deviation, relative to the brightest tissue.
        bias: standard deviation of the logarithm of the bias field.
        brightness: range of the intensity that the brightest tissue (the 99.5th percentile) gets.
        noiseless: the same scan without its noise.

    Returns:
        float32 (X, Y, Z), 0 outside the brain and at least 1 inside.
    """
    signal = ideal_signal(head, vary_timing(sequence, rng))
    box, axes = head_box(head.grid)
    signal *= np.exp(bias * smooth_noise(axes, 90, rng)[head.brain[box]])
    scan = np.zeros(head.grid.shape, np.float32)
    scan[head.brain] = np.maximum(magnitude_image(signal, rng, noise, brightness, noiseless=noiseless), 1)
    return scan
