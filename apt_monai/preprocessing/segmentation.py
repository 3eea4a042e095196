"""A study's segmentation is carried along with the scan on whose grid it was drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.preprocessing.resampling import resample_labels
from apt_monai.preprocessing.scan import Matrix, Scan

logger = logging.getLogger(__name__)


def carry_segmentation(
    subject: str,
    path: str,
    scans: Mapping[str, Scan],
    matrices: Mapping[str, Matrix],
    shape: Sequence[int],
    affine: Matrix,
) -> tuple[str, NDArray[np.uint8]] | None:
    """Put a segmentation on the output grid, each voxel with the label that is nearest.

    Args:
        subject: the study's name, for the log.
        path: the segmentation.
        scans: by contrast, the best reference first: of several on the segmentation's grid the first counts.
        matrices: 4×4, mm of output space to mm of each scan's.
        shape: of the output grid.
        affine: 4×4, the output grid's voxels to mm.

    Returns:
        The scan that it was carried with, and the labels. None where it cannot be carried along (it is on the grid of
        no scan, cannot be read, or holds something else than whole numbers from 0 to 255): the log says so.
    """
    try:
        labels = Scan(*read_volume(path))
        reason = _unfit(labels)
    except StudyError as error:
        reason = str(error)
    on = [] if reason else [name for name, scan in scans.items() if scan.is_on(labels.volume.shape, labels.affine)]
    if not on:
        reason = reason or f"it is on the grid of none of the study's scans ({', '.join(scans)})"
        logger.warning("%s: the segmentation %s is left out: %s", subject, path, reason)
        return None
    name = on[0]
    if any(not np.array_equal(matrices[other], matrices[name]) for other in on):
        moved = "the head moved between %s, on whose one grid %s is; the segmentation goes with %s"
        logger.warning(f"%s: {moved}", subject, ", ".join(on), path, name)
    return name, resample_labels(labels, shape, affine, matrices[name])


def _unfit(labels: Scan) -> str | None:
    low, high = labels.volume.min(), labels.volume.max()
    if low >= 0 and high <= 255 and np.array_equal(labels.volume, np.rint(labels.volume)):
        return None
    return f"it holds {low:g} to {high:g}; labels are whole numbers from 0 to 255"
