"""Tiny studies for tests: a brain-shaped block of smooth-ish random intensities in each contrast, written as NIfTI."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # BraTS's orientation
LPS[1, 3] = 11.0


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray = LPS) -> str:
    """Write a volume, making its folder; returns the path as a study holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return str(path)


def write_study(
    folder: Path,
    names: Iterable[str] = ("flair", "t1", "t1ce", "t2"),
    shape: tuple[int, int, int] = (12, 10, 6),
    seed: int = 0,
    seg: bool = True,
    affine: np.ndarray = LPS,
) -> dict[str, str]:
    """Write ``<folder>/<folder's name>_<contrast>.nii.gz``; slice 0 has no brain. Returns the study."""
    generator = np.random.default_rng(seed)
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 1:] = True
    study = {"subject": folder.name}
    for name in names:
        volume = np.where(brain, generator.integers(100, 1000, shape), 0).astype(np.int16)
        study[name] = write_nifti(folder / f"{folder.name}_{name}.nii.gz", volume, affine)
    if seg:
        labels = np.zeros(shape, np.uint8)
        labels[:4, :4, 2:4] = 4  # partly outside the brain
        study["seg"] = write_nifti(folder / f"{folder.name}_seg.nii.gz", labels, affine)
    return study
