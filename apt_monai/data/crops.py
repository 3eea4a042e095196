"""Random crops of slices, of any size and at several resolutions: what trains at the scan's own voxels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DistributedSampler

from apt_monai.files import key_digest

Epoch = tuple[int, int]
"""A sample's index, and the epoch that it is taken in."""


class EpochSampler(DistributedSampler):
    """torch's sampler of several ranks, that says of each sample in which epoch it is taken.

    So what a data set draws at random for a sample can differ from epoch to epoch, and be the same for any number of
    workers or ranks, and for a training that was resumed.

    Example::

        >>> sampler = EpochSampler(range(2), num_replicas=1, rank=0, shuffle=False)
        >>> sampler.set_epoch(3)
        >>> list(sampler)
        [(0, 3), (1, 3)]
    """

    def __iter__(self) -> Iterator[Epoch]:
        return ((index, self.epoch) for index in super().__iter__())


def crop_generator(seed: int, subject: str, slice_index: int, epoch: int) -> np.random.Generator:
    """Where the crop of a slice in an epoch is drawn from: these four alone."""
    digest = key_digest(seed, subject, slice_index, epoch)
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def crop_around(image: Tensor, region: Tensor, size: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A window of a slice around a voxel of its brain, each as likely as any other.

    The window is moved into the slice where it would reach beyond it; a smaller slice is padded with background.

    Args:
        image: ``(C, H, W)`` in [-1, 1].
        region: ``(1, H, W)``, above 0 in the brain; at least once.
        size: height and width of the window.
        generator: where the voxel is drawn from.

    Returns:
        ``(C, size, size)`` and ``(1, size, size)``.

    Example::

        >>> image, region = torch.rand(4, 30, 12), torch.ones(1, 30, 12)
        >>> cropped, brain = crop_around(image, region, 16, np.random.default_rng(0))
        >>> cropped.shape, bool((cropped[:, :, :2] == -1).all()), int(brain.sum())
        (torch.Size([4, 16, 16]), True, 192)
    """
    voxels = torch.nonzero(region[0] > 0)  # (voxels, 2)
    centre = voxels[int(generator.integers(len(voxels)))].tolist()
    window: list[slice] = []
    padding: list[int] = []
    for middle, extent in zip(centre, image.shape[1:], strict=True):
        start = min(max(0, middle - size // 2), max(0, extent - size))
        window.append(slice(start, start + size))
        missing = max(0, size - extent)
        padding = [missing // 2, missing - missing // 2, *padding]  # torch counts from the last axis
    rows, columns = window
    return (
        F.pad(image[:, rows, columns], padding, value=-1.0),
        F.pad(region[:, rows, columns], padding, value=0),
    )


def coarsened(image: Tensor, region: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A slice as a scan of coarser voxels has it: the brain's mean over blocks of ``factor`` × ``factor``.

    Args:
        image: ``(C, H, W)`` in [-1, 1].
        region: ``(1, H, W)``, above 0 in the brain.
        factor: of both extents, which are multiples of it.

    Returns:
        ``(C, H / factor, W / factor)``, and the region, ``(1, H / factor, W / factor)`` uint8: 1 in blocks of which at
        least half is brain; elsewhere the image is -1.

    Example::

        >>> image, region = torch.tensor([[[0.0, 1.0], [-1.0, -1.0]]]), torch.tensor([[[1, 2], [0, 0]]])
        >>> coarsened(image, region, 2)
        (tensor([[[0.5000]]]), tensor([[[1]]], dtype=torch.uint8))
    """
    brain = (region > 0).to(image)
    share = F.avg_pool2d(brain, factor)
    mean = F.avg_pool2d(image * brain, factor) / share.clamp(min=0.5)
    inside = share >= 0.5
    return mean.where(inside, -1.0), inside.to(torch.uint8)
