"""What a user sees on the terminal when a bundle command fails."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_bundle import configs_of, files_of, run_command, write_untrained_model
from tiny_studies import write_study

from apt_monai.bundle import literal, root_cause, show_cause_last
from apt_monai.inferers import noise_scheduler


@pytest.fixture(autouse=True)
def _hook_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def wrapped(cause: BaseException, times: int) -> BaseException:
    """An error as it comes out of MONAI's config parser."""
    error = cause
    for _ in range(times):
        try:
            raise RuntimeError("Failed to evaluate ConfigExpression: '$a'\n set '_mode_=debug'") from error
        except RuntimeError as outer:
            error = outer
    return error


@pytest.mark.parametrize("times", [0, 1, 3])
def test_the_cause_is_the_last_line(times: int, capsys: pytest.CaptureFixture[str]) -> None:
    cause = ValueError("a.nii.gz: is 4D")
    error = wrapped(cause, times)
    assert root_cause(error) is cause
    show_cause_last()
    sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err.splitlines()[-1] == "ValueError: a.nii.gz: is 4D"


def test_a_traceback_is_shown_where_it_is_asked_for_or_nothing_else_explains_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_cause_last()
    for cause, asked, shown in [(OSError("a"), "", False), (OSError("a"), "1", True), (KeyError("a"), "", True)]:
        monkeypatch.setenv("APT_MONAI_TRACEBACK", asked)
        error = wrapped(cause, 2)
        sys.excepthook(type(error), error, error.__traceback__)
        assert ("Traceback" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(
    "words",
    [["--output_dir", "/out #1"], ["--output_dir", "out #1"], ["--output_dir=/out #1"], ["--x", "[{'t1': '/a#b'}]"]],
)
def test_a_hash_in_a_value_of_monais_command_line_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/lib/monai/bundle/__main__.py", "run", "training", "--config_file", "a #1.yaml", "--sampling#step", "4"]
    monkeypatch.setattr(sys, "argv", [*command, *words])
    with pytest.raises(ValueError, match=r"MONAI makes '::' of a '#' in a value.*x23"):
        show_cause_last()
    monkeypatch.setattr(sys, "argv", [*command, "--output_dir", literal("/out #1"), "--x", "@train#dataset"])
    show_cause_last()


def test_the_cause_of_our_own_error_is_not_what_is_shown() -> None:
    """It is in the traceback; the message that says what to do is that of our own error."""
    try:
        raise ValueError("codebook.json: not a readable JSON file") from KeyError("x")
    except ValueError as error:
        assert root_cause(wrapped(error, 2)) is error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "exponential"}, "schedule is 'exponential': valid are linear_beta.*cosine"),
        ({"prediction_type": "noise"}, "prediction_type is 'noise': valid are epsilon, sample, v_prediction"),
    ],
)
def test_an_unknown_schedule_is_one_clear_error(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_scheduler(**settings)


@pytest.mark.parametrize("config", ["train", "inference", "evaluate"])
def test_every_config_shows_the_cause_last(config: str) -> None:
    text = (configs_of() / f"{config}.yaml").read_text()
    assert "bundle.show_cause_last()" in text


def test_a_command_ends_with_one_clear_error(tmp_path: Path) -> None:
    model = write_untrained_model(tmp_path / "model")
    study = write_study(tmp_path / "dataset" / "a", ("t1", "t2"))
    whole = Path(study["t2"]).read_bytes()
    Path(study["t2"]).write_bytes(whole[: len(whole) // 2])
    failed = run_command(
        "inference",
        "run",
        dataset_dir=tmp_path / "dataset",
        model_dir=model,
        output_dir=tmp_path / "out",
    )
    assert failed.returncode != 0
    last = failed.stdout.rstrip().splitlines()[-1]
    assert last.startswith(f"StudyError: {study['t2']}: cannot be read as NIfTI, it is truncated or corrupt")
    assert files_of(tmp_path / "out") == []


@pytest.mark.slow
def test_an_unknown_schedule_in_the_model_settings_is_the_last_line(tmp_path: Path) -> None:
    model = shutil.copytree(write_untrained_model(tmp_path / "made"), tmp_path / "model")
    settings = json.loads((model / "model.json").read_text())
    settings["scheduler"]["schedule"] = "exponential"
    (model / "model.json").write_text(json.dumps(settings))
    failed = run_command("inference", "run", model_dir=model, work_dir=tmp_path / "work", output_dir=tmp_path / "out")
    assert failed.stdout.rstrip().splitlines()[-1].startswith("ValueError: schedule is 'exponential': valid are")
