"""apt_adni from beginning to end: training, every subset, evaluation, and patients' folders as people have them."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import ADNI_BUNDLE, files_of, run, run_command, workflow, write_untrained_model
from tiny_dicom import write_series
from tiny_studies import write_nifti

from apt_monai.contrasts import ADNI
from apt_monai.data.readers import read_studies
from apt_monai.files import file_sha256
from apt_monai.phantom import write_phantom_dataset
from apt_monai.preprocessing import PreprocessingSettings, preprocess_cohort, to_scanner_space

MODEL = ["codebook.json", "codebook.png", "fusion.pt", "model.json", "model.pt", "split.json"]
PHANTOM = "phantom/adni-10mm-seed0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `work` of a whole training."""
    folder = tmp_path_factory.mktemp("trained")
    run("published", "training", ADNI_BUNDLE, model_dir=str(folder / "model"), work_dir=str(folder / "work"))
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_untrained_model(tmp_path_factory.mktemp("untrained") / "model", ADNI_BUNDLE))


def missing_from(acquired: tuple[str, ...]) -> list[str]:
    return [name for name in ADNI.names if name not in acquired]


def test_training_makes_a_model_from_the_phantom_and_then_has_nothing_to_do(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert files_of(trained / "model") == MODEL
    assert len(read_studies(trained / "work" / PHANTOM, ADNI, require_all=True)) == 5
    settings = json.loads((trained / "model" / "model.json").read_text())
    assert settings["contrasts"] == ADNI.to_dict() and settings["network"]["in_channels"] == len(ADNI)
    codebook = json.loads((trained / "model" / "codebook.json").read_text())
    assert sorted(codebook["entries"]) == sorted(ADNI.names)

    caplog.set_level(logging.INFO)
    weights = (trained / "model" / "model.pt").stat().st_mtime_ns
    run("published", "training", ADNI_BUNDLE, model_dir=str(trained / "model"), work_dir=str(trained / "work"))
    assert re.findall(r"(\w+) is finished", caplog.text) == ["mif", "codebook", "denoiser"]
    assert (trained / "model" / "model.pt").stat().st_mtime_ns == weights


def test_inference_synthesises_what_is_absent_in_each_of_the_six_subsets(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (phantom, *_) = read_studies(trained / "work" / PHANTOM, ADNI)
    subsets = {f"has_{'_'.join(acquired)}": acquired for acquired in ADNI.subsets()}
    for subject, acquired in subsets.items():
        (tmp_path / "dataset" / subject).mkdir(parents=True)
        for name in acquired:
            shutil.copy(phantom[name], tmp_path / "dataset" / subject / f"{subject}_{name}.nii.gz")
    places = {
        "dataset_dir": str(tmp_path / "dataset"),
        "model_dir": str(trained / "model"),
        "output_dir": str(tmp_path / "out"),
    }
    run("inference", "run", ADNI_BUNDLE, **places)
    assert files_of(tmp_path / "out") == sorted(
        f"{subject}/{subject}_{name}_SYNTHETIC.{ending}"
        for subject, acquired in subsets.items()
        for name in missing_from(acquired)
        for ending in ("json", "nii.gz")
    )
    source = nib.load(phantom["t1"])
    for subject, acquired in subsets.items():
        brain = np.any([nib.load(phantom[name]).get_fdata() != 0 for name in acquired], axis=0)
        for name in missing_from(acquired):
            path = tmp_path / "out" / subject / f"{subject}_{name}_SYNTHETIC.nii.gz"
            image = nib.load(path)
            volume = image.get_fdata()
            assert image.shape == source.shape and np.array_equal(image.affine, source.affine)
            assert np.isfinite(volume).all() and volume.any() and not volume[~brain].any()
            sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
            assert sidecar["method"] == "apt" and sidecar["intensity_scale"]["contrast"] in acquired
            assert sidecar["model_sha256"] == file_sha256(trained / "model" / "model.pt")
            assert sidecar["sampling"]["guidance_scale"] == 50

    run("inference", "run", ADNI_BUNDLE, **places)
    assert "0 studies to synthesise; 6 are finished" in caplog.text


def test_evaluation_of_all_six_subsets_has_every_target_in_its_table(trained: Path, tmp_path: Path) -> None:
    run(
        "evaluate",
        "evaluating",
        ADNI_BUNDLE,
        dataset_dir=str(trained / "work" / PHANTOM),
        model_dir=str(trained / "model"),
        work_dir=str(trained / "work"),
        output_dir=str(tmp_path / "eval"),
        cases="all",
    )
    panels = [f"panel_{'_'.join(acquired)}.png" for acquired in ADNI.subsets()]
    assert files_of(tmp_path / "eval") == sorted([*panels, "results.csv", "results.json", "results.md"])
    with open(tmp_path / "eval" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    test = json.loads((trained / "model" / "split.json").read_text())["test"]
    wanted = [
        (method, "+".join(acquired), target, subject)
        for method in ("copy", "prior", "U", "U+A", "U+A+I")
        for acquired in ADNI.subsets()
        for target in missing_from(acquired)
        for subject in test
    ] * 2  # two slices a subject
    assert sorted((row["method"], row["acquired"], row["target"], row["subject"]) for row in rows) == sorted(wanted)


def test_inference_without_data_leaves_contrasts_of_the_adni_phantom_out(
    untrained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = {"model_dir": untrained, "work_dir": str(tmp_path / "work"), "output_dir": str(tmp_path / "out")}
    run("inference", "run", ADNI_BUNDLE, **places)
    assert "no dataset_dir given: using a DIGITAL PHANTOM, not patients" in caplog.text
    assert [name for name in files_of(tmp_path / "out") if name.endswith(".nii.gz")] == [
        "000_S_0000/000_S_0000_t1_SYNTHETIC.nii.gz",
        "000_S_0001/000_S_0001_t2_SYNTHETIC.nii.gz",
    ]


@pytest.mark.parametrize("config", ["published", "inference"])
def test_required_properties_are_there(trained: Path, tmp_path: Path, config: str) -> None:
    places = {"model_dir": str(trained / "model"), "work_dir": str(trained / "work")}
    if config == "inference":
        places |= {"output_dir": str(tmp_path)}
    made = workflow(config, "run", ADNI_BUNDLE, **places)
    made.initialize()
    assert made.check_properties() == []


# The layouts in which people have such studies


def block(seed: int) -> np.ndarray:
    """A brain of random intensities in a volume of (12, 10, 6) voxels."""
    volume: np.ndarray = np.zeros((12, 10, 6), np.int16)
    volume[2:-2, 2:-2, 1:] = np.random.default_rng(seed).integers(100, 1000, (8, 6, 5))
    return volume


def bids(folder: Path) -> dict[str, Any]:
    anat = folder / "sub-01" / "ses-02" / "anat"
    write_nifti(anat / "sub-01_ses-02_T1w.nii.gz", block(1))
    write_nifti(anat / "sub-01_ses-02_T2w.nii.gz", block(2))
    write_nifti(anat / "sub-01_ses-02_T2star.nii.gz", block(3))
    return {"series": None, "subject": "sub-01_ses-02", "missing": ["pd"]}


def archive(folder: Path) -> dict[str, Any]:
    """As ADNI's archive gives it: the two echoes of one DICOM series, a localizer, and no T1."""
    subject = folder / "002_S_0413"
    dual = subject / "Axial_PD_T2_FSE" / "2006-05-02_12_40_00.0" / "I14790"
    write_series(dual, block(1), name="a{:02d}.dcm", echo_time=12, echo_number=1)
    write_series(dual, block(2), name="b{:02d}.dcm", echo_time=98, echo_number=2)
    write_series(subject / "3-plane_Localizer" / "2006-05-02_12_30_00.0" / "I14780", block(3))
    series = {"Axial_PD_T2_FSE": {"pd": 1, "t2": 2}, "*localizer*": None}
    return {"series": series, "subject": "002_S_0413_2006-05-02", "missing": ["t1"]}


def disc(folder: Path) -> dict[str, Any]:
    """A folder of DICOM files without folders or meaningful names: one T1 series and one that is not wanted."""
    for uid, description in (("1.1", "t1 mprage"), ("1.2", "survey")):
        write_series(folder / "CD1", block(len(uid)), name=f"{uid}_{{}}", series=uid, description=description)
    return {"series": {"t1*": "t1", "survey": None}, "subject": "CD1", "missing": ["t2", "pd"]}


@pytest.mark.parametrize("layout", [bids, archive, disc])
def test_inference_reads_studies_as_people_have_them(untrained: str, tmp_path: Path, layout: Any) -> None:
    expected = layout(tmp_path / "dataset")
    series = tmp_path / "series.json"
    series.write_text(json.dumps(expected["series"]))
    run(
        "inference",
        "run",
        ADNI_BUNDLE,
        dataset_dir=str(tmp_path / "dataset"),
        series=expected["series"] and str(series),
        model_dir=untrained,
        output_dir=str(tmp_path / "out"),
    )
    subject, written = expected["subject"], files_of(tmp_path / "out")
    volumes = [name for name in written if name.endswith(".nii.gz")]
    assert volumes == sorted(f"{subject}/{subject}_{name}_SYNTHETIC.nii.gz" for name in expected["missing"])
    for name in volumes:
        volume = nib.load(tmp_path / "out" / name).get_fdata()
        assert np.array_equal(volume != 0, block(0) != 0)


@pytest.mark.slow
def test_a_raw_study_is_preprocessed_synthesised_and_put_back_on_the_scanners_grid(
    untrained: str, tmp_path: Path
) -> None:
    """As a user does it: T1 and PD as scanned, T2 never acquired, the inference by its command."""
    (folder,) = write_phantom_dataset(tmp_path / "raw", "adni-raw", subjects=1, seed=1, spacing=4.0, progress=False)
    subject = folder.name
    (folder / f"{subject}_t2.nii.gz").unlink()
    studies = read_studies(tmp_path / "raw", ADNI)
    quick = PreprocessingSettings(mask="itk", bias_spacing=12.0, levels=(8.0, 4.0), brain_ml=(100.0, 3000.0))
    report = preprocess_cohort(studies, tmp_path / "preprocessed", ADNI, quick, progress=False)
    assert report.written == [subject]

    done = run_command(
        "inference",
        "run",
        ADNI_BUNDLE,
        dataset_dir=tmp_path / "preprocessed",
        model_dir=untrained,
        output_dir=tmp_path / "out",
        slice_batch_size=32,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    synthetic = tmp_path / "out" / subject / f"{subject}_t2_SYNTHETIC.nii.gz"
    assert nib.load(synthetic).shape == nib.load(studies[0]["pd"]).shape

    transforms = tmp_path / "preprocessed" / subject / "preprocessing" / "transforms.json"
    for contrast, mask in (("pd", "brain_axial"), ("t1", "brain_t1")):
        back = tmp_path / "back" / f"{subject}_t2_on_{contrast}_SYNTHETIC.nii.gz"
        image = nib.load(to_scanner_space(synthetic, transforms, contrast, back))
        scanned = nib.load(studies[0][contrast])
        assert image.shape == scanned.shape
        assert np.allclose(image.affine, scanned.affine)
        assert image.header["descrip"].item().startswith(b"SYNTHETIC")
        sidecar = json.loads(back.with_name(back.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["method"] == "apt" and sidecar["resampled_to"]["scan"] == contrast
        there = image.get_fdata() != 0
        brain = np.asarray(nib.load(tmp_path / "raw" / ".truth" / subject / f"{mask}.nii.gz").dataobj) > 0
        assert 2 * np.count_nonzero(there & brain) / (there.sum() + brain.sum()) > 0.85  # where the scanner saw it
