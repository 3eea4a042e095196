"""Reports in a real browser: headless Chromium, from a file, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from tiny_reports import written_report
from tiny_studies import write_study

from apt_monai.contrasts import ADNI
from apt_monai.evaluation import EvaluationSlices, evaluate_methods
from apt_monai.methods import Copy
from apt_monai.report import write_cohort_report

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PLANES = ("axial", "coronal", "sagittal")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "there is no Chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    """A study's report, its images drawn."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # what an earlier page left
    browser.get(written_report(tmp_path / "case1").as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready"))
    return browser


def complaints(browser: webdriver.Chrome) -> list[Any]:
    return [entry["message"] for entry in browser.get_log("browser")]


def requested(browser: webdriver.Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def drawn(browser: webdriver.Chrome, pane: str) -> str:
    """The pixels of a pane, once what was asked for is drawn."""
    wait = "const done = arguments[1]; requestAnimationFrame(() => requestAnimationFrame(() => done("
    return str(browser.execute_async_script(wait + "document.getElementById(arguments[0]).toDataURL())))", pane))


def cursor(browser: webdriver.Chrome) -> list[int]:
    drawn(browser, "pane-0-axial")
    return [int(n) for n in browser.find_element(By.ID, "position").get_attribute("data-voxel").split(",")]


def set_slider(browser: webdriver.Chrome, slider: str, value: int) -> None:
    script = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, slider, value)


def pane(browser: webdriver.Chrome, name: str) -> Any:
    element = browser.find_element(By.ID, name)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def test_a_report_opens_from_a_file_without_a_complaint_or_a_request(opened: webdriver.Chrome) -> None:
    assert complaints(opened) == []
    urls = requested(opened)
    assert [url for url in urls if url.startswith("file:")] == [opened.current_url]
    assert not [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def test_the_notice_is_visible_wherever_one_scrolls_to(opened: webdriver.Chrome) -> None:
    notice = opened.find_element(By.ID, "notice")
    for where in (0, 800, 100000):
        opened.execute_script("window.scrollTo(0, arguments[0])", where)
        box = opened.execute_script("return arguments[0].getBoundingClientRect().toJSON()", notice)
        assert box["top"] == 0 and box["height"] > 20 and box["width"] > 1300
        script = "return document.elementFromPoint(200, 10).closest('#notice') !== null"
        assert opened.execute_script(script), "something lies over it"
    assert "RESEARCH USE ONLY" in notice.text


def test_every_contrast_is_drawn_in_three_planes_and_only_synthetic_ones_say_so(opened: webdriver.Chrome) -> None:
    script = """
      const canvas = document.getElementById(arguments[0]);
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let grey = 0, orange = 0;
      for (let p = 0; p < data.length; p += 4) {
        if (data[p] > 60 && data[p] === data[p + 1] && data[p] === data[p + 2]) grey++;
        if (data[p] > 240 && data[p + 1] > 150 && data[p + 1] < 200 && data[p + 2] < 30) orange++;
      }
      return [grey, orange];"""
    for number in range(4):
        for plane in PLANES:
            grey, orange = opened.execute_script(script, f"pane-{number}-{plane}")
            assert grey > 1000, f"nothing is drawn in pane {number}, {plane}"
            assert (orange > 100) == (number == 3), f"pane {number}, {plane}: {orange} pixels of the mark"
    for plane in PLANES:
        assert opened.execute_script(script, f"compared-{plane}")[1] > 100


def test_a_click_in_one_pane_moves_the_cursor_in_all(opened: webdriver.Chrome) -> None:
    before = {name: drawn(opened, name) for name in ("pane-2-coronal", "pane-3-sagittal", "pane-1-axial")}
    start = cursor(opened)
    target = pane(opened, "pane-0-axial")
    # to the right of the middle is the patient's left, above it is the front
    ActionChains(opened).move_to_element_with_offset(target, target.size["width"] // 5, -20).click().perform()
    x, y, z = cursor(opened)
    assert x < start[0] and y > start[1] and z == start[2]
    assert all(drawn(opened, name) != pixels for name, pixels in before.items())


def test_wheel_and_keys_step_through_slices_and_move_the_cursor(opened: webdriver.Chrome) -> None:
    x, y, z = cursor(opened)
    target = pane(opened, "pane-3-axial")
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(target)
    ActionChains(opened).scroll_from_origin(origin, 0, -100).perform()
    assert cursor(opened) == [x, y, z + 1]
    opened.execute_script("arguments[0].focus()", target)
    ActionChains(opened).send_keys(Keys.PAGE_DOWN, Keys.PAGE_DOWN, Keys.ARROW_LEFT, Keys.ARROW_UP).perform()
    assert cursor(opened) == [x + 1, y + 1, z - 1]
    assert f"axial {z} of" in opened.find_element(By.CSS_SELECTOR, "#grid figcaption").text


def test_the_slider_goes_from_the_acquired_neighbour_to_the_synthetic_contrast(opened: webdriver.Chrome) -> None:
    assert Select(opened.find_element(By.ID, "left")).first_selected_option.text == "T1, acquired"
    assert Select(opened.find_element(By.ID, "right")).first_selected_option.text == "T1Gd, SYNTHETIC"
    for mode in ("wipe", "fade"):
        opened.execute_script("document.querySelector(arguments[0]).click()", f"input[value={mode}]")
        seen = set()
        for value in (0, 40, 100):
            set_slider(opened, "mix", value)
            seen.add(drawn(opened, "compared-axial"))
        assert len(seen) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda browser: browser.find_element(By.ID, "uncertainty").click(),
        lambda browser: ActionChains(browser).send_keys("u").perform(),
    ],
    ids=["by its box", "by its key"],
)
def test_the_uncertainty_is_laid_over_the_synthetic_contrast_alone(
    opened: webdriver.Chrome, change: Callable[[webdriver.Chrome], None]
) -> None:
    acquired, synthetic = drawn(opened, "pane-1-axial"), drawn(opened, "pane-3-axial")
    change(opened)
    over = drawn(opened, "pane-3-axial")
    assert over != synthetic and drawn(opened, "pane-1-axial") == acquired
    set_slider(opened, "opacity", 100)
    assert drawn(opened, "pane-3-axial") != over


def test_the_prior_takes_the_place_of_the_synthetic_contrast_alone_and_has_no_uncertainty(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    browser.get(written_report(tmp_path / "case1", prior=True).as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready"))

    def values() -> list[str]:
        return [browser.find_element(By.ID, f"value-{number}").text for number in range(4)]

    names = ("pane-1-axial", "pane-3-axial", "compared-axial")
    before, read = [drawn(browser, name) for name in names], values()
    assert "±" in read[3]
    ActionChains(browser).send_keys("p").perform()
    assert browser.find_element(By.ID, "prior").is_selected()
    after = [drawn(browser, name) for name in names]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]
    assert values()[:3] == read[:3] and "±" not in values()[3] and values()[3] != read[3]
    ActionChains(browser).send_keys("u").perform()
    assert drawn(browser, "pane-3-axial") == after[1], "the uncertainty is not the prior's"
    ActionChains(browser).send_keys("pu").perform()
    assert [drawn(browser, name) for name in names] == before


def test_a_method_without_prior_or_uncertainty_has_no_control_of_it(browser: webdriver.Chrome, tmp_path: Path) -> None:
    for given in (True, False):
        browser.get(written_report(tmp_path / f"case{given}", prior=given, uncertain=given).as_uri())
        WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready"))
        for control in ("prior-controls", "uncertainty-controls"):
            assert browser.find_element(By.ID, control).is_displayed() == given


def test_a_right_drag_changes_one_contrasts_window_until_it_is_reset(opened: webdriver.Chrome) -> None:
    names = ("pane-0-axial", "pane-1-axial")
    before = [drawn(opened, name) for name in names]
    target = pane(opened, names[0])
    shifted = ActionChains(opened).key_down(Keys.SHIFT).move_to_element(target).click_and_hold()
    shifted.move_by_offset(60, 40).release().key_up(Keys.SHIFT).perform()
    after = [drawn(opened, name) for name in names]
    assert after[0] != before[0] and after[1] == before[1]
    opened.find_element(By.ID, "reset").click()
    assert [drawn(opened, name) for name in names] == before


def test_a_cohorts_report_opens_without_a_complaint_or_a_request(browser: webdriver.Chrome, tmp_path: Path) -> None:
    studies = [write_study(tmp_path / "data" / f"case{i}", ADNI.names, (16, 15, 8), seed=i) for i in range(2)]
    slices = EvaluationSlices(studies, tmp_path / "cache", ADNI, 2)
    evaluate_methods({"copy": Copy(slices.preprocessing)}, slices, [["t1", "t2"]], tmp_path / "eval", worst=1)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(write_cohort_report(tmp_path / "eval", ADNI).as_uri())
    assert complaints(browser) == []
    assert not [url for url in requested(browser) if not url.startswith(("file:", "data:"))]
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 100
