"""The contrast sets: a value, from a file as well, and what it decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from apt_monai.contrasts import ADNI, BRATS, ContrastSet, get_contrast_set

STROKE = """\
name: stroke
contrasts:
  t1: {label: T1, suffixes: [t1, t1n], bids: T1w}
  t2: {bids: T2w}
  flair: {label: FLAIR, suffixes: [flair], bids: FLAIR}
segmentation_suffixes: [lesion]
references: [t2, t1, flair]
echoes: [[t1, t2]]
grid: 0.5
"""


@pytest.mark.parametrize("contrasts", [BRATS, ADNI])
def test_a_set_comes_back_from_json_and_yaml_as_it_was(contrasts: ContrastSet, tmp_path: Path) -> None:
    assert get_contrast_set(json.loads(json.dumps(contrasts.to_dict()))) == contrasts
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(contrasts.to_dict(), sort_keys=False))
    assert get_contrast_set(tmp_path / "set.yaml") == contrasts == get_contrast_set(contrasts.name)


def test_a_file_says_names_suffixes_and_roles(tmp_path: Path) -> None:
    (tmp_path / "stroke.yaml").write_text(STROKE)
    stroke = get_contrast_set(str(tmp_path / "stroke.yaml"))
    assert stroke.names == ("t1", "t2", "flair") and stroke.labels == ("T1", "T2", "FLAIR")
    assert stroke.contrasts[0].suffixes == ("t1", "t1n") and stroke.contrasts[1].suffixes == ("t2",)
    assert stroke.references[0] == "t2" and stroke.echoes == (("t1", "t2"),) and stroke.grid == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: stroke\n", ""), "no contrast set: a name and a mapping"),
        (("grid:", "gird:"), "unknown gird; valid are name, contrasts, .*grid"),
        (("bids: T2w", "label: T2"), "missing 1 required positional argument: 'bids'"),
        (("[t1, t1n]", "t1"), r"suffixes of t1 is 't1': give a list, such as \[t1\]"),
        (("[t2, t1, flair]", "[t2, t1]"), "references of the contrast set stroke are t2, t1: name each of"),
        (("  t2: {bids: T2w}", "  mask: {bids: T2w}"), "subject, seg and mask mean something else"),
        (("contrasts:", "contrasts: ["), "cannot be read as YAML"),
        ((STROKE, "- t1"), "holds no contrast set"),
    ],
)
def test_a_file_that_holds_no_set_is_named_with_what_is_wrong(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "stroke.yaml").write_text(STROKE.replace(*change))
    with pytest.raises(ValueError, match=f"stroke.yaml: .*{message}"):
        get_contrast_set(tmp_path / "stroke.yaml")


def test_a_name_that_is_neither_known_nor_a_file_says_what_is() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'ixi': valid are brats, adni, or the YAML file"):
        get_contrast_set("ixi")


def test_a_contrast_with_a_contrast_agent_is_known_by_its_suffix_in_bids() -> None:
    assert [contrast.name for contrast in BRATS.contrasts if contrast.enhanced] == ["t1ce"]
    assert not any(contrast.enhanced for contrast in ADNI.contrasts)


@pytest.mark.parametrize(
    ("target", "acquired", "source"),
    [
        ("t1", ["flair", "t1ce"], "t1ce"),
        ("t1ce", ["flair", "t1", "t2"], "t1"),
        ("flair", ["t1", "t2"], "t2"),
        ("t1", ["t1", "t2"], "t2"),  # not its own
        ("t1", ["flair", "t2"], "flair"),
    ],
)
def test_a_synthetic_volume_takes_the_scale_of_an_acquired_contrast_of_its_weighting(
    target: str, acquired: list[str], source: str
) -> None:
    assert BRATS.intensity_source(target, acquired) == source


def test_nothing_but_the_target_has_no_scale() -> None:
    with pytest.raises(ValueError, match="t1 has no intensity scale of its own"):
        BRATS.intensity_source("t1", ["t1"])
