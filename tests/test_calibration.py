"""Calibration: intervals that cover what they say, on subjects that training never saw."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bundle import files_of, write_untrained_direct, write_untrained_model
from tiny_studies import write_study

from apt_monai.calibrate import Errors, calibrate
from apt_monai.cli import main
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


def test_a_subject_left_out_is_covered_by_what_the_others_give() -> None:
    generator = np.random.default_rng(0)
    ratios = [generator.exponential(size=50) * (i + 1) for i in range(4)]
    errors = Errors({("t1", 1): ratios}, {"t1": 0.2})
    found = errors.covered_left_out("t1", 1)
    for i, own in enumerate(ratios):
        factor = np.quantile(np.concatenate([each for j, each in enumerate(ratios) if j != i]), 0.9)
        assert found[i] == np.mean(own <= factor) == errors.covered("t1", 1, factor)[i]
    assert np.isnan(Errors({("t1", 1): ratios[:1]}, {"t1": 0.2}).covered_left_out("t1", 1)).all()


# the command


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for i in range(2):
        write_study(tmp_path / "data" / f"s{i}", shape=(20, 18, 6))
    return tmp_path / "data"


def calibrated(studies: Path, model: Path) -> list[str]:
    folder = studies.parent
    paths = {"--model": model, "--out": folder / "calibrated", "--work": folder / "work"}
    return ["calibrate", str(studies), *(str(word) for pair in paths.items() for word in pair)]


def test_calibrate_writes_the_model_anew_with_what_its_errors_are_here(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_untrained_direct(studies.parent / "model")
    assert main(calibrated(studies, model)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("FLAIR", "T1", "T2")) for line in lines) == 4 * 3
    assert lines[-1].endswith(f"synthesize DATA --dataset brats --model {studies.parent / 'calibrated'}")
    new, old = studies.parent / "calibrated", json.loads((model / "calibration.json").read_text())
    found = json.loads((new / "calibration.json").read_text())
    assert found["subjects"] == 2 and found["half_width"] != old["half_width"]
    assert files_of(new) == files_of(model)
    assert (new / "model.pt").read_bytes() == (model / "model.pt").read_bytes()
    assert main(calibrated(studies, model)) == 2 and "is there already; name another" in capsys.readouterr().err
    # measured on the same studies, it is what it was
    again = studies.parent / "again"
    assert main([*calibrated(studies, new)[:-3], str(again), *calibrated(studies, new)[-2:]]) == 0
    assert json.loads((again / "calibration.json").read_text()) == found


def test_calibrate_refuses_patients_that_training_saw(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_untrained_direct(studies.parent / "model")
    (model / "split.json").write_text(json.dumps({"train": ["s1", "s7"], "validation": [], "test": [], "unused": []}))
    assert main(calibrated(studies, model)) == 2
    assert "trained on 1 of these patients (s1)" in capsys.readouterr().err
    assert not (studies.parent / "calibrated").exists()


def test_calibrate_refuses_a_model_without_an_uncertainty(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_untrained_model(studies.parent / "model")
    assert main(calibrated(studies, model)) == 2
    assert "has no uncertainty to calibrate" in capsys.readouterr().err
    assert not (studies.parent / "calibrated").exists()


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
