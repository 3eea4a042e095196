"""Heads for tests of preprocessing: coarse scans of one uneven head in any pose, with the true brain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from tiny_studies import write_nifti

from apt_monai.preprocessing import PreprocessingSettings
from apt_monai.preprocessing.scan import Scan

QUICK = PreprocessingSettings(mask="itk", bias_spacing=20.0, levels=(8.0, 4.0))
# Intensities outside, in scalp, skull, CSF, grey matter, white matter
LOOKS = {"t1": (2, 90, 8, 20, 60, 85), "t2": (2, 50, 5, 140, 80, 60), "pd": (2, 75, 6, 90, 85, 70)}
T1_AFFINE = np.array([[0, 0, 6.0, -90], [6.0, 0, 0, -117], [0, 6.0, 0, -102], [0, 0, 0, 1]])  # stored sagittally
PAIR_AFFINE = np.array([[-5.0, 0, 0, 97.5], [0, 5.0, 0, -117.5], [0, 0, 8.0, -84], [0, 0, 0, 1]])


def movement(degrees: tuple[float, float, float] = (3.0, -4.0, 5.0), mm: tuple[float, ...] = (4, -3, 2)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees)).as_matrix()
    matrix[:3, 3] = mm
    return matrix


def anatomy(points: np.ndarray) -> np.ndarray:
    """The tissue, 0 to 5, at (3, N) mm of an uneven head."""
    x, y, z = points
    radius = np.sqrt((x / (68 + 0.12 * y)) ** 2 + (y / 86) ** 2 + ((z - 0.15 * x) / 54) ** 2)
    tissue = np.searchsorted(-np.array([1.34, 1.24, 1.08, 0.97, 0.85]), -radius)
    ventricle = ((x - 14) / 12) ** 2 + (y / 34) ** 2 + ((z - 6) / 14) ** 2 < 1
    nuclei = (np.hypot((x + 30) / 14, (y - 25) / 18) < 1) | (np.hypot((x - 25) / 18, (z + 15) / 12) < 1)
    tissue[nuclei & (tissue == 5)] = 4
    tissue[ventricle] = 3
    return tissue


def make_scan(name: str, shape: tuple[int, int, int], affine: np.ndarray, pose: np.ndarray) -> tuple[Scan, np.ndarray]:
    """A noisy scan of the head moved by `pose` (head mm to scanner mm), and its true brain mask."""
    rng = np.random.default_rng(len(name) + sum(shape))
    voxels = np.indices(shape).reshape(3, -1)
    looks = np.array(LOOKS[name], np.float32)
    total: np.ndarray = np.zeros(voxels.shape[1], np.float32)
    for part in np.array(np.meshgrid(*[[-0.33, 0, 0.33]] * 3)).reshape(3, -1).T:
        world = affine @ np.vstack([voxels + part[:, None], np.ones(voxels.shape[1])])
        total += looks[anatomy((np.linalg.inv(pose) @ world)[:3])] / 27
    middle = np.linalg.inv(pose) @ affine @ np.vstack([voxels, np.ones(voxels.shape[1])])
    brain = anatomy(middle[:3]) >= 3
    noise = rng.normal(0, 1.5, (2, *shape))
    return Scan(np.hypot(total.reshape(shape) + noise[0], noise[1]).astype(np.float32), affine), brain.reshape(shape)


def make_t1(pose: np.ndarray) -> tuple[Scan, np.ndarray]:
    return make_scan("t1", (40, 36, 31), T1_AFFINE, pose)


def make_pair(name: str) -> tuple[Scan, np.ndarray]:
    return make_scan(name, (40, 48, 22), PAIR_AFFINE, np.eye(4))


def write_raw(folder: Path, names: tuple[str, ...] = ("t1", "t2", "pd")) -> dict[str, str]:
    study = {"subject": folder.name}
    for name in names:
        scan, _ = make_t1(movement()) if name == "t1" else make_pair(name)
        study[name] = write_nifti(folder / f"{folder.name}_{name}.nii.gz", scan.volume, scan.affine)
    return study


def errors_mm(found: np.ndarray, true: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """How far each brain voxel is put from where it is, in mm."""
    points = affine @ np.vstack([np.argwhere(brain).T, np.ones(np.count_nonzero(brain))])
    return np.linalg.norm(((found - true) @ points)[:3], axis=0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def transforms_of(folder: Path) -> dict:
    return json.loads((folder / "preprocessing" / "transforms.json").read_text())
