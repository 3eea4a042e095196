"""Skull-stripped cases with a tumour, named and stored as those of BraTS 2021."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apt_monai.contrasts import BRATS
from apt_monai.files import complete_folder
from apt_monai.phantom.acquisition import acquire
from apt_monai.phantom.grids import Grid, centred_affine, check_shape, check_spacing
from apt_monai.phantom.head import make_head
from apt_monai.phantom.sequences import SEQUENCES
from apt_monai.phantom.studies import Request, save_nifti, save_scan, subject_generator


def brats_grid(spacing: float = 1.0, shape: Sequence[int] | None = None) -> Grid:
    """The grid of BraTS: 240×240×155 voxels of 1 mm, stored to the left, back and up (LPS), origin (0, 239, 0).

    Args:
        spacing: voxel edge in mm, above 0 and at most 10.
        shape: voxels along each axis; as many as cover BraTS's field of view if None. Other shapes keep its centre.

    Raises:
        ValueError: the spacing or the shape is not valid.

    Example::

        >>> brats_grid(2.5).shape
        (96, 96, 62)
    """
    check_spacing(spacing)
    if shape is None:
        shape = tuple(round(n / spacing) for n in (240, 240, 155))
    checked = check_shape(shape)
    steps = np.array([-spacing, -spacing, spacing])
    return Grid(checked, centred_affine(checked, steps, (-119.5, 119.5, 77.0)))


def write_brats_study(request: Request) -> None:
    """One case as BraTS 2021 names it."""
    grid, name = brats_grid(request.spacing, request.shape), request.folder.name
    with complete_folder(request.folder) as folder:
        head = make_head(grid, request.seed, request.subject)
        for contrast in BRATS.names:
            rng = subject_generator(request.seed, request.subject, contrast)
            scan = acquire(head, SEQUENCES[contrast], rng, noiseless=not request.noise)
            save_scan(scan, grid, folder / f"{name}_{contrast}.nii.gz")
        save_nifti(head.labels, grid, folder / f"{name}_seg.nii.gz")
