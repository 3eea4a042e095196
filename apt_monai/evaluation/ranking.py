"""Which acquired contrast is best copied in the place of which missing one: chosen on validation studies."""

from __future__ import annotations

from apt_monai.evaluation.slices import EvaluationSlices
from apt_monai.evaluation.statistics import mean
from apt_monai.metrics import psnr


def copy_ranking(slices: EvaluationSlices) -> dict[str, list[str]]:
    """For each target the other contrasts, best copy first: by the mean PSNR over the whole slice.

    The mean is over each subject's slices first, then over subjects, each contrast on its own percentiles' scale.

    Args:
        slices: of validation studies, never of those that are tested on. Without any study there is no ranking.

    Returns:
        By target, the sources, as :class:`apt_monai.methods.Copy` takes them.

    Example::

        >>> copy_ranking(EvaluationSlices([], "cache", "adni"))
        {}
    """
    names = slices.contrasts.names
    found: dict[tuple[str, str], list[float]] = {(t, s): [] for t in names for s in names if s != t}
    for number in range(len(slices.studies)):
        truth = slices.study(number).truth  # (S, C, X, Y)
        channels = dict(zip(names, truth.split(1, dim=1), strict=True))
        for (target, source), values in found.items():
            values.append(mean(psnr(channels[source], channels[target]).tolist()))
    if not slices.studies:
        return {}
    return {
        target: sorted((s for s in names if s != target), key=lambda source: -mean(found[target, source]))
        for target in names
    }
