"""Fit the axial slices of a volume to a square of a given size, or to the brain's box, and the way back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class InPlaneFit:
    """How the slices' grid lies on that of the acquired slices: resampled, then padded or cut.

    Args:
        shape: (X, Y), voxels of an acquired slice, oriented.
        resampled: (X', Y'), what it is resampled to; ``shape`` where it is not.
        before: how many voxels are padded before the first one along each axis; below 0: how many are cut off there.
        size: (H, W), pixels of a slice that was fitted.
    """

    shape: tuple[int, int]
    resampled: tuple[int, int]
    before: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def square(cls, shape: tuple[int, int], size: int) -> InPlaneFit:
        """Padded to ``size`` × ``size``, half on each side; where the longer axis is more, resampled down before."""
        scale = min(1.0, size / max(shape))
        nx, ny = (max(1, round(n * scale)) for n in shape)
        return cls(shape, (nx, ny), ((size - nx) // 2, (size - ny) // 2), (size, size))

    @classmethod
    def box(cls, region: Tensor, factors: tuple[int, int] = (1, 1)) -> InPlaneFit:
        """Cut to what holds the brain of every slice of a region ``(1, X, Y, Z)``; before that, resampled up.

        Args:
            region: above 0 in the brain.
            factors: whole numbers by which there are more voxels along each axis.

        Example::

            >>> region = torch.zeros(1, 9, 7, 2)
            >>> region[:, 2:5, 3:7, 1] = 1
            >>> InPlaneFit.box(region)
            InPlaneFit(shape=(9, 7), resampled=(9, 7), before=(-2, -3), size=(3, 4))
        """
        x, y = int(region.shape[1]), int(region.shape[2])
        there = torch.nonzero((region[0] > 0).any(dim=-1))  # (voxels, 2)
        (x0, y0), (x1, y1) = there.amin(dim=0).tolist(), (there.amax(dim=0) + 1).tolist()
        fx, fy = factors
        return cls((x, y), (fx * x, fy * y), (-fx * x0, -fy * y0), (fx * (x1 - x0), fy * (y1 - y0)))

    @classmethod
    def of(cls, image: MetaTensor) -> InPlaneFit:
        """The fit that a volume's most recent transform was, :class:`FitInPlane`."""
        step = image.applied_operations[-1]
        x, y, _ = step[TraceKeys.ORIG_SIZE]
        return cls((x, y), *(step[TraceKeys.EXTRA_INFO][key] for key in ("resampled", "before", "size")))

    def fit(self, slices: Tensor, mode: str = "bilinear", fill: float = -1.0) -> Tensor:
        """Acquired slices ``(Z, C, X, Y)`` on the slices' grid, ``(Z, C, H, W)``."""
        if self.resampled != self.shape:
            slices = _resize(slices, self.resampled, mode)
        (bx, by), (nx, ny), (h, w) = self.before, self.resampled, self.size
        return F.pad(slices, (by, w - ny - by, bx, h - nx - bx), value=fill)  # below 0 cuts

    def back(self, slices: Tensor, mode: str = "bilinear", fill: float = -1.0) -> Tensor:
        """Slices ``(Z, C, H, W)`` on the grid of the acquired ones, ``(Z, C, X, Y)``; ``fill`` where they were cut."""
        (bx, by), (nx, ny), (h, w) = self.before, self.resampled, self.size
        slices = F.pad(slices, (-by, ny - w + by, -bx, nx - h + bx), value=fill)
        if self.resampled == self.shape:
            return slices
        if self.up and mode == "bilinear":  # whole voxels again: the mean of each block, so that no border is mixed
            return interpolate(slices, self.shape, mode="area")
        return _resize(slices, self.shape, mode)

    @property
    def up(self) -> bool:
        """Whether the slices' grid is finer than the acquired one, by whole numbers."""
        return self.resampled[0] > self.shape[0] or self.resampled[1] > self.shape[1]


def _resize(slices: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    return interpolate(slices, shape, mode=mode, antialias=mode != "nearest-exact")  # when up, plain interpolation


class FitInPlane(InvertibleTransform):
    """Fit the first two spatial axes to ``size`` × ``size``, or cut them to the brain's box; the last one stays.

    Where both fit, they are padded, half on each side (the odd voxel after): the inverse is exact. Where the longer is
    more than ``size``, both are first resampled down by the same factor, so that the longer becomes ``size``; the
    inverse resamples up to the original shape, which loses what the smaller grid cannot hold. Without a size, the
    slices are cut to the box of the brain of all of them, and voxels stay what they are; or, with a resolution, coarser
    ones are resampled up, which the inverse undoes. The affine follows.

    Args:
        size: the in-plane extent of the result, in voxels; None: the brain's box.
        resolution: without a size: voxels are resampled up by the whole number that brings them nearest to this edge in
            mm, along each axis; None, and where they are finer already: they stay.
        mode: ``"bilinear"`` (with anti-aliasing, for intensities) or ``"nearest"`` (for labels).
        fill: the value of the padding, and of what had been cut off.

    Raises:
        ValueError: ``size`` is not positive, or ``mode`` is unknown.

    Example::

        >>> fit = FitInPlane(256)
        >>> fitted = fit(MetaTensor(torch.zeros(4, 240, 240, 5)))
        >>> fitted.shape, fit.inverse(fitted).shape
        (torch.Size([4, 256, 256, 5]), torch.Size([4, 240, 240, 5]))
        >>> region = torch.zeros(1, 240, 240, 5)
        >>> region[:, 40:200, 30:210] = 1
        >>> FitInPlane(None)(MetaTensor(torch.zeros(4, 240, 240, 5)), region).shape
        torch.Size([4, 160, 180, 5])
    """

    def __init__(
        self, size: int | None, mode: str = "bilinear", fill: float = -1.0, resolution: float | None = None
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size={size}: the in-plane size must be at least 1 voxel, or null for the brain's box")
        if resolution is not None and (size is not None or not resolution > 0):
            raise ValueError(f"resolution={resolution}: must be above 0 mm, or null; it goes without a size ({size})")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode={mode!r}: valid are 'bilinear' and 'nearest'")
        self.size = size
        self.mode = mode
        self.fill = fill
        self.resolution = resolution

    def plan(self, image: Tensor, region: Tensor | None = None) -> InPlaneFit:
        """The fit of a volume ``(C, X, Y, Z)``.

        Args:
            image: the volume.
            region: ``(1, X, Y, Z)``, above 0 in the brain; needed without a size.
        """
        if self.size is not None:
            return InPlaneFit.square((int(image.shape[1]), int(image.shape[2])), self.size)
        if region is None:
            raise ValueError("without a size the slices are cut to the brain's box: give the region, too")
        if self.resolution is None:
            return InPlaneFit.box(region)
        edges = torch.linalg.vector_norm(MetaTensor(image).affine[:3, :2], dim=0).tolist()  # mm
        fx, fy = (max(1, round(edge / self.resolution)) for edge in edges)
        return InPlaneFit.box(region, (fx, fy))

    def __call__(self, image: Tensor, region: Tensor | None = None) -> MetaTensor:
        """Fit ``(C, X, Y, Z)`` to ``(C, H, W, Z)``; dtype and meta data are kept, the step is traced."""
        volume = image if isinstance(image, MetaTensor) else MetaTensor(image)
        fit = self.plan(volume, region)
        plain = fit.fit(volume.as_tensor().permute(3, 0, 1, 2), self._mode(fit), self.fill)  # Z×C×H×W
        fitted = MetaTensor(plain.permute(1, 2, 3, 0).contiguous()).copy_meta_from(volume)
        fitted.affine = volume.affine @ _affine_of(fit, int(volume.shape[3]))
        extra = {"resampled": fit.resampled, "before": fit.before, "size": fit.size}
        return self.push_transform(fitted, orig_size=tuple(volume.shape[1:]), extra_info=extra)

    def _mode(self, fit: InPlaneFit) -> str:
        """How the way there is interpolated: up, what is smooth stays smooth."""
        if self.mode == "nearest":
            return "nearest-exact"
        return "bicubic" if fit.up else "bilinear"

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Undo the most recent fit of a volume ``(K, H, W, Z)``: ``(K, X, Y, Z)`` as before it."""
        fit = InPlaneFit.of(data)
        self.pop_transform(data)
        mode = "bilinear" if self.mode == "bilinear" else "nearest-exact"
        plain = fit.back(data.as_tensor().permute(3, 0, 1, 2), mode, self.fill)  # Z×K×X×Y
        restored = MetaTensor(plain.permute(1, 2, 3, 0).contiguous()).copy_meta_from(data)
        restored.affine = data.affine @ torch.linalg.inv(_affine_of(fit, int(data.shape[3])))
        return restored


def _affine_of(fit: InPlaneFit, z: int) -> Tensor:
    """From the fitted voxels to those before: 4×4 float64; both grids cover the same field of view."""
    resized = torch.from_numpy(scale_affine((*fit.shape, z), (*fit.resampled, z)))
    shift = torch.eye(4, dtype=torch.float64)
    shift[:2, 3] = -torch.tensor(fit.before, dtype=torch.float64)
    return resized @ shift


class FitInPlaned(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`FitInPlane` for images and the region that they share.

    Images are resampled bilinearly and padded with -1, the region by the nearest voxel and padded with 0. After
    resampling, images are set to exactly -1 outside the region.

    Args:
        keys: the images' keys.
        size, resolution: as :class:`FitInPlane` takes them.
        region_key: the region's key.
        allow_missing_keys: skip a key that is not there, as :meth:`StudyPreprocessing.restore` needs.

    Example::

        >>> data = {"image": MetaTensor(torch.zeros(4, 9, 7, 2)), "region": MetaTensor(torch.ones(1, 9, 7, 2))}
        >>> FitInPlaned("image", 12)(data)["region"].shape
        torch.Size([1, 12, 12, 2])
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int | None,
        region_key: str = "region",
        allow_missing_keys: bool = False,
        resolution: float | None = None,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.region_key = region_key
        self.fit_image = FitInPlane(size, resolution=resolution)
        self.fit_region = FitInPlane(size, mode="nearest", fill=0, resolution=resolution)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        acquired = data[self.region_key]
        region = self.fit_region(acquired, acquired)
        for key in self.key_iterator(result):
            fitted = self.fit_image(data[key], acquired)
            plan = InPlaneFit.of(fitted)
            if plan.resampled != plan.shape:
                result[key] = fitted.clamp(-1, 1).masked_fill(region.as_tensor() == 0, -1.0)
            else:
                result[key] = fitted
        result[self.region_key] = region
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the fit of the images, and of the region where it is there."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.fit_image.inverse(result[key])
        if self.region_key in result:
            result[self.region_key] = self.fit_region.inverse(result[self.region_key])
        return result


FitInPlaneD = FitInPlaneDict = FitInPlaned
