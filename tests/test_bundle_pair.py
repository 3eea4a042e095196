"""The two bundles differ in their datasets' values alone; what they share is the same, and one tool keeps it so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ci_scripts import load_script
from tiny_bundle import ADNI_BUNDLE, BRATS_BUNDLE, BUNDLES, bundle_folder, configs_of

# In what the configs differ, by the parts of a key. All else is the same in both.
SAMPLING = {"sampling#start_step", "sampling#unroll_step", "sampling#guidance_scale"}
NAMED = {"bundle_root", "work_dir"}
DIFFERS = {
    "train.yaml": {"bundle_root", "model_dir", "contrasts", "test_subjects"},
    "published.yaml": {"model_dir", "iterations"} | SAMPLING,
    "inference.yaml": NAMED | {"synthesizer#model", "phantom_spacing"},
    "evaluate.yaml": NAMED | {"model", "phantom_spacing"},
    "demo.yaml": set(),
    "demo_published.yaml": {"phantom_spacing"},
    "infer.json": {"network_def#in_channels", "network_def#out_channels"},
}


@pytest.fixture
def wiring() -> ModuleType:
    """The script behind `make bundles`."""
    return load_script("share_wiring")


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder with copies of both bundles, without weights."""
    for name in BUNDLES:
        shutil.copytree(bundle_folder(name), tmp_path / name, ignore=shutil.ignore_patterns("models", "work"))
    return tmp_path


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config by key, in order."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, f"{key}#{name}" if key else str(name))
    else:
        yield key, content


def test_what_the_bundles_share_is_the_same(wiring: ModuleType) -> None:
    assert wiring.differences() == []


@pytest.mark.parametrize("name", DIFFERS)
def test_the_configs_have_the_same_keys_in_the_same_order_and_differ_in_the_datasets_values(name: str) -> None:
    brats, adni = (
        list(leaves(yaml.safe_load((configs_of(b) / name).read_text()))) for b in (BRATS_BUNDLE, ADNI_BUNDLE)
    )
    assert [key for key, _ in adni] == [key for key, _ in brats]
    assert {ours[0] for ours, theirs in zip(brats, adni, strict=True) if ours != theirs} == DIFFERS[name]


def test_the_metadata_have_the_same_keys_and_differ_where_contrasts_are_named() -> None:
    brats, adni = (dict(leaves(json.loads((configs_of(b) / "metadata.json").read_text()))) for b in BUNDLES)
    per_channel = "#channel_def#"
    assert [key for key in adni if per_channel not in key] == [key for key in brats if per_channel not in key]
    differing = {key for key in adni if per_channel not in key and adni[key] != brats[key]}
    tensors = "network_data_format#inputs#image", "network_data_format#outputs#pred"
    about = {key for key in differing if not key.startswith("changelog#")}
    assert about == {"name", "task", "data_source", *(f"{tensor}#num_channels" for tensor in tensors)}


def test_a_difference_is_named_by_file_and_line_and_the_command_puts_it_right(
    wiring: ModuleType, copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copies / ADNI_BUNDLE / "configs" / "train.yaml"
    text = config.read_text()
    own, changed = text.replace("test_subjects: 30", "test_subjects: 9"), "    drop_last: false\n"
    config.write_text(own.replace("    drop_last: true\n", changed, 1))
    line = config.read_text().splitlines(True).index(changed) + 1
    (copies / ADNI_BUNDLE / "configs" / "logging.conf").unlink()

    found = wiring.differences(copies)
    assert len(found) == 2
    assert found[0].startswith(f"{config}:{line}: is '    drop_last: false', apt_brats has '    drop_last: true': ")
    assert f"{config.with_name('logging.conf')}:1: is nothing" in found[1]
    assert all(text.endswith("make the change in apt_brats, then `make bundles`") for text in found)

    assert wiring.main(copies) is None
    assert capsys.readouterr().out.splitlines() == [
        f"written: {config}",
        f"written: {config.with_name('logging.conf')}",
    ]
    assert config.read_text() == own  # the dataset's value is kept
    assert wiring.differences(copies) == []


def test_a_shared_file_says_its_own_bundles_name(wiring: ModuleType, copies: Path) -> None:
    (copies / BRATS_BUNDLE / "configs" / "ablation.yaml").write_text("# bundles/apt_brats/configs\na: 1\n")
    assert wiring.main(copies) is None
    copy = copies / ADNI_BUNDLE / "configs" / "ablation.yaml"
    assert copy.read_text() == "# bundles/apt_adni/configs\na: 1\n"


def test_a_shared_file_that_the_source_lacks_is_left_and_named(wiring: ModuleType, copies: Path) -> None:
    alone = copies / ADNI_BUNDLE / "configs" / "multi_gpu_mine.yaml"
    alone.write_text("a: 1\n")
    assert wiring.main(copies) == f"{alone}:1: apt_brats has no such file: move it there, then `make bundles`"
    assert alone.exists()


def test_a_config_without_the_marker_is_named(wiring: ModuleType, copies: Path) -> None:
    config = copies / ADNI_BUNDLE / "configs" / "evaluate.yaml"
    config.write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"apt_adni/configs/evaluate.yaml: 0 lines begin with '# --- from here on'"):
        wiring.main(copies)
