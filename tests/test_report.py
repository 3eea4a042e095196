"""Reports: one file that needs nothing else, says what is synthetic, and of the patient the study's name alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_reports import SHAPE, TARGET, synthesised_study, written_report
from tiny_studies import LPS, write_nifti, write_study

from apt_monai.__main__ import main
from apt_monai.contrasts import ADNI, BRATS
from apt_monai.data.writers import synthetic_path
from apt_monai.errors import StudyError
from apt_monai.evaluation import EvaluationSlices, evaluate_methods
from apt_monai.io.sidecar import is_synthetic_name, prior_path, uncertainty_path
from apt_monai.methods import Copy
from apt_monai.report import report_path, write_cohort_report, write_report
from apt_monai.report.scrub import scrubbed


class Page(HTMLParser):
    """A report: its attributes that can name a file, its elements by id, its text without the data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.policy, self.text = "", ""
        self.blocks: dict[str, str] = {}  # of script and style elements, by id or tag
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attributes}
        self.addresses += [named[key] for key in ("src", "href", "data", "action", "srcset") if key in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        self._inside = named.get("id", tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[self._inside] = self.blocks.get(self._inside, "") + data
        else:
            self.text += data

    def study(self) -> dict[str, Any]:
        return dict(json.loads(self.blocks["study"]))


def codes(page: Page, block: str, kind: str, shape: tuple[int, ...]) -> Any:
    packed = gzip.decompress(base64.b64decode(page.blocks[block]))
    return np.frombuffer(packed, kind).reshape(shape, order="F")


def test_a_report_is_named_synthetic_and_is_a_file_of_the_study(tmp_path: Path) -> None:
    path = written_report(tmp_path / "case1")
    assert path == tmp_path / "out" / "case1" / "case1_report_SYNTHETIC.html" == report_path(tmp_path / "out", "case1")
    assert is_synthetic_name(path)


def test_a_report_names_no_other_file_and_its_policy_lets_nothing_in(tmp_path: Path) -> None:
    page = Page(written_report(tmp_path / "case1"))
    assert page.addresses == []
    assert "default-src 'none'" in page.policy and "unsafe" not in page.policy
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        digest = base64.b64encode(hashlib.sha256(page.blocks[tag].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in page.policy
    assert "http" not in page.blocks["script"] + page.blocks["style"]


def test_a_report_says_that_its_images_are_synthetic_and_for_research_alone(tmp_path: Path) -> None:
    page = Page(written_report(tmp_path / "case1"))
    assert "RESEARCH USE ONLY" in page.text and "not for diagnosis or treatment" in page.text
    assert "synthesised, not acquired: T1Gd" in page.text and "acquired: FLAIR, T1, T2" in page.text
    found = {volume["key"]: (volume["kind"], volume["synthetic"]) for volume in page.study()["volumes"]}
    acquired = dict.fromkeys(("flair", "t1", "t2"), ("acquired", False))
    assert found == acquired | {TARGET: ("SYNTHETIC", True)}
    assert "it has never seen a patient" in page.text


def test_the_volumes_in_a_report_are_those_of_the_files_within_half_a_step(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    page = Page(write_report(study, tmp_path / "out", "brats"))
    described = page.study()
    shape = tuple(described["shape"])
    assert shape == (24, 20, 16)  # the brain, 1 mm voxels, with its margin of 5 mm: all of this tiny study
    synthetic = synthetic_path(tmp_path / "out", "case1", TARGET)
    for number, volume in enumerate(described["volumes"]):
        path = synthetic if volume["synthetic"] else study[volume["key"]]
        truth = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
        shown = volume["low"] + volume["slope"] * codes(page, f"volume-{number}", "<u2", shape)
        assert np.abs(shown - truth).max() <= 0.51 * volume["slope"]
    layer = described["volumes"][3]["uncertainty"]
    truth = np.asarray(nib.as_closest_canonical(nib.load(uncertainty_path(synthetic))).dataobj)
    shown = layer["slope"] * codes(page, "uncertainty-3", "u1", shape)
    assert np.abs(shown - truth).max() <= 0.51 * layer["slope"]
    np.testing.assert_allclose(described["affine"], nib.as_closest_canonical(nib.load(synthetic)).affine)


def test_a_report_holds_the_brain_alone(tmp_path: Path) -> None:
    study = {"subject": "a"}
    volume = np.zeros((60, 60, 60), np.float32)
    volume[30:40, 20:30, 25:35] = np.random.default_rng(0).uniform(1, 9, (10, 10, 10))
    study["t1"] = write_nifti(tmp_path / "a_t1.nii.gz", volume, np.eye(4))
    path = synthetic_path(tmp_path, "a", "t2")
    write_nifti(path, volume, np.eye(4))
    path.with_name("a_t2_SYNTHETIC.json").write_text('{"sources": {"t1": {}}, "intensity_scale": {"contrast": "t1"}}')
    described = Page(write_report(study, tmp_path, "adni")).study()
    assert described["shape"] == [20, 20, 20]
    assert np.array(described["affine"])[:3, 3].tolist() == [25, 15, 20]
    assert described["start"] == [9, 9, 9] or described["start"] == [10, 10, 10]


def test_one_outlier_does_not_take_all_steps_of_a_volume(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    image = nib.load(study["t2"])
    volume = np.asarray(image.dataobj).copy()
    volume[10, 10, 10] = 32767
    write_nifti(Path(study["t2"]), volume)
    described = Page(write_report(study, tmp_path / "out", BRATS)).study()
    (shown,) = (entry for entry in described["volumes"] if entry["key"] == "t2")
    assert shown["slope"] < 2  # of intensities up to 1000


def test_a_volume_on_another_grid_is_resampled_and_the_page_says_so(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    assert "resampled" not in Page(write_report(study, tmp_path / "out", BRATS)).text
    finer = LPS @ np.diag([0.5, 0.5, 0.5, 1.0])
    write_nifti(Path(study["t2"]), np.full([2 * n for n in SHAPE], 7, np.float32), finer)
    page = Page(write_report(study, tmp_path / "out", BRATS))
    assert "T2: resampled onto the grid of the synthetic images" in page.text


def test_a_report_says_of_paths_and_patients_the_studys_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "Doe_Jane_19700101"
    file = folder / "case1" / "case1_t1.nii.gz"
    findings = [
        {
            "severity": "warning",
            "check": "spacing",
            "file": str(file),
            "found": f"{file}: 7 mm slices",
            "advice": "rescan",
        },
        {"severity": "warning", "check": "other", "file": "/pacs/Doe_Jane/x.dcm", "found": "x", "advice": "y"},
    ]
    page = written_report(folder / "case1", findings=findings).read_text()
    assert "Doe" not in page and str(tmp_path) not in page
    assert "t1: 7 mm slices" in page and "case1" in page


def test_a_folders_short_name_is_not_looked_for_in_other_texts(tmp_path: Path) -> None:
    study = {"subject": "case1", "t1": "1", "t2": "/pacs/case1", "pd": "/pacs/Doe_Jane::echo=2"}
    said = {"sha256": "1c1", "seed": 1, "subject": "case1", "found": "1 of 3 in Doe_Jane::echo=2"}
    assert scrubbed(said, study) == {**said, "found": "1 of 3 in pd"}


def test_pictures_are_in_the_report_itself_and_it_goes_where_one_says(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    (tmp_path / "planes.png").write_bytes(b"PNG")
    pictures = {"Registration": tmp_path / "planes.png"}
    path = write_report(study, tmp_path / "out", BRATS, tmp_path / "a" / "r_SYNTHETIC.html", pictures)
    page = Page(path)
    assert page.addresses == ["data:image/png;base64,UE5H"] and "Registration" in page.text
    with pytest.raises(ValueError, match="its name must say SYNTHETIC"):
        write_report(study, tmp_path / "out", BRATS, tmp_path / "report.html")


def test_findings_are_there_once_the_worst_first(tmp_path: Path) -> None:
    note = {"severity": "info", "check": "field of view", "file": "t1", "found": "140 mm", "advice": "none"}
    warning = {"severity": "warning", "check": "spacing", "file": "t2", "found": "7 mm", "advice": "look at <b>it</b>"}
    error = {"severity": "error", "check": "skull", "file": "t1", "found": "a skull", "advice": "strip it"}
    page = written_report(tmp_path / "case1", findings=[note, warning, error, warning])
    text = re.sub("<[^>]*>", " ", page.read_text().split("id='findings'")[1].split("</ul>")[0])
    places = [text.index(word) for word in ("a skull", "7 mm", "140 mm")]
    assert places == sorted(places) and text.count("7 mm") == 1
    assert "look at &lt;b&gt;it&lt;/b&gt;" in text


def test_a_study_without_quality_control_is_not_said_to_be_without_findings(tmp_path: Path) -> None:
    assert "not checked by quality control" in Page(written_report(tmp_path / "a")).text
    assert "found nothing" in Page(written_report(tmp_path / "b", findings=[])).text


def test_a_contrast_that_was_acquired_but_not_used_is_shown_and_called_so(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    study[TARGET] = study["t2"]
    volumes = Page(write_report(study, tmp_path / "out", BRATS)).study()["volumes"]
    kinds = {(volume["key"], volume["kind"]) for volume in volumes}
    assert {(TARGET, "acquired, not used"), (TARGET, "SYNTHETIC"), ("t2", "acquired")} <= kinds


def test_a_method_without_uncertainty_has_no_layer_of_it(tmp_path: Path) -> None:
    page = Page(written_report(tmp_path / "case1", uncertain=False))
    assert not [key for key in page.blocks if key.startswith("uncertainty")]


def test_the_prior_is_one_more_choice_where_there_is_one(tmp_path: Path) -> None:
    without = Page(written_report(tmp_path / "case1"))
    assert not [key for key in without.blocks if key.startswith("prior")]
    page = Page(written_report(tmp_path / "case2", prior=True))
    described = page.study()
    assert [volume["key"] for volume in described["volumes"] if "prior" in volume] == [TARGET]
    layer = described["volumes"][3]["prior"]
    path = prior_path(synthetic_path(tmp_path / "out", "case2", TARGET))
    truth = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    shown = layer["low"] + layer["slope"] * codes(page, "prior-3", "<u2", tuple(described["shape"]))
    assert np.abs(shown - truth).max() <= 0.51 * layer["slope"]


def test_a_studys_name_cannot_become_html(tmp_path: Path) -> None:
    page = written_report(tmp_path / "a<img src=x onerror=alert(1)>")
    assert "<img" not in page.read_text()


def test_what_was_not_synthesised_has_no_report(tmp_path: Path) -> None:
    study = write_study(tmp_path / "case1")
    with pytest.raises(StudyError, match="no synthetic volume of study 'case1'.*synthesise first"):
        write_report(study, tmp_path / "out", BRATS)
    study = synthesised_study(tmp_path / "case2")
    sidecar = synthetic_path(tmp_path / "out", "case2", TARGET).with_name(f"case2_{TARGET}_SYNTHETIC.json")
    sidecar.write_text("[]")
    with pytest.raises(StudyError, match="case2_t1ce_SYNTHETIC.json: is no sidecar"):
        write_report(study, tmp_path / "out", BRATS)


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    study = synthesised_study(tmp_path / "case1")
    first = write_report(study, tmp_path / "out", BRATS).read_bytes()
    assert write_report(study, tmp_path / "out", BRATS).read_bytes() == first


def test_synthesize_writes_a_report_of_each_study_that_lacked_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []  # the synthesis is done already

    def run_config(*args: Any, write_prior: bool = False, **overrides: Any) -> None:
        asked.append(write_prior)

    monkeypatch.setattr("apt_monai.cli.synthesize.run_config", run_config)
    synthesised_study(tmp_path / "data" / "a")
    write_study(tmp_path / "data" / "whole")
    (tmp_path / "data" / "out").rename(tmp_path / "out")
    arguments = ["synthesize", str(tmp_path / "data"), "--dataset", "brats", "--out", str(tmp_path / "out")]
    assert main([*arguments]) == 0
    assert not report_path(tmp_path / "out", "a").exists()
    assert main([*arguments, "--report"]) == 0
    assert asked == [False, True], "a prior is for a report alone"
    assert report_path(tmp_path / "out", "a").is_file() and not (tmp_path / "out" / "whole").exists()
    assert str(report_path(tmp_path / "out", "a")) in capsys.readouterr().out


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An evaluation of two rows on three subjects, with pictures of its two worst cases."""
    studies = [write_study(tmp_path / "data" / f"case{i}", ADNI.names, (16, 15, 8), seed=i) for i in range(3)]
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, 2)
    copies = {name: Copy(slices.preprocessing) for name in ("copy", "again")}
    budget = {"model": str(tmp_path / "Doe_Jane" / "model"), "trained on": "digital phantom"}
    evaluate_methods(copies, slices, None, tmp_path / "eval", budget=budget, worst=2)
    return tmp_path / "eval"


def test_a_cohorts_report_has_tables_distributions_and_the_worst_cases_first(evaluated: Path) -> None:
    path = write_cohort_report(evaluated, ADNI)
    page, text = Page(path), path.read_text()
    assert path.name == "report_SYNTHETIC.html"
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert "script-src 'none'" in page.policy
    worst = json.loads((evaluated / "results.json").read_text())["worst"]
    assert len(worst) == 2 and worst[0]["psnr_brain"] <= worst[1]["psnr_brain"]
    places = [text.index(f"<h3>{case['subject']}: {case['target'].upper()}") for case in worst]
    assert places == sorted(places) and places[-1] < text.index("Whole slice")
    for case in worst:
        assert base64.b64encode((evaluated / case["picture"]).read_bytes()).decode() in text
    assert "RESEARCH USE ONLY" in page.text and "all others" in page.text
    assert "Doe" not in text and "digital phantom" in page.text


def test_the_worst_cases_are_those_with_the_lowest_scores_of_the_main_row(evaluated: Path) -> None:
    from apt_monai.evaluation.record import read_rows

    rows = [row for row in read_rows(evaluated / "results.csv") if row.method == "again"]
    means: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        means.setdefault((row.subject, row.target), []).append(row.psnr_brain)
    ordered = sorted(means, key=lambda key: sum(means[key]) / len(means[key]))
    worst = json.loads((evaluated / "results.json").read_text())["worst"]
    assert [(case["subject"], case["target"]) for case in worst] == ordered[:2]
    lowest = min((row for row in rows if (row.subject, row.target) == ordered[0]), key=lambda row: row.psnr_brain)
    assert worst[0]["slice"] == lowest.slice


def test_an_evaluation_that_is_not_finished_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results.json: is not there; evaluate"):
        write_cohort_report(tmp_path, ADNI)
    (tmp_path / "results.json").write_text('{"complete": false}')
    with pytest.raises(ValueError, match="not finished"):
        write_cohort_report(tmp_path, ADNI)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="not the record of an evaluation"):
        write_cohort_report(tmp_path, ADNI)
