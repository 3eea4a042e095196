from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import write_study
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apt_monai.data.slice_cache import FeatureDataset, SliceCache, SliceDataset, encode_slices
from apt_monai.errors import StudyError
from apt_monai.transforms import StudyPreprocessing

PREPROCESSING = StudyPreprocessing("brats", size=16)


class MeanEncoder(nn.Module):
    """Three numbers a contrast; counts its calls."""

    fingerprint = "mean-0"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.min() >= -1 and images.max() <= 1
        self.batches.append(len(images))
        return images.mean(dim=(2, 3))[..., None] * self.weight


@pytest.fixture
def studies(tmp_path: Path) -> list[dict[str, str]]:
    return [write_study(tmp_path / "data set" / f"case_{i}", seed=i) for i in range(2)]


@pytest.fixture
def cache(tmp_path: Path, studies: list[dict[str, str]]) -> SliceCache:
    cache = SliceCache(tmp_path / "slice cache", PREPROCESSING)
    cache.prepare(studies, progress=False)
    return cache


def entries(cache: SliceCache) -> list[str]:
    return sorted(p.name for p in cache.cache_dir.iterdir())


def test_cached_slices_are_the_preprocessed_ones(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    for study in studies:
        loaded, cached = PREPROCESSING(study), cache.open(study)
        assert cached.slices.tolist() == [1, 2, 3, 4, 5]  # slice 0 has no brain
        for row, index in enumerate(cached.slices):
            expected = loaded["image"][..., index].as_tensor()
            torch.testing.assert_close(cached.image(row), expected, rtol=0, atol=0.51 / 32767)
            assert torch.equal(cached.image(row) == -1, expected < -1 + 0.5 / 32767)
            np.testing.assert_array_equal(cached.regions[row], loaded["region"][..., index].numpy())
        torch.testing.assert_close(cached.intensity_range, loaded["intensity_range"])
        assert cached.available.all()


def test_an_absent_contrast_is_minus_one_and_marked(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", names=("t1", "t2"))
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)
    cache.prepare([study], progress=False)
    cached = cache.open(study)
    assert cached.available.tolist() == [False, True, False, True]
    assert (cached.image(slice(None))[:, [0, 2]] == -1).all()
    assert torch.isnan(cached.intensity_range).all(dim=1).tolist() == [True, False, True, False]
    json.loads((cached.folder / "meta.json").read_text(), parse_constant=pytest.fail)  # strict JSON: no NaN


def test_slices_are_kept_by_their_share_of_brain(tmp_path: Path, studies: list[dict[str, str]]) -> None:
    share = (8 * 6) / (16 * 16)
    for fraction, count in ((0.0, 6), (share, 5)):
        cache = SliceCache(tmp_path / "cache", PREPROCESSING, min_brain_fraction=fraction)
        cache.prepare(studies[:1], progress=False)
        assert len(cache.open(studies[0])) == count
    with pytest.raises(StudyError, match=r"case_0_flair.nii.gz\): no slice is at least"):
        SliceCache(tmp_path / "cache", PREPROCESSING, min_brain_fraction=share * 1.01).prepare(studies, progress=False)
    with pytest.raises(ValueError, match="min_brain_fraction=2"):
        SliceCache(tmp_path / "cache", PREPROCESSING, min_brain_fraction=2)


def test_a_filled_cache_is_not_filled_again(
    cache: SliceCache, studies: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyPreprocessing, "__call__", lambda *_: pytest.fail("preprocessed again"))
    cache.prepare(studies, progress=False)


def test_a_changed_file_makes_a_new_entry_and_removes_the_old_one(
    cache: SliceCache, studies: list[dict[str, str]]
) -> None:
    old = cache.open(studies[0]).folder
    write_study(Path(studies[0]["t1"]).parent, seed=9)
    os.utime(studies[0]["t1"], ns=(1, 1))
    with pytest.raises(FileNotFoundError, match="'case_0' is not in the slice cache"):
        cache.open(studies[0])
    cache.prepare(studies, progress=False)
    assert not old.exists()
    assert len(entries(cache)) == 2
    torch.testing.assert_close(
        cache.open(studies[0]).image(0), PREPROCESSING(studies[0])["image"][..., 1].as_tensor(), rtol=0, atol=1e-4
    )


def test_other_preprocessings_and_data_sets_with_equal_names_keep_their_entries(
    cache: SliceCache, studies: list[dict[str, str]], tmp_path: Path
) -> None:
    running = SliceDataset(studies, cache)  # another process that trains meanwhile
    before = running[7]["image"]
    elsewhere = [write_study(tmp_path / "another data set" / f"case_{i}", seed=9) for i in range(2)]
    cache.prepare(elsewhere, progress=False)
    for other in (StudyPreprocessing("brats", size=20), StudyPreprocessing("brats", size=24)):
        SliceCache(cache.cache_dir, other).prepare(studies, progress=False)
    SliceCache(cache.cache_dir, PREPROCESSING, min_brain_fraction=0).prepare(studies, progress=False)
    assert len(entries(cache)) == 10
    assert torch.equal(running[7]["image"], before)
    assert not torch.equal(SliceDataset(elsewhere, cache)[7]["image"], before)


def test_only_the_studys_own_old_entries_are_removed(tmp_path: Path) -> None:
    studies = [write_study(tmp_path / "data" / name) for name in ("a", "a-1", "a-1-2")]
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)
    cache.prepare(studies[::-1], progress=False)
    os.utime(studies[0]["t1"], ns=(1, 1))
    cache.prepare(studies, progress=False)
    assert len(entries(cache)) == 3
    for study in studies:
        cache.open(study)


@pytest.mark.parametrize("name", ["regions.npy", "whole entry"])
def test_an_entry_deleted_under_a_running_process_is_one_clear_error_and_is_made_anew(
    name: str, cache: SliceCache, studies: list[dict[str, str]]
) -> None:
    running = SliceDataset(studies, cache)
    folder = running.studies[0].folder
    if name == "whole entry":
        shutil.rmtree(folder)
    else:
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"case_0-.*npy: was deleted from the slice cache.*start the run again"):
        running[0]
    with pytest.raises(FileNotFoundError, match="call SliceCache.prepare first"):
        cache.open(studies[0])
    cache.prepare(studies, progress=False)
    assert running[0]["image"].shape == (4, 16, 16)
    assert len(entries(cache)) == 2


def test_a_damaged_file_is_one_clear_error(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    path = cache.open(studies[0]).folder / "images.npy"
    for content in (path.read_bytes()[:-100], b"", b"no array"):
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"images.npy: is damaged .*; delete the folder .*case_0"):
            SliceDataset(studies, cache)[0]


def test_entries_of_an_older_version_stay_unused_and_are_named(
    tmp_path: Path, studies: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "cache" / "case_0-0123456789abcdef"
    old.mkdir(parents=True)
    (old / "meta.json").write_text("{}")
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)
    for _ in range(2):  # the second time all is there, and nothing is said again
        cache.prepare(studies, progress=False)
    (message,) = caplog.messages
    assert "1 entries of another version of the slice cache are not used (case_0-0123456789abcdef" in message
    assert len(entries(cache)) == 3 and old.is_dir()


def test_a_bad_study_leaves_nothing_half_written_and_keeps_what_was_done(
    tmp_path: Path, studies: list[dict[str, str]]
) -> None:
    Path(studies[1]["t2"]).write_bytes(b"broken")
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)
    with pytest.raises(StudyError, match="case_1_t2.nii.gz"):
        cache.prepare(studies, progress=False)
    assert entries(cache) == [cache.open(studies[0]).folder.name]


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    tmp_path: Path, studies: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)

    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="cache: the slice cache cannot be written .*No space left"):
            cache.prepare(studies, progress=False)
    assert entries(cache) == []
    cache.prepare(studies, progress=False)  # the next run starts over
    assert len(entries(cache)) == 2


def test_losing_the_race_to_another_process_is_no_error(tmp_path: Path, studies: list[dict[str, str]]) -> None:
    winner = SliceCache(tmp_path / "cache", PREPROCESSING)

    class SlowPreprocessing(StudyPreprocessing):
        def __call__(self, input_: Mapping[str, str]) -> dict:
            winner.prepare(studies[:1], progress=False)
            return super().__call__(input_)

    loser = SliceCache(tmp_path / "cache", SlowPreprocessing("brats", size=16))
    loser.prepare(studies[:1], progress=False)
    assert entries(loser) == [winner.open(studies[0]).folder.name]


def _prepare(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    cache.prepare(studies, progress=False)


def test_several_processes_can_fill_one_cache(tmp_path: Path, studies: list[dict[str, str]]) -> None:
    cache = SliceCache(tmp_path / "cache", PREPROCESSING)
    workers = [get_context("fork").Process(target=_prepare, args=(cache, studies)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert entries(cache) == sorted(cache.open(study).folder.name for study in studies)


def test_a_dataset_gives_plain_samples_of_every_slice(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    dataset = SliceDataset(studies, cache)
    assert len(dataset) == 10
    sample = dataset[7]
    assert list(sample) == ["subject", "slice", "image", "region"]
    assert (sample["subject"], sample["slice"]) == ("case_1", 3)
    assert type(sample["image"]) is Tensor and sample["image"].dtype == torch.float32
    assert sample["image"].shape == (4, 16, 16)
    assert type(sample["region"]) is Tensor and sample["region"].dtype == torch.uint8
    assert sample["region"].shape == (1, 16, 16)


def test_workers_read_the_same_samples(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    dataset = pickle.loads(pickle.dumps(SliceDataset(studies, cache)))
    assert len(pickle.dumps(dataset)) < 10_000  # no slice travels with it
    batch = next(iter(DataLoader(dataset, batch_size=10, num_workers=2)))
    assert torch.equal(batch["image"], torch.stack([dataset[i]["image"] for i in range(10)]))
    assert batch["subject"] == ["case_0"] * 5 + ["case_1"] * 5
    assert batch["slice"].tolist() == [1, 2, 3, 4, 5] * 2


def test_slices_per_subject_are_spread_and_depend_on_seed_and_subject_alone(
    cache: SliceCache, studies: list[dict[str, str]]
) -> None:
    def chosen(listing: list[dict[str, str]], seed: int) -> set[tuple[str, int]]:
        dataset = SliceDataset(listing, cache, slices_per_subject=2, seed=seed)
        assert len(dataset) == 2 * len(listing)
        return {(s["subject"], s["slice"]) for s in dataset}  # type: ignore[attr-defined]

    both = chosen(studies, 0)
    assert both == chosen(studies[::-1], 0) == chosen(studies[:1], 0) | chosen(studies[1:], 0)
    assert len({frozenset(chosen(studies, seed)) for seed in range(8)}) > 1
    for seed in range(8):
        first, second = sorted(index for subject, index in chosen(studies[:1], seed))
        assert first in (1, 2) and second in (3, 4, 5)


def test_more_slices_per_subject_than_there_are_is_an_error(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    assert len(SliceDataset(studies, cache, slices_per_subject=5)) == 10
    with pytest.raises(ValueError, match="'case_0' has 5 slices"):
        SliceDataset(studies, cache, slices_per_subject=6)
    with pytest.raises(ValueError, match="slices_per_subject=0"):
        SliceDataset(studies, cache, slices_per_subject=0)


def test_features_are_the_encoders_whatever_the_batch_size(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    encoder = MeanEncoder()
    encode_slices(studies, cache, encoder, batch_size=2, progress=False)
    assert encoder.batches == [2, 2, 1] * 2
    for sample in SliceDataset(studies, cache, encoder.fingerprint):  # type: ignore[attr-defined]
        assert sample["features"].dtype == torch.float32
        torch.testing.assert_close(sample["features"], encoder(sample["image"][None])[0].detach())


def test_the_feature_dataset_is_the_slice_dataset_without_images(
    cache: SliceCache, studies: list[dict[str, str]]
) -> None:
    encode_slices(studies, cache, MeanEncoder(), progress=False)
    slices, features = SliceDataset(studies, cache, "mean-0"), FeatureDataset(studies, cache, "mean-0")
    assert len(slices) == len(features) == 10
    for i in range(10):
        assert set(features[i]) == {"subject", "slice", "features"}
        assert all(features[i][key] == slices[i][key] for key in ("subject", "slice"))
        assert torch.equal(features[i]["features"], slices[i]["features"])
    with pytest.raises(FileNotFoundError, match="call encode_slices first"):
        FeatureDataset(studies, cache, "another")


def test_features_are_computed_once_for_each_encoder(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    encoder = MeanEncoder()
    encode_slices(studies[:1], cache, encoder, progress=False)
    encode_slices(studies, cache, encoder, progress=False)
    assert encoder.batches == [5, 5]
    assert cache.open(studies[0]).features("another") is None
    with pytest.raises(FileNotFoundError, match="no features of encoder another; call encode_slices first"):
        SliceDataset(studies, cache, "another")


def test_features_that_do_not_fit_are_refused(cache: SliceCache, studies: list[dict[str, str]]) -> None:
    cached = cache.open(studies[0])
    before = sorted(cached.folder.iterdir())
    for features in (np.zeros((4, 4, 3)), np.zeros((5, 3, 3)), np.zeros((5, 4))):
        with pytest.raises(ValueError, match="features of 'case_0' have shape"):
            cached.write_features("mean", features)
    with pytest.raises(ValueError, match="NaN"):
        cached.write_features("mean", np.full((5, 4, 3), np.nan))
    with pytest.raises(ValueError, match="fingerprint '../x'"):
        cached.write_features("../x", np.zeros((5, 4, 3)))
    assert sorted(cached.folder.iterdir()) == before


def test_a_full_disk_while_writing_features_leaves_nothing_half_written(
    cache: SliceCache, studies: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = cache.open(studies[0])
    before = sorted(cached.folder.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="cannot be written .*No space left"):
        cached.write_features("mean", np.zeros((5, 4, 3)))
    assert sorted(cached.folder.iterdir()) == before
