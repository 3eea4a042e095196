"""What the MONAI Label app accepts, without its server: names, links, headers, requests, the folder of studies."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import ADNI_BUNDLE, write_untrained_direct
from tiny_dicom import write_series
from tiny_studies import write_nifti, write_study

from apt_monai.apps.guards import Refused, check_header, check_study
from apt_monai.apps.service import Asked, SynthesisService, find_models
from apt_monai.apps.studies import StudiesFolder
from apt_monai.apps.temporary import own_temporary_folder
from apt_monai.contrasts import ADNI, BRATS

SETS = {"apt_brats": BRATS, "apt_adni": ADNI}


def status_of(call, *arguments) -> int:
    with pytest.raises(Refused) as refusal:
        call(*arguments)
    assert len(refusal.value.message) > 20
    return refusal.value.status


def publish(folder: StudiesFolder, tmp_path: Path, study: str, contrast: str) -> list[str]:
    """As if the contrast had been synthesised."""
    path = Path(write_nifti(tmp_path / "out" / f"{study}_{contrast}_SYNTHETIC.nii.gz", np.ones((3, 3, 3), np.float32)))
    write_nifti(tmp_path / "out" / f"{study}_{contrast}_SYNTHETIC_uncertainty.nii.gz", np.ones((3, 3, 3), np.float32))
    path.with_name(f"{study}_{contrast}_SYNTHETIC.json").write_text("{}")
    return folder.publish(folder.find(study), path)


# Headers


def test_a_header_with_too_many_voxels_is_refused_without_reading_one(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    assert status_of(check_header, tmp_path / "a.nii", 512**3) == 413


def test_a_file_that_unpacks_to_more_than_its_header_says_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image + bytes(8 << 20), mtime=0))
    assert status_of(check_header, tmp_path / "a.nii.gz", 1000) == 413


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"hello" * 200, gzip.compress(b"hello" * 200, mtime=0)])
def test_what_is_no_nifti_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert status_of(check_header, tmp_path / "a.nii.gz", 1000) == 415


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 6, 2)])
def test_what_is_no_volume_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    assert status_of(check_header, tmp_path / "a.nii.gz", 1000) == 422


def test_an_affine_without_an_inverse_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    assert status_of(check_header, tmp_path / "a.nii.gz", 1000) == 422


def test_headers_of_other_shapes_or_affines_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", ["t1"], seg=False)
    study["t2"] = write_nifti(tmp_path / "case" / "case_t2.nii.gz", np.ones((12, 10, 5), np.int16))
    study["flair"] = write_nifti(tmp_path / "case" / "case_flair.nii.gz", np.ones((12, 10, 6), np.int16), np.eye(4))
    assert status_of(check_study, study, ["t1", "t2"], tmp_path, 1000) == 422
    assert status_of(check_study, study, ["t1", "flair"], tmp_path, 1000) == 422
    check_study(study, ["t1"], tmp_path, 1000)


# The folder of studies


def test_images_are_known_by_study_and_contrast_whatever_their_files_are_called(tmp_path: Path) -> None:
    write_nifti(tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t1c.nii.gz", np.ones((3, 3, 3), np.int16))
    write_nifti(tmp_path / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz", np.ones((3, 3, 3), np.int16))
    folder = StudiesFolder(tmp_path, SETS)
    assert folder.list_images() == ["BraTS-GLI-00000-000_t1ce", "sub-01_ses-2_t1"]
    assert folder.image("sub-01_ses-2_t1").name == "sub-01_ses-2_T1w.nii.gz"


def test_a_folder_with_images_of_its_own_is_one_study(tmp_path: Path) -> None:
    write_study(tmp_path / "case", ["t1"], seg=False)
    assert StudiesFolder(tmp_path / "case", SETS).list_images() == ["case_t1"]


def test_series_by_a_mapping_are_sources(tmp_path: Path) -> None:
    write_nifti(tmp_path / "002_S_0413" / "MPRAGE" / "scan.nii.gz", np.ones((3, 3, 3), np.int16))
    folder = StudiesFolder(tmp_path, {"apt_adni": ADNI}, {"MPRAGE*": "t1"})
    assert folder.list_images() == ["002_S_0413_t1"]
    publish(folder, tmp_path, "002_S_0413", "t2")
    assert folder.find("002_S_0413").lacking("apt_adni", ADNI) == ["pd"]


@pytest.mark.parametrize("layout", ["{0}/{0}_t1.nii.gz", "{0}/anat/{0}_T1w.nii.gz"])
def test_a_published_image_is_listed_and_never_a_source(tmp_path: Path, layout: str) -> None:
    write_nifti(tmp_path / "studies" / layout.format("sub-01"), np.ones((3, 3, 3), np.int16))
    folder = StudiesFolder(tmp_path / "studies", {"apt_brats": BRATS})
    made = publish(folder, tmp_path, "sub-01", "t2")
    assert made == ["sub-01_t2_SYNTHETIC", "sub-01_t2_SYNTHETIC_uncertainty"]
    assert folder.list_images() == ["sub-01_t1", *made]
    study = folder.find("sub-01_t2_SYNTHETIC")
    assert sorted(study.readings["apt_brats"]) == ["subject", "t1"]
    assert study.lacking("apt_brats", BRATS) == ["flair", "t1ce"]
    assert folder.get_image_info("sub-01_t2_SYNTHETIC")["synthetic"]


def test_a_volume_without_its_sidecar_is_not_published(tmp_path: Path) -> None:
    write_study(tmp_path / "case", ["t1"], seg=False)
    write_nifti(tmp_path / "case" / "case_t2_SYNTHETIC.nii.gz", np.ones((12, 10, 6), np.float32))
    assert StudiesFolder(tmp_path, SETS).list_images() == ["case_t1"]


def test_the_next_study_is_one_that_lacks_a_contrast(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    write_study(studies / "a", BRATS.names)
    write_study(studies / "b", ["t1", "t2", "t1ce"])
    folder = StudiesFolder(studies, {"apt_brats": BRATS})
    assert folder.next_lacking() == {"id": "b_t1", "study": "b", "model": "apt_brats", "lacking": ["flair"]}
    publish(folder, tmp_path, "b", "flair")
    assert folder.next_lacking() == {}
    assert folder.status()["completed"] == 2
    assert status_of(folder.next_lacking, "apt_adni") == 404


def test_a_bad_study_is_listed_with_its_problem_and_stops_no_other(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    write_study(studies / "good", ["t1"], seg=False)
    write_nifti(studies / "bad" / "bad_dwi.nii.gz", np.ones((3, 3, 3), np.int16))
    write_study(studies / "site" / "case", ["t1"], seg=False)
    write_study(studies / "Anna Muster", ["t1"], seg=False)
    (studies / "away").symlink_to(write_study(tmp_path / "elsewhere" / "away", ["t1"], seg=False)["t1"])
    folder = StudiesFolder(studies, SETS)
    problems = {name: study["problem"] for name, study in folder.json()["studies"].items()}
    assert folder.list_images() == ["good_t1"]
    assert "unknown contrast 'dwi'" in problems["bad"]
    assert "holds study folders" in problems["site"]
    assert "Muster" not in json.dumps(problems)
    assert status_of(folder.find, "bad") == 422
    assert status_of(folder.find, "none") == 404


@pytest.mark.parametrize("linked", ["studies/case", "studies/case/case_t2.nii.gz", "studies/case/more"])
def test_nothing_behind_a_link_out_of_the_folder_is_read(tmp_path: Path, linked: str) -> None:
    write_study(tmp_path / "away" / "case", ["t1", "t2"], seg=False)
    link, target = tmp_path / linked, tmp_path / "away" / "case"
    if link.name != "case":
        write_study(tmp_path / "studies" / "case", ["t1"], seg=False)
    if link.suffix:
        target = target / link.name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    folder = StudiesFolder(tmp_path / "studies", SETS)
    assert folder.list_images() == []
    assert status_of(folder.find, "case") == 422


def test_an_upload_becomes_a_contrast_of_a_study(tmp_path: Path) -> None:
    folder = StudiesFolder(tmp_path / "studies", SETS)
    folder.root.mkdir()
    volume = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        file = Path(write_nifti(tmp_path / name, volume))
        assert folder.add(f"new_{'t1' if name == 'a.nii' else 't2'}", file)
    assert folder.list_images() == ["new_t1", "new_t2"]
    assert (nib.load(folder.image("new_t1")).get_fdata() == volume).all()
    for name in ("new_t1", "new_dwi", "t1", "../evil_t1", "new_t1_SYNTHETIC"):
        assert status_of(folder.add, name, file) == 422
    assert sorted(path.name for path in folder.root.rglob("*.nii.gz")) == ["new_t1.nii.gz", "new_t2.nii.gz"]


def test_what_a_killed_server_left_in_its_temporary_folder_goes_at_the_next_start(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for number in (gone.pid, os.getppid()):
        (tmp_path / f"temporary-{number}").mkdir()
        (tmp_path / f"temporary-{number}" / "upload.nii").touch()
    own = own_temporary_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own.name, f"temporary-{os.getppid()}"])
    assert own.stat().st_mode & 0o077 == 0


# Requests


@pytest.mark.parametrize(
    ("image", "params"),
    [
        ("../a", "{}"), ("", "{}"), ("a/b", "{}"), ("a" * 200, "{}"), ("a", "{"), ("a", "[]"), ("a", "[" * 100000),
        ("a", '{"targets": ["t1"]}'), ("a", '{"target": "../x"}'), ("a", '{"target": ["t1"]}'),
        ("a", '{"contrasts": "t1"}'), ("a", '{"contrasts": {"t1": "/etc/passwd"}}'), ("a", '{"contrasts": {"t1": 5}}'),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(image: str, params: str) -> None:
    assert status_of(Asked.parse, "apt_brats", image, params) == 422


def test_what_clients_add_of_themselves_is_taken() -> None:
    asked = Asked.parse("apt_brats", "a", '{"client_id": "user-xyz", "result_dtype": "uint8", "target": "t2"}')
    assert asked.target == "t2"


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, Asked("apt_other", "a")),
        (404, Asked("apt_brats", "other")),
        (404, Asked("apt_brats", "a", contrasts={"t1": "a_t2"})),
        (422, Asked("apt_brats", "a", "pd")),
        (422, Asked("apt_brats", "a", "t1")),  # nothing else is there
        (422, Asked("apt_adni", "b")),  # of other contrasts
        (422, Asked("apt_brats", "full")),
        (422, Asked("apt_brats", "a", contrasts={"pd": "a_t1"})),
        (422, Asked("apt_brats", "a", contrasts={"t1": "a_t1", "t2": "b_flair"})),  # of another patient, maybe
        (422, Asked("apt_brats", "a", contrasts={"t1": "a_t1", "t2": "a_t1"})),
        (422, Asked("apt_brats", "a", contrasts={"t1": "a_t2_SYNTHETIC"})),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_a_voxel_is_read(
    tmp_path: Path, status: int, asked: Asked
) -> None:
    studies = tmp_path / "studies"
    for name, contrasts in (("a", ["t1"]), ("b", ["flair"]), ("full", BRATS.names)):
        write_study(studies / name, contrasts, seg=False)
    folder = StudiesFolder(studies, SETS)
    if asked.contrasts.get("t1") == "a_t2_SYNTHETIC":
        publish(folder, tmp_path, "a", "t2")
    service = SynthesisService(folder, {name: tmp_path for name in SETS})
    assert status_of(service.study_of, asked) == status


def test_a_dicom_series_is_a_source_and_its_headers_are_looked_at_first(tmp_path: Path) -> None:
    volume = np.zeros((12, 10, 6), np.int16)
    volume[2:-2, 2:-2, 1:] = np.random.default_rng(0).integers(100, 1000, (8, 6, 5))
    for description in ("T1", "T2"):
        write_series(tmp_path / "studies" / "002_S_0413" / description, volume, patient="secret")
    models = {"apt_adni": write_untrained_direct(tmp_path / "model", ADNI_BUNDLE)}
    folder = StudiesFolder(
        tmp_path / "studies", {"apt_adni": ADNI}, {"T1/*": "t1", "T2/*": "t2", "T1": "t1", "T2": "t2"}
    )
    asked = Asked("apt_adni", "002_S_0413")
    answer = SynthesisService(folder, models, "cpu")(asked)
    assert answer.params["images"] == {"pd": "002_S_0413_pd_SYNTHETIC"}
    assert folder.list_images() == ["002_S_0413_pd_SYNTHETIC", "002_S_0413_pd_SYNTHETIC_uncertainty"]
    folder.max_voxels = volume.size - 1
    assert status_of(SynthesisService(folder, models, "cpu"), asked) == 413


def test_two_models_of_one_contrast_set_are_refused() -> None:
    (folder, _) = find_models(["brats"])["apt_brats"]
    with pytest.raises(ValueError, match="both of the contrasts brats"):
        find_models(["brats", str(folder)])
