"""Registration: how the head moved between the scans of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import itk
import numpy as np
from scipy import ndimage

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import StudyError
from apt_monai.preprocessing.scan import RAS_TO_LPS, Matrix, Scan, shrink, to_itk


def register_study(
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
    small_fixed, small_moving = shrink(fixed, first), shrink(moving, first)
    tries, errors = [], []
    for start in _starts(small_fixed, small_moving):
        try:
            tries.append(_optimise(to_itk(small_fixed), to_itk(small_moving), start, step=first / 2))
        except RuntimeError as error:
            errors.append(str(error).strip().splitlines()[-1])
    if not tries:
        raise RuntimeError(f"the registration failed: {errors[0]}")
    transform, information = max(tries, key=lambda each: each[1])
    for level in finer:
        images = to_itk(shrink(fixed, level)), to_itk(shrink(moving, level))
        transform, information = _optimise(*images, transform, step=level / 4)
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = np.asarray(transform.GetOffset())
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS, information


def _starts(fixed: Scan, moving: Scan) -> list[Any]:
    """The guesses from which the registration starts, each an Euler3DTransform about the fixed head's middle."""
    middles, masses = [], []
    for scan in (fixed, moving):
        affine = RAS_TO_LPS @ scan.affine
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
    image = itk.Image[itk.F, 3]
    metric = itk.MattesMutualInformationImageToImageMetricv4[image, image].New(
        NumberOfHistogramBins=48, UseMovingImageGradientFilter=False, UseFixedImageGradientFilter=False
    )
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric)
    optimiser = itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        LearningRate=step, MinimumStepLength=step / 100, RelaxationFactor=0.85, NumberOfIterations=200,
        ScalesEstimator=scales, DoEstimateLearningRateOnce=False, DoEstimateLearningRateAtEachIteration=False,
    )  # fmt: skip
    registration = itk.ImageRegistrationMethodv4[image, image].New(
        FixedImage=fixed, MovingImage=moving, Metric=metric, Optimizer=optimiser, InitialTransform=transform
    )
    registration.SetNumberOfLevels(1)  # the images are shrunk already
    registration.SetShrinkFactorsPerLevel([1])
    registration.SetSmoothingSigmasPerLevel([0])
    registration.InPlaceOn()
    registration.Update()
    return transform, -float(metric.GetValue())
