"""Fit the axial slices of a volume to a square of a given size, and the way back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import BorderPad, InvertibleTransform, MapTransform, SpatialCrop
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys
from torch import Tensor
from torch.nn.functional import interpolate


class FitInPlane(InvertibleTransform):
    """Fit the first two spatial axes to ``size`` × ``size``; the last one (the slices) stays.

    Where both fit, they are padded, half on each side (the odd voxel after): the inverse is exact. Where the longer is
    more than ``size``, both are first resampled down by the same factor, so that the longer becomes ``size``; the
    inverse resamples up to the original shape, which loses what the smaller grid cannot hold. The affine follows.

    Args:
        size: the in-plane extent of the result, in voxels.
        mode: ``"bilinear"`` (with anti-aliasing, for intensities) or ``"nearest"`` (for labels).
        fill: the value of the padding.

    Raises:
        ValueError: ``size`` is not positive, or ``mode`` is unknown.

    Example::

        >>> fit = FitInPlane(256)
        >>> fitted = fit(MetaTensor(torch.zeros(4, 240, 240, 5)))
        >>> fitted.shape, fit.inverse(fitted).shape
        (torch.Size([4, 256, 256, 5]), torch.Size([4, 240, 240, 5]))
    """

    def __init__(self, size: int, mode: str = "bilinear", fill: float = -1.0) -> None:
        if size < 1:
            raise ValueError(f"size={size}: the in-plane size must be at least 1 voxel")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"mode={mode!r}: valid are 'bilinear' and 'nearest'")
        self.size = size
        self.mode = mode
        self.fill = fill

    def __call__(self, image: Tensor) -> MetaTensor:
        """Fit ``(C, X, Y, Z)`` to ``(C, size, size, Z)``; dtype and meta data are kept, the step is traced."""
        fitted = image if isinstance(image, MetaTensor) else MetaTensor(image)
        x, y, z = fitted.shape[1:]
        scale = min(1.0, self.size / max(x, y))
        nx, ny = max(1, round(x * scale)), max(1, round(y * scale))
        if scale < 1:
            fitted = self._resize(fitted, (nx, ny, z))
        before = (self.size - nx) // 2, (self.size - ny) // 2
        border = [before[0], self.size - nx - before[0], before[1], self.size - ny - before[1], 0, 0]
        pad = BorderPad(border, mode="constant", value=self.fill)
        pad.tracing = False  # the whole fit is traced as one step
        return self.push_transform(
            pad(fitted), orig_size=(x, y, z), extra_info={"before": before, "resampled": (nx, ny)}
        )

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Undo the most recent fit of a volume ``(K, size, size, Z)``: ``(K, X, Y, Z)`` as before it."""
        step = self.pop_transform(data)
        x, y, z = step[TraceKeys.ORIG_SIZE]
        (x0, y0), (nx, ny) = step[TraceKeys.EXTRA_INFO]["before"], step[TraceKeys.EXTRA_INFO]["resampled"]
        crop = SpatialCrop(roi_start=(x0, y0, 0), roi_end=(x0 + nx, y0 + ny, z))
        crop.tracing = False
        fitted: Any = crop(data)
        return fitted if (nx, ny) == (x, y) else self._resize(fitted, (x, y, z))

    def _resize(self, image: MetaTensor, shape: tuple[int, int, int]) -> MetaTensor:
        """Resample the first two spatial axes; both grids cover the same field of view, and the affine says so."""
        slices = image.as_tensor().permute(3, 0, 1, 2)  # Z×C×X×Y
        if self.mode == "bilinear":
            resized = interpolate(slices, shape[:2], mode="bilinear", antialias=True)  # when up, plain bilinear
        else:
            resized = interpolate(slices, shape[:2], mode="nearest-exact")
        result = MetaTensor(resized.permute(1, 2, 3, 0).contiguous()).copy_meta_from(image)  # C×X×Y×Z
        result.affine = image.affine @ torch.from_numpy(scale_affine(image.shape[1:], shape))
        return result


class FitInPlaned(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`FitInPlane` for images and the region that they share.

    Images are resampled bilinearly and padded with -1, the region by the nearest voxel and padded with 0. After
    resampling, images are set to exactly -1 outside the region.

    Args:
        keys: the images' keys.
        size: the in-plane extent of the result, in voxels.
        region_key: the region's key.
        allow_missing_keys: skip a key that is not there, as :meth:`StudyPreprocessing.restore` needs.

    Example::

        >>> data = {"image": MetaTensor(torch.zeros(4, 9, 7, 2)), "region": MetaTensor(torch.ones(1, 9, 7, 2))}
        >>> FitInPlaned("image", 12)(data)["region"].shape
        torch.Size([1, 12, 12, 2])
    """

    def __init__(
        self, keys: KeysCollection, size: int, region_key: str = "region", allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.size = size
        self.region_key = region_key
        self.fit_image = FitInPlane(size)
        self.fit_region = FitInPlane(size, mode="nearest", fill=0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        region = self.fit_region(data[self.region_key])
        for key in self.key_iterator(result):
            fitted: Tensor = self.fit_image(data[key])
            if max(data[key].shape[1:3]) > self.size:
                fitted = fitted.masked_fill(region.as_tensor() == 0, -1.0)
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
