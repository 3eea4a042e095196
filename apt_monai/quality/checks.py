"""What can be seen of a study without knowing what a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import ndimage

from apt_monai.quality.findings import Finding
from apt_monai.quality.volumes import Volumes

STUDY = "study"


@dataclass(frozen=True)
class Limits:
    """What a prepared study is held against; the defaults are estimates, measured by ``benchmarks/quality.py``.

    Args:
        brain_ml: the least and the largest volume of a brain; above, there is a skull.
        edge: the largest voxel edge, in mm.
        anisotropy: the largest edge of a voxel over its smallest.
        end_area: the largest share of the largest axial section that the brain's first and last section may have.
        grid_end_area: the same where that section is the first or last of the grid.
        empty: the share of the brain in which a contrast may be 0.
        spike: how many times the 99.9th percentile of the brain an intensity may be.
        saturated: the share of the brain's voxels that may have its largest intensity.
        islands: the share of what is not background that may lie apart from the largest part.
        alike: the correlation from which on two contrasts are one file.
    """

    brain_ml: tuple[float, float] = (750.0, 2250.0)
    edge: float = 7.0
    anisotropy: float = 10.0
    end_area: float = 0.42
    grid_end_area: float = 0.25
    empty: float = 0.1
    spike: float = 3.0
    saturated: float = 0.005
    islands: float = 0.05
    alike: float = 0.9995


def check_volumes(volumes: Volumes, limits: Limits | None = None) -> list[Finding]:
    """The findings about a prepared study: skull-stripped, on one grid.

    Args:
        volumes: the study.
        limits: what it is held against.

    Example::

        >>> block = np.zeros((40, 40, 40), np.float32)
        >>> block[5:35, 5:35, 5:35] = np.random.default_rng(0).uniform(100, 200, (30, 30, 30))
        >>> volumes = Volumes({"t1": block, "t2": 2 * block}, block > 0, np.diag([4.0, 4.0, 4.0, 1.0]))
        >>> [(finding.check, finding.file) for finding in check_volumes(volumes)]
        [('coverage', 'study'), ('coverage', 'study'), ('one file twice', 't1, t2')]
    """
    limits = limits or Limits()
    volumes = volumes.ras()
    return [*_of_brain(volumes, limits), *_of_each(volumes, limits), *_of_pairs(volumes, limits)]


def _warning(check: str, file: str, found: str, advice: str) -> Finding:
    return Finding("warning", check, file, found, advice)


def _of_brain(volumes: Volumes, limits: Limits) -> Iterator[Finding]:
    edges, brain = volumes.edges, volumes.brain
    if edges.max() > limits.edge:
        yield _warning(
            "spacing", STUDY, f"voxels are {edges.max():.3g} mm long (at most {limits.edge:g})",
            "what is thinner cannot be seen; use a finer scan"
        )  # fmt: skip
    elif edges.max() > limits.anisotropy * edges.min():
        yield _warning(
            "spacing", STUDY, f"voxels are {edges.max() / edges.min():.3g} times as long as wide",
            "use a scan of thinner slices"
        )  # fmt: skip
    least, largest = limits.brain_ml
    ml = float(np.count_nonzero(brain) * edges.prod() / 1000)
    if ml > largest:
        yield _warning(
            "skull", STUDY, f"what is not background has {ml:.0f} ml, a brain {least:.0f} to {largest:.0f}",
            "strip the skull first (`python -m apt_monai preprocess`), or give a brain mask"
        )  # fmt: skip
    elif ml < least:
        yield _warning(
            "brain volume", STUDY, f"the brain has {ml:.0f} ml (usually {least:.0f} to {largest:.0f})",
            "see whether the brain mask has lost a part of it"
        )  # fmt: skip
    corners = brain[np.ix_(*([0, -1],) * 3)]
    labels, parts = ndimage.label(brain)
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    if np.count_nonzero(corners) >= 4 or sizes[:-1].sum() > limits.islands * sizes.sum():
        yield _warning(
            "background", STUDY, f"it is not 0 outside the brain ({parts} parts, {np.count_nonzero(corners)} corners)",
            "set it to 0, or give a brain mask"
        )  # fmt: skip
    areas = brain.sum(axis=(0, 1)) / max(1, brain.sum(axis=(0, 1)).max())
    there = np.flatnonzero(areas)
    for end, where, at_grid in ((there[0], "bottom", there[0] == 0), (there[-1], "top", there[-1] == len(areas) - 1)):
        if areas[end] > (limits.grid_end_area if at_grid else limits.end_area):
            yield _warning(
                "coverage", STUDY, f"the brain's {where} is cut off: its last section there has {areas[end]:.0%} of "
                "the area of the largest", "nothing is synthesised beyond; use a scan of the whole brain"
            )  # fmt: skip


def _of_each(volumes: Volumes, limits: Limits) -> Iterator[Finding]:
    sections = volumes.brain.sum(axis=(0, 1))
    for name, volume in volumes.contrasts.items():
        inside = volume[volumes.brain]
        high, largest = float(np.percentile(np.abs(inside), 99.9)), float(inside.max())
        spikes = int(np.count_nonzero(np.abs(inside) > limits.spike * high))
        if spikes and high > 0:
            yield _warning(
                "outliers", name, f"{spikes} voxels of the brain are above {limits.spike:g} times its 99.9th "
                f"percentile, up to {np.abs(inside).max():g}", "see whether the file was converted wrongly"
            )  # fmt: skip
        top = np.count_nonzero(inside == largest) / inside.size
        if top > limits.saturated and largest > 0 and inside.size > 1 / limits.saturated:
            yield _warning(
                "saturated", name, f"{top:.1%} of the brain's voxels have its largest intensity, {largest:g}",
                "convert the scan again without cutting intensities off"
            )  # fmt: skip
        nothing = (volume == 0) & volumes.brain
        empty = np.count_nonzero(nothing) / inside.size
        blank = np.flatnonzero((nothing.sum(axis=(0, 1)) == sections) & (sections > 0.1 * sections.max()))
        if len(blank):
            yield _warning(
                "blank slices", name, f"{len(blank)} slices of the brain are all 0", "use a scan of the whole brain"
            )
        elif empty > limits.empty:
            yield _warning(
                "masks differ", name, f"it is 0 in {empty:.0%} of the brain that the study's other contrasts show",
                "use one brain mask for all of them"
            )  # fmt: skip


def _of_pairs(volumes: Volumes, limits: Limits) -> Iterator[Finding]:
    for one, other in combinations(volumes.contrasts, 2):
        a, b = (volumes.contrasts[name][volumes.brain].astype(np.float64) for name in (one, other))
        if a.std() > 0 and b.std() > 0 and abs(np.corrcoef(a, b)[0, 1]) > limits.alike:
            same = "the same voxels" if np.array_equal(a, b) else "the same voxels on another scale"
            yield _warning("one file twice", f"{one}, {other}", f"they have {same}", "give each contrast its own file")


def check_raw(contrast: str, volume: np.ndarray, affine: np.ndarray, limits: Limits | None = None) -> list[Finding]:
    """The findings about one raw scan, as the scanner gave it: with skull.

    Args:
        contrast: its name.
        volume: ``(X, Y, Z)`` raw intensities.
        affine: ``(4, 4)``, voxels to mm.
        limits: what it is held against.

    Returns:
        The findings; an error where no whole brain can be in the scan, else warnings.

    Example::

        >>> stripped = np.zeros((40, 40, 40))
        >>> stripped[10:30, 10:30, 10:30] = 100
        >>> [finding.check for finding in check_raw("t1", stripped, np.diag([5.0, 5.0, 5.0, 1.0]))]
        ['skull']
    """
    limits = limits or Limits()
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    there = volume != 0
    field, ml = (float(voxels * edges.prod() / 1000) for voxels in (there.size, np.count_nonzero(there)))
    found = []
    if field < limits.brain_ml[0]:
        found.append(
            Finding(
                "error",
                "field of view",
                contrast,
                f"it covers {field:.0f} ml, and a brain has {limits.brain_ml[0]:g} or more",
                "use a scan of the whole head",
            )
        )
    if edges.max() > limits.edge:
        found.append(
            _warning(
                "spacing",
                contrast,
                f"voxels are {edges.max():.3g} mm long (at most {limits.edge:g})",
                "what is thinner cannot be seen; use a finer scan",
            )  # fmt: skip
        )
    if ml < limits.brain_ml[1] and np.count_nonzero(there) < 0.6 * there.size:
        found.append(
            _warning(
                "skull",
                contrast,
                f"it seems to have none: {np.mean(~there):.0%} of its voxels are 0",
                "a prepared study needs no preprocessing; give the raw scan, or synthesise at once",
            )  # fmt: skip
        )
    return found
