"""From a study's files to its slices, and from the slices' grid back to the acquired one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd
from monai.utils import TraceKeys
from torch import Tensor

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.files import json_sha256
from apt_monai.transforms.intensity import ScaleIntensityInBrain, ScaleIntensityInBraind
from apt_monai.transforms.slices import FitInPlaned
from apt_monai.transforms.study import LoadStudyd

VERSION = 1  # raise it with every change of what comes out, so that caches made before are not used


class StudyPreprocessing(Compose):
    """Load a study, orient it to RAS, scale its intensities to [-1, 1] and fit its slices to a grid.

    The grid is ``size`` × ``size``, or, without a size, the box of the brain at the scan's own voxels, coarse ones
    resampled up where a resolution is given.

    Takes a study (see :class:`LoadStudyd`) and returns the loaded study: ``"subject"``, ``"image"`` ``(C, H, W, Z)``
    float32 in [-1, 1] with background and absent contrasts exactly -1, axial slices along the last axis;
    ``"available"`` ``(C,)`` bool; ``"region"`` ``(1, H, W, Z)`` uint8; ``"intensity_range"`` ``(C, 2)``; ``"paths"``;
    and ``"raw"``, as they were read.

    Args:
        contrasts: the contrast set, or its name (``"brats"``, ``"adni"``).
        size: the in-plane extent of the slices, in voxels; None: the brain's box, and voxels as they are.
        resolution: without a size, the edge in mm to which coarser voxels are resampled up; see :class:`FitInPlane`.
        lower, upper, deviations: which intensities become -1 and 1; see :class:`ScaleIntensityInBrain`.

    Raises:
        StudyError: the study cannot be used (when called).

    Example::

        >>> import nibabel as nib
        >>> import numpy as np
        >>> volume = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
        >>> nib.save(nib.Nifti1Image(volume, np.eye(4)), "case_t1.nii.gz")
        >>> preprocessing = StudyPreprocessing("brats", size=8)
        >>> loaded = preprocessing({"subject": "case", "t1": "case_t1.nii.gz"})
        >>> loaded["image"].shape
        torch.Size([4, 8, 8, 6])
        >>> preprocessing.restore(loaded["image"][:1], loaded).shape
        torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        contrasts: str | ContrastSet,
        size: int | None = 256,
        lower: float = 0.5,
        upper: float = 99.5,
        deviations: float | None = None,
        resolution: float | None = None,
    ) -> None:
        self.contrasts = get_contrast_set(contrasts)
        self.size = size
        self.resolution = resolution
        self.scale = ScaleIntensityInBrain(lower, upper, deviations)
        super().__init__(
            [
                LoadStudyd(self.contrasts),
                Orientationd(("image", "region"), "RAS", labels=None, allow_missing_keys=True),
                ScaleIntensityInBraind(lower, upper, deviations),
                FitInPlaned("image", size, allow_missing_keys=True, resolution=resolution),
            ]
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> StudyPreprocessing:
        """That of a model, from what its ``model.json`` says: ``"contrasts"``, ``"image_size"`` and, where
        they are there, ``"intensity"`` and ``"resolution"``.

        Raises:
            KeyError, TypeError: they do not say it.
        """
        contrasts, intensity = get_contrast_set(settings["contrasts"]), settings.get("intensity", {})
        return cls(contrasts, settings["image_size"], **intensity, resolution=settings.get("resolution"))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on beside the files, as JSON can hold it."""
        scale = self.scale
        limits = {"lower": scale.lower, "upper": scale.upper}
        if scale.deviations is not None:
            limits = {"deviations": scale.deviations}
        if self.resolution is not None:
            limits["resolution"] = self.resolution
        return {"version": VERSION, "contrasts": list(self.contrasts.names), "size": self.size, **limits}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the settings."""
        return json_sha256(self.settings)[:16]

    def __call__(self, input_: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().__call__(input_, *args, **kwargs)
        except RuntimeError as error:  # Compose hides what a transform raised behind a RuntimeError
            if isinstance(error.__cause__, StudyError):
                raise error.__cause__ from None
            raise

    def restore(self, volumes: Tensor, like: Mapping[str, Any]) -> MetaTensor:
        """Bring volumes from the slices' grid back to the acquired grid.

        Exact where the slices were only padded or cut; what had been cut off, beyond the brain, becomes -1. Where they
        had been resampled down they are resampled up bilinearly, so a faint rim may lie just outside the brain.

        Args:
            volumes: ``(K, H, W, Z)`` in [-1, 1], any number of channels.
            like: the loaded study (as this preprocessing returned it) on whose acquired grid they belong.

        Returns:
            ``(K, X, Y, Z)`` with the shape, axis order and affine of the acquired files.

        Raises:
            ValueError: the volumes are not on the slices' grid of ``like``.
        """
        image = like["image"]
        if volumes.ndim != 4 or volumes.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"volumes of shape {tuple(volumes.shape)} are not on the grid of study {like['subject']!r}: "
                f"need (K, {', '.join(map(str, image.shape[1:]))})"
            )
        plain = volumes.as_tensor() if isinstance(volumes, MetaTensor) else volumes
        # the steps' ids are of the instance (and process) that took them; their settings are what counts here
        steps = [{**step, TraceKeys.ID: TraceKeys.NONE} for step in deepcopy(image.applied_operations)]
        placed = MetaTensor(plain, meta=deepcopy(image.meta), applied_operations=steps)
        restored = self.inverse({"image": placed})["image"]
        restored.affine = image.meta["original_affine"]  # free of the rounding on the way there and back
        return restored
