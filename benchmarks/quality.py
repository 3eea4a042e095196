"""``python -m benchmarks.quality``: does quality control find planted faults, and is it quiet where there are none?

Each fault is planted into studies of a folder (varied phantoms that the reference was not learned from), written as
NIfTI and read as synthesis reads it. Found means: a finding of one of the fault's checks, or the loader's error.
Studies of voxels that are truly too long are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from apt_monai.contrasts import ContrastSet, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.errors import StudyError
from apt_monai.io.source import read_volume
from apt_monai.quality import Finding, Reference, Volumes, check_alignment, check_study, check_volumes
from apt_monai.transforms.study import LoadStudyd

Images = dict[str, np.ndarray]
Fault = Callable[[Images, np.ndarray, np.random.Generator], tuple[Images, np.ndarray]]


def _one(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]) -> Fault:
    """A fault of one contrast, drawn."""

    def plant(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
        name = str(rng.choice(list(images)))
        return {**images, name: change(images[name], affine, rng)}, affine

    return plant


def _all(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]) -> Fault:
    """A fault of every contrast, the same in each."""

    def plant(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
        seed = int(rng.integers(2**31))
        return {name: change(v, affine, np.random.default_rng(seed)) for name, v in images.items()}, affine

    return plant


def swap(one: str, other: str) -> Fault:
    def plant(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
        return {**images, one: images[other], other: images[one]}, affine

    return plant


def rename(one: str, other: str) -> Fault:
    """Two contrasts alone, of which one is another's image."""

    def plant(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
        third = next(name for name in images if name not in (one, other))
        return {one: images[other], third: images[third]}, affine

    return plant


def _edges(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


def scalp(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    away = ndimage.distance_transform_edt(v == 0, sampling=_edges(affine))
    bright = np.percentile(v[v > 0], rng.uniform(60, 99))
    skull, skin = (away > 0) & (away <= 8), (away > 8) & (away <= rng.uniform(13, 18))
    noise = rng.uniform(0.7, 1.3, v.shape)
    return np.where(skin, bright * noise, np.where(skull, 0.1 * bright * noise, v))


def half_a_mask(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    inside = ndimage.distance_transform_edt(v > 0, sampling=_edges(affine))
    return np.where(inside > rng.uniform(16, 20), v, 0)


def cut(end: str) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]:
    """The field of view ends within the brain: 30 to 40 % of its height are missing."""

    def change(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        there = np.flatnonzero((v > 0).any((0, 1)))
        n = round(rng.uniform(0.3, 0.4) * len(there))
        lost = there[-n:] if end == "top" else there[:n]  # phantoms' slices go up
        v = v.copy()
        v[..., lost] = 0
        return v

    return change


def blank(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    areas = (v > 0).sum((0, 1))
    v = v.copy()
    v[..., rng.choice(np.flatnonzero(areas > 0.3 * areas.max()), 2, replace=False)] = 0
    return v


def spikes(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    v, inside = v.copy(), np.argwhere(v > 0)
    v[tuple(rng.choice(inside, 5, replace=False).T)] = max(32767, 10 * v.max())
    return v


def saturate(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.minimum(v, np.percentile(v[v > 0], rng.uniform(90, 98)))


def noisy_background(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    floor = rng.uniform(0.01, 0.05) * np.percentile(v[v > 0], 99)
    return np.where(v == 0, np.hypot(*rng.normal(0, floor, (2, *v.shape))), v)


def move(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator, turn: bool = False) -> np.ndarray:
    """Moved within the brain mask of the others, as after a registration that went wrong: 6 to 12 mm, 8 to 15°."""
    edges, brain = _edges(affine), v > 0
    filled = v[tuple(ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True))]
    size, axis = (rng.uniform(8, 15) if turn else rng.uniform(6, 12)) * rng.choice([-1, 1]), int(rng.integers(3))
    if turn:
        first, second = (a for a in range(3) if a != axis)
        matrix, angle = np.eye(3), np.radians(size)
        matrix[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        )  # fmt: skip
        matrix = np.diag(1 / edges) @ matrix @ np.diag(edges)
        centre = np.array(ndimage.center_of_mass(brain))
        moved = ndimage.affine_transform(filled, matrix, centre - matrix @ centre, order=1, mode="nearest")
    else:
        offset = np.zeros(3)
        offset[axis] = size / edges[axis]
        moved = ndimage.shift(filled, offset, order=1, mode="nearest")
    return np.where(brain, np.maximum(np.rint(moved), 1), 0)


def turn(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return move(v, affine, rng, turn=True)


def copied(scaled: bool) -> Fault:
    def plant(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
        one, other = rng.choice(list(images), 2, replace=False)
        factor = rng.uniform(1.5, 3) if scaled else 1.0
        return {**images, str(one): images[str(other)] * factor}, affine

    return plant


def thick(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
    step = int(np.ceil(8 / _edges(affine)[2]))
    return {name: v[..., ::step] for name, v in images.items()}, affine @ np.diag([1, 1, step, 1])


def negative(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(v > 0, v.max() + 1 - v, 0)


def no_anatomy(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=v.shape), 1.0)
    return np.where(v > 0, 500 + 100 * noise / noise.std(), 0).clip(min=0)


def constant(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(v > 0, 500.0, 0)


def nan(v: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    v = v.copy()
    v[tuple(rng.choice(np.argwhere(v > 0), 3).T)] = np.nan
    return v


def no_space(images: Images, affine: np.ndarray, rng: np.random.Generator) -> tuple[Images, np.ndarray]:
    return images, np.full((4, 4), np.nan)  # written with both codes 0


def faults(contrasts: ContrastSet) -> dict[str, tuple[Fault, set[str]]]:
    """By kind of fault, what plants it and the checks that find it."""
    found: dict[str, tuple[Fault, set[str]]] = {
        "skull left in": (_all(scalp), {"skull"}),
        "skull left in one contrast": (_one(scalp), {"skull", "masks differ"}),
        "half the brain masked away": (_all(half_a_mask), {"brain volume"}),
        "top cut off": (_all(cut("top")), {"coverage"}),
        "bottom cut off": (_all(cut("bottom")), {"coverage"}),
        "two blank slices": (_one(blank), {"blank slices"}),
        "slices too thick": (thick, {"spacing"}),
        "spikes": (_one(spikes), {"outliers"}),
        "saturated": (_one(saturate), {"saturated"}),
        "noise in the background": (_one(noisy_background), {"background", "skull"}),
        "shifted 6 to 12 mm": (_one(move), {"alignment"}),
        "turned 8 to 15°": (_one(turn), {"alignment"}),
        "one file twice": (copied(False), {"one file twice"}),
        "one file twice, scaled": (copied(True), {"one file twice"}),
        "no anatomy": (_one(no_anatomy), {"unlike training", "name", "no common anatomy"}),
        "negative": (_one(negative), {"unlike training", "name"}),
        "constant": (_one(constant), {"constant"}),
        "NaN": (_one(nan), set()),
        "left and right unknown": (no_space, set()),
    }
    for one, other in (("t1ce", "flair"), ("t1", "t2"), ("flair", "t2"), ("t1", "flair"), ("t1", "pd"), ("t2", "pd")):
        if {one, other} <= set(contrasts.names):
            found[f"{one} and {other} swapped"] = (swap(one, other), {"name"})
            found[f"{other} called {one}, beside one other"] = (rename(one, other), {"name"})
    for without, enhanced in contrasts.agent_pairs:  # where nothing enhances, it cannot be told
        found[f"{without} and {enhanced} swapped"] = (swap(without, enhanced), {"name"})
    return found


def findings(
    paths: dict[str, str], contrasts: ContrastSet, reference: Reference, of: set[str] | None = None
) -> list[Finding]:
    """As synthesis finds them; a refusal is one, too. With ``of``, only the checks that can find one of those."""
    try:
        loaded = LoadStudyd(contrasts)(paths)
    except StudyError as error:
        return [Finding("error", "loader", "study", str(error), "")]
    image = loaded["image"].numpy()
    brain = loaded["region"].numpy()[0] > 0
    values = {name: image[contrasts.index(name)] for name in loaded["paths"]}
    if any(np.ptp(volume[brain & (volume != 0)]) == 0 for volume in values.values()):
        return [Finding("error", "constant", "study", "refused by the scaling of intensities", "")]
    volumes = Volumes(values, brain, loaded["image"].affine.numpy())
    if of is None:
        return check_study(volumes, contrasts, reference)
    found = check_volumes(volumes)
    if of & {"name", "unlike training"}:
        found += reference.check(volumes, contrasts)
    if of & {"alignment", "no common anatomy"}:
        found += check_alignment(volumes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("reference", help="a model's quality.json")
    parser.add_argument("data", help="a folder of studies that it was not learned from")
    parser.add_argument("--dataset", default="brats")
    parser.add_argument("--each", type=int, default=20, help="planted faults of each kind")
    parser.add_argument("--clean", type=int, default=100)
    parser.add_argument("--coarsest", type=float, default=7.0, help="studies of longer voxels are left out (mm)")
    parser.add_argument("--kinds", nargs="+", help="of these kinds alone")
    parser.add_argument("--output", default="bench/quality.json")
    arguments = parser.parse_args()
    contrasts = get_contrast_set(arguments.dataset)
    reference = Reference.load(arguments.reference, contrasts)
    studies = []
    for study in read_studies(arguments.data, contrasts, require_all=True):
        if _edges(read_volume(study[contrasts.names[0]])[1]).max() <= arguments.coarsest:
            studies.append({key: path for key, path in study.items() if key != "seg"})
    rows, false = {}, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, (plant, checks)) in enumerate(faults(contrasts).items()):
            if arguments.kinds and kind not in arguments.kinds:
                continue
            hits, missed = 0, []
            chosen = [studies[(number + i) % len(studies)] for i in range(arguments.each)]
            for i, study in enumerate(tqdm(chosen, kind, leave=False)):
                images = {name: read_volume(study[name]) for name in contrasts.names}
                affine = next(iter(images.values()))[1]
                rng = np.random.default_rng([number, i])
                planted, place = plant({n: image[0] for n, image in images.items()}, affine, rng)
                paths = {"subject": study["subject"]}
                for name, volume in planted.items():
                    image = nib.Nifti1Image(volume.astype(np.float32), None if np.isnan(place).any() else place)
                    paths[name] = str(Path(folder) / f"{name}.nii")
                    nib.save(image, paths[name])
                found = findings(paths, contrasts, reference, checks)
                if {finding.check for finding in found} & (checks | {"loader"}):
                    hits += 1
                else:
                    missed.append(study["subject"])
            rows[kind] = {"found": hits, "of": len(chosen), "missed": missed}
            print(f"| {kind} | {hits} of {len(chosen)} | {', '.join(missed)}", flush=True)
        clean = [] if arguments.kinds else studies[: arguments.clean]
        alarms = 0
        for study in tqdm(clean, "clean", leave=False):
            found = findings(study, contrasts, reference)
            alarms += bool(found)
            false.update(f.check for f in found)
            for finding in found:
                print(f"  false: {study['subject']} {finding}", flush=True)
    print(f"| false alarms | {alarms} of {len(clean)} | {dict(false)}")
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": rows, "false_alarms": alarms, "clean": len(clean), "checks": false}
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
