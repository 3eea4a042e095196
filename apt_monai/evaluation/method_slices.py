"""What a method is given of the evaluation's slices, in its own preprocessing, and the way back for what it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from apt_monai.evaluation.slices import EvaluationSlices, on_truth_scale, width_on_truth_scale
from apt_monai.methods import Batch, Method


class MethodSlices:
    """The evaluation's slices as one method takes them.

    Equal preprocessing shares entries of the cache; a vision encoder's features are cached beside them. With several
    ranks, all make this together.

    Args:
        slices: the evaluation's slices.
        method: the method.
    """

    def __init__(self, slices: EvaluationSlices, method: Method) -> None:
        self.slices = slices
        self.encoder_fingerprint = None if method.encoder is None else str(method.encoder.fingerprint)
        self.entries = slices.cached(method.preprocessing, method.encoder)

    def batches(self, number: int, positions: Sequence[int] | None = None) -> Iterator[Batch]:
        """A study's chosen slices (or those in some positions), collated, ``batch_size`` at a time."""
        entry, rows = self.entries[number], self.slices.rows[number]
        wanted = rows if positions is None else [rows[position] for position in positions]
        for start in range(0, len(wanted), self.slices.batch_size):
            yield entry.batch(wanted[start : start + self.slices.batch_size], self.encoder_fingerprint)

    def back(self, number: int, result: Mapping[str, Tensor], brain: Tensor) -> dict[str, Tensor]:
        """What the method made of a study's slices, on the acquired grid and in the truth's scale.

        Args:
            number: which study.
            result: ``"image"`` and, where there are, ``"prior"`` and ``"uncertainty"``: ``(S, C, H, W)``.
            brain: ``(S, 1, X, Y)`` bool, of the reference.

        Returns:
            The same, ``(S, C, X, Y)`` float32 in [0, 1] (the uncertainty at least 0); 0 outside the brain. With an
            uncertainty also ``"lower"`` and ``"upper"``, the ends of the interval, which are clipped as the truth is.
        """
        entry, truth = self.entries[number], self.slices.entries[number]
        found = {key: on_truth_scale(result[key], entry, truth, brain) for key in ("image", "prior") if key in result}
        if "uncertainty" in result:
            image, width = result["image"], result["uncertainty"]
            found["uncertainty"] = width_on_truth_scale(width, entry, truth, brain)
            found["lower"] = on_truth_scale(image - width, entry, truth, brain)
            found["upper"] = on_truth_scale(image + width, entry, truth, brain)
        return found
