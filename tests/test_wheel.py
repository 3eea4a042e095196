"""A wheel of the repository, installed anywhere: it holds the bundles and nothing that a run left in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apt_monai.phantom.datasets import write_phantom_dataset

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "apt_monai", "bundles")
LEFTOVERS = ("work/phantom/a.nii.gz", "models/trained/model.pt", "models/work/note.txt", "configs/__pycache__/a.pyc")

pytestmark = pytest.mark.slow


def finish(words: Sequence[str], folder: Path, **variables: str) -> str:
    """Run Python in a folder, without the checkout on its path; gives what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a checkout in which work was done. It is built from a copy, as pip leaves its own files in there."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "work", "runs", "trained")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy)
    for path in (copy / "bundles" / "apt_brats" / leftover for leftover in LEFTOVERS):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("left by a run")
    finish(["-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist"], copy)
    (built,) = (copy / "dist").iterdir()
    return built


def test_the_wheel_holds_the_package_and_the_bundles_alone(wheel: Path) -> None:
    def tracked(folder: str) -> set[str]:
        return {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"__pycache__", "work", "runs", "trained"} & set(path.relative_to(ROOT).parts)
        }

    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == tracked("apt_monai") | {f"apt_monai/{name}" for name in tracked("bundles")}


def test_an_installed_wheel_synthesises_with_the_shipped_weights_from_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    installed, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    finish(
        ["-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(installed), str(wheel)],
        tmp_path,
    )
    (study,) = write_phantom_dataset(tmp_path / "data", "brats", 1, seed=0, spacing=10.0)
    (t1,) = study.glob("*_t1.nii.gz")
    before = sorted(installed.rglob("*"))
    variables = {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1", "APT_MONAI_HOME": str(tmp_path / "home")}
    where = finish(["-c", "import apt_monai; print(apt_monai.__file__)"], empty, **variables)
    assert Path(where.strip()).is_relative_to(installed)
    fast = {"sampling_steps": 1, "unroll_iterations": 0}
    code = f"apt_monai.load('brats', sampling={fast}).synthesize({{'t1': {str(t1)!r}}}, out='out')"
    finish(["-c", f"import apt_monai; {code}"], empty, **variables)
    written = sorted((empty / "out").rglob("*.nii.gz"))
    names = [file.name.removeprefix("study_").removesuffix(".nii.gz") for file in written]
    endings = ("_SYNTHETIC", "_SYNTHETIC_uncertainty")
    assert names == [f"{name}{ending}" for name in ("flair", "t1ce", "t2") for ending in endings]
    for file in written:
        assert np.isfinite(nib.load(file).get_fdata()).all()
    assert sorted(installed.rglob("*")) == before, "something was written inside the installed package"
