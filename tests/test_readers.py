from __future__ import annotations

import logging
from pathlib import Path

import pytest

from apt_monai.contrasts import BRATS
from apt_monai.data import read_studies
from apt_monai.transforms import StudyError

BRATS_2021 = ("flair", "t1", "t1ce", "t2", "seg")
BRATS_2023 = ("t2f", "t1n", "t1c", "t2w", "seg")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_brats_2021_names_are_read(tmp_path: Path) -> None:
    folder = touch(tmp_path / "BraTS2021_00000", *(f"BraTS2021_00000_{s}.nii.gz" for s in BRATS_2021))
    assert read_studies(tmp_path, "brats") == [
        {"subject": "BraTS2021_00000"} | {s: str(folder / f"BraTS2021_00000_{s}.nii.gz") for s in BRATS_2021}
    ]


def test_brats_2023_names_are_read(tmp_path: Path) -> None:
    name = "BraTS-GLI-00000-000"
    folder = touch(tmp_path / name, *(f"{name}-{s}.nii.gz" for s in BRATS_2023))
    keys = dict(zip(BRATS_2021, BRATS_2023, strict=True))
    assert read_studies(tmp_path, BRATS) == [
        {"subject": name} | {key: str(folder / f"{name}-{suffix}.nii.gz") for key, suffix in keys.items()}
    ]


def test_adni_names_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "002_S_0413", "002_S_0413_T1.nii", "002_S_0413_t2.nii.gz", "002_S_0413_pd.nii.gz")
    assert set(read_studies(tmp_path, "adni")[0]) == {"subject", "t1", "t2", "pd"}


def test_studies_are_sorted_and_may_lack_contrasts(tmp_path: Path) -> None:
    touch(tmp_path / "b", "b_t1.nii.gz")
    touch(tmp_path / "a", "a_t2.nii.gz", "a_flair.nii.gz")
    studies = read_studies(tmp_path, "brats")
    assert [set(s) - {"subject"} for s in studies] == [{"t2", "flair"}, {"t1"}]
    assert [s["subject"] for s in studies] == ["a", "b"]


def test_a_folder_that_is_itself_a_study_is_accepted(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a case with spaces", "x_t1.nii.gz")
    touch(folder / "reports", "report.pdf")
    assert read_studies(folder, "brats") == [{"subject": folder.name, "t1": str(folder / "x_t1.nii.gz")}]


def test_a_relative_folder_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz")
    monkeypatch.chdir(tmp_path / "a")
    assert read_studies(".", "brats") == [{"subject": "a", "t1": str(tmp_path / "a" / "a_t1.nii.gz")}]


def test_synthetic_files_are_skipped_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz", "a_SYNTHETIC_t2.nii.gz", "a_t1ce_synthetic.nii.gz")
    with caplog.at_level(logging.INFO):
        assert set(read_studies(tmp_path, "brats")[0]) == {"subject", "t1"}
    assert "a_SYNTHETIC_t2.nii.gz: synthesised" in caplog.text


def test_hidden_files_and_folders_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz", "._a_t1.nii.gz", "notes.txt", "a_t1.json")
    touch(tmp_path / ".git", "x")
    touch(tmp_path, "split.json")
    assert [set(s) for s in read_studies(tmp_path, "brats")] == [{"subject", "t1"}]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nowhere: no such folder"):
        read_studies(tmp_path / "nowhere", "brats")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is empty, no study found"):
        read_studies(tmp_path, "brats")


@pytest.mark.parametrize("files", [[], ["a_seg.nii.gz"], ["a_synthetic_t1.nii.gz"], ["readme.txt"]])
def test_a_study_without_contrast_is_an_error(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path / "a", *files)
    with pytest.raises(StudyError, match=f"{tmp_path / 'a'}: no acquired contrast"):
        read_studies(tmp_path, "brats")


@pytest.mark.parametrize(
    "files", [["a_t1.nii", "a_t1.nii.gz"], ["a_t1.nii.gz", "a-t1n.nii.gz"], ["a_t1.nii.gz", "b_t1.nii.gz"]]
)
def test_two_files_for_one_contrast_are_an_error(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path / "a", *files)
    with pytest.raises(StudyError, match="a second file for t1"):
        read_studies(tmp_path, "brats")


@pytest.mark.parametrize("file", ["a_pd.nii.gz", "a_dwi.nii", "mask.nii.gz"])
def test_an_unknown_contrast_is_an_error(tmp_path: Path, file: str) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz", file)
    with pytest.raises(StudyError, match=rf"{file}: unknown contrast .* flair, t2f, t1, t1n"):
        read_studies(tmp_path, "brats")


def test_files_beside_study_folders_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "template_t1.nii.gz")
    touch(tmp_path / "a", "a_t1.nii.gz")
    with pytest.raises(StudyError, match="NIfTI files of its own and study folders"):
        read_studies(tmp_path, "brats")


def test_an_incomplete_study_is_an_error_where_all_are_required(tmp_path: Path) -> None:
    touch(tmp_path / "a", *(f"a_{s}.nii.gz" for s in BRATS_2021))
    touch(tmp_path / "b", "b_t1.nii.gz", "b_t2.nii.gz")
    with pytest.raises(StudyError, match="study 'b' .* lacks flair, t1ce"):
        read_studies(tmp_path, "brats", require_all=True)


def test_an_unknown_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown dataset 'ixi'"):
        read_studies(tmp_path, "ixi")
