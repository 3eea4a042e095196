"""The scores of a study's slices: of each missing contrast, on the acquired grid and in the truth's scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from apt_monai.contrasts import ContrastSet
from apt_monai.evaluation.brasyn import brasyn_ssim
from apt_monai.evaluation.lesions import count_lesions
from apt_monai.evaluation.slices import StudySlices
from apt_monai.metrics import coverage, detail, flicker, haarpsi, monotone_match, psnr, ssim

REGIONS = {"slice": "Whole slice", "brain": "Brain", "healthy": "Brain without tumour", "tumour": "Tumour"}
BESIDE = ("structure", "haarpsi", "detail", "flicker", "coverage")
"""The scores that are not of a region."""
BRASYN = ("brasyn_tumour", "brasyn_healthy")
COUNTS = ("lesions", "missed", "invented")
"""What is summed over slices, not averaged."""
SCORES = (*(f"{metric}_{region}" for region in REGIONS for metric in ("psnr", "ssim")), *BESIDE, *BRASYN)


@dataclass(frozen=True)
class Row:
    """The scores of one synthesised slice, one line of ``results.csv``.

    Args:
        method: the method's name.
        acquired: the acquired contrasts, joined by ``+``.
        target: the synthesised contrast.
        subject: the subject.
        slice: the slice's index in the oriented volume.
        psnr_slice: PSNR in dB over the whole acquired slice; infinity if the images are identical.
        ssim_slice: SSIM over the whole slice, in [-1, 1].
        psnr_brain: PSNR over the brain.
        ssim_brain: SSIM over the brain.
        psnr_healthy: PSNR over the brain without the tumour.
        ssim_healthy: SSIM over the brain without the tumour.
        psnr_tumour: PSNR over the tumour; NaN in a slice without one.
        ssim_tumour: SSIM over the tumour; NaN in a slice without one.
        structure: PSNR over the whole slice after the one intensity curve that fits best all slices of the study.
        haarpsi: HaarPSI over the whole slice, in [0, 1].
        detail: gradient energy over the truth's; of all slices of the study, as the next two.
        flicker: change from slice to slice over the truth's.
        coverage: the share of brain voxels within the method's 90 % interval; NaN where it gives none.
        brasyn_tumour: BraSyn's 3D SSIM in the tumour; of all slices of the study, NaN where some are not evaluated or
            none has a tumour. See :mod:`apt_monai.evaluation.brasyn`.
        brasyn_healthy: likewise, in the brain without the tumour.
        lesions: how many enhancing lesions the truth has; of the slice, as the next two. NaN where the target is not
            taken with a contrast agent; see :mod:`apt_monai.evaluation.lesions`.
        missed: how many of them the prediction does not show.
        invented: how many the prediction shows where the truth has none.
        seconds: the wall time of the slice's batch divided by its slices; the same for all targets made in one go.
    """

    method: str
    acquired: str
    target: str
    subject: str
    slice: int
    psnr_slice: float
    ssim_slice: float
    psnr_brain: float
    ssim_brain: float
    psnr_healthy: float
    ssim_healthy: float
    psnr_tumour: float
    ssim_tumour: float
    structure: float
    haarpsi: float
    detail: float
    flicker: float
    coverage: float
    brasyn_tumour: float
    brasyn_healthy: float
    lesions: float
    missed: float
    invented: float
    seconds: float


def score_study(
    name: str,
    study: StudySlices,
    made: Mapping[str, torch.Tensor],
    contrasts: ContrastSet,
    acquired: Sequence[str],
    seconds: Sequence[float],
) -> list[Row]:
    """The rows of one study, target by target.

    Args:
        name: the method's name.
        study: the chosen slices.
        made: ``"image"`` and, where there are, ``"lower"`` and ``"upper"``, the ends of the 90 % interval, on the
            acquired grid: ``(S, C, X, Y)``.
        contrasts: the contrast set.
        acquired: what the method was given.
        seconds: of each slice.
    """
    rows = []
    for target in (t for t in contrasts.names if t not in acquired):
        channel = contrasts.index(target)
        scores = _scores(study, made, channel) | _lesions(study, made, channel, contrasts)
        for i, index in enumerate(study.indices):
            values = {key: round(score[i], 6) for key, score in scores.items()}
            took = round(seconds[i], 6)
            rows.append(Row(name, "+".join(acquired), target, study.subject, index, **values, seconds=took))
    return rows


def _scores(study: StudySlices, made: Mapping[str, torch.Tensor], channel: int) -> dict[str, list[float]]:
    """Every score of one contrast, of each slice."""

    def one(image: torch.Tensor) -> torch.Tensor:
        return image[:, channel : channel + 1]  # (S, 1, X, Y)

    truth, clean, prediction, brain = one(study.truth), one(study.noiseless), one(made["image"]), study.brain
    regions = {
        "slice": torch.ones_like(brain),
        "brain": brain,
        "healthy": study.region == 1,
        "tumour": study.region == 2,
    }
    scores = {}
    for key, where in regions.items():
        scores[f"psnr_{key}"] = psnr(prediction, truth, where).tolist()
        scores[f"ssim_{key}"] = ssim(prediction, truth, where).tolist()
    scores["structure"] = psnr(monotone_match(prediction, truth, brain), truth).tolist()
    scores["haarpsi"] = haarpsi(prediction, truth).tolist()
    in_tumour, in_healthy = _brasyn(study, prediction, channel)
    of_study = {
        "brasyn_tumour": in_tumour,
        "brasyn_healthy": in_healthy,
        "detail": detail(prediction, clean, brain),
        "flicker": flicker(prediction, clean, brain, study.indices),
        "coverage": coverage(one(made["lower"]), one(made["upper"]), truth, brain) if "lower" in made else math.nan,
    }
    return scores | {key: [value] * len(truth) for key, value in of_study.items()}


def _brasyn(study: StudySlices, prediction: torch.Tensor, channel: int) -> tuple[float, float]:
    """BraSyn's SSIM of a study, on raw intensities, of which those outside the brain are 0."""
    if not study.whole or not (study.region == 2).any():
        return math.nan, math.nan
    zero, one = study.intensity_range[channel].tolist()
    made, truth = (
        (zero + (one - zero) * image.double()).masked_fill(~study.brain, 0)[:, 0].numpy()
        for image in (prediction, study.truth[:, channel : channel + 1])
    )
    return brasyn_ssim(made, truth, study.brain[:, 0].numpy(), study.region[:, 0].numpy() == 2)


def _lesions(
    study: StudySlices, made: Mapping[str, torch.Tensor], channel: int, contrasts: ContrastSet
) -> dict[str, list[float]]:
    """The lesions of each slice; NaN where the target is not taken with a contrast agent."""
    if not contrasts.contrasts[channel].enhanced:
        return dict.fromkeys(COUNTS, [math.nan] * len(study.indices))
    one = slice(channel, channel + 1)
    counts = count_lesions(made["image"][:, one], study.truth[:, one], study.region)
    return {name: [float(number) for number in numbers] for name, numbers in counts.items()}
