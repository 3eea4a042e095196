"""Raw studies: the whole head, in series on grids of their own between which it moved, and what is true of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from apt_monai.files import complete_folder
from apt_monai.phantom.acquisition import magnitude_image
from apt_monai.phantom.dicom import SeriesHeader, write_dicom_series
from apt_monai.phantom.fields import smooth_noise
from apt_monai.phantom.grids import Grid, Volume, resample
from apt_monai.phantom.head import Head
from apt_monai.phantom.population import Population
from apt_monai.phantom.sequences import PulseSequence
from apt_monai.phantom.studies import Request, save_nifti, save_scan, subject_generator
from apt_monai.phantom.whole_head import whole_head_signals

TRUTH_NAME = ".truth"  # a hidden folder beside the studies


@dataclass(frozen=True)
class RawSeries:
    """One series of a raw study.

    Args:
        name: what its brain mask is called in the truth.
        description: its SeriesDescription, where it is written as DICOM.
        contrasts: its echoes, the shortest echo time first; mostly one.
        grid: its voxels, along the axes of its own slices.
        movement: 4×4, from the series' world mm to the head's: how the head lies in this series.
        tilt: 4×4, how its slices are turned against the scanner's axes; the identity where they are not.
        slices: the axis of the grid along which its slices follow each other.
    """

    name: str
    description: str
    contrasts: tuple[str, ...]
    grid: Grid
    movement: NDArray[np.float64]
    tilt: NDArray[np.float64]
    slices: int = 2

    @property
    def file_grid(self) -> Grid:
        """The same voxels where they are in the scanner."""
        return replace(self.grid, affine=self.tilt @ self.grid.affine)

    def see(self, volume: Volume, master: Grid) -> Volume:
        """What this series shows of a volume on the head's grid."""
        thickness = abs(self.grid.affine[self.slices, self.slices])
        parts = max(1, round(thickness / master.spacing))
        return resample(volume, master, self.grid, self.movement @ self.tilt, parts, self.slices)


def write_raw_study(
    request: Request,
    head: Head,
    population: Population,
    sequences: Mapping[str, PulseSequence],
    series: Sequence[RawSeries],
    record: Mapping[str, Any],
    labels: Mapping[str, tuple[NDArray[np.uint8], Grid]] | None = None,
) -> None:
    """Write one study as the scanner gives it, and in the hidden folder beside the studies what is true of it.

    Args:
        request: which study; as NIfTI, or each series as a folder of DICOM files.
        head: the subject, on a grid that holds the whole head.
        population: that of the head.
        sequences: each contrast's.
        series: what is scanned.
        record: what ``truth.json`` says.
        labels: further volumes of the truth, by their files' names.
    """
    who, name = (request.seed, request.subject), request.folder.name
    signals = whole_head_signals(head, *who, population, sequences)
    brains = {each.name: each.see(head.brain.astype(np.float32), head.grid) > 0.5 for each in series}
    truth = request.folder.parent / TRUTH_NAME / name
    truth.parent.mkdir(exist_ok=True)
    shutil.rmtree(truth, ignore_errors=True)  # of a run that was interrupted before the study was there
    with complete_folder(truth) as folder:
        (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for each in series:
            save_nifti(brains[each.name].astype(np.uint8), each.file_grid, folder / f"brain_{each.name}.nii.gz")
        for file, (volume, grid) in (labels or {}).items():
            save_nifti(volume, grid, folder / f"{file}.nii.gz")
    with complete_folder(request.folder) as folder:
        for number, each in enumerate(series, start=1):
            for echo, contrast in enumerate(each.contrasts, start=1):
                rng = subject_generator(*who, f"{contrast} raw")
                signal = each.see(signals[contrast], head.grid)
                # The coil: uneven, and it hears little of the neck
                z = each.grid.axes[2].astype(np.float32)
                signal *= np.exp(0.18 * smooth_noise(each.grid.axes, 90, rng)) * expit((z + 108) / 14)
                scan = magnitude_image(signal, rng, brain=brains[each.name], noiseless=not request.noise)
                scan = np.minimum(scan, np.iinfo(np.int16).max)
                if request.dicom:
                    header = SeriesHeader(name, number, each.description, sequences[contrast], echo, request.seed)
                    voxels = np.rint(scan).astype(np.int16)
                    write_dicom_series(folder / each.description, voxels, each.file_grid.affine, each.slices, header)
                else:
                    save_scan(scan, each.file_grid, folder / f"{name}_{contrast}.nii.gz")
