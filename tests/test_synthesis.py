"""A study in, its absent volumes out: the three lines of Python that the README shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_bundle import ROOT, files_of, write_untrained_direct
from tiny_studies import write_study

import apt_monai
from apt_monai.contrasts import BRATS
from apt_monai.errors import StudyError
from apt_monai.io.nifti import read_nifti
from apt_monai.places import trained_model
from apt_monai.synthesis import Synthesizer

SHAPE = (12, 10, 6)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a.nii.gz and b.nii.gz of one patient, and a trained model in the user's folder."""
    monkeypatch.setenv("APT_MONAI_HOME", str(tmp_path / "home"))
    write_untrained_direct(trained_model("apt_brats", "direct"))
    write_study(tmp_path / "case", ("t1", "t2"), SHAPE, seg=False)
    (tmp_path / "work").mkdir()
    for name, short in (("t1", "a"), ("t2", "b")):
        (tmp_path / "case" / f"case_{name}.nii.gz").rename(tmp_path / "work" / f"{short}.nii.gz")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_readmes_lines_write_what_is_missing(folder: Path) -> None:
    lines = re.search(r"```python\n(import apt_monai\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    found: dict[str, dict[str, Path]] = {}
    exec(lines[1], found)
    assert list(found["written"]) == ["flair", "t1ce"]
    endings = (".json", ".nii.gz", "_uncertainty.nii.gz")
    assert files_of(folder / "DIR") == [f"study/study_{n}_SYNTHETIC{e}" for n in ("flair", "t1ce") for e in endings]
    for path in found["written"].values():
        image = nib.load(path)
        assert image.shape == SHAPE and np.array_equal(image.affine, nib.load("a.nii.gz").affine)
        assert image.get_fdata().any()
    sidecar = json.loads((folder / "DIR" / "study" / "study_flair_SYNTHETIC.json").read_text())
    assert list(sidecar["sources"]) == ["t1", "t2"] and sidecar["method"] == "direct"


@pytest.fixture
def synthesizer(folder: Path) -> Synthesizer:
    return apt_monai.load("brats", device="cpu", dtype="int16", slice_batch_size=2)


def test_a_study_may_have_a_name_and_a_spoilt_contrast_be_asked_for(folder: Path, synthesizer: Synthesizer) -> None:
    study = {"subject": "case-7", "t1": "a.nii.gz", "t2": "b.nii.gz"}
    written = synthesizer.synthesize(study, "out", targets=["t1"])
    assert written == {"t1": Path("out/case-7/case-7_t1_SYNTHETIC.nii.gz")}
    assert list(json.loads(Path("out/case-7/case-7_t1_SYNTHETIC.json").read_text())["sources"]) == ["t2"]
    assert synthesizer.pending([study], "out", ["t1"]) == [] and len(synthesizer.pending([study], "out")) == 1


def test_a_studys_files_are_read_once(folder: Path, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(path: str) -> Any:
        read.append(path)
        return read_nifti(path)

    monkeypatch.setattr("apt_monai.io.source.read_nifti", counted)
    synthesizer.synthesize({"t1": "a.nii.gz", "t2": "b.nii.gz"}, "out")
    assert read == ["a.nii.gz", "b.nii.gz"]


def test_what_cannot_be_synthesised_is_refused_and_nothing_is_written(synthesizer: Synthesizer) -> None:
    with pytest.raises(StudyError, match="nothing to synthesise: every contrast is given"):
        synthesizer.synthesize(dict.fromkeys(BRATS.names, "a.nii.gz"), "out")
    with pytest.raises(StudyError, match=r"none.nii.gz: no such file"):
        synthesizer.synthesize({"t1": "none.nii.gz"}, "out")
    with pytest.raises(StudyError, match="unknown key 'pd'"):
        synthesizer.synthesize({"pd": "a.nii.gz"}, "out")
    with pytest.raises(StudyError, match="subject 'a/b': names a folder"):
        synthesizer.synthesize({"subject": "a/b", "t1": "a.nii.gz"}, "out")
    assert not Path("out").exists()


def test_settings_are_refused_before_the_first_study(folder: Path) -> None:
    with pytest.raises(ValueError, match="slice_batch_size is 0: valid is 1 or more"):
        apt_monai.load("brats", slice_batch_size=0)
    with pytest.raises(ValueError, match="dtype='int8': valid are float32, int16"):
        apt_monai.load("brats", dtype="int8")
    with pytest.raises(ValueError, match="none/model.json: no such file"):
        apt_monai.load("none")
