"""Preprocessing: the raw scans of a study become skull-stripped volumes on one grid, as the networks need them.

BraTS comes that way; ADNI does not: T1 is a 3D scan of 1 mm, PD and T2 are the two echoes of one scan with 3 mm axial
slices, the head moved in between, and skull and scalp are there. For each study:

1. N4 bias correction of each scan (ITK; the smooth field is estimated at about 4 mm and applied to every voxel);
2. rigid registration by Mattes mutual information (ITK), coarse to fine. Scans on the same voxel grid count as acquired
   together (the echoes of PD and T2) and share one transform;
3. a brain mask: of ITK filters, of deepbet, or a file of the user's own;
4. resampling onto one grid, and 0 outside the brain.

Space is millimetres, RAS+, as in NIfTI: the "output space" is the scanner space of the study's reference scan, and each
scan has a 4×4 matrix from output space to its own scanner space.

What is written, and what :func:`apt_monai.data.read_studies` reads::

    OUT/preprocessing.json                          the settings
    OUT/<subject>/<subject>_<contrast>.nii.gz       float32, 0 outside the brain and above 0 inside, all on one grid
    OUT/<subject>/preprocessing/brainmask.nii.gz    uint8, on the same grid
    OUT/<subject>/preprocessing/transforms.json     the matrices, each scan's own grid, movement, input files
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.model_store import complete_file
from apt_monai.transforms import StudyError, read_volume

logger = logging.getLogger(__name__)

Volume = NDArray[np.float32]
Matrix = NDArray[np.float64]

VERSION = 1  # raise it with every change of what comes out: another version's folder is refused
SETTINGS_NAME = "preprocessing.json"
DETAILS_FOLDER = "preprocessing"  # within a study's folder; the readers look at no folder below a study
TRANSFORMS_NAME = "transforms.json"
BRAIN_MASK_NAME = "brainmask.nii.gz"

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world axes to ITK's, and back
_SAME_GRID_MM = 1e-3
_FLOAT_IMAGE = itk.Image[itk.F, 3]


@dataclass(frozen=True)
class PreprocessingSettings:
    """What the preprocessed volumes depend on beside the scans.

    Args:
        grid: the contrasts on whose grid the volumes come, the first that the study has; or a number: isotropic voxels
            of that edge in mm, along the axes of the scanner, over the field of view of the study's first contrast.
            The default is the grid of PD and T2: two of ADNI's three contrasts then keep their acquired voxels, and
            only T1 is resampled, from finer to coarser (with the slice thickness averaged); a finer grid would invent
            two of three slices of PD and T2. Its slices are axial too, as the networks need them.
        mask: the brain mask: ``"itk"``, thresholds and morphology, which need nothing but do not know anatomy;
            ``"deepbet"``, a network for T1 (``pip install deepbet``, weights included), for the studies that have T1;
            or a path with ``{subject}`` in it, such as ``masks/{subject}_mask.nii.gz``: masks of your own, above 0 in
            the brain, on the grid of one of the study's scans.
        bias_spacing: the voxel size in mm at which the bias field is estimated.
        levels: the voxel sizes in mm of the registration, coarse to fine.

    Raises:
        ValueError: a setting is not valid.

    Example::

        >>> PreprocessingSettings().grid
        ('pd', 't2', 't1')
        >>> PreprocessingSettings(grid=1.5).grid
        1.5
    """

    grid: tuple[str, ...] | float = ("pd", "t2", "t1")
    mask: str = "itk"
    bias_spacing: float = 4.0
    levels: tuple[float, ...] = (8.0, 4.0, 2.0)

    def __post_init__(self) -> None:
        if isinstance(self.grid, (int, float)) and not 0.2 <= self.grid <= 20:
            raise ValueError(f"grid is {self.grid} mm: valid is 0.2 to 20, or names of contrasts")
        if not isinstance(self.grid, (int, float)) and not self.grid:
            raise ValueError("grid names no contrast: give at least one, or a voxel edge in mm")
        if self.mask not in MASK_TOOLS and "{subject}" not in self.mask:
            raise ValueError(
                f"mask is {self.mask!r}: valid are {', '.join(MASK_TOOLS)}, or a path with {{subject}} in it, such as "
                "masks/{subject}_mask.nii.gz"
            )
        if not self.levels or min(self.levels) <= 0 or self.bias_spacing <= 0:
            raise ValueError(f"levels {self.levels} and bias_spacing {self.bias_spacing} must be voxel sizes above 0 mm")


@dataclass(frozen=True)
class Scan:
    """A volume in its scanner space.

    Args:
        volume: float32 (X, Y, Z).
        affine: 4×4, voxels to mm, RAS+.
    """

    volume: Volume
    affine: Matrix

    @property
    def spacing(self) -> NDArray[np.float64]:
        """The voxel edges in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def is_on(self, shape: Sequence[int], affine: Matrix) -> bool:
        """Whether this is the voxel grid: the same shape, and no corner more than 1e-3 mm away."""
        if self.volume.shape != tuple(shape):
            return False
        corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape))]).T  # 4×8
        return bool(np.linalg.norm((self.affine - affine) @ corners, axis=0).max() <= _SAME_GRID_MM)


# ITK and back


def _to_itk(scan: Scan) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(scan.volume.T, dtype=np.float32))  # ITK's arrays are (Z, Y, X)
    affine = _RAS_TO_LPS @ scan.affine
    image.SetSpacing(scan.spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(np.ascontiguousarray(affine[:3, :3] / scan.spacing))
    return image


def _from_itk(image: Any) -> Scan:
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Scan(np.ascontiguousarray(itk.array_from_image(image).T), _RAS_TO_LPS @ affine)


def _shrink(scan: Scan, spacing: float) -> Scan:
    """Average blocks of voxels, so many along each axis that their edges come nearest to ``spacing`` mm."""
    factors = np.clip(np.rint(spacing / scan.spacing), 1, np.array(scan.volume.shape) // 2).astype(int)
    return _from_itk(itk.bin_shrink_image_filter(_to_itk(scan), shrink_factors=factors.tolist()))


def _otsu_thresholds(values: NDArray[np.floating[Any]], count: int) -> list[float]:
    """Otsu's thresholds of any array of values; the brightest percent (fat, vessels) counts as equally bright."""
    clipped = np.clip(values, None, np.percentile(values, 99)).astype(np.float32).reshape(1, 1, -1)
    calculator = itk.OtsuMultipleThresholdsImageFilter.New(
        itk.image_from_array(clipped), number_of_thresholds=count, number_of_histogram_bins=256
    )
    calculator.Update()
    return list(calculator.GetThresholds())


# 1. Bias correction


def correct_bias(scan: Scan, spacing: float = 4.0) -> Scan:
    """Divide a scan by its bias field, as ITK's N4 estimates it within the head.

    Args:
        scan: intensities of 0 and above.
        spacing: the voxel size in mm at which the field is estimated; it is smooth, so a coarse one loses nothing.

    Returns:
        The scan without the field, its head's mean logarithmic intensity as before.
    """
    small = _shrink(scan, spacing)
    head = small.volume > _otsu_thresholds(small.volume, 1)[0]
    image, mask = _to_itk(small), _to_itk(Scan(head.astype(np.float32), small.affine))
    corrected = itk.n4_bias_field_correction_image_filter(
        image, mask_image=itk.cast_image_filter(mask, ttype=(type(mask), itk.Image[itk.UC, 3]))
    )
    there = head & (small.volume > 0)
    log_field = np.zeros(small.volume.shape, np.float32)
    log_field[there] = np.log(small.volume[there] / np.maximum(_from_itk(corrected).volume[there], 1e-6))
    # The field is known within the head; the air around takes that of the nearest voxel of the head
    if there.any():
        nearest = ndimage.distance_transform_edt(~there, return_distances=False, return_indices=True)
        log_field = log_field[tuple(nearest)] - log_field[there].mean()
    voxels = np.linalg.inv(small.affine) @ scan.affine
    field_there = ndimage.affine_transform(
        ndimage.gaussian_filter(log_field, 1.0), voxels, output_shape=scan.volume.shape, order=1, mode="nearest"
    )
    return Scan(scan.volume / np.exp(field_there), scan.affine)


# 2. Registration


def register_rigidly(fixed: Scan, moving: Scan, levels: Sequence[float] = (8.0, 4.0, 2.0)) -> tuple[Matrix, float]:
    """Find how the head moved between two scans, by Mattes mutual information.

    The search starts from three guesses: the scanner's own coordinates, the middles of the two fields of view on each
    other, and the centres of mass on each other. Each is optimised at the coarsest level, and the best goes on to the
    finer ones. The same input gives the same result.

    Args:
        fixed: one scan.
        moving: the other.
        levels: voxel sizes in mm, coarse to fine.

    Returns:
        The 4×4 matrix from mm of the fixed scan's space to mm of the moving scan's, RAS+, and the mutual information
        in nats.

    Raises:
        RuntimeError: ITK could not register them (they do not overlap from any guess).
    """
    first, *finer = levels
    small_fixed, small_moving = _shrink(fixed, first), _shrink(moving, first)
    tries, errors = [], []
    for start in _starts(small_fixed, small_moving):
        try:
            tries.append(_optimise(_to_itk(small_fixed), _to_itk(small_moving), start, step=first / 2))
        except RuntimeError as error:
            errors.append(str(error).strip().splitlines()[-1])
    if not tries:
        raise RuntimeError(f"the registration failed: {errors[0]}")
    transform, information = max(tries, key=lambda each: each[1])
    for level in finer:
        images = _to_itk(_shrink(fixed, level)), _to_itk(_shrink(moving, level))
        transform, information = _optimise(*images, transform, step=level / 4)
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = np.asarray(transform.GetOffset())
    return _RAS_TO_LPS @ matrix @ _RAS_TO_LPS, information


def _starts(fixed: Scan, moving: Scan) -> list[Any]:
    """The guesses from which the registration starts, each an Euler3DTransform about the fixed head's middle."""
    middles, masses = [], []
    for scan in (fixed, moving):
        affine = _RAS_TO_LPS @ scan.affine
        middle, mass = (np.array(scan.volume.shape) - 1) / 2, ndimage.center_of_mass(scan.volume)
        middles.append((affine @ [*middle, 1])[:3])
        masses.append((affine @ [*mass, 1])[:3])
    starts = []
    for shift in (np.zeros(3), middles[1] - middles[0], masses[1] - masses[0]):
        start = itk.Euler3DTransform[itk.D].New()
        start.SetCenter(masses[0].tolist())
        start.SetTranslation(shift.tolist())
        starts.append(start)
    return starts


def _optimise(fixed: Any, moving: Any, start: Any, step: float) -> tuple[Any, float]:
    """Optimise a copy of the transform on these images; returns it with the mutual information that it reached."""
    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter(start.GetCenter())
    transform.SetParameters(start.GetParameters())
    metric = itk.MattesMutualInformationImageToImageMetricv4[_FLOAT_IMAGE, _FLOAT_IMAGE].New(
        NumberOfHistogramBins=48, UseMovingImageGradientFilter=False, UseFixedImageGradientFilter=False
    )
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric)
    optimiser = itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        LearningRate=step, MinimumStepLength=step / 100, RelaxationFactor=0.5, NumberOfIterations=100,
        ScalesEstimator=scales, DoEstimateLearningRateOnce=False, DoEstimateLearningRateAtEachIteration=False,
        ReturnBestParametersAndValue=True,
    )  # fmt: skip
    registration = itk.ImageRegistrationMethodv4[_FLOAT_IMAGE, _FLOAT_IMAGE].New(
        FixedImage=fixed, MovingImage=moving, Metric=metric, Optimizer=optimiser, InitialTransform=transform
    )
    registration.SetNumberOfLevels(1)  # the images are shrunk already
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0])
    registration.InPlaceOn()
    registration.Update()
    return transform, -float(optimiser.GetValue())
