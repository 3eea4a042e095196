"""One study: its raw scans become skull-stripped volumes on one grid, or one clear error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.files import complete_folder
from apt_monai.preprocessing.bias import correct_bias
from apt_monai.preprocessing.brain_mask import BrainMask, find_brain_mask
from apt_monai.preprocessing.output import (
    DETAILS_FOLDER,
    MASK_ENDING,
    TRANSFORMS_NAME,
    VERSION,
    inputs_of,
    save_nifti,
)
from apt_monai.preprocessing.registration import Match, judge_registration, register_study
from apt_monai.preprocessing.resampling import isotropic_grid, resample
from apt_monai.preprocessing.scan import Matrix, Scan, Volume, read_scan
from apt_monai.preprocessing.segmentation import carry_segmentation
from apt_monai.preprocessing.settings import PreprocessingSettings
from apt_monai.preprocessing.template import find_pose
from apt_monai.quality import Limits, check_raw

logger = logging.getLogger(__name__)


def preprocess_study(
    study: Mapping[str, str],
    out: str | Path,
    contrasts: str | ContrastSet,
    settings: PreprocessingSettings | None = None,
) -> Path:
    """Preprocess one study. ITK works with a single thread from here on, so that the same scans give the same voxels.

    Args:
        study: ``{"subject": name, <contrast>: path, ...}``, any non-empty subset of the contrasts, on any grids; with
            ``"mask"``, a brain mask on the grid of one of them, it is taken instead of what the settings say; with
            ``"seg"``, a segmentation on the grid of one of them, it is carried along (on none: left out, with a line
            in the log).
        out: the folder in which the study's own folder is made.
        contrasts: the contrast set, or its name.
        settings: how; the defaults if None.

    Returns:
        The study's folder, complete; see :mod:`apt_monai.preprocessing` for what is in it.

    Raises:
        StudyError: a scan cannot be used, the study has none of the contrasts whose grid is asked for, the registration
            fails, or there is no usable brain mask.
        OSError: the folder cannot be written.

    Example::

        >>> import nibabel as nib
        >>> axis = np.linspace(-1, 1, 24)
        >>> radius = np.sqrt(sum(np.square(np.meshgrid(axis, axis, axis))))
        >>> scan = (100 * (radius < 0.6) + 60 * ((radius > 0.8) & (radius < 0.97)) + 3).astype(np.float32)
        >>> nib.save(nib.Nifti1Image(scan, np.diag([6, 6, 6, 1])), "case_t1.nii.gz")
        >>> study, settings = {"subject": "case", "t1": "case_t1.nii.gz"}, PreprocessingSettings(mask="itk")
        >>> folder = preprocess_study(study, "out", "adni", settings)
        >>> sorted(path.name for path in folder.iterdir())
        ['case_mask.nii.gz', 'case_t1.nii.gz', 'preprocessing']
    """
    contrast_set = get_contrast_set(contrasts)
    settings = settings or PreprocessingSettings()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    subject = study["subject"]
    names = _check_names(study, contrast_set)
    inputs = inputs_of(study, settings)
    raw = {name: read_scan(study[name]) for name in names}
    findings = _check_scans(subject, raw, settings, settings.own_mask(study) is not None)
    grid = settings.grid_of(contrast_set)
    ranked = [name for name in contrast_set.references or names if name in raw]
    reference = _reference(subject, ranked, grid)

    scans = {name: correct_bias(scan, settings.bias_spacing) for name, scan in raw.items()}
    matrices, matches = register_study(subject, scans, reference, contrast_set, settings.levels)
    findings += judge_registration(subject, matches, reference)
    mask = find_brain_mask(subject, scans, contrast_set, settings, settings.own_mask(study), matrices)
    pose, template = None, settings.template_of(contrast_set)
    if template is not None and isinstance(grid, (int, float)):
        own = scans[reference]
        inside = resample(mask.scan, own.volume.shape, own.affine, matrices[mask.space], order=1) > 0.5
        pose = find_pose(subject, own, inside, template, settings)
        matrices = {name: matrix @ pose.matrix for name, matrix in matrices.items()}
        shape, affine = pose.grid(grid)
    elif isinstance(grid, (int, float)):
        shape, affine = isotropic_grid(scans[reference], grid)
    else:
        shape, affine = scans[reference].volume.shape, scans[reference].affine
    brain = _brain_on_grid(subject, scans, matrices, mask, shape, affine)

    folder = Path(out) / subject
    with complete_folder(folder) as incomplete:
        details = incomplete / DETAILS_FOLDER
        details.mkdir()
        for name, volume in _volumes(scans, matrices, brain, affine):
            save_nifti(volume, affine, incomplete / f"{subject}_{name}.nii.gz")
        carried = None
        if "seg" in study:
            ordered = {name: scans[name] for name in dict.fromkeys([reference, *ranked])}
            carried = carry_segmentation(subject, study["seg"], ordered, matrices, shape, affine)
        if carried:
            save_nifti(carried[1], affine, incomplete / f"{subject}_{contrast_set.segmentation_suffixes[0]}.nii.gz")
        save_nifti(brain.astype(np.uint8), affine, incomplete / f"{subject}{MASK_ENDING}")
        record = {
            "subject": subject,
            "version": VERSION,
            "space": "millimetres, RAS+; 'to_scanner' maps output space to the scan's own scanner space",
            "reference": reference,
            "template": None if pose is None else {"name": template, "mutual_information": pose.information},
            "grid": {"shape": list(shape), "affine": affine.tolist()},
            "inputs": inputs,
            "mask": {"from": mask.origin, "scan": mask.space, "ml": mask.ml},
            "segmentation": {"scan": carried[0]} if carried else None,
            "brain_ml": round(float(np.count_nonzero(brain) * abs(np.linalg.det(affine[:3, :3])) / 1000), 1),
            "scans": {name: _scan_record(scan, matrices[name], matches.get(name)) for name, scan in scans.items()},
            "findings": findings,
        }
        (details / TRANSFORMS_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def _check_names(study: Mapping[str, str], contrasts: ContrastSet) -> list[str]:
    """The contrasts that a study has, in order; raises where its name or a key cannot be used."""
    subject = study["subject"]
    if subject in ("", ".", "..") or Path(subject).name != subject:
        raise StudyError(f"subject {subject!r}: names a folder of the output, so it must be a plain name without '/'")
    segmentation = {"seg"} if contrasts.segmentation_suffixes else set()
    contrasts.check(set(study) - {"subject", "mask"} - segmentation)
    names = [name for name in contrasts.names if name in study]
    if not names:
        raise StudyError(f"study {subject!r}: has no contrast; at least one of {', '.join(contrasts.names)} is needed")
    return names


def _check_scans(
    subject: str, scans: Mapping[str, Scan], settings: PreprocessingSettings, own_mask: bool
) -> list[dict[str, str]]:
    """The findings about the raw scans, each a warning in the log; raises where one of them is an error.

    Where the brain mask is the user's own, any part of a brain will do.
    """
    least, largest = settings.brain_ml
    limits = Limits(brain_ml=(0.0 if own_mask else least, largest))
    found = [each for name, scan in scans.items() for each in check_raw(name, scan.volume, scan.affine, limits)]
    if errors := [str(each) for each in found if each.severity == "error"]:
        raise StudyError(f"study {subject!r}: {'; '.join(errors)}")
    for each in found:
        logger.warning("%s: %s", subject, each)
    return [each.to_dict() for each in found]


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


def _brain_on_grid(
    subject: str,
    scans: Mapping[str, Scan],
    matrices: Mapping[str, Matrix],
    mask: BrainMask,
    shape: Sequence[int],
    affine: Matrix,
) -> NDArray[np.bool_]:
    """The brain on the output grid, where every scan reaches."""
    brain = resample(mask.scan, shape, affine, matrices[mask.space], order=1) > 0.5
    found = np.count_nonzero(brain)
    for name, scan in scans.items():  # what one scan does not reach, no volume has
        brain &= resample(Scan(np.ones_like(scan.volume), scan.affine), shape, affine, matrices[name], order=1) > 0.5
    if np.count_nonzero(brain) < max(1, found / 2):
        raise StudyError(
            f"study {subject!r}: its scans share {np.count_nonzero(brain)} of {found} voxels of the brain mask; "
            "the registration failed, or the scans show different parts of the head: exclude one of the scans"
        )
    return brain


def _volumes(
    scans: Mapping[str, Scan], matrices: Mapping[str, Matrix], brain: NDArray[np.bool_], affine: Matrix
) -> Iterator[tuple[str, Volume]]:
    """Each scan on the output grid, 0 outside the brain."""
    for name, scan in scans.items():
        if scan.is_on(brain.shape, affine) and np.array_equal(matrices[name], np.eye(4)):
            values = scan.volume
        else:
            values = resample(scan, brain.shape, affine, matrices[name])
        # A spline swings below 0, which a magnitude never is
        yield name, np.where(brain, np.maximum(values, 0), 0).astype(np.float32)


def _scan_record(scan: Scan, matrix: Matrix, match: Match | None) -> dict[str, Any]:
    degrees = float(np.degrees(Rotation.from_matrix(matrix[:3, :3]).magnitude()))
    return {
        "to_scanner": matrix.tolist(),
        "grid": {"shape": list(scan.volume.shape), "affine": scan.affine.tolist()},
        "rotation_degrees": round(degrees, 3),
        "mutual_information": match.information if match else None,
        "sharpness": match.sharpness if match else None,
    }
