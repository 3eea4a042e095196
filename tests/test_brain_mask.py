"""The brain mask: by filters, by deepbet, and which of them is asked for which scan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_heads import (
    PAIR_AFFINE,
    QUICK,
    T1_AFFINE,
    dice,
    make_pair,
    make_scan,
    make_t1,
    movement,
    transforms_of,
    write_raw,
)
from tiny_studies import write_nifti

from apt_monai.contrasts import get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.phantom.datasets import write_phantom_dataset
from apt_monai.preprocessing import PreprocessingSettings, brain_mask, cohort, preprocess_cohort, preprocess_study
from apt_monai.preprocessing.bias import correct_bias
from apt_monai.preprocessing.brain_mask import (
    find_brain_mask,
    mask_by_deepbet,
    mask_by_deepbet_twice,
    mask_by_filters,
)
from apt_monai.preprocessing.scan import Scan, read_scan
from apt_monai.preprocessing.t1_like import subtract_fluid, t1_like


@pytest.mark.parametrize("name", ["t1", "t2", "pd"])
def test_filters_find_the_brain(name: str) -> None:
    scan, brain = make_t1(np.eye(4)) if name == "t1" else make_pair(name)
    mask = mask_by_filters(scan)
    assert dice(mask.volume > 0.5, brain) > 0.7  # voxels of 5 to 8 mm, as large as the skull is thick


@pytest.mark.parametrize(
    ("dataset", "names", "space", "origin"),
    [
        ("brats", ("flair", "t1", "t1ce", "t2"), "t1", "deepbet on t1"),
        ("brats", ("flair", "t1ce", "t2"), "t1ce", "deepbet on t1ce"),
        ("brats", ("flair", "t2"), "flair", "deepbet on flair"),
        ("adni", ("t1", "t2", "pd"), "t1", "deepbet on t1"),
        ("adni", ("t2", "pd"), "pd", "deepbet on pd less t2"),
    ],
)
def test_deepbet_gets_t1_wherever_it_is_else_what_looks_most_like_it(
    dataset: str, names: tuple[str, ...], space: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Scan]] = []

    def masked_by(name: str, scan: Scan) -> Scan:
        asked.append((name, scan))
        return Scan(np.ones((10, 10, 10), np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))

    monkeypatch.setattr(brain_mask, "mask_by_deepbet", partial(masked_by, "once"))
    monkeypatch.setattr(brain_mask, "mask_by_deepbet_twice", partial(masked_by, "twice"))
    scans = {name: make_pair("t2")[0] for name in names}
    still = dict.fromkeys(names, np.eye(4))
    mask = find_brain_mask("case", scans, get_contrast_set(dataset), PreprocessingSettings(), None, still)
    assert (mask.space, mask.origin, mask.ml) == (space, origin, 1000)
    ((how, scan),) = asked
    assert how == ("once" if space.startswith("t1") else "twice")
    assert (scan is scans[space]) == (origin == f"deepbet on {space}")


def test_fluid_is_dark_in_what_is_made_of_pd_and_t2() -> None:
    t2, pd = (Scan(make_pair(name)[0].volume, make_pair(name)[0].affine) for name in ("t2", "pd"))
    tissue, fluid = np.abs(t2.volume - 60) < 10, t2.volume > 130
    image = subtract_fluid(pd, t2)
    assert np.median(image.volume[fluid]) < 0.4 * np.median(image.volume[tissue])


def test_pd_follows_t2_by_the_registration_where_the_two_are_subtracted() -> None:
    pd, (t2, _) = make_pair("pd")[0], make_scan("t2", (44, 48, 26), PAIR_AFFINE, movement())
    contrasts = get_contrast_set("adni")
    still, _, _ = t1_like({"t2": make_pair("t2")[0], "pd": pd}, contrasts, {"t2": np.eye(4), "pd": np.eye(4)}) or ()
    moved, space, _ = t1_like({"t2": t2, "pd": pd}, contrasts, {"t2": movement(), "pd": np.eye(4)}) or ()
    assert space == "pd" and moved.is_on(pd.volume.shape, pd.affine)
    assert np.corrcoef(still.volume.ravel(), moved.volume.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("dataset", "name"), [("adni", "pd"), ("adni", "t2"), ("brats", "t2")])
def test_a_scan_whose_mask_is_not_good_by_itself_is_refused(dataset: str, name: str) -> None:
    message = f"'case': no good brain mask can be made of {name} alone: .* T1-weighted scan, FLAIR, or PD .*--mask"
    with pytest.raises(StudyError, match=message):
        scans = {name: make_pair(name)[0]}
        find_brain_mask("case", scans, get_contrast_set(dataset), PreprocessingSettings(), None, {name: np.eye(4)})


def test_a_mask_that_is_not_that_of_the_mirror_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    head, brain = make_pair("t2")
    left = brain & (np.arange(brain.shape[0]) > 17)[:, None, None]  # whatever it is shown

    def masks(found: np.ndarray) -> object:
        return lambda scan: Scan(found.astype(np.float32), scan.affine)

    monkeypatch.setattr(brain_mask, "mask_by_deepbet", masks(left))
    with pytest.raises(StudyError, match="'case', flair: .*another brain in the mirror image.*--mask"):
        find_brain_mask(
            "case", {"flair": head}, get_contrast_set("brats"), PreprocessingSettings(), None, {"flair": np.eye(4)}
        )
    monkeypatch.setattr(brain_mask, "mask_by_deepbet", masks(brain | np.flip(brain, 0)))
    assert mask_by_deepbet_twice(head).is_on(head.volume.shape, head.affine)


@pytest.mark.parametrize("failure", [RuntimeError("itk::ERROR"), IndexError()])
def test_a_tool_that_fails_names_the_study_and_says_what_to_do(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(scan: Scan) -> Scan:
        raise failure

    monkeypatch.setattr(brain_mask, "mask_by_filters", fails)
    message = r"study 'case', t2: .*\(itk on t2\).*--mask 'masks/\{subject\}_mask.nii.gz'"
    with pytest.raises(StudyError, match=message):
        settings = PreprocessingSettings(mask="itk")
        find_brain_mask("case", {"t2": make_pair("t2")[0]}, get_contrast_set("brats"), settings, None, {})


def test_a_scan_without_a_head_is_one_error_of_the_filters() -> None:
    speck = np.ones((24, 24, 24), np.float32)
    speck[12, 12, 12] = 2
    for volume in (speck, np.random.default_rng(0).random((24, 24, 24), np.float32)):
        with pytest.raises(StudyError, match="study 'case'.*masks of your own"):
            scans = {"t2": Scan(volume, np.diag([1.0, 1.0, 1.0, 1.0]))}
            find_brain_mask("case", scans, get_contrast_set("brats"), PreprocessingSettings(mask="itk"), None, {})


def test_filters_leave_out_the_fat_where_scalp_and_brain_touch() -> None:
    x, y, z = np.indices((64, 64, 64)) * 3.0 - 96
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = radius < 62
    volume = np.where(brain, 80.0, np.where(radius < 68, 10.0, np.where(radius < 84, 160.0, 2.0)))
    volume[(radius >= 62) & (radius < 84) & (z < -30)] = 160  # no dark bone there
    mask = mask_by_filters(Scan(volume.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))).volume > 0.5
    assert dice(mask, brain) > 0.95


def test_a_brain_volume_outside_what_heads_have_is_an_error_that_says_so(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t2", "pd"))
    message = r"'case': the brain mask has \d+ ml \(itk on t2\), and a head's has 100 to 300; look at t2.*your own"
    with pytest.raises(StudyError, match=message):
        preprocess_study(study, tmp_path / "out", "adni", replace(QUICK, brain_ml=(100.0, 300.0)))
    assert not (tmp_path / "out").exists()


def test_a_mask_of_the_users_own_is_taken_on_any_scans_grid(tmp_path: Path) -> None:
    study = write_raw(tmp_path / "case", ("t1", "pd"))
    _, brain = make_t1(movement())
    write_nifti(tmp_path / "masks" / "case_mask.nii.gz", brain.astype(np.uint8), T1_AFFINE)
    pattern = str(tmp_path / "masks" / "{subject}_mask.nii.gz")
    settings = PreprocessingSettings(mask=pattern, bias_spacing=20.0, levels=(8.0, 4.0))
    folder = preprocess_study(study, tmp_path / "out", "adni", settings)
    _, true_brain = make_pair("pd")
    mask = np.asarray(nib.load(next(folder.glob("*_mask.nii.gz"))).dataobj) > 0
    assert dice(mask, true_brain) > 0.93
    assert transforms_of(folder)["mask"]["from"].endswith("case_mask.nii.gz")

    beside = {**study, "mask": str(tmp_path / "masks" / "case_mask.nii.gz")}  # in the study's own folder
    again = preprocess_cohort([beside], tmp_path / "beside", "adni", QUICK, progress=False)
    assert again.written == preprocess_cohort([beside], tmp_path / "beside", "adni", QUICK, progress=False).kept
    same = nib.load(tmp_path / "beside" / "case" / "case_mask.nii.gz")
    assert np.array_equal(np.asarray(same.dataobj) > 0, mask)

    write_nifti(tmp_path / "masks" / "case_mask.nii.gz", brain.astype(np.uint8), np.eye(4))
    with pytest.raises(StudyError, match=r"case_mask.nii.gz: the mask is on the grid of none .*t1, pd"):
        preprocess_study(study, tmp_path / "out2", "adni", settings)
    assert not (tmp_path / "out2" / "case").exists()


def test_deepbet_that_is_not_installed_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package deepbet"):
        preprocess_cohort([], tmp_path / "out", "adni")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_deepbet_finds_the_phantoms_brain(tmp_path: Path) -> None:
    pytest.importorskip("deepbet")
    pytest.importorskip("nilearn")
    (folder,) = write_phantom_dataset(tmp_path, "adni-raw", subjects=1, seed=1, spacing=3.0, progress=False)
    image = nib.load(folder / f"{folder.name}_t1.nii.gz")
    mask = mask_by_deepbet(Scan(image.get_fdata(dtype=np.float32), image.affine))
    truth = np.asarray(nib.load(tmp_path / ".truth" / folder.name / "brain_t1.nii.gz").dataobj) > 0
    assert dice(mask.volume > 0.5, truth) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "names"), [("brats", ("flair", "t2")), ("adni", ("t2", "pd"))])
def test_deepbet_finds_the_phantoms_brain_without_a_t1_weighted_scan(
    dataset: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("deepbet")
    pytest.importorskip("nilearn")
    (folder,) = write_phantom_dataset(tmp_path, f"{dataset}-raw", subjects=1, seed=12, spacing=3.0, progress=False)
    scans = {name: correct_bias(read_scan(str(folder / f"{folder.name}_{name}.nii.gz"))) for name in names}
    still = dict.fromkeys(names, np.eye(4))
    mask = find_brain_mask("case", scans, get_contrast_set(dataset), PreprocessingSettings(), None, still)
    truth = "axial" if dataset == "adni" else mask.space
    brain = np.asarray(nib.load(tmp_path / ".truth" / folder.name / f"brain_{truth}.nii.gz").dataobj) > 0
    assert dice(mask.scan.volume > 0.5, brain) > 0.95
