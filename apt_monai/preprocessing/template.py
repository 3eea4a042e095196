"""The pose of a template: how a head is turned so that it lies as every other one of its data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.preprocessing.registration import register_rigidly
from apt_monai.preprocessing.scan import Matrix, Scan
from apt_monai.preprocessing.settings import PreprocessingSettings

MNI152 = "mni152"
EXTENT = (240.0, 240.0, 155.0)
"""The field of view of BraTS in mm, along x, y and z."""
_NO_NILEARN = "the MNI152 template comes with nilearn: pip install 'apt_monai[preprocess]', or name one by its path"


@dataclass(frozen=True)
class Pose:
    """Where a study's reference scan lies in the space of a template.

    Args:
        matrix: 4×4, mm of the template's space to mm of the reference's.
        information: the mutual information of both, in nats.
        centre: the middle of the template's brain, in mm of its space.
    """

    matrix: Matrix
    information: float
    centre: NDArray[np.float64]

    def grid(self, spacing: float) -> tuple[tuple[int, ...], Matrix]:
        """The grid of BraTS, to the left, back and up (LPS), around the template's brain.

        Example::

            >>> Pose(np.eye(4), 1.0, np.zeros(3)).grid(1.0)[0]
            (240, 240, 155)
        """
        shape = np.rint(np.array(EXTENT) / spacing).astype(int)
        affine = np.diag([-spacing, -spacing, spacing, 1.0])
        affine[:3, 3] = self.centre - affine[:3, :3] @ (shape - 1) / 2
        return tuple(int(n) for n in shape), affine


def find_pose(
    subject: str, reference: Scan, brain: NDArray[np.bool_], template: str, settings: PreprocessingSettings
) -> Pose:
    """Register a study's reference scan rigidly to a template, brain to brain.

    Args:
        subject: the study's name.
        reference: the scan.
        brain: its brain, of the same shape.
        template: ``"mni152"``, or the path of a skull-stripped head, 0 outside the brain.
        settings: the levels of the registration.

    Raises:
        StudyError: the template cannot be read, or the registration fails.
        ImportError: nilearn, which has MNI152, is not installed.
    """
    fixed = read_template(template)
    moving = Scan(np.where(brain, reference.volume, 0).astype(np.float32), reference.affine)
    try:
        matrix, information = register_rigidly(fixed, moving, settings.levels)
    except RuntimeError as error:
        raise StudyError(
            f"study {subject!r}: could not be registered to the template {template} ({error}); look at its scans, or "
            "take the pose of its own reference scan: --template reference"
        ) from error
    return Pose(matrix, information, _middle(fixed))


def read_template(template: str) -> Scan:
    """A template's head, 0 outside the brain.

    Raises:
        StudyError: the file cannot be read, or is not skull-stripped.
        ImportError: nilearn is not installed.

    Example::

        >>> read_template("mni152").volume.shape
        (99, 117, 95)
    """
    if template == MNI152:
        try:
            from nilearn.datasets import load_mni152_template
        except ImportError as error:
            raise ImportError(_NO_NILEARN) from error
        image = load_mni152_template(resolution=2)  # no level of the registration is finer
        return Scan(np.asarray(image.dataobj, np.float32), np.asarray(image.affine, np.float64))
    volume, affine = read_volume(template)
    if not (volume == 0).mean() > 0.2:
        raise StudyError(
            f"{template}: has no background of 0 around a brain; a template is skull-stripped: name another one"
        )
    return Scan(volume, affine)


def _middle(scan: Scan) -> NDArray[np.float64]:
    """The middle of the box of what is not 0, in mm."""
    occupied: Sequence[NDArray[np.int64]] = np.nonzero(scan.volume)
    voxel = [(axis.min() + axis.max()) / 2 for axis in occupied]
    return np.asarray((scan.affine @ [*voxel, 1])[:3])
