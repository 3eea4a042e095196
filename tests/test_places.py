"""Where things are: the bundles, the model to work with, and the user's folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apt_monai.errors import ModelError
from apt_monai.places import find_bundle, find_model, read_settings, trained_model, user_folder


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/home/ann/.local/share/apt_monai"),
        ("darwin", {}, "/home/ann/Library/Application Support/apt_monai"),
        ("linux", {"XDG_DATA_HOME": "/scratch"}, "/scratch/apt_monai"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "/home/ann/.local/share/apt_monai"),
        ("linux", {"XDG_DATA_HOME": "/scratch", "APT_MONAI_HOME": "~/apt"}, "/home/ann/apt"),
    ],
)
def test_the_user_folder_is_where_the_system_keeps_data_unless_it_is_named(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_DATA_HOME", "APT_MONAI_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ann", **variables}.items():
        monkeypatch.setenv(name, value)
    assert user_folder() == Path(expected)


def test_a_finished_training_goes_before_the_shipped_weights_and_a_named_model_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_MONAI_HOME", str(tmp_path / "home"))
    shipped, trained = tmp_path / "bundle" / "models", trained_model("apt_test", "direct")
    for folder in (shipped, trained, tmp_path / "mine"):
        folder.mkdir(parents=True)
    assert find_model(None, "apt_test", tmp_path / "bundle") == shipped
    (shipped / "published").mkdir()
    assert find_model(None, "apt_test", tmp_path / "bundle", method="published") == shipped / "published"
    with pytest.raises(ValueError, match="method is 'magic': valid are direct, published"):
        find_model(None, "apt_test", tmp_path / "bundle", method="magic")
    (trained / "model.json").touch()  # a training has begun
    assert find_model(None, "apt_test", tmp_path / "bundle") == shipped
    published = trained_model("apt_test", "published")
    published.mkdir()
    (published / "model.pt").touch()
    assert find_model(None, "apt_test", tmp_path / "bundle") == published
    assert find_model(None, "apt_test", tmp_path / "bundle", method="direct") == shipped
    (trained / "model.pt").touch()
    assert find_model(None, "apt_test", tmp_path / "bundle") == trained
    assert find_model(tmp_path / "mine", "apt_test", tmp_path / "bundle") == tmp_path / "mine"
    with pytest.raises(ModelError, match="none: no such folder"):
        find_model(tmp_path / "none", "apt_test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[1]", "JSON list"),
        ('{"contrasts": "brats"}', "layout None, and this version reads 'apt_monai.model/2'; .*train again"),
    ],
)
def test_settings_that_cannot_be_used_are_one_clear_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelError, match=f"model.json: .*{message}"):
        read_settings(tmp_path)


def make_bundle(folder: Path, name: str = "apt_test") -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": name}))
    return folder


def test_a_bundle_is_the_working_directory_or_in_its_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "apt_test")
    for place in (tmp_path, bundle):
        monkeypatch.chdir(place)
        assert find_bundle("apt_test").samefile(bundle)


def test_a_bundle_of_the_checkout_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path, "another")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("apt_brats").samefile(Path(__file__).parents[1] / "bundles" / "apt_brats")


def test_a_bundle_that_is_nowhere_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the bundle apt_test is neither .* --bundle_root DIR"):
        find_bundle("apt_test")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_bundle_with_damaged_metadata_is_one_clear_error(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path)
    (bundle / "configs" / "metadata.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="metadata.json: "):
        find_bundle("apt_test")
