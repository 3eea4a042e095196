"""The brain mask: by filters, by deepbet, and which of them is asked for which scan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_heads import QUICK, T1_AFFINE, dice, make_pair, make_t1, movement, transforms_of, write_raw
from tiny_studies import write_nifti

from apt_monai.contrasts import get_contrast_set
from apt_monai.errors import StudyError
from apt_monai.phantom.datasets import write_phantom_dataset
from apt_monai.preprocessing import PreprocessingSettings, brain_mask, cohort, preprocess_cohort, preprocess_study
from apt_monai.preprocessing.brain_mask import find_brain_mask, mask_by_deepbet, mask_by_filters
from apt_monai.preprocessing.scan import Scan


@pytest.mark.parametrize("name", ["t1", "t2", "pd"])
def test_filters_find_the_brain(name: str) -> None:
    scan, brain = make_t1(np.eye(4)) if name == "t1" else make_pair(name)
    mask = mask_by_filters(scan)
    assert dice(mask.volume > 0.5, brain) > 0.7  # voxels of 5 to 8 mm, as large as the skull is thick


@pytest.mark.parametrize(
    ("dataset", "names", "tool", "source"),
    [
        ("brats", ("flair", "t1", "t1ce", "t2"), "deepbet", "t1"),
        ("brats", ("flair", "t1ce", "t2"), "deepbet", "t1ce"),
        ("brats", ("flair", "t2"), "itk", "t2"),
        ("adni", ("t1", "t2", "pd"), "deepbet", "t1"),
        ("adni", ("t2", "pd"), "itk", "t2"),
    ],
)
def test_deepbet_gets_t1_wherever_it_is_else_t1gd_else_the_filters_work(
    dataset: str, names: tuple[str, ...], tool: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    litre = Scan(np.ones((10, 10, 10), np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))
    asked: list[tuple[str, Scan]] = []

    def masked_by(name: str, scan: Scan) -> Scan:
        asked.append((name, scan))
        return litre

    monkeypatch.setattr(brain_mask, "mask_by_filters", partial(masked_by, "itk"))
    monkeypatch.setattr(brain_mask, "mask_by_deepbet", partial(masked_by, "deepbet"))
    scans = {name: Scan(litre.volume * i, litre.affine) for i, name in enumerate(names)}
    mask = find_brain_mask("case", scans, get_contrast_set(dataset), PreprocessingSettings(), None)
    assert asked == [(tool, scans[source])]
    assert mask.origin.startswith(f"{tool} on {source}") and mask.space == source and mask.ml == 1000
    assert tool == "deepbet" or "needs a T1-weighted scan" in mask.origin


@pytest.mark.parametrize("failure", [RuntimeError("itk::ERROR"), IndexError()])
def test_a_tool_that_fails_names_the_study_and_says_what_to_do(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(scan: Scan) -> Scan:
        raise failure

    monkeypatch.setattr(brain_mask, "mask_by_filters", fails)
    message = (
        r"study 'case', t2: .*\(itk on t2: deepbet needs a T1-weighted scan.*--mask 'masks/\{subject\}_mask.nii.gz'"
    )
    with pytest.raises(StudyError, match=message):
        find_brain_mask("case", {"t2": make_pair("t2")[0]}, get_contrast_set("brats"), PreprocessingSettings(), None)


def test_a_scan_without_a_head_is_one_error_of_the_filters() -> None:
    speck = np.ones((24, 24, 24), np.float32)
    speck[12, 12, 12] = 2
    for volume in (speck, np.random.default_rng(0).random((24, 24, 24), np.float32)):
        with pytest.raises(StudyError, match="study 'case'.*masks of your own"):
            scans = {"t2": Scan(volume, np.diag([1.0, 1.0, 1.0, 1.0]))}
            find_brain_mask("case", scans, get_contrast_set("brats"), PreprocessingSettings(mask="itk"), None)


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
