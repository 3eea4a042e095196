"""Preprocessing: the raw scans of a study become skull-stripped volumes on one grid, as the networks need them.

BraTS comes that way; ADNI does not: T1 is a 3D scan of 1 mm, PD and T2 are the two echoes of one scan with 3 mm axial
slices, the head moved in between, and skull and scalp are there. For each study:

1. N4 bias correction of each scan (ITK; the smooth field is estimated at about 6 mm and applied to every voxel);
2. rigid registration by Mattes mutual information (ITK), coarse to fine. The echoes of one
   scan (PD and T2 of ADNI, where they are on one voxel grid) share one transform. Other scans on one grid do not: it is
   planned once, and the patient moves, as between T1 and T1Gd;
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.files import complete_file, complete_folder, write_text
from apt_monai.geometry import same_grid, set_space
from apt_monai.io import read_volume
from apt_monai.io.sidecar import is_synthetic_name, sidecar_path

logger = logging.getLogger(__name__)

Volume = NDArray[np.float32]
Matrix = NDArray[np.float64]

VERSION = 2  # raise it with every change of what comes out: another version's folder is refused
SETTINGS_NAME = "preprocessing.json"
DETAILS_FOLDER = "preprocessing"  # within a study's folder; the readers look at no folder below a study
TRANSFORMS_NAME = "transforms.json"
BRAIN_MASK_NAME = "brainmask.nii.gz"

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world axes to ITK's, and back
_NO_DEEPBET = (
    "mask 'deepbet' needs the package deepbet: pip install 'apt_monai[preprocess]'; "
    "or use mask 'itk', or masks of your own"
)
_FLOAT_IMAGE = itk.Image[itk.F, 3]


@dataclass(frozen=True)
class PreprocessingSettings:
    """What the preprocessed volumes depend on beside the scans.

    Args:
        grid: the contrasts on whose grid the volumes come, the first that the study has; or a number: isotropic voxels
            of that edge in mm, along the axes and over the field of view of the study's reference scan (the first that
            it has of the contrast set's ``references``). None is the contrast set's own: for BraTS 1 mm, for ADNI the
            grid of PD and T2.
        mask: the brain mask. ``"deepbet"``: a network for T1 (``pip install deepbet``, weights included, MIT licence);
            a study without T1 gives it T1Gd, and one without a T1-weighted scan gets the filters. ``"itk"``: the
            filters, which need no other package and know no anatomy. Or a path with ``{subject}`` in it, such as
            ``masks/{subject}_mask.nii.gz``: masks of your own, above 0 in the brain, on the grid of one of the study's
            scans. On the phantom's T1 (3 mm, two subjects) deepbet's Dice with the true mask was 0.97 and 0.97, that
            of the filters 0.96 and 0.92 (the second one atrophic).
        bias_spacing: the voxel size in mm at which the bias field is estimated.
        levels: the voxel sizes in mm of the registration, coarse to fine.
        brain_ml: the least and greatest volume of a mask that a tool made. What is within the skull has about 1,100 to
            1,900 ml in adults, with atrophy too (fluid takes the brain's place), and 600 or more from a few months of
            age on; a mask with the scalp in it has more than 2,000. A mask of the user's own is taken as it is.

    Raises:
        ValueError: a setting is not valid.

    Example::

        >>> PreprocessingSettings(grid=1.5).grid
        1.5
        >>> PreprocessingSettings().grid_of(get_contrast_set("adni"))
        ('pd', 't2', 't1')
    """

    grid: tuple[str, ...] | float | None = None
    mask: str = "deepbet"
    bias_spacing: float = 6.0
    levels: tuple[float, ...] = (8.0, 4.0, 2.0)
    brain_ml: tuple[float, float] = (600.0, 2000.0)

    def __post_init__(self) -> None:
        if isinstance(self.grid, (int, float)) and not 0.2 <= self.grid <= 20:
            raise ValueError(f"grid is {self.grid} mm: valid is 0.2 to 20, or names of contrasts")
        if self.grid == ():
            raise ValueError("grid names no contrast: give at least one, or a voxel edge in mm")
        if self.mask not in MASK_TOOLS and "{subject}" not in self.mask:
            raise ValueError(
                f"mask is {self.mask!r}: valid are {', '.join(MASK_TOOLS)}, or a path with {{subject}} in it, such as "
                "masks/{subject}_mask.nii.gz"
            )
        if not self.levels or min(self.levels) <= 0 or self.bias_spacing <= 0:
            raise ValueError(
                f"levels {self.levels} and bias_spacing {self.bias_spacing} must be voxel sizes above 0 mm"
            )
        if not 0 <= self.brain_ml[0] < self.brain_ml[1]:
            raise ValueError(f"brain_ml is {self.brain_ml[0]:g} to {self.brain_ml[1]:g} ml: valid is low to high")

    def grid_of(self, contrasts: ContrastSet) -> tuple[str, ...] | float:
        """The grid that is asked for, or else the contrast set's own."""
        return contrasts.grid if self.grid is None else self.grid


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
        return same_grid(self.volume.shape, self.affine, shape, affine)


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
    small = _shrink(scan, spacing)
    head = small.volume > _otsu_thresholds(small.volume, 1)[0]
    image, mask = _to_itk(small), _to_itk(Scan(head.astype(np.float32), small.affine))
    corrected = itk.n4_bias_field_correction_image_filter(
        image,
        mask_image=itk.cast_image_filter(mask, ttype=(type(mask), itk.Image[itk.UC, 3])),
        number_of_fitting_levels=levels,
        maximum_number_of_iterations=[iterations] * levels,
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
        LearningRate=step, MinimumStepLength=step / 100, RelaxationFactor=0.85, NumberOfIterations=200,
        ScalesEstimator=scales, DoEstimateLearningRateOnce=False, DoEstimateLearningRateAtEachIteration=False,
    )  # fmt: skip
    registration = itk.ImageRegistrationMethodv4[_FLOAT_IMAGE, _FLOAT_IMAGE].New(
        FixedImage=fixed, MovingImage=moving, Metric=metric, Optimizer=optimiser, InitialTransform=transform
    )
    registration.SetNumberOfLevels(1)  # the images are shrunk already
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0])
    registration.InPlaceOn()
    registration.Update()
    return transform, -float(metric.GetValue())


# 3. The brain mask


def mask_by_filters(scan: Scan) -> Scan:
    """Mask the brain by thresholds and morphology: the largest bright piece deep in the head, sulci filled.

    It needs no training, and knows no anatomy: it errs where brain and scalp touch, and above the spinal cord. Look at
    the masks before you trust them, or give your own.

    Args:
        scan: a scan of the head, bias corrected.

    Returns:
        The mask, 0 or 1, at about 2 mm.

    Raises:
        StudyError: no piece of the head can be the brain.
    """
    small = _shrink(scan, 2.0)
    spacing = small.spacing

    def within(mask: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
        return ndimage.distance_transform_edt(mask, sampling=spacing) > distance

    head = small.volume > 0.5 * _otsu_thresholds(small.volume, 1)[0]
    pad = [(1 + int(np.ceil(10 / step)),) * 2 for step in spacing]
    closed = within(~within(~np.pad(head, pad), 10.0), 10.0)  # air cells and the dark skull between scalp and brain
    unpad = tuple(slice(before, -after) for before, after in pad)
    head = _largest(ndimage.binary_fill_holes(closed[unpad]))
    dark, _ = _otsu_thresholds(small.volume[head], 2)
    deep = within(np.pad(head, 1, mode="edge"), 5.0)[1:-1, 1:-1, 1:-1]  # scalp is never brain
    tissue = (small.volume > dark) & deep
    core = _largest(within(tissue, 4.0))
    if not core.any():
        raise StudyError("no brain was found by thresholds; give a mask of your own")
    grown = ~within(~core, 5.0) & tissue
    margin = [(1 + int(np.ceil(12 / step)),) * 2 for step in spacing]
    padded = np.pad(grown, margin)
    brain = within(~within(~padded, 12.0), 11.0)[tuple(slice(before, -after) for before, after in margin)]
    return Scan(ndimage.binary_fill_holes(brain | grown).astype(np.float32), small.affine)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (labels == sizes.argmax()) & mask


def mask_by_deepbet(scan: Scan) -> Scan:
    """Mask the brain of a T1 scan by deepbet's network (Fisch et al., Comput Biol Med 2024), on the CPU.

    Its weights come with its package; about 1.5 GB of memory.

    Raises:
        ImportError: deepbet is not installed.
    """
    try:
        deepbet = import_module("deepbet")
    except ImportError as error:
        raise ImportError(_NO_DEEPBET) from error
    _, mask, _ = deepbet.BrainExtraction(no_gpu=True).run(nib.Nifti1Image(scan.volume, scan.affine))
    return Scan(np.asarray(mask.dataobj, dtype=np.float32), scan.affine)


MASK_TOOLS: Mapping[str, Callable[[Scan], Scan]] = {"itk": mask_by_filters, "deepbet": mask_by_deepbet}


# 4. Resampling


def resample(scan: Scan, shape: Sequence[int], affine: Matrix, matrix: Matrix, order: int = 3) -> Volume:
    """Sample a scan on another grid in another space.

    Where a voxel of that grid is larger than the scan's, several samples along that edge are averaged: a thick slice
    shows the mean of the thin ones within it.

    Args:
        scan: what is sampled.
        shape: voxels of the grid.
        affine: 4×4, the grid's voxels to mm of its own space.
        matrix: 4×4, mm of that space to mm of the scan's.
        order: of the spline, 0 nearest, 1 linear, 3 cubic.

    Returns:
        float32 of the shape; 0 where the scan does not reach.

    Example::

        >>> thin = Scan(np.arange(8, dtype=np.float32).reshape(1, 1, 8).repeat(2, 0).repeat(2, 1), np.eye(4))
        >>> thick = np.diag([1.0, 1.0, 2.0, 1.0])
        >>> thick[2, 3] = 0.5  # the first thick slice covers the thin slices 0 and 1
        >>> resample(thin, (2, 2, 4), thick, np.eye(4), order=1)[0, 0].tolist()
        [0.5, 2.5, 4.5, 6.5]
    """
    voxels = np.linalg.inv(scan.affine) @ matrix @ affine
    parts = np.maximum(1, np.rint(np.linalg.norm(voxels[:3, :3], axis=0))).astype(int)
    finer = np.diag([*(1 / parts), 1.0])
    finer[:3, 3] = (1 / parts - 1) / 2
    fine_shape = [int(n * part) for n, part in zip(shape, parts, strict=True)]
    fine = ndimage.affine_transform(
        scan.volume, voxels @ finer, output_shape=fine_shape, output=np.float32, order=order, mode="constant"
    )
    (x, y, z), (i, j, k) = shape, parts
    return fine.reshape(x, i, y, j, z, k).mean(axis=(1, 3, 5))


def _isotropic_grid(scan: Scan, spacing: float) -> tuple[tuple[int, ...], Matrix]:
    """The grid of isotropic voxels along a scan's own axes, in the order nearest to RAS, over its field of view."""
    left, _, right = np.linalg.svd(scan.affine[:3, :3] / scan.spacing)
    axes = left @ right  # the nearest right angles: a sheared scan's axes have others
    order = nib.io_orientation(np.vstack([np.column_stack([axes, np.zeros(3)]), [0, 0, 0, 1]]))
    turned = np.empty((3, 3))
    for axis, (nearest, sign) in enumerate(order):
        turned[:, int(nearest)] = sign * axes[:, axis]
    edges = product(*((-0.5, n - 0.5) for n in scan.volume.shape))
    corners = turned.T @ (scan.affine @ np.array([[*edge, 1] for edge in edges]).T)[:3]  # 3×8
    low, high = corners.min(axis=1), corners.max(axis=1)
    shape = np.ceil((high - low) / spacing - 1e-6).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turned * spacing
    affine[:3, 3] = turned @ ((low + high) / 2 - spacing * (shape - 1) / 2)
    return tuple(int(n) for n in shape), affine


# A study


def preprocess_study(
    study: Mapping[str, str],
    out: str | Path,
    contrasts: str | ContrastSet,
    settings: PreprocessingSettings | None = None,
) -> Path:
    """Preprocess one study. ITK works with a single thread from here on, so that the same scans give the same voxels.

    Args:
        study: ``{"subject": name, <contrast>: path, ...}``, any non-empty subset of the contrasts, on any grids; with
            ``"mask"``, a brain mask on the grid of one of them, it is taken instead of what the settings say.
        out: the folder in which the study's own folder is made.
        contrasts: the contrast set, or its name.
        settings: how; the defaults if None.

    Returns:
        The study's folder, complete; see the module for what is in it.

    Raises:
        StudyError: a scan cannot be used, the study has none of the contrasts whose grid is asked for, the registration
            fails, or there is no usable brain mask.
        OSError: the folder cannot be written.

    Example::

        >>> axis = np.linspace(-1, 1, 24)
        >>> radius = np.sqrt(sum(np.square(np.meshgrid(axis, axis, axis))))
        >>> scan = (100 * (radius < 0.6) + 60 * ((radius > 0.8) & (radius < 0.97)) + 3).astype(np.float32)
        >>> nib.save(nib.Nifti1Image(scan, np.diag([6, 6, 6, 1])), "case_t1.nii.gz")
        >>> study, settings = {"subject": "case", "t1": "case_t1.nii.gz"}, PreprocessingSettings(mask="itk")
        >>> folder = preprocess_study(study, "out", "adni", settings)
        >>> sorted(path.name for path in folder.iterdir())
        ['case_t1.nii.gz', 'preprocessing']
    """
    contrast_set = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
    settings = settings or PreprocessingSettings()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    subject = study["subject"]
    if subject in ("", ".", "..") or Path(subject).name != subject:
        raise StudyError(f"subject {subject!r}: names a folder of the output, so it must be a plain name without '/'")
    contrast_set.check(set(study) - {"subject", "mask"})
    names = [name for name in contrast_set.names if name in study]
    if not names:
        raise StudyError(
            f"study {subject!r}: has no contrast; at least one of {', '.join(contrast_set.names)} is needed"
        )
    raw = {name: _read_scan(study[name]) for name in names}
    grid = settings.grid_of(contrast_set)
    ranked = [name for name in contrast_set.references or names if name in raw]
    reference = _reference(subject, ranked, grid)

    scans = {name: correct_bias(scan, settings.bias_spacing) for name, scan in raw.items()}
    matrices, information = _register_study(subject, scans, reference, contrast_set, settings.levels)
    mask = _brain_mask(subject, scans, contrast_set, settings, study.get("mask"))
    logger.info("%s: brain mask by %s", subject, mask.origin)
    if isinstance(grid, (int, float)):
        shape, affine = _isotropic_grid(scans[reference], grid)
    else:
        shape, affine = scans[reference].volume.shape, scans[reference].affine
    brain = resample(mask.scan, shape, affine, matrices[mask.space], order=1) > 0.5
    found = np.count_nonzero(brain)
    for name, scan in scans.items():  # what one scan does not reach, no volume has
        brain &= resample(Scan(np.ones_like(scan.volume), scan.affine), shape, affine, matrices[name], order=1) > 0.5
    if np.count_nonzero(brain) < max(1, found / 2):
        raise StudyError(
            f"study {subject!r}: its scans share {np.count_nonzero(brain)} of {found} voxels of the brain mask; "
            "the registration failed, or the scans show different parts of the head: exclude one of the scans"
        )

    folder = Path(out) / subject
    with complete_folder(folder) as incomplete:
        (incomplete / DETAILS_FOLDER).mkdir()
        for name, scan in scans.items():
            if scan.is_on(shape, affine) and np.array_equal(matrices[name], np.eye(4)):
                values = scan.volume
            else:
                values = resample(scan, shape, affine, matrices[name])
            # The readers take 0 for background: brain is kept just above it where a spline swings below
            inside = np.maximum(values, 1e-4 * float(values[brain].max()))
            _save_nifti(np.where(brain, inside, 0).astype(np.float32), affine, incomplete / f"{subject}_{name}.nii.gz")
        _save_nifti(brain.astype(np.uint8), affine, incomplete / DETAILS_FOLDER / BRAIN_MASK_NAME)
        record = {
            "subject": subject,
            "version": VERSION,
            "space": "millimetres, RAS+; 'to_scanner' maps output space to the scan's own scanner space",
            "reference": reference,
            "grid": {"shape": list(shape), "affine": affine.tolist()},
            "mask": {
                "from": mask.origin,
                "scan": mask.space,
                "ml": mask.ml,
                "input": _fingerprint(study["mask"]) if "mask" in study else None,
            },
            "brain_ml": round(float(np.count_nonzero(brain) * abs(np.linalg.det(affine[:3, :3])) / 1000), 1),
            "scans": {
                name: {
                    "to_scanner": matrices[name].tolist(),
                    "grid": {"shape": list(scan.volume.shape), "affine": scan.affine.tolist()},
                    "rotation_degrees": round(_rotation_degrees(matrices[name]), 3),
                    "mutual_information": information.get(name),
                    "input": _fingerprint(study[name]),
                }
                for name, scan in scans.items()
            },
        }
        text = json.dumps(record, indent=2) + "\n"
        (incomplete / DETAILS_FOLDER / TRANSFORMS_NAME).write_text(text, encoding="utf-8")
    return folder


def _read_scan(path: str) -> Scan:
    scan = Scan(*read_volume(path))
    if scan.volume.min() == scan.volume.max():
        raise StudyError(f"{path}: every voxel is {scan.volume.min():g}; take the file out of the study")
    if scan.volume.min() < 0:
        raise StudyError(
            f"{path}: has intensities down to {scan.volume.min():g}; a raw MR scan has none below 0, "
            "take the magnitude image as the scanner gave it"
        )
    return scan


def _reference(subject: str, names: Sequence[str], grid: tuple[str, ...] | float) -> str:
    """The scan in whose space the volumes come, of a study's scans with the best reference first."""
    if isinstance(grid, (int, float)):
        return names[0]
    for name in grid:
        if name in names:
            return name
    raise StudyError(
        f"study {subject!r}: has {', '.join(names)}, and the grid of {' or '.join(grid)} was asked for; "
        "name one of its contrasts too, or a voxel edge in mm"
    )


def _register_study(
    subject: str, scans: Mapping[str, Scan], reference: str, contrasts: ContrastSet, levels: Sequence[float]
) -> tuple[dict[str, Matrix], dict[str, float]]:
    """Each scan's matrix from output space to its own space, and the mutual information of those registered."""

    def one_acquisition(first: str, second: str) -> bool:
        same_grid = scans[first].is_on(scans[second].volume.shape, scans[second].affine)
        return same_grid and (first == second or any({first, second} <= set(scan) for scan in contrasts.echoes))

    matrices: dict[str, Matrix] = {}
    information: dict[str, float] = {}
    # Of an acquisition's echoes the first, in the order of the contrast set's references, stands for the others
    ranked = [name for name in contrasts.references or contrasts.names if name in scans]
    fixed = next(name for name in ranked if one_acquisition(name, reference))
    for name in ranked:
        together = next((m for m in matrices if one_acquisition(m, name)), None)
        if one_acquisition(name, fixed):
            matrices[name] = np.eye(4)
        elif together:
            matrices[name] = matrices[together]
        else:
            try:
                matrices[name], information[name] = register_rigidly(scans[fixed], scans[name], levels)
            except RuntimeError as error:
                raise StudyError(
                    f"study {subject!r}: {name} could not be registered to {reference} ({error}); "
                    "check that both are scans of one head, or exclude one"
                ) from error
    return matrices, information


@dataclass(frozen=True)
class _BrainMask:
    """A brain mask, 0 to 1, in the space of one of the study's scans, and in words what it was made by."""

    scan: Scan
    space: str
    origin: str

    @property
    def ml(self) -> float:
        voxels = np.count_nonzero(self.scan.volume > 0.5)
        return round(float(voxels * abs(np.linalg.det(self.scan.affine[:3, :3])) / 1000), 1)


def _brain_mask(
    subject: str, scans: Mapping[str, Scan], contrasts: ContrastSet, settings: PreprocessingSettings, own: str | None
) -> _BrainMask:
    if own is not None:
        return _mask_of_the_user(own, scans)
    if settings.mask not in MASK_TOOLS:
        return _mask_of_the_user(settings.mask.format(subject=subject), scans)
    sources = [name for name in contrasts.mask_sources or contrasts.names if name in scans]
    tool, source = settings.mask, sources[0]
    origin = f"{tool} on {source}"
    if tool == "deepbet":
        weighted = [name for name in sources if contrasts.contrasts[contrasts.index(name)].t1_weighted]
        if weighted:
            source = weighted[0]
            origin = f"deepbet on {source}, the first T1-weighted scan of {', '.join(sources)}"
        else:
            tool = "itk"
            origin = f"itk on {source}: deepbet needs a T1-weighted scan, and the study has {', '.join(sources)}"
    try:
        mask = _BrainMask(MASK_TOOLS[tool](scans[source]), source, origin)
    except StudyError as error:
        raise StudyError(f"study {subject!r}, {source}: {error}") from error
    low, high = settings.brain_ml
    if not low <= mask.ml <= high:
        raise StudyError(
            f"study {subject!r}: the brain mask has {mask.ml:.0f} ml ({origin}), and a head's has {low:g} to {high:g}; "
            f"look at {source} for bright slices or missing parts and mend or exclude it, "
            f"or give a mask of your own (--mask 'masks/{{subject}}_mask.nii.gz')"
        )
    return mask


def _mask_of_the_user(path: str, scans: Mapping[str, Scan]) -> _BrainMask:
    volume, affine = read_volume(path)
    if not (volume > 0).any():
        raise StudyError(f"{path}: the mask is empty; draw one, above 0 in the brain")
    for name, scan in scans.items():
        if scan.is_on(volume.shape, affine):
            return _BrainMask(Scan((volume > 0).astype(np.float32), affine), name, path)
    raise StudyError(
        f"{path}: the mask is on the grid of none of the study's scans ({', '.join(scans)}); "
        "draw it on one of them, so that it is known in whose space it is"
    )


def _save_nifti(
    data: NDArray[Any],
    affine: Matrix,
    path: Path,
    description: bytes = b"apt_monai preprocess",
    intent_name: bytes = b"",
) -> None:
    image = nib.Nifti1Image(data, affine)
    set_space(image, affine)
    image.header["descrip"], image.header["intent_name"] = description, intent_name
    nib.save(image, path)


def _rotation_degrees(matrix: Matrix) -> float:
    return float(np.degrees(Rotation.from_matrix(matrix[:3, :3]).magnitude()))


def _fingerprint(path: str) -> dict[str, Any]:
    """What tells that an input is the same: its path, and size and time of its files (a folder may hold DICOM)."""
    source = Path(path)
    files = [f for f in sorted(source.rglob("*")) if f.is_file()] if source.is_dir() else [source]
    stats = [f.stat() for f in files if f.exists()]
    return {
        "path": str(source.absolute()),
        "bytes": sum(s.st_size for s in stats),
        "modified_ns": max((s.st_mtime_ns for s in stats), default=0),
    }


# A cohort


@dataclass
class PreprocessingReport:
    """What became of the studies of a cohort, by subject.

    Args:
        written: those preprocessed now.
        kept: those that were there already.
        failed: why the others failed.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.written)} preprocessed, {len(self.kept)} there already, {len(self.failed)} failed"]
        return "\n".join(lines + [f"  {subject}: {reason}" for subject, reason in sorted(self.failed.items())])


def preprocess_cohort(
    studies: Sequence[Mapping[str, str]],
    out: str | Path,
    contrasts: str | ContrastSet,
    settings: PreprocessingSettings | None = None,
    workers: int = 1,
    progress: bool = True,
) -> PreprocessingReport:
    """Preprocess the studies of a cohort, several at a time; one bad study never stops the others.

    A study that is there already, from the same files, is kept: an interrupted run goes on where it stopped. The
    settings are written down in ``OUT/preprocessing.json``, and other ones in the same folder are refused.

    Args:
        studies: as :func:`apt_monai.data.read_studies` lists them.
        out: the folder; made if absent.
        contrasts: the contrast set, or its name.
        settings: how; the defaults if None.
        workers: processes; 1 works in this one. Each needs about 2 GB, and has one thread.
        progress: whether a progress bar is shown.

    Returns:
        What became of each study. The cohort is complete where ``failed`` is empty.

    Raises:
        ValueError: an argument is not valid, two studies have one name, or the folder holds something else.
        ImportError: the mask's package is not installed.
        OSError: the folder cannot be written.

    Example::

        >>> study, settings = {"subject": "case", "t1": "no_such.nii.gz"}, PreprocessingSettings(mask="itk")
        >>> print(preprocess_cohort([study], "out", "adni", settings, progress=False))
        0 preprocessed, 0 there already, 1 failed
          case: no_such.nii.gz: no such file; correct the path or take the contrast out of the study
    """
    contrast_set = get_contrast_set(contrasts) if isinstance(contrasts, str) else contrasts
    settings = settings or PreprocessingSettings()
    folder = Path(out)
    if workers < 1:
        raise ValueError(f"workers is {workers}: valid is 1 or more")
    grid = settings.grid_of(contrast_set)
    if not isinstance(grid, (int, float)):
        contrast_set.check(grid)
    if settings.mask == "deepbet" and find_spec("deepbet") is None:
        raise ImportError(_NO_DEEPBET)
    subjects = [study["subject"] for study in studies]
    twice = sorted({subject for subject in subjects if subjects.count(subject) > 1})
    if twice:
        raise ValueError(f"two studies are called {twice[0]!r}; each needs a name of its own")
    _claim_folder(folder, contrast_set, settings)

    report = PreprocessingReport()
    todo: list[Mapping[str, str]] = []
    for study in studies:
        if not (folder / study["subject"]).exists():
            todo.append(study)
        elif reason := _differs(folder / study["subject"], study):
            report.failed[study["subject"]] = reason
        else:
            report.kept.append(study["subject"])

    with tqdm(total=len(studies), initial=len(studies) - len(todo), desc="preprocess", unit="study",
              disable=not progress) as bar:  # fmt: skip

        def note(subject: str, run: Callable[[], object]) -> None:
            try:
                run()
                report.written.append(subject)
            except (StudyError, ImportError, OSError) as error:
                report.failed[subject] = str(error)
            except BrokenProcessPool:
                report.failed[subject] = "its process was killed (out of memory?); use fewer workers and run again"
            except Exception as error:
                logger.debug("study %s", subject, exc_info=True)
                report.failed[subject] = f"{type(error).__name__}: {error}"
            if subject in report.failed:
                logger.warning("%s failed: %s", subject, report.failed[subject])
            bar.update()

        if workers == 1:
            for study in todo:
                note(study["subject"], partial(preprocess_study, study, folder, contrast_set, settings))
        else:
            for subject, future in _in_processes(todo, folder, contrast_set, settings, workers):
                note(subject, future.result)
    report.written.sort()
    return report


def _in_processes(
    studies: Sequence[Mapping[str, str]],
    folder: Path,
    contrasts: ContrastSet,
    settings: PreprocessingSettings,
    workers: int,
) -> Iterator[tuple[str, Future[Path]]]:
    """Yield (subject, finished future). Studies of a pool that broke get a pool of their own: one can't harm others."""
    broken = []
    context = get_context("spawn")  # ITK and torch have threads, which a fork would not survive
    processes = max(1, min(workers, len(studies)))
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        futures: dict[Future[Path], Mapping[str, str]] = {}
        for study in studies:
            try:
                futures[pool.submit(preprocess_study, dict(study), folder, contrasts, settings)] = study
            except BrokenProcessPool:
                broken.append(study)
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    broken.append(futures[future])
                else:
                    yield futures[future]["subject"], future
        finally:
            pool.shutdown(cancel_futures=True)
    for study in broken:
        with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
            future = pool.submit(preprocess_study, dict(study), folder, contrasts, settings)
            future.exception()  # waits
            yield study["subject"], future


def _claim_folder(folder: Path, contrasts: ContrastSet, settings: PreprocessingSettings) -> None:
    """Write down what the folder holds, or check that it holds the same already."""
    chosen = {**asdict(settings), "grid": settings.grid_of(contrasts)}
    record = json.loads(json.dumps({"version": VERSION, "contrasts": contrasts.name, **chosen}))
    path = folder / SETTINGS_NAME
    if not path.exists():
        if folder.is_dir() and any(f for f in folder.iterdir() if not f.name.startswith(".")):
            raise ValueError(f"{folder}: is not empty and has no {SETTINGS_NAME}; name an empty or a new folder")
        write_text(path, json.dumps(record, indent=2) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete {folder} or name another folder") from error
    if found != record:
        raise ValueError(
            f"{folder}: was preprocessed otherwise: {SETTINGS_NAME} says {found}, asked for is {record}; "
            "name another folder or use the same settings"
        )


def _differs(folder: Path, study: Mapping[str, str]) -> str | None:
    """Why what is in a study's folder is not what the study would give now; None if it is."""
    path = folder / DETAILS_FOLDER / TRANSFORMS_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        made_from = {name: scan["input"] for name, scan in record["scans"].items()}
        if record["mask"]["input"]:
            made_from["mask"] = record["mask"]["input"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} cannot be read ({error}); delete the folder {folder} to preprocess the study again"
    if made_from == {name: _fingerprint(value) for name, value in study.items() if name != "subject"}:
        return None
    return f"its scans changed since it was preprocessed; delete the folder {folder} to preprocess it again"


# The way back


def to_scanner_space(volume: str | Path, transforms: str | Path, contrast: str, out: str | Path) -> Path:
    """Put a volume of the output space onto the voxel grid of one of the study's scans, where the scanner saw it.

    Args:
        volume: a NIfTI file on the study's output grid: a preprocessed or a synthesised contrast, or the mask.
        transforms: the study's ``transforms.json``.
        contrast: the scan whose grid it is put on, one of those that the study has.
        out: the file to write. A synthesised volume must be named so: with ``SYNTHETIC`` in the name.

    Returns:
        The file, float32, linear between voxels, 0 where the volume does not reach. A JSON sidecar beside the volume is
        copied beside it, with ``"resampled_to"`` in it.

    Raises:
        StudyError: a file cannot be read, or the volume is not on the study's output grid.
        ValueError: there is no such scan, or the name hides that the volume is synthesised.
        OSError: the file cannot be written.
    """
    source, target = Path(volume), Path(out)
    try:
        record = json.loads(Path(transforms).read_text(encoding="utf-8"))
        grid, scans = record["grid"], record["scans"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{transforms}: cannot be read as a study's transforms ({type(error).__name__}: {error}); "
            f"name the {TRANSFORMS_NAME} that preprocessing wrote"
        ) from error
    if contrast not in scans:
        raise ValueError(f"{transforms}: the study has no scan {contrast!r}; valid are {', '.join(scans)}")
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{target}: must end in .nii.gz or .nii")
    if is_synthetic_name(source) and not is_synthetic_name(target):
        raise ValueError(f"{target}: the volume is synthesised, so its file's name must say SYNTHETIC")
    values = Scan(*read_volume(source))
    if not values.is_on(grid["shape"], np.array(grid["affine"])):
        raise StudyError(f"{source}: is not on the output grid of {transforms}; both must be of one study")

    scan = scans[contrast]
    affine = np.array(scan["grid"]["affine"])
    moved = resample(values, scan["grid"]["shape"], affine, np.linalg.inv(np.array(scan["to_scanner"])), order=1)
    header: Any = nib.load(source).header  # of a synthesised volume, both of these say SYNTHETIC
    with complete_file(target) as partial:
        _save_nifti(moved, affine, partial, bytes(header["descrip"]), bytes(header["intent_name"]))
    sidecar = sidecar_path(source)
    if sidecar.is_file():
        provenance = json.loads(sidecar.read_text(encoding="utf-8"))
        provenance["resampled_to"] = {"scan": contrast, "grid": scan["grid"], "from": source.name}
        write_text(sidecar_path(target), json.dumps(provenance, indent=2) + "\n")
    return target
