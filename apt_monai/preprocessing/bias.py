"""Bias correction: the slow change of brightness across a scan is divided out."""

from __future__ import annotations

import itk
import numpy as np
from scipy import ndimage

from apt_monai.preprocessing.scan import Scan, from_itk, otsu_thresholds, shrink, to_itk


def correct_bias(scan: Scan, spacing: float = 6.0, levels: int = 2, iterations: int = 30) -> Scan:
    """Divide a scan by its bias field, as ITK's N4 estimates it within the head.

    Args:
        scan: intensities of 0 and above.
        spacing: the voxel size in mm at which the field is estimated; it is smooth, so a coarse one loses little.
        levels: of the fit; each has twice as many spans of the field's spline along each axis, beginning with one.
        iterations: at most so many at each level.

    Returns:
        The scan without the field, its head's mean logarithmic intensity as before.
    """
    small = shrink(scan, spacing)
    head = small.volume > otsu_thresholds(small.volume, 1)[0]
    image, mask = to_itk(small), to_itk(Scan(head.astype(np.float32), small.affine))
    corrected = itk.n4_bias_field_correction_image_filter(
        image,
        mask_image=itk.cast_image_filter(mask, ttype=(type(mask), itk.Image[itk.UC, 3])),
        number_of_fitting_levels=levels,
        maximum_number_of_iterations=[iterations] * levels,
    )
    there = head & (small.volume > 0)
    log_field = np.zeros(small.volume.shape, np.float32)
    log_field[there] = np.log(small.volume[there] / np.maximum(from_itk(corrected).volume[there], 1e-6))
    # The field is known within the head; the air around takes that of the nearest voxel of the head
    if there.any():
        nearest = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
        log_field = log_field[tuple(nearest)] - log_field[there].mean()
    voxels = np.linalg.inv(small.affine) @ scan.affine
    field_there = ndimage.affine_transform(
        ndimage.gaussian_filter(log_field, 1.0), voxels, output_shape=scan.volume.shape, order=1, mode="nearest"
    )
    return Scan(scan.volume / np.exp(field_there), scan.affine)
