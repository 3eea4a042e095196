"""``python -m benchmarks.uncertainty``: is an uncertainty wide where the synthesis is wrong?

For each contrast from all the others and from each one alone: the share of the brain's voxels that the 90 % interval
covers; over cubes of 8 mm, Spearman's correlation of the mean width and the root mean square error; and how much more
wrong the widest tenth of the cubes is than the narrowest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tqdm import tqdm

from apt_monai.contrasts import get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.evaluation import EvaluationSlices
from apt_monai.evaluation.method_slices import MethodSlices
from apt_monai.evaluation.prediction import synthesise
from apt_monai.models import load

CUBE_MM = 8.0


def cubes(values: torch.Tensor, brain: torch.Tensor, edges: tuple[int, int, int]) -> np.ndarray:
    """The means of values ``(Z, X, Y)`` over the brain of each cube that is at least half brain.

    Example::

        >>> cubes(torch.ones(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.bool), (2, 2, 2)).shape
        (8,)
    """
    share = F.avg_pool3d(brain[None, None].double(), edges)
    total = F.avg_pool3d((values.double() * brain)[None, None], edges)
    return (total / share)[share >= 0.5].numpy()


def edges_of(path: str) -> tuple[int, int, int]:
    """The voxels along z, x and y of a cube of 8 mm in a volume, one at least."""
    x, y, z = nib.as_closest_canonical(nib.load(path)).header.get_zooms()[:3]
    return tuple(max(1, round(CUBE_MM / float(edge))) for edge in (z, x, y))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uncertainty", description=__doc__)
    parser.add_argument("model", help="a trained model's folder")
    parser.add_argument("data", help="a folder of studies that neither training nor calibration saw")
    parser.add_argument("--dataset", default="brats")
    parser.add_argument("--one", nargs="+", help="the contrasts that are acquired alone (default: each)")
    parser.add_argument("--output", default="bench/uncertainty.json")
    parser.add_argument("--cache", default="bench/slices")
    arguments = parser.parse_args()
    contrasts = get_contrast_set(arguments.dataset)
    studies, method = read_studies(arguments.data, contrasts, require_all=True), load(arguments.model)
    slices = EvaluationSlices(studies, arguments.cache, contrasts, slices_per_subject=None, batch_size=16)
    given = MethodSlices(slices, method)
    alone = contrasts.names if arguments.one is None else arguments.one
    cases = [acquired for acquired in contrasts.subsets() if len(acquired) == len(contrasts) - 1]
    cases += [acquired for acquired in contrasts.subsets() if len(acquired) == 1 and acquired[0] in alone]
    found: dict[str, dict[str, list[np.ndarray] | list[float]]] = {}
    for number, study in enumerate(tqdm(studies, unit="study")):
        truth, edges = slices.study(number), edges_of(study[contrasts.names[0]])
        for acquired in cases:
            result, _ = synthesise(method.name, method, given.batches(number), contrasts, acquired, method.device)
            made, brain = given.back(number, result, truth.brain), truth.brain[:, 0]
            for target in (name for name in contrasts.names if name not in acquired):
                c, sources = contrasts.index(target), "one" if len(acquired) == 1 else "all others"
                one = found.setdefault(f"{target} from {sources}", {"covered": [], "width": [], "error": []})
                known = truth.truth[:, c]
                inside = (known >= made["lower"][:, c]) & (known <= made["upper"][:, c])
                one["covered"].append(float(inside[brain].double().mean()))  # type: ignore[arg-type]
                one["width"].append(cubes(made["uncertainty"][:, c], brain, edges))  # type: ignore[arg-type]
                squared = (made["image"][:, c] - known).square()
                one["error"].append(np.sqrt(cubes(squared, brain, edges)))
    rows = {}
    print(
        f"| case | covered | Spearman | widest tenth / narrowest |\n| --- | --- | --- | --- |   {len(studies)} subjects"
    )
    for case, values in sorted(found.items()):
        width, error = np.concatenate(values["width"]), np.concatenate(values["error"])
        order = np.argsort(width)
        tenth = max(1, len(order) // 10)
        ratio = float(np.sqrt(np.mean(error[order[-tenth:]] ** 2) / np.mean(error[order[:tenth]] ** 2)))
        rows[case] = {
            "covered": float(np.mean(values["covered"])),
            "spearman": float(spearmanr(width, error).statistic),
            "ratio": ratio,
        }
        print(f"| {case} | {rows[case]['covered']:.3f} | {rows[case]['spearman']:.2f} | {ratio:.1f} |")
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"model": arguments.model, "data": arguments.data, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
