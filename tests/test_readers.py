from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tiny_dicom import write_series, write_slice

from apt_monai.contrasts import BRATS
from apt_monai.data.readers import read_studies
from apt_monai.data.splits import patient
from apt_monai.errors import StudyError
from apt_monai.io import read_volume

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
    assert "a_SYNTHETIC_t2.nii.gz (synthesised, not acquired)" in caplog.text


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


@pytest.mark.parametrize("files", [[], ["a_seg.nii.gz", "a_synthetic_t1.nii.gz"]])
def test_a_study_without_contrast_is_an_error(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path / "a", *files)
    with pytest.raises(StudyError, match=f"{tmp_path / 'a'}: no acquired contrast"):
        read_studies(tmp_path, "brats")


@pytest.mark.parametrize("files", [["a_t1.nii", "a_t1.nii.gz"], ["a_t1.nii.gz", "a-t1n.nii.gz"]])
def test_two_files_for_one_contrast_are_an_error(tmp_path: Path, files: list[str]) -> None:
    touch(tmp_path / "a", *files)
    with pytest.raises(StudyError, match="a second file for t1"):
        read_studies(tmp_path, "brats")


@pytest.mark.parametrize("file", ["a_mask.nii.gz", "a_brainmask.nii"])
def test_a_brain_mask_is_found_in_a_studys_folder(tmp_path: Path, file: str) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz", file)
    (study,) = read_studies(tmp_path, "brats")
    assert study["mask"] == str(tmp_path / "a" / file)


@pytest.mark.parametrize("file", ["a_dwi.nii", "labels.nii.gz"])
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


def test_an_ending_in_capitals_is_read(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "a_t2.nii.gz", "A_T1.nii.GZ")
    assert read_studies(tmp_path, "brats")[0]["t1"] == str(folder / "A_T1.nii.GZ")
    anat = touch(tmp_path / "bids" / "sub-1" / "anat", "sub-1_T1w.NII.GZ")
    assert read_studies(tmp_path / "bids", "brats")[0]["t1"] == str(anat / "sub-1_T1w.NII.GZ")
    touch(tmp_path / "mapped" / "b", "A_T1.NII")
    assert "t1" in read_studies(tmp_path / "mapped", "brats", series={"a_t1": "t1"})[0]


def test_what_of_a_study_is_not_used_is_said_once_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    touch(tmp_path / "a", "a_t1.nii.gz", "a_t1.json", "notes.txt")
    write_slice(tmp_path / "a" / "I1.dcm", np.ones((3, 4), np.int16))
    touch(tmp_path / "a" / "old", "x_t1.nii.gz")
    read_studies(tmp_path, "brats")
    assert f"{tmp_path / 'a'}: not used: I1.dcm (DICOM), a_t1.json (no image), notes.txt (no image)" in caplog.text
    assert f"{tmp_path / 'a' / 'old'}: not used: x_t1.nii.gz (in a folder below the study's)" in caplog.text


def test_what_is_left_out_of_many_studies_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for i in range(9):
        touch(tmp_path / f"sub-{i}" / "anat", f"sub-{i}_T1w.nii.gz", f"sub-{i}_T1w.json", f"sub-{i}_T2star.nii.gz")
    read_studies(tmp_path, "adni")
    assert [record.getMessage().split(": ", 1)[1].split(", such as")[0] for record in caplog.records] == [
        "not used, as not a contrast of adni: 9 files *_T2star.nii.gz in 9 folders",
        "not used, as no image: 9 files *.json in 9 folders",
    ]


@pytest.mark.parametrize("name", ["a_t1.mgz", "a_t1.nii.bz2"])
def test_an_image_in_a_format_that_is_not_read_is_an_error(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "a", "a_t2.nii.gz", name)
    with pytest.raises(StudyError, match=f"{name}: is an image in a format that is not read; convert it"):
        read_studies(tmp_path, "brats")
    with pytest.raises(StudyError, match=f"{name}: is an image in a format that is not read; .*null"):
        read_studies(tmp_path, "brats", series={"*t1*": "t1", "*t2": "t2"})
    assert set(read_studies(tmp_path, "brats", series={"*t1*": None, "*t2": "t2"})[0]) == {"subject", "t2"}


def test_a_contrast_below_the_study_that_lacks_it_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "a", "a_t2.nii.gz")
    touch(tmp_path / "a" / "a_t1.nii.gz", "a_t1.nii.gz")  # a folder, as some archives have it
    with pytest.raises(StudyError, match="a_t1.nii.gz/a_t1.nii.gz: may be the t1 that study a lacks"):
        read_studies(tmp_path, "brats")


def test_folders_without_any_image_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "a", "a_t1.nii.gz")
    touch(tmp_path / "__MACOSX" / "a", "._a_t1.nii.gz")
    touch(tmp_path / "papers", "paper.pdf")
    for series in (None, {"*t1": "t1"}):
        caplog.clear()
        assert [study["subject"] for study in read_studies(tmp_path, "brats", series=series)] == ["a"]
        assert "left out, as no image is in them: __MACOSX, papers" in caplog.text
    touch(tmp_path / "papers", "scan.mgz")  # an image that cannot be used is another thing
    with pytest.raises(StudyError, match="scan.mgz: is an image in a format that is not read"):
        read_studies(tmp_path, "brats")


# One patient, one visit


@pytest.mark.parametrize("second", ["b_t2.nii.gz", "a_month12_t2.nii.gz"])
def test_names_of_two_patients_or_visits_in_one_folder_are_an_error(tmp_path: Path, second: str) -> None:
    folder = touch(tmp_path / "all", "a_t1.nii.gz", second)
    with pytest.raises(StudyError, match="may be of two patients or visits; .*by a series mapping"):
        read_studies(tmp_path, "brats")
    said = {"*_t1": "t1", "*_t2": "t2"}
    assert read_studies(tmp_path, "brats", series=said)[0]["t2"] == str(folder / second)


def test_folders_of_patients_below_a_folder_are_an_error_that_says_which_to_give(tmp_path: Path) -> None:
    touch(tmp_path / "HGG" / "A", "A_t1.nii.gz")
    touch(tmp_path / "HGG" / "B", "B_t2.nii.gz")
    with pytest.raises(StudyError, match=f"if these are the studies, give {tmp_path / 'HGG'} as the data"):
        read_studies(tmp_path, "brats")
    for mapping in ({"*_t1": "t1", "*_t2": "t2"}, {"*t1": "t1", "*": "t2"}, {"*/*_t1": "t1", "?/*_t2": "t2"}):
        with pytest.raises(StudyError, match=f"one patient and one visit; .*give {tmp_path / 'HGG'} as the data"):
            read_studies(tmp_path, "brats", series=mapping)
    assert len(read_studies(tmp_path / "HGG", "brats", series={"*_t1": "t1", "*_t2": "t2"})) == 2


@pytest.mark.parametrize("where", [("v1/anat", "v2/anat"), (".", "month12")])
def test_folders_of_visits_below_a_subject_are_an_error_that_says_how_to_name_them(
    tmp_path: Path, where: tuple[str, str]
) -> None:
    touch(tmp_path / "P1" / where[0], "t1.nii.gz")
    touch(tmp_path / "P1" / where[1], "t2.nii.gz")
    with pytest.raises(StudyError, match=r"one visit; .*call them after the session \(ses-01\) or the day"):
        read_studies(tmp_path, "brats", series={"t1": "t1", "t2": "t2"})


def test_the_sessions_and_days_of_two_subjects_below_one_folder_are_never_one_study(tmp_path: Path) -> None:
    for visit in ("ses-01", "2006-05-02_12_31_52.0"):
        root = tmp_path / visit[:3]
        touch(root / "all" / "A" / "x" / visit, "A_t1.nii.gz")
        touch(root / "all" / "B" / "x" / visit, "B_t2.nii.gz")
        with pytest.raises(StudyError, match="nothing says that they are of one patient"):
            read_studies(root, "brats", series={"*_t1": "t1", "*_t2": "t2"})


def test_a_folder_a_series_is_one_study_where_the_mapping_names_the_folders(tmp_path: Path) -> None:
    touch(tmp_path / "P1" / "scans" / "3-T1" / "NIFTI", "a.nii.gz")
    touch(tmp_path / "P1" / "scans" / "4-T2" / "NIFTI", "a.nii.gz")
    for mapping in ({"?-T1": "t1", "?-T2": "t2"}, {"scans/*T1/*": "t1", "scans/*T2/*": "t2"}):
        assert set(read_studies(tmp_path, "brats", series=mapping)[0]) == {"subject", "t1", "t2"}


def two_series(root: Path, first: dict, second: dict) -> Path:
    """T1 and T2 of subject P1, each in a folder of its own with a name that says nothing."""
    for name, description, changes in (("S1", "T1", first), ("S2", "T2", second)):
        write_series(root / "P1" / name, np.ones((3, 4, 2), np.int16), description=description, **changes)
    return root


BY_DESCRIPTION, BY_FOLDER = {"T1": "t1", "T2": "t2"}, {"S1": "t1", "S2": "t2"}


@pytest.mark.parametrize("headers", [{"study": "1.2"}, {"study": None, "patient": "X", "date": "20060502"}])
def test_dicom_headers_may_say_that_folders_are_of_one_visit(tmp_path: Path, headers: dict) -> None:
    two_series(tmp_path, headers, headers)
    assert set(read_studies(tmp_path, "brats", series=BY_DESCRIPTION)[0]) == {"subject", "t1", "t2"}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"patient": "X"}, {"patient": "Y"}, r"of several patients, .* \(PatientID X, Y\)"),
        ({"date": "20060502"}, {"date": "20070601"}, r"of several visits, .* \(StudyDate 20060502, 20070601\)"),
        ({"study": "1.2"}, {"study": "1.3"}, "may be of several visits, .*several StudyInstanceUIDs"),
    ],
)
def test_dicom_headers_of_two_patients_or_visits_are_an_error_whatever_the_mapping_says(
    tmp_path: Path, first: dict, second: dict, message: str
) -> None:
    two_series(tmp_path, first, second)
    for mapping in (BY_DESCRIPTION, BY_FOLDER):
        with pytest.raises(StudyError, match=message):
            read_studies(tmp_path, "brats", series=mapping)
    flat = tmp_path / "CD" / "all"
    write_series(flat, np.ones((3, 4, 2), np.int16), name="a{}", series="1.1", description="T1", **first)
    write_series(flat, np.ones((3, 4, 2), np.int16), name="b{}", series="1.2", description="T2", **second)
    with pytest.raises(StudyError, match=message):
        read_studies(tmp_path / "CD", "brats", series=BY_DESCRIPTION)


def test_folders_of_dicom_files_that_do_not_say_it_are_not_taken_for_one_visit(tmp_path: Path) -> None:
    two_series(tmp_path, {"study": None}, {"study": None})
    with pytest.raises(StudyError, match="nothing says that they are of one patient"):
        read_studies(tmp_path, "brats", series=BY_DESCRIPTION)
    assert len(read_studies(tmp_path, "brats", series=BY_FOLDER)) == 1


# BIDS


def test_bids_sessions_are_studies(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "ses-01" / "anat"
    touch(anat, "sub-01_ses-01_acq-mprage_T1w.nii.gz", "sub-01_ses-01_T2w.nii", "sub-01_ses-01_PDw.nii.gz")
    touch(tmp_path / "sub-01" / "ses-02" / "anat", "sub-01_ses-02_T1w.nii.gz", "sub-01_ses-02_T1w.json")
    touch(tmp_path / "sub-02" / "anat", "sub-02_T1w.nii.gz")
    touch(tmp_path / "derivatives" / "tool" / "sub-01" / "anat", "sub-01_T1w.nii.gz")
    touch(tmp_path, "dataset_description.json", "participants.tsv")
    studies = read_studies(tmp_path, "adni")
    assert [s["subject"] for s in studies] == ["sub-01_ses-01", "sub-01_ses-02", "sub-02"]
    assert studies[0] == {
        "subject": "sub-01_ses-01",
        "t1": str(anat / "sub-01_ses-01_acq-mprage_T1w.nii.gz"),
        "t2": str(anat / "sub-01_ses-01_T2w.nii"),
        "pd": str(anat / "sub-01_ses-01_PDw.nii.gz"),
    }
    assert [set(s) for s in studies[1:]] == [{"subject", "t1"}] * 2
    assert patient("sub-01_ses-01") == patient("sub-01_ses-02") == "sub-01"


def test_one_bids_subject_is_accepted(tmp_path: Path) -> None:
    touch(tmp_path / "sub-01" / "ses-01" / "anat", "sub-01_ses-01_T1w.nii.gz")
    assert read_studies(tmp_path / "sub-01", "adni") == read_studies(tmp_path, "adni")


@pytest.mark.parametrize("agent", ["ce-GADOLINIUM_run-1", "acq-3d_ce-Gd"])
def test_in_bids_t1_with_a_contrast_agent_is_t1gd(tmp_path: Path, agent: str) -> None:
    touch(tmp_path / "sub-1" / "anat", "sub-1_T1w.nii.gz", f"sub-1_{agent}_T1w.nii.gz", "sub-1_FLAIR.nii.gz")
    (study,) = read_studies(tmp_path, "brats")
    assert {key: Path(path).name for key, path in study.items() if key != "subject"} == {
        "t1": "sub-1_T1w.nii.gz", "t1ce": f"sub-1_{agent}_T1w.nii.gz", "flair": "sub-1_FLAIR.nii.gz",
    }  # fmt: skip


def test_in_bids_a_scan_with_a_contrast_agent_is_never_taken_for_one_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "sub-1" / "anat", "sub-1_ce-gadolinium_T1w.nii.gz", "sub-1_T2w.nii.gz", "sub-1_T2star.nii.gz")
    with caplog.at_level(logging.INFO):
        assert set(read_studies(tmp_path, "adni")[0]) == {"subject", "t2"}
    assert "sub-1_ce-gadolinium_T1w.nii.gz (not a contrast of adni)" in caplog.text
    assert "sub-1_T2star.nii.gz (not a contrast of adni)" in caplog.text


def test_a_bids_session_without_contrast_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "sub-1" / "ses-a" / "anat", "sub-1_ses-a_T2star.nii.gz")
    touch(tmp_path / "sub-1" / "ses-b" / "anat", "sub-1_ses-b_T1w.nii.gz")
    assert [s["subject"] for s in read_studies(tmp_path, "adni")] == ["sub-1_ses-b"]
    assert "left out" in caplog.text and "ses-a" in caplog.text


def test_a_bids_dataset_without_any_contrast_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "sub-1" / "anat", "sub-1_T2star.nii.gz")
    with pytest.raises(StudyError, match="no session has a contrast of adni; .* T1w, T2w, PDw"):
        read_studies(tmp_path, "adni")


def test_two_runs_in_bids_are_an_error_that_a_series_mapping_settles(tmp_path: Path) -> None:
    anat = touch(tmp_path / "sub-1" / "anat", "sub-1_run-1_T1w.nii.gz", "sub-1_run-2_T1w.nii.gz", "sub-1_T2w.nii.gz")
    touch(tmp_path / "sub-1" / "func", "sub-1_bold.nii.gz")
    touch(tmp_path / "derivatives" / "anat", "x_run-2_T1w.nii.gz")
    with pytest.raises(StudyError, match="a second file for t1, beside sub-1_run-1_T1w.nii.gz; .* series mapping"):
        read_studies(tmp_path, "adni")
    assert read_studies(tmp_path, "adni", series={"*_run-2_T1w": "t1", "*": None}) == [
        {"subject": "sub-1", "t1": str(anat / "sub-1_run-2_T1w.nii.gz")}
    ]


def test_folders_called_like_bids_without_anat_are_read_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "sub-01_ses-01", "sub-01_ses-01_t1.nii.gz")
    assert set(read_studies(tmp_path, "adni")[0]) == {"subject", "t1"}


# a series mapping

ADNI_SERIES = {"MPRAGE*": "t1", "Axial_PD_T2_FSE": {"pd": 1, "t2": 2}, "*localizer*": None}


def adni_archive(folder: Path) -> Path:
    """Two visits as ADNI's archive gives them: T1, PD and T2; then T1 alone, as NIfTI."""
    subject = folder / "ADNI" / "002_S_0413"
    volume = np.ones((3, 4, 2), np.int16)
    write_series(subject / "MPRAGE" / "2006-05-02_12_31_52.0" / "I14782", volume, description="MPRAGE")
    dual = subject / "Axial_PD_T2_FSE" / "2006-05-02_12_40_00.0" / "I14790"
    for echo in (1, 2):
        write_series(dual, volume, name=f"{echo}_{{}}.dcm", echo_time=40 * echo, description="Axial PD/T2 FSE")
    write_series(
        subject / "3-plane_Localizer" / "2006-05-02_12_30_00.0" / "I14780", volume, description="3-plane Localizer"
    )
    touch(subject / "MPRAGE_repeat" / "2007-06-01_09_00_00.0" / "I60000", "ADNI_002_S_0413_MR_MPRAGE_I60000.nii")
    touch(folder / "ADNI", "metadata.xml")
    return folder / "ADNI"


def test_adnis_archive_is_read_by_visit_with_a_mapping_from_a_json_file(tmp_path: Path) -> None:
    root = adni_archive(tmp_path)
    mapping = tmp_path / "series.json"
    mapping.write_text(json.dumps(ADNI_SERIES))
    subject = root / "002_S_0413"
    dual = subject / "Axial_PD_T2_FSE" / "2006-05-02_12_40_00.0" / "I14790"
    assert read_studies(root, "adni", series=mapping) == [
        {
            "subject": "002_S_0413_2006-05-02",
            "t1": str(subject / "MPRAGE" / "2006-05-02_12_31_52.0" / "I14782"),
            "pd": f"{dual}::echo=1",
            "t2": f"{dual}::echo=2",
        },
        {
            "subject": "002_S_0413_2007-06-01",
            "t1": str(
                subject / "MPRAGE_repeat" / "2007-06-01_09_00_00.0" / "I60000" / "ADNI_002_S_0413_MR_MPRAGE_I60000.nii"
            ),
        },
    ]
    assert read_volume(f"{dual}::echo=2")[0].shape == (3, 4, 2)
    assert patient("002_S_0413_2006-05-02") == patient("002_S_0413_2007-06-01") == "002_S_0413"


def test_series_that_no_pattern_fits_are_all_listed_with_what_to_add(tmp_path: Path) -> None:
    root = adni_archive(tmp_path)
    with pytest.raises(StudyError, match="no pattern of the series mapping fits") as caught:
        read_studies(root, "adni", series={"MPRAGE": "t1"})
    for expected in (
        '"Axial_PD_T2_FSE": ...   (1, such as',
        '"3-plane_Localizer": ...',
        '"MPRAGE_repeat": ...',
        "I6000",
    ):
        assert expected in str(caught.value)
    assert '"MPRAGE": ...' not in str(caught.value)


def test_a_listed_name_can_be_pasted_as_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "MPRAGE [RL]*", "x.nii")
    with pytest.raises(StudyError, match="no pattern") as caught:
        read_studies(tmp_path, "adni", series={"x?": "t1", "y": None})
    assert '"x": ...' in str(caught.value)
    touch(tmp_path / "b" / "T1 [RL]*" / "2006-05-02", "y.nii")
    with pytest.raises(StudyError, match="no pattern") as caught:
        read_studies(tmp_path, "adni", series={"x": "t1"})
    pasted = json.loads(str(caught.value).splitlines()[-1].split(": ...")[0])
    assert [s["subject"] for s in read_studies(tmp_path, "adni", series={"x": None, pasted: "t1"})] == ["b_2006-05-02"]


def test_the_first_pattern_that_fits_counts_whatever_the_case(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "Sag_T1", "x.nii")
    touch(tmp_path / "a" / "Sag_T1_repeat", "y.nii")
    (study,) = read_studies(tmp_path, "adni", series={"*T1_REPEAT": None, "sag_t1*": "t1", "*": "t2"})
    assert study == {"subject": "a", "t1": str(tmp_path / "a" / "Sag_T1" / "x.nii")}


def test_two_series_for_one_contrast_are_an_error_that_an_image_number_settles(tmp_path: Path) -> None:
    for image in ("I1", "I2"):
        touch(tmp_path / "a" / "MPRAGE" / "2006-05-02_12_31_52.0" / image, "x.nii")
    with pytest.raises(StudyError, match=r"a second series for t1 in study a_2006-05-02, .*MPRAGE/2006.*/I2/x\": null"):
        read_studies(tmp_path, "adni", series={"MPRAGE": "t1"})
    (study,) = read_studies(tmp_path, "adni", series={"MPRAGE/*/I1/*": None, "MPRAGE": "t1"})
    assert study["t1"].endswith("I2/x.nii")


def test_a_folder_of_mixed_dicom_files_is_one_study_of_series_known_by_their_description(tmp_path: Path) -> None:
    volume = np.ones((3, 4, 2), np.int16)
    folder = tmp_path / "CD1"
    write_series(folder, volume, name="a{}", series="1.1", description="t1 mprage sag")
    write_series(folder, volume, name="b{}", series="1.2", description="pd+t2", echo_time=10)
    write_series(folder, volume, name="c{}", series="1.2", description="pd+t2", echo_time=90)
    mapping = {"t1*": "t1", "pd+t2": {"pd": 1, "t2": 2}}
    expected = {"t1": f"{folder}::1.1", "pd": f"{folder}::1.2::echo=1", "t2": f"{folder}::1.2::echo=2"}
    assert read_studies(folder, "adni", series=mapping) == [{"subject": "CD1", **expected}]
    assert read_studies(tmp_path, "adni", series=mapping) == [{"subject": "CD1", **expected}]
    assert read_volume(expected["t2"])[0].shape == (3, 4, 2)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.nii.gz")
    touch(tmp_path / "data" / "P1" / "T2", "b.nii.gz")
    (tmp_path / "data" / "P1" / "T1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "P1" / "T2" / "up").symlink_to(tmp_path / "data")
    (study,) = read_studies(tmp_path / "data", "brats", series={"T1": "t1", "T2": "t2"})
    assert study["t1"] == str(tmp_path / "data" / "P1" / "T1" / "a.nii.gz")


@pytest.mark.parametrize(("folder", "pattern"), [("P1", "t1 SCHÄDEL"), ("P1/S1", "T1 Scha\u0308del")])
def test_a_pattern_fits_a_description_with_an_umlaut(tmp_path: Path, folder: str, pattern: str) -> None:
    text = "T1 Schädel".encode("latin-1")
    write_series(tmp_path / folder, np.ones((3, 4, 2), np.int16), charset="ISO_IR 100", description=text)
    (study,) = read_studies(tmp_path, "brats", series={pattern: "t1"})
    assert read_volume(study["t1"])[0].shape == (3, 4, 2)
    with pytest.raises(StudyError, match='"(T1 Schädel|S1)": ...'):
        read_studies(tmp_path, "brats", series={"other": "t1"})


def test_files_without_a_series_uid_are_read_as_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "P1", np.ones((3, 4, 2), np.int16), series=None, description=None)
    (study,) = read_studies(tmp_path, "brats", series={"P1": "t1"})
    assert read_volume(study["t1"])[0].shape == (3, 4, 2)


def test_files_of_any_name_are_mapped_segmentations_too(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "scan_e1.nii.gz", "tumour.nii.gz", "x_SYNTHETIC.nii.gz")
    assert read_studies(tmp_path, "brats", series={"*_e1": "t1", "tumour": "seg"}) == [
        {"subject": "a", "t1": str(folder / "scan_e1.nii.gz"), "seg": str(folder / "tumour.nii.gz")}
    ]


def test_a_study_with_nothing_mapped_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a", "scout.nii")
    touch(tmp_path / "b", "scan.nii")
    assert [s["subject"] for s in read_studies(tmp_path, "adni", series={"scan": "t1", "*": None})] == ["b"]
    assert "left out study a" in caplog.text
    with pytest.raises(StudyError, match="no study found; expected a folder for each subject"):
        read_studies(tmp_path, "adni", series={"*": None})


def test_an_echo_of_a_nifti_file_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "a", "dual.nii.gz")
    with pytest.raises(StudyError, match=r"dual.nii.gz: is a NIfTI file, which has no echo 1 for pd"):
        read_studies(tmp_path, "adni", series={"dual": {"pd": 1, "t2": 2}})


def test_dicom_without_a_mapping_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"002_S_0413: no acquired contrast found, but files in .*series mapping"):
        read_studies(adni_archive(tmp_path), "adni")
    write_series(tmp_path / "CD1", np.ones((3, 4, 2), np.int16))
    with pytest.raises(StudyError, match=r"CD1: holds DICOM files; .*series mapping"):
        read_studies(tmp_path / "CD1", "adni")


@pytest.mark.parametrize(
    "mapping",
    [{"a": "flair"}, {"a": {"pd": 0}}, {"a": {"dwi": 1}}, {1: "t1"}],
)
def test_a_mapping_to_something_else_is_an_error_that_names_the_entry(tmp_path: Path, mapping: dict) -> None:
    with pytest.raises(
        ValueError, match=r"series mapping: ('a'|1) is mapped to .*; valid are a contrast \(t1, t2, pd\)"
    ):
        read_studies(tmp_path, "adni", series=mapping)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "t1", "a": "t2"}', None])
def test_a_mapping_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "series.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match="series.json: (cannot be read as a series mapping|must map patterns)"):
        read_studies(tmp_path, "adni", series=file)


@pytest.mark.parametrize("series", [None, {"T1": "t1", "T2": "t2", "*_t2": "t2"}])
def test_a_link_to_nothing_is_an_error_as_it_may_be_an_acquired_contrast(
    series: dict[str, str] | None, tmp_path: Path
) -> None:
    (tmp_path / "P1").mkdir()
    (tmp_path / "P1" / "P1_t2.nii.gz").touch()
    link = tmp_path / "P1" / ("P1_t1.nii.gz" if series is None else "T1")
    link.symlink_to("/mnt/not-mounted/T1")
    with pytest.raises(StudyError, match=f"{link}: is a link to /mnt/not-mounted/T1, which is not there"):
        read_studies(tmp_path, "brats", series=series)
