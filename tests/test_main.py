"""The command line: its help, its errors, each command once, and the demo from beginning to end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from tiny_bundle import environment, files_of, settings_of, write_untrained_model
from tiny_dicom import write_series

from apt_monai.cli import demo, launch, main
from apt_monai.cli.codebook import codebook_text
from apt_monai.cli.demo import Demo, demo_table
from apt_monai.cli.launch import BundleError, config_files, run_bundle
from apt_monai.cli.parser import MASK
from apt_monai.codebook import PriorCodebook
from apt_monai.contrasts import ADNI, BRATS, CONTRAST_SETS, ContrastSet, get_contrast_set
from apt_monai.data.readers import read_studies
from apt_monai.io import read_volume
from apt_monai.io.source import source_sha256
from apt_monai.places import FORMAT
from apt_monai.preprocessing.settings import MASK_TOOLS, PreprocessingSettings

ROOT = Path(__file__).resolve().parent.parent


def one_line_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says on the standard error, which is one line; its standard output is empty."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The bundles' commands that would have run: they are only noted, and succeed."""
    commands: list[list[str]] = []

    def here(run_id: str, files: list[str], overrides: dict[str, Any]) -> None:
        words = [word for key, value in overrides.items() for word in (f"--{key}", launch._argument(value))]
        commands.append([run_id, "--config_file", json.dumps(files), *words])

    monkeypatch.setattr(launch, "run_workflow", here)
    monkeypatch.setattr(launch, "_start", lambda command, run_id: commands.append(command))
    return commands


def overrides_of(command: list[str]) -> dict[str, str]:
    words = command[command.index("--config_file") :]
    return dict(zip(words[::2], words[1::2], strict=True))


def write_study(folder: Path, contrasts: ContrastSet, value: int = 100) -> dict[str, Path]:
    """A study of cubes in air, by contrast."""
    folder.mkdir(parents=True)
    files = {}
    for i, name in enumerate(contrasts.names):
        volume = np.zeros((12, 12, 8), np.int16)
        volume[3:9, 3:9, 2:6] = value + i + np.arange(6)[:, None, None]
        files[name] = folder / f"{folder.name}_{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.diag([8.0, 8, 8, 1])), files[name])
    return files


# Help and arguments


def test_help_and_wrong_arguments_load_neither_torch_nor_monai() -> None:
    code = "import sys, apt_monai.cli as cli\ntry: cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'monai', 'itk', 'nibabel'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True).returncode == 0


def test_the_mask_that_help_names_is_the_default_of_preprocessing(capsys: pytest.CaptureFixture[str]) -> None:
    assert PreprocessingSettings().mask == MASK
    with pytest.raises(SystemExit):
        main(["preprocess", "--help"])
    assert "--mask {" + ",".join(MASK_TOOLS) + "}|PATH" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["phantom", "OUT", "--subjects", "0"],
        ["phantom", "OUT", "--dataset", "fastmri"],
        ["train", "DATA", "--set", "seed"],
        ["synthesize", "--t1", "a.nii.gz", "--subject", "../a"],
        ["synthesize", "--t1", "a.nii.gz", "--subj", "a"],
        ["evaluate", "DATA", "--cases", "some"],
        ["demo", "OUT", "--subjects", "2"],
        [],
    ],
    ids=" ".join,
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


def test_error_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["phantom", str(tmp_path / "phantom"), "--subjects", "1", "--spacing", "-1"]
    assert one_line_error(arguments, capsys).startswith("error: spacing is -1.0 mm: valid is above 0")
    with pytest.raises(ValueError, match="spacing is -1.0"):
        main([*arguments, "--traceback"])


def test_interrupted_command_says_that_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apt_monai.cli.phantom.write_phantom_dataset", interrupted)
    assert main(["phantom", str(tmp_path / "phantom")]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


# phantom, preprocess


@pytest.mark.parametrize("dataset", ["brats", "adni"])
def test_phantom_writes_a_dataset_and_says_how_to_train_on_it(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "phan tom"
    arguments = ["phantom", str(folder), "--dataset", dataset, "--subjects", "2", "--seed", "3", "--spacing", "10"]
    assert main(arguments) == 0
    assert len(read_studies(folder, dataset, require_all=True)) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert f"2 studies in {folder}" in first
    assert shlex.split(second)[3:] == ["train", str(folder), "--dataset", dataset, "--overlay", "demo.yaml"]


@pytest.mark.parametrize("dataset", ["brats", "adni"])
@pytest.mark.parametrize("dicom", [False, True])
def test_phantom_of_raw_scans_says_how_to_preprocess_it(
    dataset: str, dicom: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = str(tmp_path / "raw")
    arguments = ["phantom", raw, "--dataset", f"{dataset}-raw", "--subjects", "1", "--spacing", "10"]
    assert main([*arguments, *(["--dicom"] if dicom else [])]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    series = ["--series", str(tmp_path / "raw" / "series.json")] if dicom else []
    assert shlex.split(said)[3:] == ["preprocess", raw, f"{raw}-preprocessed", "--dataset", dataset, *series]


def test_preprocess_says_how_to_train_and_a_second_run_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_study(tmp_path / "raw" / "000_S_0000", ADNI)
    scan = nib.load(files["t1"])
    nib.save(nib.Nifti1Image((scan.get_fdata() > 0).astype(np.uint8), scan.affine), tmp_path / "000_S_0000_mask.nii.gz")
    out, mask = tmp_path / "out", f"{tmp_path}/{{subject}}_mask.nii.gz"
    command = ["preprocess", str(tmp_path / "raw"), str(out), "--mask", mask]
    assert main([*command, "--grid", "4"]) == 0
    printed = capsys.readouterr().out
    assert "1 preprocessed, 0 there already, 0 failed" in printed
    assert shlex.split(printed.splitlines()[-1])[3:] == ["train", str(out), "--dataset", "adni"]
    [study] = read_studies(out, ADNI, require_all=True)
    assert nib.load(study["t2"]).header.get_zooms() == (4, 4, 4)

    assert main([*command, "--grid", "4"]) == 0
    assert "0 preprocessed, 1 there already, 0 failed" in capsys.readouterr().out
    assert "was preprocessed otherwise" in one_line_error([*command, "--grid", "8"], capsys)


def test_preprocess_reports_each_study_that_failed_and_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_study(tmp_path / "raw" / "000_S_0000", ADNI)
    files["t1"].write_bytes(b"no image")
    arguments = ["preprocess", str(tmp_path / "raw"), str(tmp_path / "out"), "--mask", "itk"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "0 preprocessed, 0 there already, 1 failed" in printed.out
    assert f"000_S_0000: {files['t1']}: cannot be read as NIfTI" in printed.out
    assert printed.err.endswith("the same command does them alone\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "pd,t9"], "unknown contrast 't9'"),
        (["--grid", "100"], "grid is 100.0 mm: valid is 0.2 to 20"),
        (["--mask", "bet"], "mask is 'bet': valid are itk, deepbet, or a path with {subject} in it"),
        (["--series", "none.json"], "none.json: cannot be read as a series mapping"),
    ],
)
def test_preprocess_refuses_invalid_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "raw" / "000_S_0000", ADNI)
    arguments = ["preprocess", str(tmp_path / "raw"), str(tmp_path / "out"), *options]
    assert message in one_line_error(arguments, capsys)
    assert not (tmp_path / "out").exists()


# A bundle's command


def test_bundle_command_is_printed_as_a_shell_would_take_it(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [Path.cwd() / "a b.yaml", Path("/elsewhere/c.yaml")]
    overrides = {"model_dir": Path("/a folder/model"), "work_dir": Path.cwd() / "2024", "sampling#unroll_step": 40}
    run_bundle("training", configs, overrides)
    words = shlex.split(capsys.readouterr().out.strip().removeprefix("$ "))
    assert words[:5] == [sys.executable, "-m", "monai.bundle", "run", "training"]
    assert json.loads(words[6]) == ["./a b.yaml", "/elsewhere/c.yaml"]
    # ./2024: as 2024 it would be a number to MONAI's command line
    assert words[7:] == ["--model_dir", "/a folder/model", "--work_dir", "./2024", "--sampling#unroll_step", "40"]
    assert ran[0][3:] == words[7:]


def test_several_processes_are_started_by_torchrun(ran: list[list[str]]) -> None:
    run_bundle("training", [Path("/a.yaml")], {}, processes=2)
    assert ran[0][1:8] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle"]


def test_overlays_are_the_bundles_own_by_name_or_paths(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.touch()
    files = config_files("apt_adni", "train", ["demo.yaml", str(own)])
    folder = ROOT / "bundles" / "apt_adni" / "configs"
    assert files == [folder / "train.yaml", folder / "demo.yaml", own]
    with pytest.raises(ValueError, match=r"none.yaml: no such config; give the path of one, or one of .*demo.yaml"):
        config_files("apt_adni", "train", ["none.yaml"])


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_a_failing_bundle_command_passes_its_status_on(
    script: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "data" / "BraTS2021_00000", BRATS)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho 'the cause' >&2\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert main(["train", str(tmp_path / "data"), "--gpus", "2"]) == status
    cause, last = capfd.readouterr().err.splitlines()
    assert cause == "the cause" and last.startswith("error: the command above ('training')")


def test_an_interrupted_bundle_command_is_ended_before_the_command_line_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    with pytest.raises(KeyboardInterrupt):
        run_bundle("training", [Path("train.yaml")], {}, processes=2)
    assert started[0].returncode is not None


# train, evaluate


@pytest.mark.parametrize("dataset", CONTRAST_SETS)
def test_train_is_the_bundles_training(
    dataset: str, ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    write_study(data / "a", get_contrast_set(dataset))
    options = ["--dataset", dataset, "--model", str(model), "--gpus", "2", "--overlay", "demo.yaml"]
    assert main(["train", str(data), *options, "--set", "iterations=3", "--set", "seed=a=b"]) == 0
    assert "torch.distributed.run" in ran[0] and "training" in ran[0]
    found = overrides_of(ran[0])
    names = [Path(file).name for file in json.loads(found.pop("--config_file"))]
    assert names == ["train.yaml", "demo.yaml"]
    paths = {"--dataset_dir": str(data), "--model_dir": str(model)}
    assert found == paths | {"--iterations": "3", "--seed": "a=b"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last)[3:] == ["evaluate", str(data), "--model", str(model)]


def test_train_keeps_the_model_in_the_users_folder_unless_one_is_named(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_MONAI_HOME", str(tmp_path / "home"))
    write_study(tmp_path / "data" / "a", BRATS)
    assert main(["train", str(tmp_path / "data"), "--work", str(tmp_path / "work")]) == 0
    found = overrides_of(ran[0])
    assert found["--model_dir"] == str(tmp_path / "home" / "apt_brats" / "direct")
    assert found["--work_dir"] == str(tmp_path / "work")


STROKE = "{name: stroke, contrasts: {t1: {bids: T1w}, dwi: {bids: dwi, label: DWI}, flair: {bids: FLAIR}}}"


def test_a_contrast_set_of_ones_own_is_trained_on_and_then_is_the_models(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stroke.yaml").write_text(STROKE)
    stroke = get_contrast_set(tmp_path / "stroke.yaml")
    files = write_study(tmp_path / "data" / "a", stroke)
    model = ["--model", str(tmp_path / "model")]
    assert main(["train", str(tmp_path / "data"), "--dataset", str(tmp_path / "stroke.yaml"), *model]) == 0
    found = overrides_of(ran[0])
    assert found["--contrasts"] == str(tmp_path / "stroke.yaml") and "apt_brats" in found["--config_file"]
    settings = {"format": FORMAT, "contrasts": stroke.to_dict()}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps(settings))
    assert main(["synthesize", "--dwi", str(files["dwi"]), *model]) == 0
    assert json.loads(overrides_of(ran[1])["--studies"]) == [{"subject": "study", "dwi": str(files["dwi"])}]
    assert "study_t1_SYNTHETIC" in capsys.readouterr().out


def test_a_target_is_written_although_it_was_acquired(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_study(tmp_path / "a", ADNI)
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["synthesize", *flags, "--target", "t1"]) == 0
    assert json.loads(overrides_of(ran[0])["--targets"]) == ["t1"]
    said = capsys.readouterr().out
    assert "study_t1_SYNTHETIC" in said and "study_t2_SYNTHETIC" not in said
    assert "unknown contrast 't9'" in one_line_error(
        ["synthesize", *flags, "--dataset", "adni", "--target", "t9"], capsys
    )


def test_train_is_on_data_or_on_the_phantom_never_on_it_unasked(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give either DATA" in one_line_error(["train"], capsys)
    assert "give either DATA" in one_line_error(["train", str(tmp_path), "--phantom"], capsys)
    assert main(["train", "--phantom", "--model", str(tmp_path / "model")]) == 0
    assert set(overrides_of(ran[0])) == {"--config_file", "--model_dir"}
    last = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert last[3:5] == ["evaluate", str(tmp_path / "model" / "work" / "phantom")]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_dataset_that_cannot_be_used_is_one_line_before_anything_runs(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such folder" in one_line_error([command, str(tmp_path / "none")], capsys)
    write_study(tmp_path / "data" / "a", BRATS)["t2"].unlink()
    assert "lacks t2" in one_line_error([command, str(tmp_path / "data")], capsys)


def test_evaluate_is_the_bundles_evaluation_of_the_models_dataset(ran: list[list[str]], tmp_path: Path) -> None:
    write_study(tmp_path / "data" / "a", ADNI)
    model = write_untrained_model(tmp_path / "model", "apt_adni")
    options = ["--model", str(model), "--cases", "all", "--out", str(tmp_path / "eval")]
    assert main(["evaluate", str(tmp_path / "data"), *options, "--work", str(tmp_path / "work")]) == 0
    found = overrides_of(ran[0])
    assert "apt_adni" in found.pop("--config_file") and "evaluating" in ran[0]
    paths = {"--dataset_dir": "data", "--model_dir": "model", "--output_dir": "eval", "--work_dir": "work"}
    assert found == {key: str(tmp_path / name) for key, name in paths.items()} | {"--cases": "all"}


def test_evaluate_against_further_models_names_their_folders(ran: list[list[str]], tmp_path: Path) -> None:
    write_study(tmp_path / "data" / "a", ADNI)
    model = write_untrained_model(tmp_path / "model", "apt_adni")
    options = ["--dataset", "adni", "--against", "published", "--against", str(model)]
    assert main(["evaluate", str(tmp_path / "data"), *options]) == 0
    compared = json.loads(overrides_of(ran[0])["--compared"])
    assert compared[0].endswith("published") and compared[1] == str(model)
    assert main(["evaluate", str(tmp_path / "data"), "--dataset", "adni", "--against", str(tmp_path / "none")]) != 0


# synthesize


def test_one_patients_volumes_are_synthesised_in_one_line_from_nifti_and_dicom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    write_untrained_model(tmp_path / "model", "apt_adni")
    volume = np.pad(np.arange(64, dtype=np.int16).reshape(4, 4, 4) + 100, 4)
    for echo in (1, 2):
        write_series(tmp_path / "scan 7", volume * echo, name=f"{echo}-{{}}", echo_time=40 * echo, echo_number=echo)
    t1 = nib.Nifti1Image(volume, read_volume("scan 7::echo=1")[1])
    nib.save(t1, tmp_path / "a.nii.gz")
    settings = settings_of("inference", "apt_adni").items()
    words = [word for key, value in settings for word in ("--set", f"{key}={value}")]
    arguments = ["--t1", "a.nii.gz", "--pd", "scan 7::echo=1", "--out", "2024", "--model", "model"]
    assert main(["synthesize", *arguments, *words]) == 0
    assert capfd.readouterr().out.endswith(
        "Synthesised, not acquired; for research, not for diagnosis or treatment:\n"
        "  2024/study/study_t2_SYNTHETIC.nii.gz\n"
    )
    folder = tmp_path / "2024" / "study"
    assert files_of(folder) == ["study_t2_SYNTHETIC.json", "study_t2_SYNTHETIC.nii.gz"]
    np.testing.assert_allclose(nib.load(folder / "study_t2_SYNTHETIC.nii.gz").affine, t1.affine, atol=1e-4)
    sources = json.loads((folder / "study_t2_SYNTHETIC.json").read_text())["sources"]
    assert sources == {"t1": {"sha256": source_sha256("a.nii.gz")}, "pd": {"sha256": source_sha256("scan 7::echo=1")}}


def test_a_hash_in_a_folders_name_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's config parser makes '::' of it."""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "cohort #7" / "a", ADNI)["t2"].unlink()
    model = write_untrained_model(tmp_path / "model #1", "apt_adni")
    words = [
        word for key, value in settings_of("inference", "apt_adni").items() for word in ("--set", f"{key}={value}")
    ]
    assert main(["synthesize", "cohort #7", "--model", model.name, "--out", "out #@1", *words]) == 0
    assert files_of(tmp_path / "out #@1") == ["a/a_t2_SYNTHETIC.json", "a/a_t2_SYNTHETIC.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort #7", "model #1", "out #@1"]


def test_a_hash_in_a_value_that_is_set_stays_one(ran: list[list[str]], tmp_path: Path) -> None:
    """To MONAI's command line what follows it in ``a #1`` is a comment."""
    write_study(tmp_path / "data" / "a", BRATS)
    settings = ["output_dir=a #1", 'studies=[{"t1": "/a #1"}]', "x=@train#dataset", "sampling#unroll_step=4"]
    assert main(["train", str(tmp_path / "data"), *(word for text in settings for word in ("--set", text))]) == 0
    found = overrides_of(ran[0])
    assert found["--output_dir"] == '$"a \\x231"' and json.loads(found["--studies"]) == [{"t1": '$"/a \\x231"'}]
    assert found["--x"] == "@train#dataset" and found["--sampling#unroll_step"] == "4"


def test_an_error_of_a_file_in_the_bundles_workflow_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    file = write_study(tmp_path / "data" / "a", ADNI)["t2"]
    file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "data" / "a" / "a_t1.nii.gz").unlink()
    model = write_untrained_model(tmp_path / "model", "apt_adni")
    arguments = ["synthesize", str(tmp_path / "data"), "--model", str(model), "--out", str(tmp_path / "out")]
    words = [
        word for key, value in settings_of("inference", "apt_adni").items() for word in ("--set", f"{key}={value}")
    ]
    assert main([*arguments, *words]) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {file}: cannot be read as NIfTI")
    with pytest.raises(RuntimeError, match="ConfigExpression"):
        main([*arguments, *words, "--traceback"])


def test_a_folder_of_studies_is_synthesised(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "data" / "a", BRATS)["t1"].unlink()
    assert main(["synthesize", str(tmp_path / "data"), "--dataset", "brats", "--out", str(tmp_path / "out")]) == 0
    found = overrides_of(ran[0])
    assert "apt_brats" in found.pop("--config_file")
    assert found == {"--dataset_dir": str(tmp_path / "data"), "--output_dir": str(tmp_path / "out")}
    assert f"{tmp_path / 'out'}/*/*_SYNTHETIC.nii.gz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "options", "bundle"),
    [
        (["t1", "t2"], [], "apt_brats"),
        (["t1", "t2"], ["--dataset", "adni"], "apt_adni"),
        (["t1", "pd"], [], "apt_adni"),
        (["t2"], ["--model", "model"], "apt_adni"),
    ],
)
def test_the_bundle_is_that_of_the_dataset_the_model_or_the_contrasts(
    given: list[str],
    options: list[str],
    bundle: str,
    ran: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = write_study(tmp_path / "a", ADNI)
    write_untrained_model(tmp_path / "model", "apt_adni")
    flags = [word for name in given for word in (f"--{name}", str(files[name]))]
    assert main(["synthesize", *flags, "--subject", "case-7", *options]) == 0
    found = overrides_of(ran[0])
    assert bundle in found["--config_file"]
    assert json.loads(found["--studies"]) == [{"subject": "case-7", **{name: str(files[name]) for name in given}}]


SYNTHESIZE_ERRORS: dict[str, tuple[list[str], str]] = {
    "nothing given": ([], "give either DATA, a folder of studies, or one patient's files: --flair"),
    "folder and files": (["DATA", "--t1", "a/a_t1.nii.gz"], "give either DATA"),
    "no such folder": (["none", "--dataset", "brats"], "none: no such folder"),
    "no dataset": (["DATA"], "DATA: whose contrasts may be missing there? Give --dataset brats or --dataset adni, or"),
    "no such file": (["--t1", "none.nii.gz"], "none.nii.gz: no such file"),
    "contrasts of no dataset": (
        ["--pd", "a/a_pd.nii.gz", "--flair", "a/a_t1.nii.gz"],
        "no dataset has flair, pd together: brats has flair, t1, t1ce, t2; adni has t1, t2, pd",
    ),
    "a contrast of another dataset": (
        ["--pd", "a/a_pd.nii.gz", "--dataset", "brats"],
        "unknown contrast 'pd': the brats contrasts are",
    ),
    "a model of another dataset": (
        ["--t1", "a/a_t1.nii.gz", "--dataset", "brats", "--model", "model"],
        "model: is a model of adni, not of brats",
    ),
    "a model of an older layout": (["--t1", "a/a_t1.nii.gz", "--model", "older"], "is of the layout None"),
    "no model": (["--t1", "a/a_t1.nii.gz", "--model", "a"], "a/model.json: no such file"),
    "every contrast": (
        ["--t1", "a/a_t1.nii.gz", "--t2", "a/a_t2.nii.gz", "--pd", "a/a_pd.nii.gz"],
        "nothing to synthesise: every contrast of adni is given",
    ),
    "a synthesised volume": (["--t1", "a_t1_SYNTHETIC.nii.gz"], "is synthesised, as its name says"),
    "a series mapping": (["--t1", "a/a_t1.nii.gz", "--series", "s.json"], "--series is for DATA"),
    "no such overlay": (["--t1", "a/a_t1.nii.gz", "--overlay", "x.yaml"], "x.yaml: no such config"),
}


@pytest.mark.parametrize("mistake", SYNTHESIZE_ERRORS)
def test_what_cannot_be_synthesised_is_one_line_before_anything_runs(
    mistake: str,
    ran: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "a", ADNI)
    (tmp_path / "DATA").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps({"format": FORMAT, "contrasts": ADNI.to_dict()}))
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "model.json").write_text('{"contrasts": "adni"}')
    arguments, message = SYNTHESIZE_ERRORS[mistake]
    assert message in one_line_error(["synthesize", *arguments], capsys)
    assert ran == [] and not (tmp_path / "synthetic").exists()


# codebook show


@pytest.mark.parametrize("dataset", CONTRAST_SETS)
def test_codebook_is_shown_without_its_encoder(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_untrained_model(tmp_path / "model", f"apt_{dataset}")
    path, picture = model / "codebook.json", tmp_path / "codebook.png"
    content = json.loads(path.read_text())
    content["encoder"] = {"fingerprint": "one-that-nobody-has", "source": "elsewhere"}
    path.write_text(json.dumps(content))
    assert main(["codebook", "show", str(model), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert f"Prior codebook of {dataset}" in printed and "elsewhere (one-that-nobody-has)" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["codebook", "show", str(path)]) == 0
    assert capsys.readouterr().out in printed


@pytest.mark.parametrize("contrasts", CONTRAST_SETS.values(), ids=lambda c: c.name)
def test_codebook_text_says_what_is_used_for_every_subset(contrasts: ContrastSet) -> None:
    folder = ROOT / "bundles" / f"apt_{contrasts.name}" / "models" / "published"
    codebook = PriorCodebook.read(folder / "codebook.json")
    entries, used = codebook_text(codebook, best=1).split("\n\n")[1:]
    listed: dict[tuple[str, str], list[str]] = {}
    target = ""
    for line in entries.splitlines()[1:-2]:
        target = target if line.startswith(" ") else line.split()[0]
        rank, source, curve, *numbers = line.split()[-6:]
        listed[target, rank] = [source, curve, *numbers]
    header, *rows = used.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["+".join(subset) for subset in contrasts.subsets()]
    for row in rows:
        acquired = row.split()[0].split("+")
        for name in set(contrasts.names) - set(acquired):
            column = header.index(f" {name}") + 1
            rank, source = row[column:].split()[:2]
            entry = codebook.lookup(name, acquired)
            share, similarity, scale = entry.count / codebook.num_slices, entry.similarity, entry.scale
            assert source == entry.source
            expected = [entry.source, entry.curve, f"{share:.1%}", f"{similarity:.3f}", f"{scale:.3f}"]
            assert listed[name, rank] == expected


def test_codebook_without_a_path_is_that_of_the_bundles_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codebook", "show", "--dataset", "brats"]) == 0
    assert "apt_brats/models" in capsys.readouterr().out.splitlines()[0]


def test_what_is_no_codebook_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such codebook" in one_line_error(["codebook", "show", str(tmp_path / "codebook.json")], capsys)
    path = tmp_path / "model.json"
    path.write_text("{}")
    assert "not a prior codebook" in one_line_error(["codebook", "show", str(path)], capsys)
    path.write_text('{"format": "apt_monai.prior_codebook", "dataset": "fastmri"}')
    assert "damaged, or edited by hand" in one_line_error(["codebook", "show", str(path)], capsys)


# The whole way, and the demo


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_raw_scans_are_preprocessed_trained_on_evaluated_and_synthesised_outside_the_repository(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        command = [sys.executable, "-m", "apt_monai", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def settings(config: str) -> list[str]:
        return [word for pair in settings_of(config, "apt_adni").items() for word in ("--set", "{}={}".format(*pair))]

    preprocess = shlex.split(
        run("phantom", "raw", "--dataset", "adni-raw", "--subjects", "5", "--spacing", "8").splitlines()[-1]
    )[3:]
    grid = ["--grid", "8", "--mask", "raw/.truth/{subject}/brain_t1.nii.gz", "--workers", "2"]
    train = shlex.split(run(*preprocess, *grid).splitlines()[-1])[3:]
    said = run(*train, "--model", "model", "--method", "published", *settings("published"))
    evaluate = shlex.split(said.splitlines()[-1])[3:]
    assert "| all others | U+A+I |" in run(*evaluate, "--work", "model/work", *settings("evaluate"))
    assert (tmp_path / "eval" / "panel.png").exists()
    case = tmp_path / "raw-preprocessed" / "000_S_0001" / "000_S_0001"
    run("synthesize", "--t1", f"{case}_t1.nii.gz", "--model", "model", *settings("inference"))
    written = sorted(path.name for path in (tmp_path / "synthetic" / "study").glob("*.nii.gz"))
    assert written == ["study_pd_SYNTHETIC.nii.gz", "study_t2_SYNTHETIC.nii.gz"]


def test_demo_stops_at_the_first_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []

    def failing(run_id: str, *args: Any) -> None:
        steps.append(run_id)
        raise BundleError("the command above failed", 7)

    monkeypatch.setattr(demo, "run_bundle", failing)
    assert main(["demo", str(tmp_path), "--subjects", "3", "--spacing", "10"]) == 7
    assert steps == ["training"]
    assert capsys.readouterr().err.endswith("error: the command above failed\n")


@pytest.mark.parametrize("contrasts", CONTRAST_SETS.values(), ids=lambda c: c.name)
def test_demo_takes_its_sizes_from_the_datasets_bundle(contrasts: ContrastSet, tmp_path: Path) -> None:
    made = Demo(tmp_path, contrasts.name, 20, None, None, 10, 2)
    sizes = yaml.safe_load((ROOT / "bundles" / f"apt_{contrasts.name}" / "configs" / "demo.yaml").read_text())
    assert made.spacing == sizes["phantom_spacing"] and made.contrasts is contrasts


def test_incoming_studies_lack_one_contrast_each_and_are_copied_once(tmp_path: Path) -> None:
    made = Demo(tmp_path, "brats", subjects=4, spacing=10, iterations=1, unroll_iterations=0, slices_per_subject=2)
    made.make_phantoms()
    names = [f"BraTS2021_{i:05d}" for i in range(4)]
    split = {"train": names[:1], "validation": names[1:2], "test": names[2:], "unused": []}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "split.json").write_text(json.dumps(split))

    missing = made.hide_contrasts(tmp_path / "incoming")
    assert missing == {names[2]: "flair", names[3]: "t1"}
    incoming = {study["subject"]: study for study in read_studies(tmp_path / "incoming", BRATS)}
    assert {s: set(BRATS.names) - set(study) for s, study in incoming.items()} == {s: {c} for s, c in missing.items()}
    copy = Path(incoming[names[2]]["t1"])
    assert copy.read_bytes() == (tmp_path / "data" / names[2] / copy.name).read_bytes()
    before = copy.stat().st_mtime_ns
    made.hide_contrasts(tmp_path / "incoming")
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
@pytest.mark.parametrize("dataset", CONTRAST_SETS)
def test_demo_goes_from_phantoms_to_a_table_and_a_second_run_repeats_nothing(dataset: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apt_monai", "demo", str(tmp_path / "demo"), "--subjects", "4", "--spacing", "10"]
    command += ["--dataset", dataset]
    command += ["--iterations", "2", "--unroll-iterations", "1", "--slices-per-subject", "2"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    summary = first.stdout.split("== Result")[1]
    for row in ("own | copy", "own | direct", "shipped | direct", "published | U", "published | U+A+I"):
        assert f"| {row} |" in summary
    assert "digital phantoms, not patients" in summary

    out = tmp_path / "demo"
    volumes = sorted((out / "synthetic" / "own").glob("*/*_SYNTHETIC.nii.gz"))
    pictures = sorted((out / "pictures").glob("*.png"))
    assert volumes and pictures and (out / "model" / "calibration.json").exists()
    assert (out / "eval" / "own" / "panel.png").exists()
    truth = nib.load(next((out / "data").glob(f"{volumes[0].parent.name}/*_t1.nii.gz")))
    synthetic = nib.load(volumes[0])
    assert synthetic.shape == truth.shape and (synthetic.affine == truth.affine).all()

    kept = [out / "model" / "model.pt", out / "model" / "calibration.json", *volumes]
    before = [path.stat().st_mtime_ns for path in kept]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-3000:]
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert demo_lines(second.stdout) == demo_lines(first.stdout)


def demo_lines(printed: str) -> list[str]:
    """The rows of the demo's table."""
    return [line for line in printed.split("== Result")[1].splitlines() if line.startswith("|")]
