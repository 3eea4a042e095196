"""The way back: a volume of the output grid onto the voxel grid of one of the study's scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from apt_monai.errors import StudyError
from apt_monai.files import complete_file, write_text
from apt_monai.io import read_volume
from apt_monai.io.sidecar import SYNTHETIC, is_synthetic_name, sidecar_path, uncertainty_path
from apt_monai.preprocessing.output import DETAILS_FOLDER, TRANSFORMS_NAME, save_nifti
from apt_monai.preprocessing.resampling import resample, resample_labels
from apt_monai.preprocessing.scan import Scan


def to_scanner_space(volume: str | Path, transforms: str | Path, contrast: str, out: str | Path) -> Path:
    """Put a volume of the output space onto the voxel grid of one of the study's scans, where the scanner saw it.

    Args:
        volume: a NIfTI file on the study's output grid: a preprocessed or a synthesised contrast, the mask, or the
            segmentation.
        transforms: the study's ``transforms.json``.
        contrast: the scan whose grid it is put on, one of those that the study has.
        out: the file to write. A synthesised volume must be named so: with ``SYNTHETIC`` in the name.

    Returns:
        The file, 0 where the volume does not reach: float32, linear between voxels; of the mask and the segmentation
        (uint8, as preprocessing writes them) the nearest labels. A JSON sidecar beside the volume is copied beside it,
        with ``"resampled_to"`` in it.

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
    back = np.linalg.inv(np.array(scan["to_scanner"]))
    header: Any = nib.load(source).header
    moved: NDArray[Any]
    labels = header.get_data_dtype() == np.uint8 and header.get_slope_inter() in ((None, None), (1.0, 0.0))
    if scan["to_scanner"] == np.eye(4).tolist() and values.is_on(scan["grid"]["shape"], affine):
        moved = values.volume.astype(np.uint8) if labels else values.volume  # it lies there already
    elif labels:
        moved = resample_labels(values, scan["grid"]["shape"], affine, back)
    else:
        moved = resample(values, scan["grid"]["shape"], affine, back, order=1)
    # Of a synthesised volume, both of these fields of the header say SYNTHETIC
    with complete_file(target) as partial:
        save_nifti(moved, affine, partial, bytes(header["descrip"]), bytes(header["intent_name"]))
    sidecar = sidecar_path(source)
    if sidecar.is_file():
        provenance = json.loads(sidecar.read_text(encoding="utf-8"))
        provenance["resampled_to"] = {"scan": contrast, "grid": scan["grid"], "from": source.name}
        write_text(sidecar_path(target), json.dumps(provenance, indent=2) + "\n")
    return target


def restore_study(synthetic: str | Path, prepared: str | Path, out: str | Path, grid: str | None = None) -> list[Path]:
    """Put a study's synthesised volumes, and their uncertainty, onto the grid of one of its scans.

    Args:
        synthetic: the study's folder of a synthesis: ``<study>_<contrast>_SYNTHETIC.nii.gz``, each with its sidecar.
        prepared: the study's folder of the preprocessing that the synthesis was made from.
        out: the study's folder to write to; the files have the same names.
        grid: the scan on whose grid they come; None: for each volume the scan whose intensity scale it has, the
            nearest to it.

    Returns:
        The volumes. What is there already from the same volumes and on the same grid is kept.

    Raises:
        StudyError: there is no synthesised volume, or what :func:`to_scanner_space` refuses.
        ValueError: the study has no such scan.
        OSError: a file cannot be written.
    """
    folder = Path(synthetic)
    transforms = Path(prepared) / DETAILS_FOLDER / TRANSFORMS_NAME
    sidecars = sorted(folder.glob(f"*_{SYNTHETIC}.json"))
    if not sidecars:
        raise StudyError(
            f"{folder}: holds no synthesised volume with its sidecar; name the folder that synthesize wrote"
        )
    written = []
    for path in sidecars:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        volume = path.with_name(f"{path.stem}.nii.gz")
        target = Path(out) / volume.name
        scan = grid or sidecar["intensity_scale"]["contrast"]
        if not _is_restored(sidecar, target, scan):
            sidecar_path(target).unlink(missing_ok=True)
            uncertainty = uncertainty_path(volume)
            if uncertainty.is_file():
                to_scanner_space(uncertainty, transforms, scan, target.with_name(uncertainty.name))
            to_scanner_space(volume, transforms, scan, target)  # its sidecar comes last: then all is there
        written.append(target)
    return written


def _is_restored(sidecar: dict[str, Any], target: Path, scan: str) -> bool:
    """Whether a volume is there, of this sidecar and on this scan's grid."""
    try:
        found = json.loads(sidecar_path(target).read_text(encoding="utf-8"))
        return target.is_file() and found.pop("resampled_to")["scan"] == scan and found == sidecar
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
