"""Raw scans of patients in, what they lack out, on the scanner's own grid: preprocessing, synthesis and the way back.

What is written::

    OUT/<study>/<study>_<contrast>_SYNTHETIC.nii.gz   on the grid of one of the study's scans; its uncertainty, sidecar
    OUT/<study>/<study>_registration.png              every scan in output space, with the brain mask's outline
    OUT/<study>/<study>_SYNTHETIC.png                 what was synthesised beside what was acquired
    OUT/steps/prepared, OUT/steps/synthesised         what the steps between gave; may be deleted
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.data.readers import read_studies
from apt_monai.data.writers import without_targets
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
        grid: the scan on whose grid they come; None: the one whose intensity scale a volume has, the nearest to it.
        settings: of the preprocessing; the contrast set's defaults if None.

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
    steps = Path(out) / STEPS
    report = preprocess_cohort([named], steps / "prepared", contrasts, settings, progress=False)
    if report.failed:
        raise StudyError(report.failed[named["subject"]])
    prepared = next(s for s in read_studies(steps / "prepared", contrasts) if s["subject"] == named["subject"])
    if synthesizer.pending([prepared], steps / "synthesised", targets):
        synthesizer.synthesize(prepared, steps / "synthesised", targets)
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


def restore(study: Mapping[str, str], out: str | Path, contrasts: ContrastSet, grid: str | None = None) -> list[Path]:
    """The last step of a raw study: its synthesised volumes on a scan's grid, and the pictures to check them by.

    Raises:
        StudyError, OSError: see :func:`apt_monai.preprocessing.restore_study`.
    """
    subject, steps = study["subject"], Path(out) / STEPS
    folder = Path(out) / subject
    prepared = steps / "prepared" / subject
    written = restore_study(steps / "synthesised" / subject, prepared, folder, grid)
    draw_registration(folder / f"{subject}_registration.png", study, prepared, contrasts)
    draw_restored(folder / f"{subject}_SYNTHETIC.png", study, written, contrasts)
    return written


def each(studies: Sequence[Mapping[str, str]], do: Callable[[Mapping[str, str]], object]) -> dict[str, str]:
    """Do something for each study; why it failed, by study: one bad study never stops the others.

    Example::

        >>> def refuse(study):
        ...     raise StudyError(f"{study['subject']} is bad")
        >>> each([{"subject": "a"}], refuse)
        {'a': 'a is bad'}
    """
    failed = {}
    for study in studies:
        try:
            do(study)
        except (StudyError, ValueError, OSError) as error:
            logger.error("%s: %s", study["subject"], error)
            failed[study["subject"]] = str(error)
    return failed
