"""Varied studies: what differs between subjects, lesions, scanners, protocols and voxels, drawn anew for each of them.

After the randomised physics of SynthSeg and SynthSR (Billot et al., Med Image Anal 86:102789, 2023; Iglesias et al.,
NeuroImage 237:118206, 2021), though within what is plausible: contrasts come from signal equations, never from random
intensities. About a quarter of the studies have the plain phantom's grid, protocol, lesion and scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from apt_monai.contrasts import ADNI, BRATS
from apt_monai.files import complete_folder
from apt_monai.phantom.acquisition import ideal_signal
from apt_monai.phantom.adni import ADNI_SEQUENCES, adni_axial_grid, adni_population
from apt_monai.phantom.brats import brats_grid
from apt_monai.phantom.grids import Grid, Volume
from apt_monai.phantom.head import Head, make_head
from apt_monai.phantom.layouts import anatomy_grid, axis_weights, draw_layout, see
from apt_monai.phantom.lesions import Hyperintensities, Lesion, Mass
from apt_monai.phantom.population import Population, head_box
from apt_monai.phantom.protocols import Protocol, draw_protocol
from apt_monai.phantom.scanner import Scan, add_ghosts, draw_noise, draw_scan, scan_signal, usual_scan
from apt_monai.phantom.sequences import COVERINGS, SEQUENCES, PulseSequence, sequence_signal
from apt_monai.phantom.stripping import Stripped, Strippers, strip_brain
from apt_monai.phantom.studies import Request, save_nifti, save_scan, subject_generator
from apt_monai.phantom.tumour import draw_tumour

#: The kinds of lesions in the studies of BraTS that are not nominal, and how likely each is.
BRATS_LESIONS: Mapping[str, float] = MappingProxyType(
    {"ring": 0.33, "solid": 0.14, "core": 0.15, "oedema": 0.1, "none": 0.1, "two": 0.18}
)

#: Sizes of those lesions.
_LESION_POPULATIONS: Mapping[str, Population] = MappingProxyType(
    {
        "ring": Population(core=(7.0, 25.0), necrosis=(0.4, 0.88), oedema=(1.2, 2.7), mass_effect=(0.05, 0.45)),
        "solid": Population(core=(5.0, 17.0), oedema=(1.15, 2.7), mass_effect=(0.05, 0.35)),
        "core": Population(core=(9.0, 26.0), oedema=(1.05, 1.5), mass_effect=(0.05, 0.35)),
        "oedema": Population(core=(5.0, 14.0), oedema=(1.3, 2.2), mass_effect=(0.0, 0.1)),
        "two": Population(core=(4.0, 15.0), oedema=(1.2, 2.6), mass_effect=(0.05, 0.25)),
    }
)

_HYPERINTENSITIES = 0.55  # the part of ADNI's studies that have some
_THRESHOLD = (2.2, 3.5)  # from many to few


@dataclass(frozen=True)
class Kind:
    """What the varied studies of one data set have in common.

    Args:
        contrasts: their names.
        grid: the plain phantom's for a spacing.
        sequences: the plain phantom's.
        bias: the plain phantom's bias field.
        subject: population and lesions of (seed, subject, nominal); lesions None for the population's own.
        segmented: whether the lesions are written as well.
    """

    contrasts: Sequence[str]
    grid: Callable[[float], Grid]
    sequences: Mapping[str, PulseSequence]
    bias: float
    subject: Callable[[int, int, bool], tuple[Population, Sequence[Lesion] | None]]
    segmented: bool


def draw_brats_lesions(rng: np.random.Generator) -> tuple[str, list[Lesion]]:
    """The lesions of a study of BraTS: their kind, a name of :data:`BRATS_LESIONS`, and themselves.

    Example::

        >>> kind, lesions = draw_brats_lesions(np.random.default_rng(0))
        >>> kind in BRATS_LESIONS, len(lesions) <= 2
        (True, True)
    """
    kind = str(rng.choice(list(BRATS_LESIONS), p=list(BRATS_LESIONS.values())))
    if kind == "none":
        return kind, []
    kinds = [str(name) for name in rng.choice(["ring", "solid"], 2)] if kind == "two" else [kind]
    return kind, [Mass(draw_tumour(_LESION_POPULATIONS[kind], rng), name) for name in kinds]


def _vary_atrophy(population: Population, rng: np.random.Generator) -> Population:
    """A population of one: as wide ventricles and sulci as young and old brains have."""
    return replace(population, ventricles=(-0.2, 0.6), sulci=(rng.uniform(1.3, 2.4), 0.2), size_spread=0.035, turn=5.0)


def _brats_subject(seed: int, subject: int, nominal: bool) -> tuple[Population, Sequence[Lesion] | None]:
    if nominal:
        return Population(), None
    rng = subject_generator(seed, subject, "varied subject")
    return _vary_atrophy(Population(), rng), draw_brats_lesions(rng)[1]


def _adni_subject(seed: int, subject: int, nominal: bool) -> tuple[Population, Sequence[Lesion] | None]:
    population = adni_population(seed, subject)
    if nominal:
        return population, None
    rng = subject_generator(seed, subject, "varied subject")
    some, threshold = rng.random() < _HYPERINTENSITIES, rng.uniform(*_THRESHOLD)
    return _vary_atrophy(population, rng), [Hyperintensities(threshold)] if some else []


VARIED_BRATS = Kind(BRATS.names, brats_grid, SEQUENCES, 0.1, _brats_subject, True)
VARIED_ADNI = Kind(ADNI.names, adni_axial_grid, ADNI_SEQUENCES, 0.04, _adni_subject, False)


class _View:
    """How the brain of a head is seen on a grid: what is outside the brain does not count.

    Args:
        head: on the grid of its anatomy.
        layout: the study's grid.
    """

    def __init__(self, head: Head, layout: Grid) -> None:
        self.head = head
        self.box, self.axes = head_box(layout)
        self.share = self._see(head.brain.astype(np.float32), (0.0, 0.0, 0.0))

    def _see(self, volume: Volume, blur: tuple[float, float, float]) -> Volume:
        each = zip(self.head.grid.axes, self.axes, blur, strict=True)
        x, y, z = (axis_weights(*axis) for axis in each)
        return see(volume, (x, y, z))

    def nearby(self, scale: float) -> Volume:
        """The share of brain around each voxel, smoothed by a Gaussian of that standard deviation in mm."""
        return self._see(self.head.brain.astype(np.float32), (scale, scale, scale))

    def volume(self, values: Volume, blur: tuple[float, float, float]) -> Volume:
        """Values of the head's brain voxels, (voxels,), on the box of the study's grid that holds the brain."""
        full = np.zeros(self.head.brain.shape, np.float32)
        full[self.head.brain] = values
        share = self._see(self.head.brain.astype(np.float32), blur) if any(blur) else self.share
        return self._see(full, blur) / np.maximum(share, np.float32(1e-3))

    def labels(self) -> NDArray[np.uint8]:
        """The segmentation on that box: of each voxel the label that fills most of it."""
        parts = {label: self._see((self.head.labels == label).astype(np.float32), (0, 0, 0)) for label in (1, 2, 4)}
        ill = np.stack(list(parts.values()))
        found = np.array(list(parts), np.uint8)[ill.argmax(axis=0)]
        return np.where(2 * ill.sum(axis=0) > self.share, found, 0).astype(np.uint8)


def _make_subject(kind: Kind, request: Request, protocol: Protocol, layout: Grid) -> Head:
    who = (request.seed, request.subject)
    population, lesions = kind.subject(*who, protocol.nominal)
    grid = anatomy_grid(layout, request.spacing)
    head = make_head(grid, *who, population, lesions, detail=request.spacing)
    return replace(head, tissues=protocol.tissues(head.tissues))


def _draw_scans(kind: Kind, request: Request, protocol: Protocol, layout: Grid) -> dict[str, Scan]:
    who = (request.seed, request.subject)
    steps = np.abs(np.diag(layout.affine))
    noise = draw_noise(subject_generator(*who, "study noise"))
    scans = {}
    for contrast in kind.contrasts:
        rng = subject_generator(*who, f"{contrast} scan")
        if protocol.nominal:
            scans[contrast] = usual_scan(rng, kind.bias)
        else:
            scans[contrast] = draw_scan(rng, noise, (float(steps[0]), float(steps[2])), request.spacing)
    return scans


def _acquire(
    view: _View, stripped: Stripped, request: Request, contrast: str, sequence: PulseSequence, scan: Scan
) -> Volume:
    """One contrast on the box that holds the brain, 0 outside the mask."""
    volume = view.volume(ideal_signal(view.head, sequence), scan.blur)
    covering = COVERINGS[stripped.tissue]
    bright = abs(float(sequence_signal(sequence, covering.pd, covering.t1, covering.t2)))
    volume[stripped.rim] = np.float32(bright) * stripped.brightness
    volume[~stripped.mask] = 0
    if scan.ghost:
        volume = add_ghosts(volume, scan.ghost)
    who = (request.seed, request.subject)
    rng, noise_rng = (subject_generator(*who, f"{contrast} {purpose}") for purpose in ("bias", "noise"))
    found = np.zeros(volume.shape, np.float32)
    found[stripped.mask] = scan_signal(
        volume[stripped.mask],
        stripped.mask,
        ~stripped.rim[stripped.mask],
        view.axes,
        scan,
        rng,
        noise_rng if request.noise else None,
    )
    return found


def write_varied_study(kind: Kind, request: Request) -> None:
    """One varied study: skull-stripped, all contrasts on one grid, which is not that of other studies.

    Args:
        kind: of which data set.
        request: its ``spacing`` is what the drawn voxel edges are multiplied by; its ``shape`` is not used.
    """
    who = (request.seed, request.subject)
    protocol = draw_protocol(*who, {name: kind.sequences[name] for name in kind.contrasts})
    layout = kind.grid(request.spacing)
    if not protocol.nominal:
        layout = draw_layout(subject_generator(*who, "layout"), layout, request.spacing)
    scans = _draw_scans(kind, request, protocol, layout)
    view = _View(_make_subject(kind, request, protocol, layout), layout)
    strippers = None if protocol.nominal else Strippers()
    nearby = view.nearby(Strippers().scale * request.spacing) if strippers else view.share
    stripped = strip_brain(view.share, nearby, view.axes, subject_generator(*who, "stripping"), strippers)
    name = request.folder.name
    with complete_folder(request.folder) as folder:
        for contrast in kind.contrasts:
            scan = np.zeros(layout.shape, np.float32)
            scan[view.box] = _acquire(view, stripped, request, contrast, protocol.sequences[contrast], scans[contrast])
            save_scan(scan, layout, folder / f"{name}_{contrast}.nii.gz")
        if kind.segmented:
            labels = np.zeros(layout.shape, np.uint8)
            labels[view.box] = np.where(stripped.mask & ~stripped.rim, view.labels(), 0)
            save_nifti(labels, layout, folder / f"{name}_seg.nii.gz")
