from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_studies import LPS, write_nifti, write_study

from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.io.sidecar import mark_synthetic
from apt_monai.transforms import LoadStudyd

VOLUME = np.arange(1, 121, dtype=np.int16).reshape(4, 5, 6)


def test_a_loaded_study_has_the_files_intensities_in_contrast_order(tmp_path: Path) -> None:
    study = write_study(tmp_path / "with a space" / "case", seg=False)
    loaded = LoadStudyd("brats")(study)
    assert loaded["subject"] == "case"
    assert loaded["image"].dtype == torch.float32
    assert torch.equal(loaded["image"].affine, torch.from_numpy(LPS))
    for channel, name in enumerate(("flair", "t1", "t1ce", "t2")):
        np.testing.assert_array_equal(loaded["image"][channel].numpy(), nib.load(study[name]).get_fdata())
    assert list(loaded["paths"]) == ["flair", "t1", "t1ce", "t2"]


def test_an_absent_contrast_is_all_zero_and_not_available(tmp_path: Path) -> None:
    loaded = LoadStudyd("brats")(write_study(tmp_path / "case", names=("t2", "t1")))
    assert loaded["available"].tolist() == [False, True, False, True]
    assert not loaded["image"][0].any() and not loaded["image"][2].any()
    assert list(loaded["paths"]) == ["t1", "t2"]


def test_the_region_is_brain_where_any_contrast_is_not_zero_and_tumour_within_it(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    t1 = nib.load(study["t1"]).get_fdata().astype(np.int16)
    t1[6:] = 0
    write_nifti(Path(study["t1"]), t1)
    loaded = LoadStudyd("brats")(study)
    labels = nib.load(study["seg"]).get_fdata()
    brain = (loaded["image"].numpy() != 0).any(axis=0)
    np.testing.assert_array_equal(loaded["region"][0].numpy(), np.where(brain & (labels > 0), 2, brain))
    assert loaded["region"].dtype == torch.uint8
    assert set(loaded["region"].unique().tolist()) == {0, 1, 2}


def test_the_headers_scaling_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "case_t1.nii")
    stored = nib.load(tmp_path / "case_t1.nii").get_fdata()
    np.testing.assert_allclose(read_volume(tmp_path / "case_t1.nii")[0], stored)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.Nifti2Image(VOLUME, np.eye(4)).to_filename(tmp_path / "case_t1.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "case_t1.nii.gz")[0], VOLUME)


@pytest.mark.parametrize(("suffix", "kept"), [("nii", 200), ("nii", -1), ("nii.gz", 0), ("nii.gz", -1)])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, kept: int) -> None:
    path = Path(write_nifti(tmp_path / f"case_t1.{suffix}", VOLUME))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StudyError, match=rf"case_t1\.{suffix}: cannot be read as NIfTI, it is truncated or corrupt"):
        read_volume(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="case_t1.nii.gz: no such file"):
        read_volume(tmp_path / "case_t1.nii.gz")


@pytest.mark.parametrize("shape", [(4, 5, 1, 6), (4, 5)])
def test_what_is_not_3d_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "case_t1.nii.gz", np.ones(shape, np.int16))
    with pytest.raises(StudyError, match=rf"case_t1.nii.gz: is {len(shape)}D"):
        read_volume(path)


def test_rgb_is_refused(tmp_path: Path) -> None:
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = write_nifti(tmp_path / "case_t1.nii.gz", rgb)
    with pytest.raises(StudyError, match="case_t1.nii.gz: .*RGB"):
        read_volume(path)


def test_further_axes_of_one_entry_are_left_out(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "case_t1.nii.gz", VOLUME.reshape(4, 5, 6, 1, 1))
    np.testing.assert_array_equal(read_volume(path)[0], VOLUME)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "a.nii.gz"),
        ("plain", "IMG0001"),
        ("packed", "a.nii"),
        ("packed twice", "scan.img"),
        ("packed and x", "A.NII.GZ"),
        ("packed and zeros", "IMG0001"),
    ],
)
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path: Path, name: str, kind: str) -> None:
    plain = nib.Nifti1Image(VOLUME, LPS).to_bytes()
    packed = gzip.compress(plain)
    (tmp_path / name).write_bytes(
        {
            "plain": plain,
            "packed": packed,
            "packed twice": gzip.compress(plain[:500]) + gzip.compress(plain[500:]),
            "packed and x": packed + b"x" * 9,
            "packed and zeros": packed + bytes(512),
        }[kind]
    )
    volume, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_array_equal(affine, LPS)


@pytest.mark.parametrize(("offset", "after"), [(-30, b""), (-8, b"x" * 9)], ids=["voxel", "checksum, with bytes after"])
def test_one_damaged_byte_is_found_by_the_checksum(tmp_path: Path, offset: int, after: bytes) -> None:
    content = bytearray(gzip.compress(nib.Nifti1Image(VOLUME, LPS).to_bytes(), compresslevel=0))
    content[offset] ^= 1  # stored, not compressed: the data is one bit off, and only the checksum tells
    (tmp_path / "a.nii.gz").write_bytes(bytes(content) + after)
    with pytest.raises(StudyError, match="truncated or corrupt"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>404</html>" * 40, "is no NIfTI file, it begins with b'<html>40'"),
        (gzip.compress(b"PK\3\4" * 100, mtime=0), "is no NIfTI file"),
        (bytes(128) + b"DICM" + bytes(500), "is one DICOM file, a slice; name the folder"),
        (bytes(344) + b"ni1\0" + bytes(100), r"is the header of a pair \(.hdr and .img\)"),
    ],
)
def test_something_else_is_called_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "case_t1.nii.gz").write_bytes(content)
    with pytest.raises(StudyError, match=f"case_t1.nii.gz: {message}"):
        read_volume(tmp_path / "case_t1.nii.gz")


def test_a_volume_whose_left_and_right_are_not_known_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, None)
    image.header.set_zooms((1, 1, 3))
    nib.save(image, tmp_path / "case_t1.nii.gz")
    with pytest.raises(StudyError, match=r"case_t1.nii.gz: left and right are not known.*set_sform"):
        read_volume(tmp_path / "case_t1.nii.gz")
    for way in ("set_qform", "set_sform"):
        told = nib.Nifti1Image(VOLUME, None)
        getattr(told, way)(LPS, code=1)
        nib.save(told, tmp_path / f"{way}_t1.nii.gz")
        np.testing.assert_allclose(read_volume(tmp_path / f"{way}_t1.nii.gz")[1], LPS)


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "case_t1.nii.gz", VOLUME[:, :1])
    with pytest.raises(StudyError, match="case_t1.nii.gz: .*single slice"):
        read_volume(path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    volume = VOLUME.astype(np.float32)
    volume[1, 2, 3] = value
    path = write_nifti(tmp_path / "case_t1.nii.gz", volume)
    with pytest.raises(StudyError, match="case_t1.nii.gz: 1 voxels are NaN or infinite"):
        read_volume(path)


def test_an_affine_without_inverse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case_t1.nii"
    write_nifti(path, VOLUME)
    content = bytearray(path.read_bytes())
    content[254:256] = (1).to_bytes(2, "little")  # sform_code
    content[280:328] = np.array([[1, 0, 0, 0]] * 3, "<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(content))
    with pytest.raises(StudyError, match="case_t1.nii: the affine .* has no inverse"):
        read_volume(path)


def test_an_all_zero_volume_is_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    write_nifti(Path(study["t2"]), np.zeros((12, 10, 6), np.int16))
    with pytest.raises(StudyError, match="case_t2.nii.gz: every voxel is 0"):
        LoadStudyd("brats")(study)


def test_a_renamed_synthetic_volume_is_no_source(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOLUME, np.eye(4))
    mark_synthetic(image.header, "T1")
    nib.save(image, tmp_path / "case_t1.nii.gz")
    with pytest.raises(StudyError, match=r"case_t1.nii.gz: was synthesised, as its name or its header says"):
        LoadStudyd("brats")({"subject": "case", "t1": str(tmp_path / "case_t1.nii.gz")})


@pytest.mark.parametrize("key", ["t2", "seg"])
def test_other_grids_are_refused(tmp_path: Path, key: str) -> None:
    study = write_study(tmp_path / "case")
    write_nifti(Path(study[key]), np.ones((12, 10, 7), np.int16))
    with pytest.raises(StudyError, match=rf"case_{key}.nii.gz: shape \(12, 10, 7\) differs from \(12, 10, 6\)"):
        LoadStudyd("brats")(study)
    moved = LPS.copy()
    moved[0, 3] += 0.5
    write_nifti(Path(study[key]), np.ones((12, 10, 6), np.int16), moved)
    with pytest.raises(StudyError, match=rf"case_{key}.nii.gz: the affine differs .* by up to 0.5 mm"):
        LoadStudyd("brats")(study)


def test_affines_that_differ_by_rounding_are_accepted(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case")
    moved = LPS.copy()
    moved[0, 3] += 5e-4
    write_nifti(Path(study["t2"]), np.ones((12, 10, 6), np.int16), moved)
    LoadStudyd("brats")(study)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"subject": "case"}, "study 'case': has no contrast"),
        ({"subject": "case", "T1": "case.nii.gz"}, "study 'case': unknown key 'T1'"),
        ({"t1": "case.nii.gz"}, "has no 'subject'"),
    ],
)
def test_what_is_no_study_is_refused(study: dict[str, str], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        LoadStudyd("brats")(study)


def test_a_mask_says_what_is_brain(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", names=("t1", "t2"), seg=False)
    mask = np.zeros((12, 10, 6), np.uint8)
    mask[3:6, 3:6, 2:4] = 1
    study["mask"] = write_nifti(tmp_path / "case" / "preprocessing" / "brainmask.nii.gz", mask)
    loaded = LoadStudyd("brats")(study)
    np.testing.assert_array_equal(loaded["region"][0].numpy(), mask)
    write_nifti(Path(study["mask"]), 0 * mask)
    with pytest.raises(StudyError, match=r"brainmask.nii.gz: the brain mask is empty"):
        LoadStudyd("brats")(study)
    write_nifti(Path(study["mask"]), mask[1:])
    with pytest.raises(StudyError, match=r"brainmask.nii.gz: shape"):
        LoadStudyd("brats")(study)


def test_a_background_of_nearly_0_is_not_brain(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", names=("t1", "t2"), seg=False)
    clean = LoadStudyd("brats")(study)
    t1 = nib.load(study["t1"]).get_fdata()
    noise = np.random.default_rng(0).normal(0, 1e-6, t1.shape)
    write_nifti(Path(study["t1"]), np.where(t1 > 0, t1, noise).astype(np.float32))
    noisy = LoadStudyd("brats")(study)
    assert torch.equal(noisy["region"], clean["region"])


def test_faint_voxels_are_brain_where_the_background_is_exactly_0(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case", names=("t1",), seg=False)
    t1 = nib.load(study["t1"]).get_fdata().astype(np.float32)
    t1[3:6, 3:6, 2:5] = 1e-6
    write_nifti(Path(study["t1"]), t1)
    np.testing.assert_array_equal(LoadStudyd("brats")(study)["region"][0].numpy(), t1 != 0)


def test_a_head_that_was_never_skull_stripped_is_refused(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(3, 900, (22, 22, 22)).astype(np.int16)
    path = write_nifti(tmp_path / "case_t1.nii.gz", raw, np.diag([5.0, 5.0, 5.0, 1.0]))
    with pytest.raises(StudyError, match=r"case_t1.nii.gz: 100 % of its voxels are not 0, .*skull-stripped"):
        LoadStudyd("brats")({"subject": "case", "t1": path})
