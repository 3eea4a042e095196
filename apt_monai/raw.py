"""Raw scans of patients in, what they lack out, on the scanner's own grid: preprocessing, synthesis and the way back.

What is written::

    OUT/<study>/<study>_<contrast>_SYNTHETIC.nii.gz   on the grid of one of the study's scans; its uncertainty, sidecar
    OUT/<study>/<study>_registration.png              every scan in output space, with the brain mask's outline
    OUT/<study>/<study>_SYNTHETIC.png                 what was synthesised beside what was acquired
    OUT/steps/prepared_on_<contrast>                  the scans on one grid, what preprocessing gave; may be deleted
    OUT/steps/synthesised                             the volumes as the synthesis wrote them there; may be deleted

The scans are put onto the grid of one of them, in its pose, and the network works on that grid: no synthesised voxel is
resampled. On a real study of 5.5 mm slices, T1Gd from the other three, on T1's grid (PSNR in the brain, and after the
best rising intensity curve): 20.5 / 20.7 dB; by way of 1 mm voxels in T1's pose 19.9 / 20.1, in the pose of MNI152
18.3 / 18.8; the copy of T1 19.6 / 20.1.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers import read_studies
from apt_monai.data.writers import without_targets
from apt_monai.distributed import gather, own_share
from apt_monai.errors import StudyError
from apt_monai.preprocessing import PreprocessingSettings, preprocess_cohort, restore_study
from apt_monai.synthesis import Synthesizer
from apt_monai.visualize import draw_registration, draw_restored

logger = logging.getLogger(__name__)

STEPS = "steps"  # in the output folder


def synthesize_raw(
    synthesizer: Synthesizer,
    study: Mapping[str, str | Path],
    out: str | Path,
    targets: Sequence[str] | None = None,
    grid: str | None = None,
    settings: PreprocessingSettings | None = None,
) -> dict[str, Path]:
    """Write what one patient's raw study lacks, on the voxel grid of one of its scans.

    Args:
        synthesizer: a model, such as ``apt_monai.load("brats")``.
        study: by contrast, the scans as the scanner gave them, NIfTI files or DICOM series, each on a grid of its own;
            also ``"subject"``, what the volumes are called (``"study"`` without it), and ``"mask"``, a brain mask of
            your own on the grid of one of them.
        out: the folder to write to.
        targets: the contrasts to write; None: all that the study lacks.
        grid: the scan on whose grid they come; None: see :func:`grid_of`.
        settings: of the preprocessing, but for the grid.

    Returns:
        By contrast, the path of what was written.

    Raises:
        StudyError: a scan cannot be used, the registration fails, there is no usable brain mask, or nothing is missing.
        ValueError: an unknown contrast or grid.
        OSError: a file cannot be written.
    """
    named = {"subject": "study"} | {key: str(value) for key, value in study.items()}
    contrasts = synthesizer.contrasts
    check_raw([named], contrasts, targets, grid)
    grid = grid_of(named, contrasts, targets, grid)
    prepared, failed = prepare([named], out, contrasts, targets, grid, settings, progress=False)
    if failed:
        raise StudyError(failed[named["subject"]])
    synthesised = Path(out) / STEPS / "synthesised"
    if synthesizer.pending(prepared, synthesised, targets):
        synthesizer.synthesize(prepared[0], synthesised, targets)
    written = restore(named, out, contrasts, grid)
    return {name: path for name in contrasts.names for path in written if f"_{name}_SYNTHETIC" in path.name}


def check_raw(
    studies: Sequence[Mapping[str, str]], contrasts: ContrastSet, targets: Sequence[str] | None, grid: str | None
) -> None:
    """Refuse what can be known to be wrong before hours of work.

    Raises:
        StudyError: nothing is missing, or nothing is left to synthesise from.
        ValueError: an unknown contrast, a grid that a study does not have, or a study of a name that is taken.
    """
    for study in without_targets(studies, contrasts, targets):
        if study["subject"] == STEPS:
            raise ValueError(f"a study cannot be called {STEPS!r}, as the folder of the steps is: rename it")
        acquired = [name for name in contrasts.names if name in study]
        if len(acquired) == len(contrasts):
            raise StudyError(
                f"study {study['subject']!r}: nothing to synthesise, every contrast is given ({', '.join(acquired)}); "
                "name those that are to be synthesised nevertheless as targets"
            )
        if grid is not None and grid not in acquired:
            raise ValueError(
                f"grid {grid!r}: study {study['subject']!r} has no such scan to put volumes onto; valid are "
                f"{', '.join(acquired)}"
            )


def grid_of(study: Mapping[str, str], contrasts: ContrastSet, targets: Sequence[str] | None, grid: str | None) -> str:
    """The scan on whose grid a study's volumes come: the one asked for, else the nearest to the first that it lacks.

    The nearest is the one whose intensity scale the volume gets, see
    :meth:`apt_monai.contrasts.ContrastSet.intensity_source`.

    Example::

        >>> from apt_monai.contrasts import BRATS
        >>> grid_of({"subject": "a", "flair": "f", "t1": "a", "t2": "b"}, BRATS, None, None)
        't1'
    """
    if grid is not None:
        return grid
    (kept,) = without_targets([study], contrasts, targets)
    acquired = [name for name in contrasts.names if name in kept]
    return contrasts.intensity_source(next(name for name in contrasts.names if name not in kept), acquired)


def prepare(
    studies: Sequence[Mapping[str, str]],
    out: str | Path,
    contrasts: ContrastSet,
    targets: Sequence[str] | None = None,
    grid: str | None = None,
    settings: PreprocessingSettings | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The first step: each study's scans on the grid of one of them; the studies, and why others failed, by name.

    Ranks (torchrun) share the studies, and each returns those of all.
    """
    prepared: list[dict[str, str]] = []
    failed: dict[str, str] = {}
    grids = {study["subject"]: grid_of(study, contrasts, targets, grid) for study in studies}
    for name in sorted(set(grids.values())):
        chosen = [study for study in studies if grids[study["subject"]] == name]
        folder = _prepared(out, name)
        on_grid = replace(settings or PreprocessingSettings(), grid=(name,))
        report = preprocess_cohort(chosen, folder, contrasts, on_grid, progress=progress)
        failed |= dict(ChainMap(*gather(report.failed)))
        if good := [study["subject"] for study in chosen if study["subject"] not in failed]:
            there = {study["subject"]: study for study in read_studies(folder, contrasts)}
            prepared += [there[subject] for subject in good]
    return prepared, failed


def prepared_study(subject: str, out: str | Path, contrasts: ContrastSet, grid: str) -> dict[str, str]:
    """A raw study's scans as :func:`prepare` put them onto one grid."""
    return next(s for s in read_studies(_prepared(out, grid), contrasts) if s["subject"] == subject)


def _prepared(out: str | Path, grid: str) -> Path:
    return Path(out) / STEPS / f"prepared_on_{grid}"


def restore(study: Mapping[str, str], out: str | Path, contrasts: ContrastSet, grid: str) -> list[Path]:
    """The last step of a raw study: its synthesised volumes on a scan's grid, and the pictures to check them by.

    Raises:
        StudyError, OSError: see :func:`apt_monai.preprocessing.restore_study`.
    """
    subject = study["subject"]
    folder = Path(out) / subject
    prepared = _prepared(out, grid) / subject
    written = restore_study(Path(out) / STEPS / "synthesised" / subject, prepared, folder, grid)
    draw_registration(folder / f"{subject}_registration.png", study, prepared, contrasts)
    draw_restored(folder / f"{subject}_SYNTHETIC.png", study, written, contrasts)
    return written


def each(studies: Sequence[Mapping[str, str]], do: Callable[[Mapping[str, str]], object]) -> dict[str, str]:
    """Do something for each study; why it failed, by study: one bad study never stops the others.

    Ranks (torchrun) share the studies, and each returns the failures of all.

    Example::

        >>> def refuse(study):
        ...     raise StudyError(f"{study['subject']} is bad")
        >>> each([{"subject": "a"}], refuse)
        {'a': 'a is bad'}
    """
    failed = {}
    for study in own_share(studies):
        try:
            do(study)
        except (StudyError, ValueError, OSError) as error:
            logger.error("%s: %s", study["subject"], error)
            failed[study["subject"]] = str(error)
    return dict(ChainMap(*gather(failed)))
