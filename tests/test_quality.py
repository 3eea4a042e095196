"""Quality control finds what is wrong with a study, and is quiet where nothing is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny_bundle import ROOT, write_untrained_direct
from tiny_studies import write_study

import apt_monai
from apt_monai.contrasts import ADNI, BRATS
from apt_monai.errors import ModelError
from apt_monai.quality import Finding, Reference, Volumes, check_alignment, check_raw, check_study, learn, measure
from apt_monai.quality.checks import check_volumes
from apt_monai.quality.enhancement import check_enhancement, learn_enhancement, measure_enhancement

AFFINE = np.diag([-5.0, -5.0, 5.0, 1.0])
SHAPE = (40, 44, 36)


def make_study(seed: int = 0, names: tuple[str, ...] = ("t1", "t1ce", "t2")) -> dict[str, np.ndarray]:
    """A ball of 1.5 l with smooth anatomy of its own, darker to the outside; T2 is the negative of T1."""
    rng = np.random.default_rng(seed)
    away = [(np.arange(n) - (n - 1) / 2) * 5 for n in SHAPE]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*away, indexing="ij")))
    anatomy = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2) * 12 - radius / 30
    signal = {"t1": anatomy, "t1ce": anatomy + 0.5 * np.sin(anatomy * 4), "t2": -anatomy, "flair": -np.abs(anatomy)}
    noisy = {name: 500 + 60 * (signal[name] + rng.normal(0, 0.15, SHAPE)) for name in names}
    return {name: np.where(radius < 71, np.maximum(v, 1), 0).astype(np.float32) for name, v in noisy.items()}


def volumes_of(study: dict[str, np.ndarray], affine: np.ndarray = AFFINE) -> Volumes:
    return Volumes(study, np.any([v != 0 for v in study.values()], axis=0), affine)


def checks_of(study: dict[str, np.ndarray], affine: np.ndarray = AFFINE) -> set[str]:
    return {finding.check for finding in check_study(volumes_of(study, affine), BRATS)}


def test_a_clean_study_has_no_findings() -> None:
    assert check_study(volumes_of(make_study()), BRATS) == []


def test_a_finding_is_of_a_known_severity() -> None:
    with pytest.raises(ValueError, match="severity is 'bad': valid are error, warning"):
        Finding("bad", "spacing", "t1", "", "")


def test_each_planted_fault_is_found_and_nothing_else() -> None:
    study = make_study()
    spiky, flat, blank = (study["t1"].copy() for _ in range(3))
    spiky[20, 20, 20] = 32767
    blank[..., 16] = 0
    flat = np.minimum(flat, np.percentile(flat[flat > 0], 90))
    assert checks_of({**study, "t1": spiky}) == {"outliers"}
    assert checks_of({**study, "t1": flat}) == {"saturated"}
    assert checks_of({**study, "t1": blank}) == {"blank slices"}
    assert checks_of({**study, "t1ce": 2 * study["t1"]}) == {"one file twice"}
    assert checks_of(study, AFFINE * 0.7) == {"brain volume"}
    assert checks_of(study, AFFINE * 1.3) == {"skull"}
    assert checks_of(study, np.diag([4.0, 4.0, 8.0, 1.0])) == {"spacing"}
    noise = np.random.default_rng(1).uniform(1, 5, SHAPE)
    assert "background" in checks_of({name: np.where(v == 0, noise, v) for name, v in study.items()})


@pytest.mark.parametrize(("end", "where"), [(slice(22, None), "top"), (slice(None, 14), "bottom")])
def test_a_cut_brain_is_told_by_its_end_whatever_the_axes(end: slice, where: str) -> None:
    study = {name: v.copy() for name, v in make_study().items()}
    for volume in study.values():
        volume[..., end] = 0
    (found,) = check_volumes(volumes_of(study))
    assert found.check == "coverage" and where in found.found
    swapped = {name: v.transpose(2, 0, 1) for name, v in study.items()}
    affine = np.array([[0, -5, 0, 0], [0, 0, -5, 0], [5, 0, 0, 0], [0, 0, 0, 1.0]])
    assert check_volumes(volumes_of(swapped, affine)) == [found]


def test_a_contrast_that_was_shifted_is_the_one_that_is_named() -> None:
    study = make_study()
    moved = np.where(study["t2"] > 0, np.roll(study["t2"], 2, axis=0), 0)
    moved[(study["t2"] > 0) & (moved == 0)] = 500
    (found,) = check_alignment(volumes_of({**study, "t2": moved}))
    assert (found.check, found.file) == ("alignment", "t2") and "along x" in found.found


def test_a_contrast_of_another_patient_tells_nothing_of_the_others() -> None:
    found = check_alignment(volumes_of({**make_study(), "t2": make_study(1)["t2"] * 0 + make_study(7)["t1"]}))
    assert found and all(finding.file == "t2" for finding in found)


def test_a_contrast_without_anatomy_is_told_in_a_small_brain_too_though_chance_shares_some_of_it() -> None:
    study = make_study()
    small = np.zeros(SHAPE, bool)
    small[12:28, 14:30, 10:26] = True
    study = {name: np.where(small, volume, 0) for name, volume in study.items()}
    assert "no common anatomy" not in {finding.check for finding in check_alignment(volumes_of(study))}
    study["t2"] = np.where(small, 500 + np.random.default_rng(0).normal(0, 50, SHAPE), 0)
    assert ("no common anatomy", "t2") in {(each.check, each.file) for each in check_alignment(volumes_of(study))}


def test_a_raw_scan_without_a_skull_is_told() -> None:
    volume = make_study()["t1"]
    assert [finding.check for finding in check_raw("t1", volume, AFFINE)] == ["skull"]
    assert check_raw("t1", volume + 1, AFFINE) == []


@pytest.fixture(scope="module")
def reference() -> Reference:
    return learn([measure(volumes_of(make_study(seed, BRATS.names))) for seed in range(10, 22)], BRATS)


def test_contrasts_that_were_swapped_do_not_look_like_their_names(reference: Reference) -> None:
    study = make_study(3, BRATS.names)
    assert reference.check(volumes_of(study), BRATS) == []
    swapped = {**study, "t1": study["t2"], "t2": study["t1"]}
    found = reference.check(volumes_of(swapped), BRATS)
    assert {finding.file for finding in found} == {"t1", "t2"} and {finding.check for finding in found} == {"name"}
    assert any("looks like T2 rather than T1" in finding.found for finding in found)


@pytest.mark.parametrize(("really", "name"), [("t2", "t1"), ("flair", "t2")])
def test_a_wrong_name_is_told_beside_one_other_contrast(reference: Reference, really: str, name: str) -> None:
    study = make_study(3, BRATS.names)
    assert reference.check(volumes_of({n: study[n] for n in (name, "t1ce")}), BRATS) == []
    found = reference.check(volumes_of({name: study[really], "t1ce": study["t1ce"]}), BRATS)
    assert ("name", name) in {(finding.check, finding.file) for finding in found}


def test_t1_and_t1gd_that_were_swapped_are_told_by_what_enhances(reference: Reference) -> None:
    study = make_study(3, BRATS.names)
    study["t1ce"] = study["t1"] + np.random.default_rng(5).normal(0, 30, SHAPE) * (study["t1"] > 0)
    plain = {**study, "t1": study["t1ce"].copy(), "t1ce": study["t1"]}
    study["t1ce"][18:22, 20:24, 14:20] += 300  # the rim of a tumour
    swapped = {**study, "t1": study["t1ce"], "t1ce": study["t1"]}
    limits = learn_enhancement([measure_enhancement(volumes_of(study), BRATS)])
    assert limits == {("t1", "t1ce"): 0.3}
    assert check_enhancement(volumes_of(study), BRATS, limits) == []
    assert check_enhancement(volumes_of(plain), BRATS, limits) == [], "nothing enhances: it cannot be told"
    (found,) = check_enhancement(volumes_of(swapped), BRATS, limits)
    assert (found.check, found.file) == ("name", "t1, t1ce") and "T1 and T1Gd may be swapped" in found.found
    wide = replace(reference, margin=(99.0,) * 4, unlike=(99.0,) * 4)
    assert wide.check(volumes_of(swapped), BRATS) == [], "a model of an earlier version does not judge it"
    assert replace(wide, swapped=limits).check(volumes_of(swapped), BRATS) == [found]


def test_a_study_unlike_the_training_set_is_told(reference: Reference) -> None:
    study = {name: np.where(v > 0, 1.05 ** (v - 400), 0) for name, v in make_study(3, BRATS.names).items()}
    assert [finding.check for finding in reference.check(volumes_of(study), BRATS)] == ["unlike training"]


def test_a_reference_is_read_back_and_a_wrong_one_refused(reference: Reference, tmp_path: Path) -> None:
    replace(reference, swapped={("t1", "t1ce"): 0.3}).save(tmp_path / "quality.json")
    again = Reference.load(tmp_path / "quality.json", BRATS)
    assert again.margin == reference.margin and np.allclose(again.means["t1", "t2"], reference.means["t1", "t2"], 1e-4)
    assert again.swapped == {("t1", "t1ce"): 0.3}
    with pytest.raises(ModelError, match=r"quality.json: no statistics of t1, t2, pd"):
        Reference.load(tmp_path / "quality.json", ADNI)


def test_too_few_studies_teach_nothing() -> None:
    with pytest.raises(ValueError, match="1 studies with every contrast and a whole brain: at least 8 are needed"):
        learn([measure(volumes_of(make_study(0, BRATS.names)))], BRATS)


@pytest.mark.parametrize(("bundle", "contrasts"), [("apt_brats", BRATS), ("apt_adni", ADNI)])
def test_the_shipped_models_know_how_contrasts_look(bundle: str, contrasts: object) -> None:
    assert Reference.load(ROOT / "bundles" / bundle / "models" / "quality.json", contrasts).subjects >= 40  # type: ignore[arg-type]


def test_findings_go_into_log_and_sidecar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = write_study(tmp_path / "case", ("t1", "t2"), (12, 10, 6), seg=False)
    model = write_untrained_direct(tmp_path / "model")
    apt_monai.load(model, device="cpu").synthesize(study, tmp_path / "out")
    sidecar = json.loads((tmp_path / "out" / "case" / "case_flair_SYNTHETIC.json").read_text())
    assert ("brain volume", "study") in {(finding["check"], finding["file"]) for finding in sidecar["findings"]}
    assert str(tmp_path) not in json.dumps(sidecar["findings"])
    assert "case: study: the brain has 0 ml" in caplog.text
