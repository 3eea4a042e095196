"""DICOM series: they lie where the scanner says, are whole, and are never mistaken for one another."""

from __future__ import annotations

import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from tiny_dicom import AXIAL, SAGITTAL, write_series, write_slice

from apt_monai.contrasts import ADNI
from apt_monai.data.slice_cache import SliceCache
from apt_monai.data.writers import SaveSyntheticStudyd, pending_studies
from apt_monai.errors import StudyError
from apt_monai.io import read_volume
from apt_monai.io.dicom import dicom_files, find_series, folder_label, list_series
from apt_monai.transforms import LoadStudyd, StudyPreprocessing

VOLUME = np.arange(1, 121, dtype=np.int16).reshape(4, 5, 6)
TILTED = (*nib.eulerangles.euler2mat(0.3, -0.2, 0.5)[:, 0], *nib.eulerangles.euler2mat(0.3, -0.2, 0.5)[:, 1])
EXACT = {"orientation": AXIAL, "pixel_spacing": (2, 1.5)}


def test_a_series_is_read_in_the_order_of_position_not_of_file_names(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME)
    volume, affine = read_volume(tmp_path)
    np.testing.assert_array_equal(volume, VOLUME)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("orientation", [SAGITTAL, TILTED])
def test_the_affine_is_that_of_dicoms_own_formula_with_x_and_y_negated(tmp_path: Path, orientation: tuple) -> None:
    spacing, origin = (0.9, 1.1, 2.5), np.array([-10.5, 20.25, 3.0])
    write_series(tmp_path, VOLUME, origin, spacing, orientation)
    _, affine = read_volume(tmp_path)
    # PS3.3 C.7.6.2.1.1: P = position + row cosines * column spacing * i + column cosines * row spacing * j
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for i, j, k in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (2, 1, 5)):
        lps = origin + row * 0.9 * i + column * 1.1 * j + np.cross(row, column) * 2.5 * k
        np.testing.assert_allclose(affine @ [i, j, k, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-6)


def test_itks_own_series_reader_puts_the_voxels_at_the_same_places(tmp_path: Path) -> None:
    files = write_series(tmp_path, VOLUME, orientation=TILTED)
    image = itk.imread([str(files[k]) for k in sorted(files)], pixel_type=itk.F, imageio=itk.GDCMImageIO.New())
    volume, affine = read_volume(tmp_path)
    np.testing.assert_array_equal(itk.array_from_image(image).T, volume)
    for index in ((0, 0, 0), (3, 4, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-4)


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path: Path) -> None:
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", VOLUME[:, :, k], (0, 0.5 * k, 3 * k), **EXACT)
    _, affine = read_volume(tmp_path)
    np.testing.assert_allclose(affine[:, 2], [0, -0.5, 3, 0])


def test_each_slices_rescale_is_applied(tmp_path: Path) -> None:
    for k in range(3):
        write_slice(tmp_path / f"{k}.dcm", VOLUME[:, :, k], (0, 0, 3 * k), slope=k + 1, intercept=5)
    volume, _ = read_volume(tmp_path)
    np.testing.assert_array_equal(volume, VOLUME[:, :, :3] * np.array([1.0, 2.0, 3.0]) + 5)


def test_files_without_an_extension_are_known_by_their_mark(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, name="IM{:04d}")
    for other in ("DICOMDIR", "LICENSE", ".hidden.dcm", "a.nii"):
        (tmp_path / other).write_bytes(b"\0" * 128 + (b"DICM" if other == "DICOMDIR" else b"text"))
    assert [file.name for file in dicom_files(tmp_path)] == [f"IM{k:04d}" for k in range(1, 7)]
    np.testing.assert_array_equal(read_volume(tmp_path)[0], VOLUME)


def test_the_echoes_of_a_series_are_told_apart_by_echo_time(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME + 500, name="a{:02d}.dcm", echo_time=98, echo_number=2)
    write_series(tmp_path, VOLUME, name="b{:02d}.dcm", echo_time=11, echo_number=1)
    np.testing.assert_array_equal(read_volume(f"{tmp_path}::echo=1")[0], VOLUME)
    np.testing.assert_array_equal(read_volume(f"{tmp_path}::1.2.3::echo=2")[0], VOLUME + 500)
    with pytest.raises(StudyError, match=r"names 2 of the DICOM series .*::1\.2\.3::echo=1 \(MPRAGE, echo time 11 ms"):
        read_volume(tmp_path)
    with pytest.raises(StudyError, match="names none of the DICOM series"):
        read_volume(f"{tmp_path}::echo=3")


def test_echoes_without_echo_time_are_told_apart_by_echo_number(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME + 500, name="a{:02d}.dcm", echo_time=None, echo_number=2)
    write_series(tmp_path, VOLUME, name="b{:02d}.dcm", echo_time=None, echo_number=1)
    assert [(s.echo, s.echo_time, len(s.files)) for s in list_series(tmp_path)] == [(1, None, 6), (2, None, 6)]
    np.testing.assert_array_equal(read_volume(f"{tmp_path}::echo=2")[0], VOLUME + 500)


def test_several_series_in_a_folder_are_named_by_uid(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, name="a{}.dcm", series="1.2.3")
    write_series(tmp_path, VOLUME + 500, name="b{}.dcm", series="1.2.4", description="T2")
    np.testing.assert_array_equal(read_volume(f"{tmp_path}::1.2.4")[0], VOLUME + 500)
    assert find_series(f"{tmp_path}::1.2.4").path == f"{tmp_path}::1.2.4"
    with pytest.raises(StudyError, match=r"names 2 .* give one of: .*::1\.2\.3 \(MPRAGE.*::1\.2\.4 \(T2, .*6 files\)"):
        read_volume(tmp_path)


@pytest.mark.parametrize("end", ["::echo=0", "::T1"])
def test_a_selector_that_is_not_understood_is_an_error(tmp_path: Path, end: str) -> None:
    with pytest.raises(StudyError, match="names no DICOM series; the form is"):
        read_volume(f"{tmp_path}{end}")


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nowhere: no such file or folder"):
        read_volume(tmp_path / "nowhere::1.2.3")
    with pytest.raises(StudyError, match="holds no DICOM file"):
        read_volume(tmp_path)


def test_one_file_of_a_series_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    files = write_series(tmp_path, VOLUME)
    with pytest.raises(StudyError, match="is one DICOM file, a slice; name the folder"):
        read_volume(files[0])


@pytest.mark.parametrize("kept", [0, 300, -20])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, kept: int) -> None:
    files = write_series(tmp_path, VOLUME)
    files[2].write_bytes(files[2].read_bytes()[:kept])
    with pytest.raises(StudyError, match=rf"{files[2]}: cannot be read as a DICOM image, it is truncated or corrupt"):
        read_volume(tmp_path)


PRESENTATION_STATE, SIEMENS_PRIVATE = "1.2.840.10008.5.1.4.1.1.11.1", "1.3.12.2.1107.5.9.1"
NO_IMAGE = {"rows": None, "columns": None, "data": None}


@pytest.mark.parametrize(("sop_class", "series"), [(PRESENTATION_STATE, "1.2.3"), (SIEMENS_PRIVATE, "1.2.9")])
def test_objects_that_are_no_images_are_left_out_and_named_once(
    tmp_path: Path, sop_class: str, series: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_series(tmp_path, VOLUME)
    write_slice(tmp_path / "000.dcm", VOLUME[:, :, 0], series=series, sop_class=sop_class, **NO_IMAGE)
    np.testing.assert_array_equal(read_volume(tmp_path)[0], VOLUME)
    assert [len(s.files) for s in list_series(tmp_path)] == [6]
    assert folder_label(tmp_path).description == "MPRAGE"  # type: ignore[union-attr]
    assert caplog.text.count(f"{tmp_path}: left out, as these DICOM objects are no images: 000.dcm") == 1


def test_an_image_without_its_rows_is_truncated_not_left_out(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME)
    write_slice(tmp_path / "000.dcm", VOLUME[:, :, 0], **NO_IMAGE)
    with pytest.raises(StudyError, match="000.dcm: cannot be read as a DICOM image"):
        read_volume(tmp_path)


def test_files_without_a_series_uid_are_one_series_which_its_path_names(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, series=None)
    np.testing.assert_array_equal(read_volume(tmp_path)[0], VOLUME)
    write_series(tmp_path, VOLUME + 500, name="b{}.dcm")
    (without, with_uid) = list_series(tmp_path)
    assert without.path == f"{tmp_path}::no-uid"
    np.testing.assert_array_equal(read_volume(without.path)[0], VOLUME)
    np.testing.assert_array_equal(read_volume(with_uid.path)[0], VOLUME + 500)


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        (None, "T1 Schädel".encode("latin-1")),
        ("ISO_IR 100", "T1 Schädel".encode("latin-1")),
        ("ISO_IR 192", "T1 Schädel".encode()),
    ],
)
def test_a_description_is_decoded_by_its_character_set(tmp_path: Path, charset: str | None, text: bytes) -> None:
    write_series(tmp_path, VOLUME, charset=charset, description=text)
    assert list_series(tmp_path)[0].label.description == "T1 Schädel"


def test_an_unknown_character_set_or_a_strange_value_does_not_stop_the_reading(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, charset="ISO_IR 999", description=b"T1 \xff\xe4", slope="1.0 ")
    np.testing.assert_array_equal(read_volume(tmp_path)[0], VOLUME)
    write_series(tmp_path, VOLUME, echo_time="forty")
    with pytest.raises(StudyError, match=r"DICOM tag \(0018,0081\) is no number"):
        read_volume(tmp_path)


def test_a_missing_slice_is_an_error_that_names_its_neighbours(tmp_path: Path) -> None:
    files = write_series(tmp_path, VOLUME)
    files[3].unlink()
    with pytest.raises(StudyError, match=rf"{files[2]}: .* not evenly spaced: 6 mm to the next one, {files[4].name}, "):
        read_volume(tmp_path)


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    for k in range(6):
        write_slice(tmp_path / f"{k}.dcm", VOLUME[:, :, k], (0, 0, round(1.23456 * k, 2)), **EXACT)
    assert read_volume(tmp_path)[1][2, 2] == pytest.approx(1.234)


def test_two_slices_at_one_place_are_an_error(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, name="a{}.dcm")
    write_series(tmp_path, VOLUME, name="b{}.dcm")
    with pytest.raises(StudyError, match="slices at the same place"):
        read_volume(tmp_path)


def test_a_series_of_one_slice_is_an_error(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", VOLUME[:, :, 0])
    with pytest.raises(StudyError, match="is the only slice"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photometric": "RGB"}, r"is in colour \(RGB\)"),
        ({"frames": 3}, r"holds 3 frames \(enhanced DICOM\)"),
        ({"position": None}, r"tag \(0020,0032\) is missing, so its place in space is not known"),
        ({"orientation": (1, 0, 0)}, r"tag \(0020,0037\) is .*6 numbers are needed"),
        ({"orientation": SAGITTAL}, "its orientation .* may be a localiser"),
        ({"pixel_spacing": (2, 2)}, "its pixel size .* differs"),
    ],
)
def test_slices_that_make_no_volume_are_an_error(tmp_path: Path, changes: dict, message: str) -> None:
    for k in range(3):
        bad = changes if k == 1 else {}
        write_slice(tmp_path / f"{k}.dcm", VOLUME[:, :, k], **{"position": (0, 0, 3 * k), **EXACT, **bad})
    with pytest.raises(StudyError, match=message) as caught:
        read_volume(tmp_path)
    assert str(tmp_path / "1.dcm") in str(caught.value)


def test_slices_of_different_shapes_are_an_error(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", VOLUME[:, :, 0])
    write_slice(tmp_path / "b.dcm", VOLUME[:3, :, 1], (0, 0, 3))
    with pytest.raises(StudyError, match=r"b.dcm: its columns \[3.0\] differs from \[4.0\]"):
        read_volume(tmp_path)


def brain(seed: int) -> np.ndarray:
    """8×7×4 voxels, a border of air around a random brain."""
    volume = np.zeros((8, 7, 4), np.int16)
    volume[1:-1, 1:-1, 1:-1] = np.random.default_rng(seed).integers(100, 1000, (6, 5, 2))
    return volume


def dicom_study(folder: Path) -> dict[str, str]:
    """PD and T2 as the two echoes of one tilted series."""
    for echo in (1, 2):
        name = f"e{echo}-{{}}.dcm"
        write_series(folder, brain(echo), orientation=TILTED, name=name, echo_time=40 * echo, echo_number=echo)
    return {"subject": "case", "pd": f"{folder}::echo=1", "t2": f"{folder}::echo=2"}


def test_a_study_may_be_of_dicom_series_or_mixed(tmp_path: Path) -> None:
    study = dicom_study(tmp_path / "case")
    loaded = LoadStudyd("adni")(study)
    assert loaded["paths"] == {"t2": study["t2"], "pd": study["pd"]}
    np.testing.assert_array_equal(loaded["image"].numpy(), [np.zeros((8, 7, 4)), brain(2), brain(1)])
    nib.save(nib.Nifti1Image(brain(3), read_volume(study["pd"])[1]), tmp_path / "t1.nii.gz")
    assert LoadStudyd("adni")({**study, "t1": str(tmp_path / "t1.nii.gz")})["available"].all()


def test_what_is_synthesised_from_dicom_is_a_nifti_in_the_scanners_space(tmp_path: Path) -> None:
    study = dicom_study(tmp_path / "case")
    preprocessing = StudyPreprocessing("adni", size=12)
    loaded = preprocessing(study)
    loaded["synthesised"] = loaded["image"].as_tensor()[[1, 1, 2]]  # T1 as if it looked like T2
    provenance = {"seed": 7}
    written = SaveSyntheticStudyd(tmp_path / "out", preprocessing, provenance)(loaded)["written"]["t1"]

    image = nib.load(written)
    source, affine = read_volume(study["t2"])
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    inside = (source > np.percentile(source[source > 0], 1)) & (source < np.percentile(source[source > 0], 99))
    np.testing.assert_allclose(image.get_fdata()[inside], source[inside], atol=0.1)
    assert not image.get_fdata()[source == 0].any()

    sidecar = json.loads(Path(written.replace(".nii.gz", ".json")).read_text())
    assert sidecar["sources"]["t2"]["sha256"] != sidecar["sources"]["pd"]["sha256"]
    assert not pending_studies([study], tmp_path / "out", ADNI, provenance)
    write_slice(tmp_path / "case" / "e1-2.dcm", brain(5)[:, :, 1], echo_time=40)  # an edited slice of PD
    assert pending_studies([study], tmp_path / "out", ADNI, provenance) == [study]


def test_what_is_synthesised_from_a_tilted_gantry_gets_no_qform(tmp_path: Path) -> None:
    for k in range(4):
        write_slice(tmp_path / "case" / f"{k}.dcm", brain(1)[:, :, k], (0, 0.5 * k, 3 * k), **EXACT)
    preprocessing = StudyPreprocessing("adni", size=12)
    loaded = preprocessing({"subject": "case", "t2": str(tmp_path / "case")})
    loaded["synthesised"] = loaded["image"].as_tensor()[[1, 1, 1]]
    for written in SaveSyntheticStudyd(tmp_path / "out", preprocessing, {})(loaded)["written"].values():
        header = nib.load(written).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
        np.testing.assert_allclose(header.get_sform(), read_volume(tmp_path / "case")[1], atol=1e-5)


def test_the_slice_cache_takes_dicom_and_sees_a_changed_folder(tmp_path: Path) -> None:
    study = dicom_study(tmp_path / "case")
    cache = SliceCache(tmp_path / "cache", StudyPreprocessing("adni", size=12))
    cache.prepare([study], progress=False)
    assert cache.open(study).slices.tolist() == [1, 2]
    (tmp_path / "case" / "notes.txt").touch()
    cache.open(study)
    (tmp_path / "case" / "e1-1.dcm").touch()
    with pytest.raises(FileNotFoundError, match="not in the slice cache, or its files"):
        cache.open(study)
    with pytest.raises(StudyError, match="no such file"):
        cache.open({"subject": "case", "t2": f"{tmp_path}/nowhere::echo=1"})
