"""What a scanner, and what comes after it, does to one contrast of a varied study: blur, coil, ghosts, noise, gain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Volume

LARGEST = 32000.0  # no intensity is larger, as the files are int16


@dataclass(frozen=True)
class Scanners:
    """How scans differ. Ranges are uniform, those that say so logarithmically.

    Args:
        noise: range of the noise's standard deviation relative to the brightest tissue, logarithmic.
        noise_spread: standard deviation of its logarithm between the contrasts of a study.
        grain: range of how far the noise is smoothed in plane, in voxels; half of the scans have white noise.
        bias: range of the standard deviation of the logarithm of the bias field.
        coarser: the part of the contrasts that were acquired coarser in plane, and resampled.
        blur: range of their blur in plane, the standard deviation in voxels.
        most_blur: its largest in mm.
        thicker: the part of the contrasts that were acquired in thicker slices, and resampled.
        thickness: range of the thickness of those slices in mm.
        gamma: range of the exponent of the intensity curve of one half of the scans, logarithmic.
        bend: range of how the curve of the others bends; 0 does not, 1 would be flat somewhere.
        ghosts: the part of the scans with ghosts of movement.
        ghost: range of their strength.
        movement: the part of the scans that movement has blurred from front to back.
        movement_blur: range of that blur, the standard deviation in mm.
        brightness: range of the intensity that the brightest tissue gets, logarithmic.
    """

    noise: tuple[float, float] = (0.003, 0.05)
    noise_spread: float = 0.25
    grain: tuple[float, float] = (0.4, 0.8)
    bias: tuple[float, float] = (0.0, 0.22)
    coarser: float = 0.35
    blur: tuple[float, float] = (0.2, 1.2)
    most_blur: float = 1.3
    thicker: float = 0.3
    thickness: tuple[float, float] = (1.5, 5.0)
    gamma: tuple[float, float] = (0.8, 1.25)
    bend: tuple[float, float] = (-0.3, 0.3)
    ghosts: float = 0.05
    ghost: tuple[float, float] = (0.03, 0.1)
    movement: float = 0.05
    movement_blur: tuple[float, float] = (0.5, 1.5)
    brightness: tuple[float, float] = (100.0, 30000.0)


@dataclass(frozen=True)
class Scan:
    """What one contrast of one study is acquired with; see :class:`Scanners`.

    Args:
        noise: standard deviation relative to the brightest tissue.
        brightness: the intensity that the brightest tissue gets.
        bias: standard deviation of the logarithm of the bias field.
        blur: standard deviation in mm along x, y and z.
        gamma, bend: of the intensity curve.
        ghost: strength of the ghosts; 0 for none.
        grain: smoothing of the noise in voxels; 0 for white noise.
    """

    noise: float
    brightness: float
    bias: float
    blur: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gamma: float = 1.0
    bend: float = 0.0
    ghost: float = 0.0
    grain: float = 0.0


def usual_scan(rng: np.random.Generator, bias: float) -> Scan:
    """A scan as the plain phantom has them."""
    return Scan(rng.uniform(0.01, 0.025), rng.uniform(400, 1500), bias)


def draw_noise(rng: np.random.Generator, scanners: Scanners | None = None) -> float:
    """The noise of a study, about which its contrasts vary."""
    return math.exp(rng.uniform(*np.log((scanners or Scanners()).noise)))


def draw_scan(
    rng: np.random.Generator, noise: float, steps: tuple[float, float], scale: float, scanners: Scanners | None = None
) -> Scan:
    """One contrast's scan.

    Args:
        rng: where it is drawn from.
        noise: the study's, of :func:`draw_noise`.
        steps: voxel edges in mm in plane and along the slices.
        scale: what lengths are multiplied by.
        scanners: how scans differ.

    Example::

        >>> scan = draw_scan(np.random.default_rng(0), 0.02, (1.0, 3.0), 1.0)
        >>> 0.003 <= scan.noise <= 0.05
        True
    """
    s = scanners or Scanners()

    def some(part: float, bounds: tuple[float, float]) -> float:
        """A value within the bounds in a part of the scans, 0 in the others; as many draws either way."""
        chosen, value = rng.random() < part, float(rng.uniform(*bounds))
        return value if chosen else 0.0

    own = float(np.clip(noise * math.exp(rng.normal(0, s.noise_spread)), *s.noise))
    plane = min(some(s.coarser, s.blur) * steps[0], s.most_blur * scale)
    along = some(s.thicker, s.thickness) * scale / math.sqrt(12)  # the standard deviation of a slice profile
    if along < steps[1] / math.sqrt(12):
        along = 0.0
    moved = some(s.movement, s.movement_blur) * scale
    gamma, bend = math.exp(rng.uniform(*np.log(s.gamma))), float(rng.uniform(*s.bend))
    if rng.random() < 0.5:
        gamma = 1.0
    else:
        bend = 0.0
    return Scan(
        noise=own,
        brightness=math.exp(rng.uniform(*np.log(s.brightness))),
        bias=float(rng.uniform(*s.bias)),
        blur=(plane, math.hypot(plane, moved), along),
        gamma=gamma,
        bend=bend,
        ghost=some(s.ghosts, s.ghost),
        grain=some(0.5, s.grain),
    )


def intensity_curve(signal: Volume, gamma: float, bend: float) -> Volume:
    """A monotone curve of intensities that keeps 0 and 1: a power, or a smooth bend about the line.

    Example::

        >>> intensity_curve(np.array([0.0, 0.25, 1.0], np.float32), gamma=0.5, bend=0.0).tolist()
        [0.0, 0.5, 1.0]
    """
    if gamma != 1:
        return np.power(signal, np.float32(gamma))
    # The slope is 1 + b cos(pi x), which is above 0 for |b| < 1
    return signal + np.float32(bend / math.pi) * np.sin(np.float32(math.pi) * signal)


def add_ghosts(volume: Volume, strength: float) -> Volume:
    """Ghosts of movement: the volume again, faint, moved to the front and the back by a third of the field of view."""
    shift = volume.shape[1] // 3
    return volume + np.float32(strength) * (np.roll(volume, shift, axis=1) + np.roll(volume, -shift, axis=1)) / 2


def scan_signal(
    signal: Volume,
    where: NDArray[np.bool_],
    tissue: NDArray[np.bool_],
    axes: tuple[NDArray[np.float64], ...],
    scan: Scan,
    rng: np.random.Generator,
    noise_rng: np.random.Generator | None,
) -> Volume:
    """The intensities of one scan.

    Args:
        signal: float32 (voxels,), without noise, at least 0, in the order of ``where``.
        where: bool (X, Y, Z), the voxels of the signal.
        tissue: bool (voxels,), those of brain; the brightest tissue is looked for in them.
        axes: head coordinates in mm along x, y and z.
        scan: what it is acquired with.
        rng: where the bias field is drawn from.
        noise_rng: where the noise is drawn from; None for the same scan without noise.

    Returns:
        float32 (voxels,), from 1 to :data:`LARGEST`.
    """
    if scan.bias:
        signal = signal * np.exp(np.float32(scan.bias) * smooth_noise(axes, 90, rng)[where])
    signal = intensity_curve(signal / np.float32(np.percentile(signal[tissue], 99.5)), scan.gamma, scan.bend)
    gain = np.float32(min(scan.brightness, LARGEST / float(signal.max())))
    if noise_rng is not None:
        real, imaginary = (_noise(where, scan.grain, noise_rng) for _ in range(2))
        signal = np.hypot(signal + np.float32(scan.noise) * real, np.float32(scan.noise) * imaginary)
    return np.clip(gain * signal, np.float32(1), np.float32(LARGEST))


def _noise(where: NDArray[np.bool_], grain: float, rng: np.random.Generator) -> Volume:
    """Normal noise of variance 1 in the voxels of a mask, white or smoothed in plane."""
    if not grain:
        return rng.standard_normal(np.count_nonzero(where), dtype=np.float32)
    noise = rng.standard_normal(where.shape, dtype=np.float32)
    for axis in (0, 1):
        noise = gaussian_filter1d(noise, grain, axis=axis, truncate=3)
    found = noise[where]
    return found / found.std()
