"""What a trained direct method knows beside its weights: how wide an interval is, how spread a contrast's volume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from apt_monai.contrasts import ContrastSet
from apt_monai.errors import ModelError
from apt_monai.files import write_text

CALIBRATION_NAME = "calibration.json"
"""The file of a model's folder that holds it."""


@dataclass(frozen=True)
class Calibration:
    """Measured on subjects that the weights were not trained on (:mod:`apt_monai.calibrate`).

    Args:
        half_width: by contrast, for 1, 2, … C - 1 acquired contrasts: what the half width of the 90 % interval is
            multiplied by, so that it covers 90 % of the brain's voxels; 1 where Laplace's distribution holds.
        deviation: by contrast, the robust standard deviation of the brain's intensities over their median.
        subjects: how many they were measured on.

    Example::

        >>> from apt_monai.contrasts import ADNI
        >>> found = Calibration({name: (1.1, 1.0) for name in ADNI.names}, dict.fromkeys(ADNI.names, 0.2), 20)
        >>> found.save("calibration.json")
        >>> Calibration.load("calibration.json", ADNI) == found
        True
    """

    half_width: Mapping[str, tuple[float, ...]]
    deviation: Mapping[str, float]
    subjects: int

    def save(self, path: str | Path) -> None:
        """Write it as JSON, complete or not at all."""
        write_text(Path(path), json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, contrasts: ContrastSet) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or of other contrasts.
        """
        advice = "delete it and run the training's run id 'calibration' again"
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            widths = {name: tuple(float(w) for w in content["half_width"][name]) for name in contrasts.names}
            deviation = {name: float(content["deviation"][name]) for name in contrasts.names}
            subjects = int(content["subjects"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: no calibration of {', '.join(contrasts.names)} ({error!r}); {advice}") from error
        if any(len(each) != len(contrasts) - 1 or min(each) <= 0 for each in widths.values()):
            raise ModelError(f"{path}: half_width needs {len(contrasts) - 1} numbers above 0 a contrast; {advice}")
        return cls(widths, deviation, subjects)
