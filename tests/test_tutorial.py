"""The tutorial's notebook: it is committed without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import base64
import os
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from apt_monai.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
ITERATIONS = 30  # it runs; what it learns is not looked at


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def text() -> str:
    return "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")


def outputs(notebook: nbformat.NotebookNode, mime: str) -> list[Any]:
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[mime] for output in shown if mime in output.get("data", {})]


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code), "strip the outputs"
    assert NOTEBOOK.stat().st_size < 40_000


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", text()) if "://" not in link]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_its_command_lines_are_understood() -> None:
    commands = re.findall(r"python -m apt_monai ([^`\n]+)", text().replace("\\\n", ""))
    names = [build_parser(words).parse_args(words).name for words in map(shlex.split, commands)]
    assert names == ["phantom", "train", "synthesize", "train", "evaluate", "table"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_makes_a_table_and_pictures_and_writes_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_TUTORIAL_DIR", str(tmp_path / "made"))
    monkeypatch.setenv("APT_TUTORIAL_ITERATIONS", str(ITERATIONS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MPLBACKEND")  # pictures go into the notebook, as in Jupyter
    for name in ("APT_MONAI_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    here = tmp_path / "here"
    here.mkdir()

    notebook = read()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()

    rows = re.findall(r"^\| all others \| (\w+) \| \d", outputs(notebook, "text/markdown")[0], flags=re.MULTILINE)
    assert rows[:3] == ["copy", "regression", "direct"]
    pictures = [base64.b64decode(picture) for picture in outputs(notebook, "image/png")]
    assert len(pictures) == 5  # a study, what the network sees, FLAIR, T1Gd, the panel
    assert all(len(picture) > 10_000 for picture in pictures)
    assert pictures[-1] == (tmp_path / "made" / "evaluation" / "panel.png").read_bytes()
    assert [*here.iterdir()] == [] and not (tmp_path / "APT_MONAI_HOME").exists()
