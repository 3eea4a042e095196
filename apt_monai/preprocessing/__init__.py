"""Preprocessing: the raw scans of a study become skull-stripped volumes on one grid, as the networks need them.

BraTS comes that way; ADNI does not: T1 is a 3D scan of 1 mm, PD and T2 are the two echoes of one scan with 3 mm axial
slices, the head moved in between, and skull and scalp are there. For each study:

1. N4 bias correction of each scan (ITK; the smooth field is estimated at about 6 mm and applied to every voxel);
2. rigid registration by Mattes mutual information (ITK), coarse to fine. The echoes of one scan (PD and T2 of ADNI,
   where they are on one voxel grid) share one transform. Other scans on one grid do not: it is planned once, and the
   patient moves, as between T1 and T1Gd;
3. a brain mask: by ITK filters, by deepbet, or a file of the user's own;
4. for tumour studies, the pose of a template (MNI152), on a grid of BraTS's extent: rigid, so that no brain changes its
   size;
5. resampling onto one grid, and 0 outside the brain. A segmentation goes with the scan on whose grid it was drawn.

Space is millimetres, RAS+, as in NIfTI: the "output space" is that of the template where there is one, else the scanner
space of the study's reference scan, and each scan has a 4×4 matrix from output space to its own scanner space.

What is written, and what :func:`apt_monai.data.readers.read_studies` reads::

    OUT/preprocessing.json                          the settings
    OUT/<subject>/<subject>_<contrast>.nii.gz       float32, 0 outside the brain, all on one grid
    OUT/<subject>/<subject>_mask.nii.gz             uint8, the brain, on the same grid
    OUT/<subject>/<subject>_seg.nii.gz              uint8, the nearest labels on the same grid, where there are some
    OUT/<subject>/preprocessing/transforms.json     the matrices, each scan's own grid, movement, input files
"""

from apt_monai.preprocessing.cohort import PreprocessingReport, preprocess_cohort
from apt_monai.preprocessing.restore import restore_study, to_scanner_space
from apt_monai.preprocessing.settings import PreprocessingSettings
from apt_monai.preprocessing.study import preprocess_study

__all__ = [
    "PreprocessingReport",
    "PreprocessingSettings",
    "preprocess_cohort",
    "preprocess_study",
    "restore_study",
    "to_scanner_space",
]
