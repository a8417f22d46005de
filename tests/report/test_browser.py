"""The page in a real browser: it runs without a complaint, and all of it can be seen."""

import base64
import shutil

import pytest

from lowbit.report import render_html
from tests.report.studies import odd_studies, study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine"
    ),
]
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
NAMES = ["transformer.wte", *(f"transformer.h.{i}.attn" for i in range(3)), "lm_head"]

# Every picture that is not put aside, with the size of its box and whether something is drawn.
PICTURES = """
return [...document.querySelectorAll('svg.picture')].filter(s => !s.closest('.aside')).map(s => {
  const box = s.getBoundingClientRect();
  const inside = s.querySelector('g').getBBox();
  return [s.getAttribute('aria-labelledby'), box.width, box.height, inside.width, inside.height];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(study(6, NAMES)), encoding="utf-8")
    return path


def opened(browser, path, width, dark=False, script=True):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(path.as_uri())


def assert_calm(browser):
    assert browser.get_log("browser") == []


def assert_no_sideways_scroll(browser):
    wide, screen = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    )
    assert wide <= screen


def assert_every_picture_is_seen(browser, at_least):
    pictures = browser.execute_script(PICTURES)
    assert len(pictures) >= at_least
    for name, *sizes in pictures:
        assert all(size > 20 for size in sizes), (name, sizes)


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_calm_and_fits(width, dark, browser, file):
    opened(browser, file, width, dark)
    assert_calm(browser)
    assert_no_sideways_scroll(browser)
    assert_every_picture_is_seen(browser, 15)


def test_the_log_would_hold_a_complaint(browser, file, tmp_path):
    broken = tmp_path / "broken.html"
    harm = "<script>1</script><img src='http://localhost:9/x.png'>"
    broken.write_text(file.read_text(encoding="utf-8") + harm, encoding="utf-8")
    opened(browser, broken, 1200)
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert len(complaints) >= 2 and all("Content Security Policy" in c for c in complaints)


def test_the_choice_of_a_module_shows_that_one_alone(browser, file):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, file, 1200)
    choice = browser.find_element(By.ID, "layer")
    assert choice.is_displayed()

    def seen():
        figures = browser.find_elements(By.CSS_SELECTOR, "figure.layer")
        return [f.get_attribute("id") for f in figures if f.is_displayed()]

    assert seen() == ["layer-0"]
    choice.send_keys(Keys.ARROW_DOWN)
    assert seen() == ["layer-1"]
    assert_every_picture_is_seen(browser, 15)
    assert_calm(browser)


def test_without_scripts_every_module_is_there(browser, file):
    opened(browser, file, 1200, script=False)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('figure.layer')].map(f => f.offsetHeight > 100)"
    )
    assert shown == [True] * 4
    assert not browser.execute_script("return document.querySelector('.choice').offsetHeight")


def test_text_is_told_from_its_background_in_both_schemes(browser, file):
    script = """
    const style = getComputedStyle(document.querySelector('svg.picture text'));
    return [style.fill, getComputedStyle(document.body).backgroundColor]"""

    def contrast(colours):
        light = []
        for colour in colours:
            parts = [int(part) / 255 for part in colour[4:-1].split(",")]
            linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
        return (max(light) + 0.05) / (min(light) + 0.05)

    for dark in (False, True):
        opened(browser, file, 1200, dark)
        assert contrast(browser.execute_script(script)) >= 7


def test_it_prints_with_every_module(browser, file):
    opened(browser, file, 1200)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.execute_script(
        "return [...document.querySelectorAll('figure.layer')].map(f => f.offsetHeight > 100)"
    )
    assert shown == [True] * 4
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000


@pytest.mark.parametrize("name", list(odd_studies()))
def test_odd_studies_are_calm_and_fit(name, browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_html(odd_studies()[name]), encoding="utf-8")
    for width in (400, 1200):
        opened(browser, path, width)
        assert_calm(browser)
        assert_no_sideways_scroll(browser)
        assert_every_picture_is_seen(browser, 0)
    assert browser.execute_script("return document.body.innerText.length") > 200
