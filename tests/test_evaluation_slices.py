"""The evaluation's slices: which they are, the truth on the acquired grid, and the way back of what a method makes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_studies import write_study

from apt_monai.contrasts import ADNI
from apt_monai.evaluation import EvaluationSlices, copy_ranking
from apt_monai.evaluation.method_slices import MethodSlices
from apt_monai.methods import Copy
from apt_monai.transforms import StudyPreprocessing

SHAPES = (16, 15, 12), (20, 18, 14)


@pytest.fixture
def studies(tmp_path: Path) -> list[dict[str, str]]:
    """Two of different shapes, in BraTS's orientation."""
    return [write_study(tmp_path / "data" / f"case{i}", ADNI.names, shape, i) for i, shape in enumerate(SHAPES)]


def test_slices_are_pairs_of_neighbours_spread_over_the_brain(studies: list[dict[str, str]], tmp_path: Path) -> None:
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, slices_per_subject=4)
    assert len(slices) == 8
    for number, shape in enumerate(SHAPES):
        a, b, c, d = slices.study(number).indices
        middle = 1 + (shape[2] - 1) // 2
        assert a >= 1 and (b, d) == (a + 1, c + 1) and b < middle <= c and d < shape[2]


def test_the_choice_is_of_seed_and_subject_alone(studies: list[dict[str, str]], tmp_path: Path) -> None:
    def chosen(listing: list[dict[str, str]], seed: int = 0) -> dict[str, list[int]]:
        made = EvaluationSlices(listing, tmp_path / "cache", ADNI, 2, seed=seed)
        return {entry.subject: rows for entry, rows in zip(made.entries, made.rows, strict=True)}

    assert chosen(studies) == chosen(studies[::-1]) == chosen(studies[:1]) | chosen(studies[1:])
    assert len({str(chosen(studies, seed)) for seed in range(5)}) > 1


def test_every_slice_with_enough_brain_can_be_taken(studies: list[dict[str, str]], tmp_path: Path) -> None:
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, slices_per_subject=None)
    assert [slices.study(i).indices for i in (0, 1)] == [tuple(range(1, shape[2])) for shape in SHAPES]


@pytest.mark.parametrize("count", [0, 1, 5, -2])
def test_a_number_that_is_not_even_is_refused(studies: list[dict[str, str]], tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"slices_per_subject={count}: .* even number"):
        EvaluationSlices(studies, tmp_path / "cache", ADNI, count)


def test_a_study_with_fewer_slices_is_named(studies: list[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="study 'case0' has 11 slices with enough brain, fewer than slices_per_subj"):
        EvaluationSlices(studies, tmp_path / "cache", ADNI, 12)


def test_the_truth_is_the_acquired_slice_between_its_percentiles(studies: list[dict[str, str]], tmp_path: Path) -> None:
    study = EvaluationSlices(studies, tmp_path / "cache", ADNI, 2).study(1)
    for channel, name in enumerate(ADNI.names):
        volume = nib.load(studies[1][name]).get_fdata()[::-1, ::-1]  # LPS to RAS
        low, high = np.percentile(volume[volume > 0], (0.5, 99.5))
        expected = np.where(volume > 0, ((volume - low) / (high - low)).clip(0, 1), 0)
        for position, index in enumerate(study.indices):
            np.testing.assert_allclose(study.truth[position, channel], expected[..., index], atol=2e-5)
    assert study.region.shape == (2, 1, *SHAPES[1][:2]) and study.region.max() <= 2


@pytest.mark.parametrize(
    "settings", [{"size": None, "deviations": 5}, {"size": 32}, {"size": 24, "lower": 0, "upper": 100}]
)
def test_what_a_method_has_seen_comes_back_where_and_as_it_was(
    studies: list[dict[str, str]], tmp_path: Path, settings: dict[str, float]
) -> None:
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, 4, batch_size=3)
    own = MethodSlices(slices, Copy(StudyPreprocessing(ADNI, **settings)))
    for number in (0, 1):
        study = slices.study(number)
        batches = list(own.batches(number))
        assert [len(batch["subject"]) for batch in batches] == [3, 1]
        assert {subject for batch in batches for subject in batch["subject"]} == {study.subject}
        image = torch.cat([batch["image"] for batch in batches])
        made = own.back(number, {"image": image, "uncertainty": torch.full_like(image, 0.1)}, study.brain)
        torch.testing.assert_close(made["image"], study.truth, atol=3e-4, rtol=0)
        widths = made["uncertainty"].flatten(2)
        raw = (
            own.entries[number].intensity_range.diff(dim=1) / slices.entries[number].intensity_range.diff(dim=1)
        ) / 20
        torch.testing.assert_close(widths.amax(dim=(0, 2)), raw[:, 0])
        assert (widths.masked_select(~study.brain.flatten(2)) == 0).all()


def test_methods_of_one_preprocessing_share_the_caches_entries(studies: list[dict[str, str]], tmp_path: Path) -> None:
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, 2)
    MethodSlices(slices, Copy(StudyPreprocessing(ADNI, None)))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    MethodSlices(slices, Copy(StudyPreprocessing(ADNI, 16)))
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_the_ranking_puts_the_nearest_contrast_first(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", ADNI.names, SHAPES[0])
    t1 = nib.load(study["t1"])
    noise = np.random.default_rng(5).normal(0, 20, t1.shape) * (t1.get_fdata() > 0)
    nib.save(nib.Nifti1Image((t1.get_fdata() + noise).clip(0), t1.affine), study["t2"])
    slices = EvaluationSlices([study], tmp_path / "cache", ADNI, 4)
    ranking = copy_ranking(slices)
    assert ranking["t1"] == ["t2", "pd"] and ranking["t2"] == ["t1", "pd"] and sorted(ranking["pd"]) == ["t1", "t2"]
    copy = Copy(slices.preprocessing, ranking)
    assert copy.source("t1", ["t2", "pd"]) == "t2" and copy.source("t1", ["pd"]) == "pd"
