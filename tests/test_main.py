"""The command line: its help, its errors, the phantom, and the demo from beginning to end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from apt_monai import __main__ as command_line
from apt_monai.__main__ import Demo, demo_table, main, run_bundle
from apt_monai.contrasts import BRATS
from apt_monai.data import read_studies

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("phantom", {"--dataset": "brats", "--subjects": "20", "--seed": "0", "--spacing": "1.0"}),
        ("demo", {"--subjects": "20", "--spacing": "3.0", "--unroll-iterations": "10", "--slices-per-subject": "2"}),
        ("bench", {"--output": "bench", "--full": "False"}),
    ],
)
def test_help_says_what_the_defaults_are(
    command: str, defaults: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option, default in defaults.items():
        assert f"(default: {default})" in text[text.rindex(f" {option} ") :].split(" --")[1] + ")"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "{phantom,demo,bench}" in text and "not a medical device" in text


def test_phantom_writes_a_dataset_and_says_how_to_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "phantom"
    assert main(["phantom", str(folder), "--subjects", "2", "--seed", "3", "--spacing", "10"]) == 0
    assert f"2 studies in {folder}" in capsys.readouterr().out
    studies = read_studies(folder, BRATS, require_all=True)
    assert len(studies) == 2
    assert nib.load(studies[0]["t1ce"]).shape == (24, 24, 16)


def test_error_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["phantom", str(tmp_path / "phantom"), "--subjects", "1", "--spacing", "-1"]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: spacing is -1.0 mm: valid is above 0") and printed.err.count("\n") == 1
    with pytest.raises(ValueError, match="spacing is -1.0"):
        main([*arguments, "--traceback"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["phantom", "OUT", "--subjects", "0"],
        ["phantom", "OUT", "--subjects", "many"],
        ["phantom", "OUT", "--seed", "-1"],
        ["phantom", "OUT", "--dataset", "fastmri"],
        ["demo", "OUT", "--subjects", "2"],
        ["demo", "OUT", "--iterations", "0"],
        ["demo", "OUT", "--unroll-iterations", "-1"],
        ["demo"],
        ["train"],
        [],
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_command_says_that_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "write_phantom_dataset", interrupted)
    assert main(["phantom", str(tmp_path / "phantom")]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_bench_passes_its_options_on_and_prints_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(output: str, full: bool) -> None:
        Path(output).mkdir()
        (Path(output) / "results.md").write_text(f"# Benchmark, full: {full}\n")

    monkeypatch.setattr(command_line, "run_benchmarks", measured)
    assert main(["bench", "--full", "--output", str(tmp_path / "bench")]) == 0
    assert "# Benchmark, full: True" in capsys.readouterr().out


def test_bundle_command_is_printed_as_a_shell_would_take_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    configs = [Path.cwd() / "a b.yaml", Path("/elsewhere/c.yaml")]
    run_bundle("training", configs, {"model_dir": Path("/a folder/model"), "sampling#unroll_step": 40})
    printed = capsys.readouterr().out.strip()
    assert shlex.split(printed.removeprefix("$ ")) == ran[0]
    assert ran[0][:4] == [sys.executable, "-m", "monai.bundle", "run"]
    assert json.loads(ran[0][6]) == ["a b.yaml", "/elsewhere/c.yaml"]
    assert ran[0][-4:] == ["--model_dir", "/a folder/model", "--sampling#unroll_step", "40"]


def test_demo_stops_at_the_first_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def failing_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command[4])
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", failing_run)
    assert main(["demo", str(tmp_path), "--subjects", "3", "--spacing", "10"]) == 2
    assert ran == ["training"]
    assert "('training') ended with exit status 7" in capsys.readouterr().err


def test_incoming_studies_lack_one_contrast_each_and_are_copied_once(tmp_path: Path) -> None:
    demo = Demo(tmp_path, subjects=4, spacing=10, iterations=1, unroll_iterations=0, slices_per_subject=1)
    demo.make_phantoms()
    names = [f"BraTS2021_{i:05d}" for i in range(4)]
    split = {"train": names[:1], "validation": names[1:2], "test": names[2:], "unused": []}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "split.json").write_text(json.dumps(split))

    missing = demo.hide_contrasts(tmp_path / "incoming")
    assert missing == {names[2]: "flair", names[3]: "t1"}
    incoming = {study["subject"]: study for study in read_studies(tmp_path / "incoming", BRATS)}
    assert {s: set(BRATS.names) - set(study) for s, study in incoming.items()} == {s: {c} for s, c in missing.items()}
    copy = Path(incoming[names[2]]["t1"])
    assert copy.read_bytes() == (tmp_path / "data" / names[2] / copy.name).read_bytes()
    before = copy.stat().st_mtime_ns
    demo.hide_contrasts(tmp_path / "incoming")
    assert copy.stat().st_mtime_ns == before


def test_table_has_a_row_for_each_weights_and_method() -> None:
    def entry(method: str, acquired: str, target: str, psnr: float | str) -> dict[str, object]:
        return {"method": method, "acquired": acquired, "target": target,
                "psnr_slice_mean": psnr, "ssim_slice_mean": 0.5}  # fmt: skip

    own = [entry("U", "t1+t1ce+t2", "flair", 20.0), entry("U+A", "t1+t1ce+t2", "flair", "inf")]
    shipped = [entry("U", "flair+t1+t1ce", "t2", 30.0), entry("U", "flair", "t1", 10.0)]  # the last: two missing more
    table = demo_table({"own": {"aggregate": own}, "shipped": {"aggregate": shipped}}, BRATS)
    assert table.splitlines() == [
        "| weights | method | FLAIR | T1 | T1Gd | T2 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| own | U | 20.00 / 0.500 |  |  |  |",
        "| own | U+A | inf / 0.500 |  |  |  |",
        "| shipped | U |  |  |  | 30.00 / 0.500 |",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_goes_from_phantoms_to_a_table_and_a_second_run_repeats_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apt_monai", "demo", str(tmp_path / "demo"), "--subjects", "4", "--spacing", "10"]
    command += ["--iterations", "2", "--unroll-iterations", "1", "--slices-per-subject", "1"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    summary = first.stdout.split("== Result")[1]
    for method in ("U", "U+A", "U+A+I"):
        assert f"| own | {method} |" in summary
    assert "digital phantoms, not patients" in summary

    out = tmp_path / "demo"
    volumes = sorted((out / "synthetic" / "own").glob("*/*_SYNTHETIC.nii.gz"))
    pictures = sorted((out / "pictures").glob("*.png"))
    assert volumes and pictures and (out / "model" / "codebook.png").exists()
    assert (out / "eval" / "own" / "panel.png").exists()
    truth = nib.load(next((out / "data").glob(f"{volumes[0].parent.name}/*_t1.nii.gz")))
    synthetic = nib.load(volumes[0])
    assert synthetic.shape == truth.shape and (synthetic.affine == truth.affine).all()

    kept = [out / "model" / "model.pt", out / "model" / "fusion.pt", *volumes]
    before = [path.stat().st_mtime_ns for path in kept]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-3000:]
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert demo_lines(second.stdout) == demo_lines(first.stdout)


def demo_lines(printed: str) -> list[str]:
    """The rows of the demo's table."""
    return [line for line in printed.split("== Result")[1].splitlines() if line.startswith("|")]
