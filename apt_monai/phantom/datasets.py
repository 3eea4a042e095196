"""Data sets of the digital phantom: brain-MR studies with real anatomy, made from physics, with nothing to download.

``brats``
    Skull-stripped cases with a tumour, FLAIR, T1, T1Gd, T2 and a segmentation, named and stored as BraTS 2021's.
``adni-raw``
    ADNI-like studies as a scanner gives them, with the whole head, to be preprocessed: T1 as a sagittal 3D scan, PD and
    T2 as axial slices, and between the two the head has moved.
``adni``
    The same heads as preprocessing would give them at its best: skull-stripped, on one axial grid, ready to train on.

The heads are those of :mod:`apt_monai.phantom.head`.

Example::

    >>> studies = write_phantom_dataset("phantom", "brats", subjects=2, seed=0, spacing=8.0, progress=False)
    >>> sorted(path.name for path in studies[0].iterdir())[:2]
    ['BraTS2021_00000_flair.nii.gz', 'BraTS2021_00000_seg.nii.gz']
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from scipy.special import expit
from tqdm import tqdm

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.phantom.head import (
    SEQUENCES,
    Grid,
    Population,
    PulseSequence,
    Volume,
    acquire,
    ideal_signal,
    load_template,
    magnitude_image,
    make_head,
    smooth_noise,
    vary_timing,
    whole_head_signals,
)

VERSION = 1  # of the phantom: raise it whenever the same seed no longer gives the same bytes
RECORD_NAME = "phantom.json"
TRUTH_NAME = ".truth"  # a hidden folder beside the studies


def brats_grid(spacing: float = 1.0, shape: Sequence[int] | None = None) -> Grid:
    """The grid of BraTS: 240×240×155 voxels of 1 mm, stored to the left, back and up (LPS), origin (0, 239, 0).

    Args:
        spacing: voxel edge in mm, above 0 and at most 10.
        shape: voxels along each axis; as many as cover BraTS's field of view if None. Other shapes keep its centre.

    Raises:
        ValueError: the spacing or the shape is not valid.

    Example::

        >>> brats_grid(2.5).shape
        (96, 96, 62)
    """
    _check_spacing(spacing)
    if shape is None:
        shape = tuple(round(n / spacing) for n in (240, 240, 155))
    checked = _check_shape(shape)
    steps = np.array([-spacing, -spacing, spacing])
    return Grid(checked, _affine(checked, steps, (-119.5, 119.5, 77.0)))


def adni_t1_grid(spacing: float = 1.0) -> Grid:
    """The grid of the raw T1: 208 sagittal slices of 256×256 voxels of 1 mm, stored as (R, A, S), from crown to neck.

    That is how dcm2niix stores a sagittal MPRAGE. World and head coordinates are the same.

    Args:
        spacing: voxel edge in mm, above 0 and at most 10; the field of view stays.

    Raises:
        ValueError: the spacing is not valid.

    Example::

        >>> adni_t1_grid().shape
        (208, 256, 256)
    """
    _check_spacing(spacing)
    x, y, z = (round(n / spacing) for n in (208, 256, 256))
    centre = (0.0, 8.0, -26.0)  # the whole vault, the face and the upper neck
    return Grid((x, y, z), _affine((x, y, z), np.full(3, spacing), centre), centre)


def adni_axial_grid(spacing: float = 1.0, shape: Sequence[int] | None = None) -> Grid:
    """The grid of PD and T2: 54 axial slices of 3 mm of 256×256 voxels of 0.9375 mm, stored as (L, A, S).

    Args:
        spacing: above 0 and at most 10. Voxels are 0.9375 × spacing mm wide; slices are spacing mm thick, but never
            thinner than 3 mm.
        shape: voxels along each axis; as many as cover the whole brain if None. Other shapes keep the centre.

    Raises:
        ValueError: the spacing or the shape is not valid.

    Example::

        >>> adni_axial_grid().shape, adni_axial_grid(3.0).shape, adni_axial_grid(6.0).shape
        ((256, 256, 54), (85, 85, 54), (43, 43, 27))
    """
    _check_spacing(spacing)
    steps = np.array([-0.9375 * spacing, 0.9375 * spacing, max(3.0, spacing)])
    if shape is None:
        shape = tuple(round(n / abs(step)) for n, step in zip((240, 240, 162), steps, strict=True))
    checked = _check_shape(shape)
    centre = (0.0, 0.0, 2.0)
    return Grid(checked, _affine(checked, steps, centre), centre)


def _check_spacing(spacing: float) -> None:
    if not 0 < spacing <= 10:
        raise ValueError(f"spacing is {spacing} mm: valid is above 0 and at most 10; real studies have about 1")


def _check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or any(int(n) != n or n < 1 for n in shape):
        raise ValueError(f"shape is {tuple(shape)}: valid are three whole numbers above 0, such as (240, 240, 155)")
    x, y, z = (int(n) for n in shape)
    return x, y, z


def _affine(shape: Sequence[int], steps: NDArray[np.float64], centre: ArrayLike) -> NDArray[np.float64]:
    """From voxel to world for voxel edges with a sign (mm), whose field of view is around a centre (world mm)."""
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = np.asarray(centre) - steps * (np.array(shape) - 1) / 2
    return affine + 0.0  # + 0.0: no negative zeros


# The subjects and the scans of ADNI

#: ADNI's subjects have no tumour; in about every second one ventricles and sulci are widened.
HEALTHY = Population(ventricles=(-0.1, 0.25), sulci=(1.4, 0.2), tumour=False)
ATROPHIC = Population(ventricles=(0.5, 0.8), sulci=(2.3, 0.25), tumour=False)


#: ADNI's MPRAGE, and its fast spin echo whose two echoes are PD and T2.
ADNI_SEQUENCES: Mapping[str, PulseSequence] = MappingProxyType(
    {"t1": SEQUENCES["t1"], "t2": PulseSequence(tr=3000.0, te=100.0), "pd": PulseSequence(tr=3000.0, te=12.0)}
)


def adni_population(seed: int, subject: int) -> Population:
    """:data:`HEALTHY` or :data:`ATROPHIC`, one as likely as the other, drawn from (seed, subject)."""
    return ATROPHIC if _generator(seed, subject, "atrophy").random() < 0.5 else HEALTHY


def draw_movement(rng: np.random.Generator, turn: float = 2.0, shift: float = 2.5) -> NDArray[np.float64]:
    """A rigid movement of the head between two scans: the 4×4 matrix from the second scan's to the first's world mm.

    Args:
        rng: where it is drawn from.
        turn: standard deviation of the rotation about each axis, in degrees.
        shift: standard deviation of the translation along each axis, in mm.

    Example::

        >>> movement = draw_movement(np.random.default_rng(0))
        >>> bool(np.isclose(np.linalg.det(movement[:3, :3]), 1))
        True
    """
    movement = np.eye(4)
    movement[:3, :3] = Rotation.from_rotvec(np.radians(rng.normal(0, turn, 3))).as_matrix()
    movement[:3, 3] = rng.normal(0, shift, 3)
    return movement


def resample(volume: Volume, source: Grid, target: Grid, movement: ArrayLike | None = None, parts: int = 1) -> Volume:
    """What a scan on another grid sees of a volume: linear between voxels, the mean over each slice, 0 outside.

    Args:
        volume: on the source grid.
        source, target: the grids; their affines map to world mm.
        movement: 4×4, from the target's to the source's world mm; the identity if None.
        parts: over how many evenly spaced points along its third axis each target voxel is averaged.
    """
    world = np.eye(4) if movement is None else np.asarray(movement)
    total = np.zeros(target.shape, np.float32)
    for part in range(parts):
        within = np.eye(4)
        within[2, 3] = (part + 0.5) / parts - 0.5
        matrix = np.linalg.inv(source.affine) @ world @ target.affine @ within
        # Values that are whole but for rounding: 1e-9 voxels beyond the last voxel would be outside
        total += affine_transform(volume, np.round(matrix, 9), output_shape=target.shape, order=1, output=np.float32)
    return total / np.float32(parts)


def _generator(seed: int, subject: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, subject, zlib.crc32(purpose.encode())])


def _adni_sequences(seed: int, subject: int) -> dict[str, PulseSequence]:
    """Each contrast's sequence as the scanner runs it; PD and T2 are two echoes of one scan and share its TR."""
    varied = {
        name: vary_timing(ADNI_SEQUENCES[name], _generator(seed, subject, f"{name} timing")) for name in ADNI.names
    }
    varied["pd"] = replace(varied["pd"], tr=varied["t2"].tr)
    return varied


def _master_grid(target: Grid, margin: float) -> Grid:
    """A grid for the anatomy: the target's voxels, in slices of the in-plane voxel's size, margin mm wider along x."""
    steps = np.diag(target.affine)[:3].copy()
    parts = _parts(target)
    steps[2] /= parts
    x, y, z = target.shape
    shape = (x + 2 * math.ceil(margin / abs(steps[0])), y, z * parts)
    middle = target.affine[:3, :3] @ (np.array(target.shape) - 1) / 2 + target.affine[:3, 3]
    return Grid(shape, _affine(shape, steps, middle), target.centre)


def _parts(grid: Grid) -> int:
    """How many points a slice is averaged over, to be as thin as the voxels are wide."""
    return max(1, round(abs(grid.affine[2, 2] / grid.affine[0, 0])))


# The data set


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that becomes the named one once it is complete, or leaves nothing."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save_nifti(data: NDArray[np.generic], grid: Grid, path: Path) -> None:
    image = nib.Nifti1Image(data, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"PHANTOM: apt_monai digital phantom"
    nib.save(image, path)


def _save_scan(scan: Volume, grid: Grid, path: Path) -> None:
    _save_nifti(np.rint(scan).astype(np.int16), grid, path)


@dataclass(frozen=True)
class _Request:
    """One study to write: of which data set, which subject, on which grid."""

    folder: Path
    seed: int
    subject: int
    spacing: float
    shape: Sequence[int] | None


def _write_brats_study(request: _Request) -> None:
    """One case as BraTS 2021 names it."""
    grid, name = brats_grid(request.spacing, request.shape), request.folder.name
    with _whole_folder(request.folder) as folder:
        head = make_head(grid, request.seed, request.subject)
        for contrast in BRATS.names:
            scan = acquire(head, SEQUENCES[contrast], _generator(request.seed, request.subject, contrast))
            _save_scan(scan, grid, folder / f"{name}_{contrast}.nii.gz")
        _save_nifti(head.labels, grid, folder / f"{name}_seg.nii.gz")


def _write_adni_study(request: _Request) -> None:
    """One study as preprocessing leaves it: skull-stripped, on one grid."""
    grid, name = adni_axial_grid(request.spacing, request.shape), request.folder.name
    master = _master_grid(grid, margin=0)
    who = (request.seed, request.subject)
    with _whole_folder(request.folder) as folder:
        head = make_head(master, *who, adni_population(*who))
        weight = resample(head.brain.astype(np.float32), master, grid, parts=_parts(grid))
        brain = weight > 0.5
        for contrast, sequence in _adni_sequences(*who).items():
            volume = np.zeros(master.shape, np.float32)
            volume[head.brain] = ideal_signal(head, sequence)
            signal = resample(volume, master, grid, parts=_parts(grid))[brain] / weight[brain]
            rng = _generator(*who, contrast)
            # What bias correction leaves
            signal *= np.exp(0.04 * smooth_noise(grid.axes, 90, rng)[brain])
            scan = np.zeros(grid.shape, np.float32)
            scan[brain] = np.maximum(magnitude_image(signal, rng), 1)
            _save_scan(scan, grid, folder / f"{name}_{contrast}.nii.gz")


def _write_adni_raw_study(request: _Request) -> None:
    """One study as the scanner gives it, and beside the studies what is true of it."""
    t1_grid, axial_grid = adni_t1_grid(request.spacing), adni_axial_grid(request.spacing)
    master = _master_grid(t1_grid, margin=10)
    who, name = (request.seed, request.subject), request.folder.name
    population = adni_population(*who)
    movement = draw_movement(_generator(*who, "movement"))
    scans = {"t1": (t1_grid, np.eye(4), 1)}
    scans |= dict.fromkeys(("t2", "pd"), (axial_grid, movement, max(1, round(axial_grid.spacing / master.spacing))))
    head = make_head(master, *who, population)
    signals = whole_head_signals(head, *who, population, _adni_sequences(*who))
    brains = {
        contrast: resample(head.brain.astype(np.float32), master, *scans[contrast]) > 0.5 for contrast in ("t1", "t2")
    }
    brains["pd"] = brains["t2"]

    truth = request.folder.parent / TRUTH_NAME / name
    truth.parent.mkdir(exist_ok=True)
    shutil.rmtree(truth, ignore_errors=True)  # of a run that was interrupted before the study was there
    with _whole_folder(truth) as folder:
        record = {"axial_to_t1": movement.tolist(), "atrophy": population is ATROPHIC}
        (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _save_nifti(brains["t1"].astype(np.uint8), t1_grid, folder / "brain_t1.nii.gz")
        _save_nifti(brains["t2"].astype(np.uint8), axial_grid, folder / "brain_axial.nii.gz")
    with _whole_folder(request.folder) as folder:
        for contrast, (grid, pose, parts) in scans.items():
            rng = _generator(*who, f"{contrast} raw")
            signal = resample(signals[contrast], master, grid, pose, parts)
            # The coil: uneven, and it hears little of the neck
            z = grid.axes[2].astype(np.float32)
            signal *= np.exp(0.18 * smooth_noise(grid.axes, 90, rng)) * expit((z + 108) / 14)
            scan = magnitude_image(signal, rng, brain=brains[contrast])
            _save_scan(np.minimum(scan, np.iinfo(np.int16).max), grid, folder / f"{name}_{contrast}.nii.gz")


@dataclass(frozen=True)
class _Kind:
    """A kind of phantom data set.

    Args:
        study: pattern of the study folders' names.
        marker: glob of what a folder of real studies of that kind holds.
        grid: the grid that a spacing and a shape give; it refuses what is not valid.
        write: writes one study.
    """

    study: str
    marker: str
    grid: Callable[[float, Sequence[int] | None], Grid]
    write: Callable[[_Request], None]


def _raw_grid(spacing: float, shape: Sequence[int] | None) -> Grid:
    if shape is not None:
        raise ValueError(f"shape is {tuple(shape)}: the two grids of adni-raw have their own; leave it out")
    return adni_t1_grid(spacing)


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "brats": _Kind("BraTS2021_{:05d}", "BraTS*", brats_grid, _write_brats_study),
        "adni": _Kind("000_S_{:04d}", "*_S_*", adni_axial_grid, _write_adni_study),
        "adni-raw": _Kind("000_S_{:04d}", "*_S_*", _raw_grid, _write_adni_raw_study),
    }
)


def _claim_folder(out: Path, marker: str, record: Mapping[str, object]) -> None:
    """Make the folder and write down what it holds, or check that it holds the same already."""
    path = out / RECORD_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(out.glob(marker)):
                raise ValueError(f"{out} holds studies but no {RECORD_NAME}: they are no phantom; name another folder")
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot write the phantom into {out}: {error}; name a folder that can be written") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete {out} or name another folder") from error
    if found != record:
        raise ValueError(
            f"{out} holds another phantom: {RECORD_NAME} says {found}, asked for is {record}; name another folder"
        )


def write_phantom_dataset(
    out: str | Path,
    dataset: str,
    subjects: int,
    seed: int,
    spacing: float = 1.0,
    shape: Sequence[int] | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write a phantom data set.

    A study that is there already is kept, so that an interrupted run goes on where it stopped; ``phantom.json`` in the
    folder says how it was made, and another seed or grid in the same folder is refused. All volumes are int16 NIfTI.

    ``"brats"``
        ``OUT/BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz``, …: real BraTS 2021 cases, skull-stripped,
        0 outside the brain, 240×240×155 voxels of 1 mm.
    ``"adni"``
        ``OUT/000_S_0000/000_S_0000_{t1,t2,pd}.nii.gz``, …: skull-stripped, 0 outside the brain, all three on
        :func:`adni_axial_grid`. A part of the subjects is atrophic.
    ``"adni-raw"``
        The same heads, files of the same names, as scanned: T1 on :func:`adni_t1_grid`, T2 and PD on
        :func:`adni_axial_grid`, with skull and scalp, an uneven coil and noise in air, and between the two scans the
        head moved. What is true of a study is in a hidden folder, which no reader looks at, ``OUT/.truth/000_S_0000``:
        ``truth.json`` with ``axial_to_t1``, the 4×4 matrix from the world mm (RAS+) of the T2 and PD scans to those of
        the T1 scan, and ``atrophy``; and the brain masks on both grids, ``brain_t1.nii.gz`` and ``brain_axial.nii.gz``.

    Args:
        out: the folder; made if absent.
        dataset: ``"brats"``, ``"adni"`` or ``"adni-raw"``.
        subjects: how many, 1 or more.
        seed: 0 or above. The same seed gives the same bytes, and a larger data set begins with the smaller one.
        spacing: voxel edge in mm; 1 is that of real studies. Larger makes smaller volumes of the same heads: 2.5 gives
            BraTS's as 96×96×62. ADNI's axial slices are 3 mm thick up to a spacing of 3, and as thick as it beyond.
        shape: voxels along each axis; as many as cover the data set's field of view if None. Not for ``"adni-raw"``.
        progress: whether a progress bar is shown.

    Returns:
        The study folders, in order.

    Raises:
        ValueError: an argument is not valid, or the folder holds something else.
        OSError: the folder cannot be written.
        ImportError: nilearn is not installed.

    Example::

        >>> write_phantom_dataset("phantom", "brats", subjects=1, seed=0, spacing=8.0, progress=False)[0].name
        'BraTS2021_00000'
    """
    if dataset not in _KINDS:
        raise ValueError(f"there is no phantom of the unknown dataset {dataset!r}: valid are {', '.join(_KINDS)}")
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}: valid is 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}: valid is 0 or above")
    kind = _KINDS[dataset]
    grid = kind.grid(spacing, shape)
    load_template(grid.spacing)  # fails here, before anything is written
    folder = Path(out)
    record = {"phantom": dataset, "version": VERSION, "seed": seed, "spacing": spacing, "shape": list(grid.shape)}
    _claim_folder(folder, kind.marker, record)
    studies = [folder / kind.study.format(subject) for subject in range(subjects)]
    for subject, study in enumerate(tqdm(studies, desc="phantom", unit="subject", disable=not progress)):
        if study.exists():
            continue
        try:
            kind.write(_Request(study, seed, subject, spacing, shape))
        except OSError as error:
            raise OSError(f"cannot write {study}: {error}; make room or name another folder") from error
    return studies
