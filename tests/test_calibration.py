"""Calibration: intervals that cover what they say, on subjects that training never saw."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import write_study

from apt_monai.calibrate import calibrate
from apt_monai.contrasts import BRATS
from apt_monai.data.slice_cache import SliceCache
from apt_monai.errors import ModelError
from apt_monai.methods import Calibration, Copy
from apt_monai.methods.base import Batch
from apt_monai.transforms import StudyPreprocessing

PREPROCESSING = StudyPreprocessing(BRATS, None, deviations=6)


class Guess(Copy):
    """The truth, normally distributed errors, and an expectation of them that is too small by a factor a contrast."""

    factors = dict(zip(BRATS.names, (1.0, 2.0, 3.0, 4.0), strict=True))

    def __call__(self, batch: Batch, available: torch.Tensor, progress: object = None) -> dict[str, torch.Tensor]:
        image = batch["image"]
        generator = torch.Generator().manual_seed(len(batch["subject"]))
        error = 0.05 * torch.randn(image.shape, generator=generator)
        factor = torch.tensor([self.factors[name] for name in BRATS.names])[None, :, None, None]
        more = (4 - available.sum(dim=1)).float()[:, None, None, None]  # the more is missing, the less it expects
        return {"image": image + error, "uncertainty": torch.full_like(image, 0.05) / factor / more}


def cached(folder: Path, subjects: int) -> list:
    studies = [write_study(folder / f"s{i}", shape=(20, 18, 6)) for i in range(subjects)]
    cache = SliceCache(folder / "cache", PREPROCESSING, min_brain_fraction=0)
    cache.prepare(studies, progress=False)
    return [cache.open(study) for study in studies]


def test_the_widths_are_what_makes_ninety_per_cent_of_the_errors_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found = calibrate(Guess(PREPROCESSING), cached(tmp_path, 3))
    for name, factor in Guess.factors.items():
        # 90 % of a normal distribution are within 1.645 deviations; 3, 2 and 1 contrasts are missing
        np.testing.assert_allclose(found.half_width[name], 1.645 * factor * np.array([3, 2, 1]), rtol=0.06)
    assert found.subjects == 3 and "calibrated on 3 subjects only" in caplog.text
    assert all(0 < spread < 2 for spread in found.deviation.values())


def test_there_must_be_a_subject() -> None:
    with pytest.raises(ValueError, match="no subjects to calibrate on: give the split validation subjects"):
        calibrate(Guess(PREPROCESSING), [])


@pytest.mark.parametrize(
    "change",
    [
        {"half_width": {}},
        {"deviation": {"t1": 1}},
        {"half_width": dict.fromkeys(BRATS.names, [1, 1])},
        {"subjects": None},
    ],
)
def test_a_damaged_calibration_is_named(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "calibration.json"
    Calibration(dict.fromkeys(BRATS.names, (1.0, 1.0, 1.0)), dict.fromkeys(BRATS.names, 0.2), 20).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"calibration.json: .*run id 'calibration' again"):
        Calibration.load(path, BRATS)
