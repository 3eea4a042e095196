"""Bad input, through the bundle: one clear error that names the file or the field, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import ADNI_BUNDLE, files_of, run, write_untrained_model
from tiny_studies import LPS, write_nifti, write_study

from apt_monai.bundle import root_cause
from apt_monai.contrasts import BRATS
from apt_monai.errors import StudyError

SHAPE = (12, 10, 6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished model folder; copy it before changing it."""
    return write_untrained_model(tmp_path_factory.mktemp("finished") / "model")


def error_of(config: str, run_id: str, **overrides: Any) -> Exception:
    """What went wrong, without the wrapping in which MONAI's config parser passes it on."""
    with pytest.raises(Exception) as caught:
        run(config, run_id, **overrides)
    error = root_cause(caught.value)
    assert isinstance(error, Exception)
    assert "\n" not in str(error)
    return error


def two_studies(folder: Path) -> Path:
    """A dataset of two studies without T1, the second of which a test spoils."""
    for subject in ("a_good", "b_bad"):
        write_study(folder / subject, ("flair", "t1ce", "t2"), SHAPE, seed=len(subject), seg=False)
    return folder


def truncate(study: Path) -> Path:
    path = study / "b_bad_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    return path


def replace_by(volume: np.ndarray, affine: np.ndarray = LPS) -> Callable[[Path], Path]:
    def spoil(study: Path) -> Path:
        return Path(write_nifti(study / "b_bad_t2.nii.gz", volume, affine))

    return spoil


def no_contrast(study: Path) -> Path:
    for path in study.iterdir():
        path.unlink()
    write_nifti(study / "b_bad_seg.nii.gz", np.ones(SHAPE, np.uint8))
    return study


# What is refused, and how, is tested where it is refused (test_readers, test_study_loading); here is one of each kind.
FOUND_BY_LISTING = {"no contrast at all": (no_contrast, "no acquired contrast found")}
FOUND_BY_READING = {
    "truncated": (truncate, "truncated or corrupt"),
    "other affine": (replace_by(np.ones(SHAPE, np.int16), np.eye(4)), "affine differs"),
}


@pytest.mark.parametrize("case", [*FOUND_BY_LISTING, *FOUND_BY_READING])
def test_inference_names_the_bad_file(finished: Path, tmp_path: Path, case: str) -> None:
    dataset = two_studies(tmp_path / "dataset")
    spoil, message = (FOUND_BY_LISTING | FOUND_BY_READING)[case]
    bad = spoil(dataset / "b_bad")
    out = tmp_path / "out"
    error = error_of("inference", "run", dataset_dir=str(dataset), model_dir=str(finished), output_dir=str(out))
    assert isinstance(error, StudyError) and str(error).startswith(str(bad))
    assert re.search(message, str(error))
    # A bad file is found when its study comes: the ones before it are finished by then.
    done = ["a_good/a_good_t1_SYNTHETIC.json", "a_good/a_good_t1_SYNTHETIC.nii.gz"]
    assert files_of(out) == ([] if case in FOUND_BY_LISTING else done)


def test_adni_refuses_studies_as_scanned(tmp_path: Path) -> None:
    """A raw study cannot be used by mistake: T1 has a grid of its own."""
    study = tmp_path / "dataset" / "002_S_0413"
    write_study(study, ("t1", "pd"), SHAPE, seg=False)
    write_nifti(study / "002_S_0413_t1.nii.gz", np.ones((10, 10, 10), np.int16))
    model, out = write_untrained_model(tmp_path / "model", ADNI_BUNDLE), tmp_path / "out"
    places = {"dataset_dir": str(tmp_path / "dataset"), "model_dir": str(model), "output_dir": str(out)}
    error = error_of("inference", "run", bundle=ADNI_BUNDLE, **places)
    message = r"002_S_0413_pd.nii.gz: shape \(12, 10, 6\) differs from .* register and resample them first"
    assert isinstance(error, StudyError) and re.search(message, str(error))
    assert files_of(out) == []


@pytest.mark.parametrize("case", ["no contrast at all", "truncated"])
def test_training_names_the_bad_file_and_leaves_no_entry_of_it(tmp_path: Path, case: str) -> None:
    dataset = tmp_path / "dataset"
    for subject in ("a", "b_bad", "c"):
        write_study(dataset / subject, shape=SHAPE, seed=len(subject))
    spoil, message = (FOUND_BY_LISTING | FOUND_BY_READING)[case]
    bad = spoil(dataset / "b_bad")
    places = {"model_dir": str(tmp_path / "model"), "work_dir": str(tmp_path / "work")}
    split = {"train": ["a", "b_bad"], "validation": ["c"], "test": [], "unused": []}
    if case != "no contrast at all":
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "split.json").write_text(json.dumps(split))
    error = error_of("published", "mif", dataset_dir=str(dataset), **places)
    assert isinstance(error, StudyError) and str(bad) in str(error)
    assert re.search(message, str(error))
    entries = [path.name for path in (tmp_path / "work").glob("slices/*")]
    assert all(name.startswith(("a-", "c-")) for name in entries)
    assert set(files_of(tmp_path / "model")) <= {"model.json", "split.json"}


def test_training_needs_every_contrast(tmp_path: Path) -> None:
    dataset = two_studies(tmp_path / "dataset")
    error = error_of("train", "training", dataset_dir=str(dataset), model_dir=str(tmp_path / "model"))
    assert isinstance(error, StudyError) and "'a_good'" in str(error) and "lacks t1" in str(error)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("config", ["train", "inference", "evaluate"])
def test_a_dataset_folder_that_is_not_there_is_named(finished: Path, tmp_path: Path, config: str) -> None:
    dataset = tmp_path / "dataset"
    model = shutil.copytree(finished, tmp_path / "model")
    (model / "split.json").write_text(json.dumps({"train": [], "validation": [], "test": [], "unused": []}))
    before = files_of(model)
    places: dict[str, Any] = {"dataset_dir": str(dataset), "model_dir": str(model)}
    if config != "train":
        places["output_dir"] = str(tmp_path / "out")
    error = error_of(config, "run", **places)
    assert isinstance(error, StudyError) and str(error).startswith(f"{dataset}: ")
    assert files_of(model) == before and files_of(tmp_path / "out") == []


def test_studies_in_which_nothing_is_missing_are_refused(finished: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "dataset" / "a", shape=SHAPE)
    places = {"dataset_dir": str(tmp_path / "dataset"), "model_dir": str(finished), "output_dir": str(tmp_path / "out")}
    assert "nothing to synthesise" in str(error_of("inference", "run", **places))
    assert files_of(tmp_path / "out") == []


@pytest.mark.parametrize("config", ["inference", "evaluate"])
def test_a_codebook_of_another_encoder_is_refused(finished: Path, tmp_path: Path, config: str) -> None:
    model = shutil.copytree(finished, tmp_path / "model")
    codebook = json.loads((model / "codebook.json").read_text())
    codebook["encoder"]["fingerprint"] = "0123"
    (model / "codebook.json").write_text(json.dumps(codebook))
    write_study(tmp_path / "dataset" / "a", BRATS.names[1:] if config == "inference" else BRATS.names, SHAPE)
    (model / "split.json").write_text(json.dumps({"train": [], "validation": [], "test": ["a"], "unused": []}))
    error = error_of(
        config,
        "run",
        dataset_dir=str(tmp_path / "dataset"),
        model_dir=str(model),
        output_dir=str(tmp_path / "out"),
        work_dir=str(tmp_path / "work"),
    )
    assert str(error).startswith(str(model / "codebook.json")) and "0123" in str(error)
    assert files_of(tmp_path / "out") == []


@pytest.mark.parametrize(("weights", "how"), [("model.pt", "do not fit"), ("fusion.pt", "truncated")])
def test_weights_that_cannot_be_used_are_named(finished: Path, tmp_path: Path, weights: str, how: str) -> None:
    model = shutil.copytree(finished, tmp_path / "model")
    if how == "truncated":
        (model / weights).write_bytes((model / weights).read_bytes()[:1000])
    else:
        settings = json.loads((model / "model.json").read_text())
        change = {"model.pt": ("network", "channels", [8, 16]), "fusion.pt": ("fusion", "mlp_ratio", 2)}
        part, key, value = change[weights]
        settings[part][key] = value
        (model / "model.json").write_text(json.dumps(settings))
    write_study(tmp_path / "dataset" / "a", ("t1",), SHAPE)
    error = error_of(
        "inference",
        "run",
        dataset_dir=str(tmp_path / "dataset"),
        model_dir=str(model),
        output_dir=str(tmp_path / "out"),
    )
    assert str(error).startswith(str(model / weights)) and how in str(error)
    assert files_of(tmp_path / "out") == []


def test_a_folder_that_is_no_finished_model_is_refused(tmp_path: Path) -> None:
    error = error_of("inference", "run", model_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert str(error).startswith(f"{tmp_path}/model.json: no such file; give a folder that a training has written")
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("config", ["published", "inference", "evaluate"])
def test_a_sampling_setting_out_of_range_is_found_before_the_work(finished: Path, tmp_path: Path, config: str) -> None:
    write_study(tmp_path / "dataset" / "a", BRATS.names[1:] if config == "inference" else BRATS.names, SHAPE)
    places: dict[str, Any] = {"dataset_dir": str(tmp_path / "dataset"), "model_dir": str(tmp_path / "model")}
    if config != "published":
        places |= {"model_dir": str(finished), "output_dir": str(tmp_path / "out")}
    if config == "evaluate":
        places["split_file"] = None
    error = error_of(config, "run", work_dir=str(tmp_path / "work"), **places, **{"sampling#sampling_steps": 21})
    assert isinstance(error, ValueError) and "sampling_steps (S) is 21: valid is 1 to 20" in str(error)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "model") == []


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, owner: Any, writer: str) -> None:
    """From here on, what writes files with this function gets a few bytes down and no more."""

    def write(*arguments: Any, **_: Any) -> None:
        path = next(a for a in arguments if isinstance(a, Path) or hasattr(a, "write"))
        if isinstance(path, Path):
            path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, writer, write)


def test_a_full_output_folder_leaves_nothing_half_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, out = two_studies(tmp_path / "dataset"), tmp_path / "out"
    fill_the_disk(monkeypatch, nib, "save")
    error = error_of("inference", "run", dataset_dir=str(dataset), model_dir=str(finished), output_dir=str(out))
    assert isinstance(error, OSError) and f"in the folder {out / 'a_good'} (No space left on device)" in str(error)
    assert files_of(out) == []


@pytest.mark.parametrize(("where", "owner", "writer"), [("model", Path, "write_text"), ("work/slices", np, "save")])
def test_a_full_folder_in_training_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, owner: Any, writer: str
) -> None:
    places = {"model_dir": str(tmp_path / "model"), "work_dir": str(tmp_path / "work")}
    for subject in ("a", "b", "c", "d"):
        write_study(tmp_path / "dataset" / subject, shape=SHAPE, seed=ord(subject))
    fill_the_disk(monkeypatch, owner, writer)
    error = error_of("published", "mif", dataset_dir=str(tmp_path / "dataset"), **places)
    assert isinstance(error, OSError) and str(tmp_path / where) in str(error)
    assert "No space left on device" in str(error)
    assert files_of(tmp_path / "model") == ([] if where == "model" else ["model.json", "split.json"])
    assert files_of(tmp_path / "work") == []


def test_an_output_folder_that_cannot_be_made_is_found_before_the_work(finished: Path, tmp_path: Path) -> None:
    """As on a read-only folder; the tests may run as root, who can write anywhere."""
    dataset = two_studies(tmp_path / "dataset")
    (tmp_path / "file").touch()
    places = {"dataset_dir": str(dataset), "model_dir": str(finished)}
    error = error_of("inference", "run", output_dir=str(tmp_path / "file" / "out"), **places)
    assert isinstance(error, OSError) and str(tmp_path / "file" / "out") in str(error)


def test_an_error_with_any_name_in_it_can_be_printed_on_a_strict_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "Sch\u00e4del \udce4"  # a file name of an old disk: no UTF-8
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "apt_monai", "train", folder, "--dataset", "brats"],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert b"\\udce4: is empty, no study found" in done.stderr and b"UnicodeEncodeError" not in done.stderr
