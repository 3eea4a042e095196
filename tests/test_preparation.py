"""From a dataset folder, or none, to studies, split and slices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_studies import write_study

from apt_monai.contrasts import BRATS
from apt_monai.data.preparation import Study, find_split, find_studies, prepare_slices, select_studies
from apt_monai.data.slice_cache import SliceCache, SliceDataset
from apt_monai.errors import StudyError
from apt_monai.transforms import StudyPreprocessing

Find = Callable[..., list[Study]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """``find_studies`` without a dataset folder; the phantom is made once."""
    folder = tmp_path_factory.mktemp("phantoms")
    settings = {"phantom_dir": folder, "phantom_spacing": 10.0, "phantom_seed": 1}
    find = partial(find_studies, None, "brats", **settings)
    find(phantom_subjects=5)
    return find


def test_without_a_folder_the_phantom_is_made_and_said(phantom: Find, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        studies = phantom(phantom_subjects=5)
    assert [s["subject"] for s in studies] == [f"BraTS2021_{i:05d}" for i in range(5)]
    assert all(set(s) == {"subject", "seg", *BRATS.names} for s in studies)
    assert all(Path(s["t1"]).parts[-3] == "brats-10mm-seed1" for s in studies)
    (record,) = [r for r in caplog.records if "DIGITAL PHANTOM" in r.message]
    assert record.levelno == logging.WARNING and "brats-10mm-seed1" in record.message


def test_a_smaller_phantom_is_the_beginning_of_a_larger_one(phantom: Find) -> None:
    assert phantom(phantom_subjects=2) == phantom(phantom_subjects=5)[:2]


def test_for_inference_each_phantom_study_lacks_another_contrast(
    phantom: Find, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        studies = phantom(phantom_subjects=5, require_all=False)
    lacking = [[n for n in BRATS.names if n not in s] for s in studies]
    assert lacking == [[n] for n in (*BRATS.names, BRATS.names[0])]
    assert "phantom study BraTS2021_00001: t1 is left out" in caplog.text


def test_a_given_folder_is_read_and_no_phantom_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_study(tmp_path / "data" / "a")
    write_study(tmp_path / "data" / "b", names=["t1"])
    find = partial(find_studies, tmp_path / "data", "brats", tmp_path / "phantom", 2, 10.0, 0)
    assert [sorted(s) for s in find(require_all=False)] == [
        sorted(["subject", "seg", *BRATS.names]),
        ["seg", "subject", "t1"],
    ]
    with pytest.raises(StudyError, match="flair"):
        find()
    assert not (tmp_path / "phantom").exists() and "PHANTOM" not in caplog.text


def test_a_split_is_made_once_and_then_read(tmp_path: Path) -> None:
    studies = [{"subject": f"s{i}"} for i in range(10)]
    path = tmp_path / "split.json"
    split = find_split(path, studies, 0.6, 2, 2, seed=0)
    assert {k: len(split[k]) for k in ("train", "validation", "test")} == {"train": 6, "validation": 2, "test": 2}
    written = path.read_bytes()
    assert find_split(path, studies, 0.6, 2, 2, seed=1) == split and path.read_bytes() == written
    with pytest.raises(ValueError, match="split.json"):
        find_split(path, studies[:5], 0.6, 2, 2, seed=0)


def test_selected_studies_keep_their_order() -> None:
    studies = [{"subject": s} for s in "abcd"]
    assert [s["subject"] for s in select_studies(studies, ["d", "a"])] == ["a", "d"]


class MeanEncoder(torch.nn.Module):
    fingerprint = "mean"
    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.mean(dim=-1)


def test_slices_are_prepared_once_with_features(tmp_path: Path) -> None:
    studies = [write_study(tmp_path / "data" / name) for name in ("a", "b")]
    cache, encoder = SliceCache(tmp_path / "cache", StudyPreprocessing("brats", size=16)), MeanEncoder()
    assert prepare_slices(studies, cache, encoder) is cache
    sample = SliceDataset(studies, cache, "mean")[0]
    torch.testing.assert_close(sample["features"], sample["image"].mean(dim=-1))
    calls = encoder.calls
    prepare_slices(studies, cache, encoder)
    assert encoder.calls == calls == 2
