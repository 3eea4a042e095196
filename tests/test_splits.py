from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_monai.data.splits import load_split, patient, save_split, split_subjects

NAMES = [f"BraTS2021_{i:05d}" for i in range(100)]


@pytest.mark.parametrize("count", [3, 4, 37])
def test_the_parts_are_disjoint_complete_and_not_empty(count: int) -> None:
    names = [f"s{i}" for i in range(count)]
    split = split_subjects(names)
    assert sorted(name for part in split.values() for name in part) == sorted(names)
    assert all(split[part] for part in ("train", "validation", "test"))


def test_the_counts_are_the_papers_on_brats() -> None:
    split = split_subjects([f"s{i}" for i in range(1251)], validation_subjects=4, test_subjects=50)
    assert {part: len(names) for part, names in split.items()} == {
        "train": 1001,
        "validation": 4,
        "test": 50,
        "unused": 196,
    }


def test_without_a_limit_every_subject_that_remains_is_test() -> None:
    split = split_subjects(NAMES, validation_subjects=5)
    assert {part: len(names) for part, names in split.items()} == {
        "train": 80,
        "validation": 5,
        "test": 15,
        "unused": 0,
    }


def test_the_split_does_not_depend_on_the_order_of_the_listing() -> None:
    assert split_subjects(NAMES, seed=3) == split_subjects(reversed(NAMES), seed=3)


def test_another_seed_gives_another_split() -> None:
    assert split_subjects(NAMES, seed=0) != split_subjects(NAMES, seed=1)


def test_the_split_is_pinned() -> None:
    split = split_subjects([f"s{i}" for i in range(10)], seed=0)
    assert (split["validation"], split["test"]) == (["s4"], ["s6"])


def test_time_points_of_one_patient_stay_together() -> None:
    names = [f"BraTS-GLI-{i:05d}-{t:03d}" for i in range(30) for t in range(i % 3 + 1)]
    split = split_subjects(names)
    parts = [{patient(name) for name in part} for part in split.values()]
    assert sum(map(len, parts)) == 30
    assert sorted(name for part in split.values() for name in part) == sorted(names)


@pytest.mark.parametrize("names", [["a", "b"], ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "b"]])
def test_too_few_subjects_are_an_error(names: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 3 are needed"):
        split_subjects(names)


def test_a_name_that_occurs_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="'b' occurs twice"):
        split_subjects(["a", "b", "b", "c"])


@pytest.mark.parametrize(
    "arguments",
    [{"train_fraction": 0.0}, {"train_fraction": 1.0}, {"validation_subjects": 0}, {"test_subjects": 0}],
)
def test_arguments_out_of_range_are_an_error(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        split_subjects(NAMES, **arguments)


def test_a_saved_split_loads_again(tmp_path: Path) -> None:
    split = split_subjects(NAMES)
    save_split(tmp_path / "new folder" / "split.json", split, seed=0, train_fraction=0.8)
    assert load_split(tmp_path / "new folder" / "split.json", NAMES) == split
    content = json.loads((tmp_path / "new folder" / "split.json").read_text())
    assert content["settings"] == {"seed": 0, "train_fraction": 0.8}
    assert content["counts"]["train"] == 80
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["split.json"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [(NAMES[1:], "1 subjects are in the split but not in the dataset"), ([*NAMES, "new"], r"not in the split \(new\)")],
)
def test_a_split_of_another_dataset_is_an_error(tmp_path: Path, dataset: list[str], message: str) -> None:
    save_split(tmp_path / "split.json", split_subjects(NAMES), seed=0)
    with pytest.raises(ValueError, match=rf"split.json: .*{message}"):
        load_split(tmp_path / "split.json", dataset)


@pytest.mark.parametrize("content", ["{", '{"train": ["a"]}', '{"train": 1, "validation": 2, "test": 3}'])
def test_a_file_that_is_no_split_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match="split.json: is not a split"):
        load_split(tmp_path / "split.json", NAMES)


def test_a_missing_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such split file"):
        load_split(tmp_path / "split.json", NAMES)


def test_a_subject_in_two_parts_is_an_error(tmp_path: Path) -> None:
    save_split(tmp_path / "split.json", {"train": ["a"], "validation": ["a"], "test": ["b"], "unused": []}, seed=0)
    with pytest.raises(ValueError, match="listed twice"):
        load_split(tmp_path / "split.json", ["a", "b"])
