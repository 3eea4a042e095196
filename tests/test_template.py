"""The pose of a template: every head of a tumour data set lies alike, and none changes its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny_heads import movement
from tiny_studies import write_nifti

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.errors import StudyError
from apt_monai.preprocessing import PreprocessingSettings
from apt_monai.preprocessing.resampling import resample
from apt_monai.preprocessing.scan import Scan
from apt_monai.preprocessing.settings import REFERENCE
from apt_monai.preprocessing.template import find_pose, read_template

COARSE = PreprocessingSettings(levels=(8.0, 4.0))
GRID = np.array([[-4.0, 0, 0, 100], [0, 4.0, 0, -130], [0, 0, 5.0, -80], [0, 0, 0, 1]])


def test_a_moved_head_is_brought_into_the_templates_pose_on_the_grid_of_brats() -> None:
    template = read_template("mni152")
    moved = movement((8.0, -6.0, 10.0), (12, -9, 7))  # template mm to scanner mm
    volume = resample(template, (52, 62, 36), GRID, np.linalg.inv(moved), order=1)
    scan = Scan(np.sqrt(volume), GRID)  # another contrast
    pose = find_pose("case", scan, volume > 0.1, "mni152", COARSE)
    corners = np.array(np.meshgrid([-60, 60], [-90, 60], [-40, 70])).reshape(3, -1)
    found, true = (matrix @ np.vstack([corners, np.ones(8)]) for matrix in (pose.matrix, moved))
    assert np.linalg.norm((found - true)[:3], axis=0).max() < 1.5  # mm
    assert np.allclose(pose.matrix[:3, :3] @ pose.matrix[:3, :3].T, np.eye(3)), "rigid: no brain changes its size"

    shape, affine = pose.grid(1.0)
    assert shape == (240, 240, 155) and np.array_equal(np.diag(affine), [-1, -1, 1, 1])
    brain = resample(template, shape, affine, np.eye(4), order=1) > 0
    middle = [(part.start + part.stop) / 2 for part in ndimage.find_objects(brain.astype(int))[0]]
    assert np.abs(np.array(middle) - np.array(shape) / 2).max() < 2, "the brain is in the middle of the field of view"


def test_a_template_of_ones_own_is_a_skull_stripped_head(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "head.nii.gz", np.ones((5, 5, 5), np.float32), np.eye(4))
    with pytest.raises(StudyError, match=r"head\.nii\.gz: has no background of 0"):
        read_template(path)


def test_tumour_studies_have_a_template_unless_they_are_to_lie_as_they_were_scanned() -> None:
    assert PreprocessingSettings().template_of(BRATS) == "mni152"
    assert PreprocessingSettings(template="sri24.nii.gz").template_of(BRATS) == "sri24.nii.gz"
    assert PreprocessingSettings(template=REFERENCE).template_of(BRATS) is None
    assert PreprocessingSettings().template_of(ADNI) is None  # two of its contrasts keep their voxels
