"""Load a study: the files of its acquired contrasts become one volume on one grid, or one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.geometry import SAME_GRID_MM, corners_apart
from apt_monai.io.source import read_source, read_volume


def _check_same_grid(
    path: str, volume: np.ndarray, affine: np.ndarray, first_path: str, first: np.ndarray, first_affine: np.ndarray
) -> None:
    """Raise where two volumes of a study have other shapes, or corners further than 1e-3 mm apart."""
    if volume.shape != first.shape:
        raise StudyError(
            f"{path}: shape {volume.shape} differs from {first.shape} of {first_path}; "
            "all files of a study must be on one grid: register and resample them first "
            "(`python -m apt_monai preprocess`)"
        )
    apart = corners_apart(volume.shape, affine, first_affine)
    if apart > SAME_GRID_MM:
        raise StudyError(
            f"{path}: the affine differs from that of {first_path} by up to {apart:.3g} mm "
            f"(at most {SAME_GRID_MM} mm); all files of a study must be on one grid: "
            "register and resample them first (`python -m apt_monai preprocess`)"
        )


FAINT = 1e-3  # of a volume's robust maximum: what resampling leaves of a background of 0 is fainter
HEAD_MM = 100.0  # no brain fills a box of this edge


def _acquired(volume: np.ndarray) -> np.ndarray:
    """Where a skull-stripped volume is not background.

    Background is 0. Where it is not (resampling and scaling leave it at ±1e-6, say), most of what is near 0 is faint
    and not exactly 0, and the faint counts as background, too. Where it is, faint voxels are of the brain.
    """
    there = volume != 0
    size = np.abs(volume)
    if _mostly_faint(there, size, float(size.max())):  # quick, and true wherever the next is
        robust = float(np.percentile(size[there], 99.9))
        if _mostly_faint(there, size, robust):
            return size >= FAINT * robust
    return there


def _mostly_faint(there: np.ndarray, size: np.ndarray, maximum: float) -> bool:
    faint = np.count_nonzero(there & (size < FAINT * maximum))
    return bool(20 * faint > there.size and faint > np.count_nonzero(~there))


def _check_background(region: np.ndarray, affine: np.ndarray, path: str) -> None:
    """Raise where a field of view as large as a head's has no background."""
    extent = np.array(region.shape) * np.linalg.norm(affine[:3, :3], axis=0)
    if (extent >= HEAD_MM).all() and np.count_nonzero(region) > 0.95 * region.size:
        raise StudyError(
            f"{path}: {100 * np.count_nonzero(region) / region.size:.0f} % of its voxels are not 0, but it must be "
            "skull-stripped, with 0 outside the brain: preprocess raw scans first (`python -m apt_monai preprocess`), "
            "or put a brain mask, on the same grid, beside it (<study>_mask.nii.gz)"
        )


class LoadStudyd(Transform):
    """Load the files of a study, NIfTI or DICOM: raw intensities, the availability mask and the regions.

    A study is a dictionary ``{"subject": ..., <contrast>: <path>, ..., "seg": <path>, "mask": <path>}``, with paths as
    :func:`read_volume` takes them. An absent contrast has no key. ``"seg"`` (a tumour segmentation: any label above 0)
    and ``"mask"`` (the brain: above 0) may be absent.

    The loaded study is a dictionary:

    - ``"subject"``: the study's name;
    - ``"image"``: MetaTensor ``(C, X, Y, Z)`` float32, raw intensities, an absent contrast all 0;
    - ``"available"``: ``(C,)`` bool, True = acquired;
    - ``"region"``: MetaTensor ``(1, X, Y, Z)`` uint8: 0 = outside the brain, 1 = brain (the mask; without one,
      where any acquired contrast is not 0), 2 = tumour (inside the brain). Where a volume's background is not exactly
      0, as resampling leaves it, what is below 1e-3 of its robust maximum counts as 0;
    - ``"raw"``: the acquired contrasts' intensities as they were read, ``(X, Y, Z)`` float32, by name; no later
      transform changes them;
    - ``"paths"``, ``"sha256"``, ``"headers"``: the acquired contrasts' paths, their files' hashes and their NIfTI
      headers (None of a DICOM series) by name, in the order of the contrast axis.

    Args:
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).

    Raises:
        StudyError: no contrast at all, an unknown key, a volume that :func:`read_volume` refuses or that was
            synthesised, an all-zero volume or mask, a head's field of view without any background (it is not
            skull-stripped), or files on different grids (shapes, or affines that put a voxel more than 1e-3 mm apart).

    Example::

        >>> import nibabel as nib
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), "case_t1.nii.gz")
        >>> loaded = LoadStudyd("brats")({"subject": "case", "t1": "case_t1.nii.gz"})
        >>> loaded["image"].shape, loaded["available"].tolist()
        (torch.Size([4, 4, 5, 6]), [False, True, False, False])
    """

    def __init__(self, contrasts: str | ContrastSet) -> None:
        self.contrasts = get_contrast_set(contrasts)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        names = self.contrasts.names
        if "subject" not in data:
            raise StudyError(f"study {dict(data)}: has no 'subject'; give the study a name under that key")
        subject = data["subject"]
        unknown = sorted(set(data) - {"subject", "seg", "mask", *names})
        if unknown:
            raise StudyError(
                f"study {subject!r}: unknown key {unknown[0]!r}; valid are subject, seg, mask and the "
                f"{self.contrasts.name} contrasts {', '.join(names)}"
            )
        paths = {name: str(data[name]) for name in names if name in data}
        if not paths:
            raise StudyError(f"study {subject!r}: has no contrast; at least one of {', '.join(names)} is needed")

        sources = {name: read_source(path) for name, path in paths.items()}
        first_path, first, affine = next((paths[name], s.volume, s.affine) for name, s in sources.items())
        for name, source in sources.items():
            if source.synthetic:
                raise StudyError(
                    f"{paths[name]}: was synthesised, as its name or its header says; give acquired contrasts alone"
                )
            if not source.volume.any():
                raise StudyError(
                    f"{paths[name]}: every voxel is 0; take the file out of the study, to have it synthesised"
                )
            _check_same_grid(paths[name], source.volume, source.affine, first_path, first, affine)
        empty = np.zeros_like(first)
        image = np.stack([sources[name].volume if name in sources else empty for name in names])  # C×X×Y×Z
        if "mask" in data:
            mask, mask_affine = read_volume(data["mask"])
            _check_same_grid(str(data["mask"]), mask, mask_affine, first_path, first, affine)
            if not (mask > 0).any():
                raise StudyError(
                    f"{data['mask']}: the brain mask is empty; draw one, above 0 in the brain, or remove it"
                )
            brain = mask > 0
        else:
            brain = np.any([_acquired(source.volume) for source in sources.values()], axis=0)
            _check_background(brain, affine, first_path)
        region: np.ndarray = brain.astype(np.uint8)
        if "seg" in data:
            labels, labels_affine = read_volume(data["seg"])
            _check_same_grid(str(data["seg"]), labels, labels_affine, first_path, first, affine)
            region[(labels > 0) & (region > 0)] = 2

        return {
            "subject": subject,
            "image": self._on_grid(image, affine, first_path),
            "available": torch.tensor(self.contrasts.mask(paths)),
            "region": self._on_grid(region[None], affine, first_path),
            "raw": {name: torch.from_numpy(source.volume) for name, source in sources.items()},
            "paths": paths,
            "sha256": {name: source.sha256 for name, source in sources.items()},
            "headers": {name: source.header for name, source in sources.items()},
        }

    @staticmethod
    def _on_grid(values: np.ndarray, affine: np.ndarray, path: str) -> MetaTensor:
        meta = {"filename_or_obj": path, "original_affine": torch.tensor(affine), "space": "RAS"}
        return MetaTensor(torch.from_numpy(values), affine=torch.tensor(affine), meta=meta)


LoadStudyD = LoadStudyDict = LoadStudyd
