"""The report's page in a real browser: pictures there, tables sort, a picture opens large, a prompt stays text."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from known_runs import EVIL, SLOWER, make_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from gdro_bench.comparison import entries, report

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(DRIVER is None, reason="needs Chromium and its driver on the PATH")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, "--window-size=1200,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make_run(folder / "gdro")
    make_run(folder / "flow", "flow-grpo", rewards=SLOWER, pool=0)
    make_run(folder / "dance", "dance-grpo", rewards=(0.4, 0.5, 0.6, 0.65, 0.7), pool=0)
    runs = [entries.load(run) for run in sorted(entries.find(folder)[0])]
    report.write(entries.compare(runs, False), folder / "out", "evaluations", None)
    return folder / "out" / "page.html"


@pytest.fixture
def page(browser: WebDriver, written: Path) -> WebDriver:
    browser.get(written.as_uri())
    return browser


def test_every_picture_is_there_and_nothing_complains(page: WebDriver) -> None:
    widths = page.execute_script("return [...document.images].filter(i => i.src).map(i => i.naturalWidth)")
    assert len(widths) >= 4 + 4 * 7  # figures; the base and three methods in the rows of two grids
    assert all(width > 0 for width in widths)
    assert page.get_log("browser") == []


def test_the_contents_name_every_section_in_order(page: WebDriver) -> None:
    links = page.find_elements(By.CSS_SELECTOR, "nav a")
    told = [(link.get_property("hash"), link.get_property("textContent")) for link in links]
    sections = page.find_elements(By.TAG_NAME, "section")
    headings = [section.find_element(By.TAG_NAME, "h2").text for section in sections]
    assert told == [(f"#{s.get_property('id')}", text) for s, text in zip(sections, headings, strict=True)]
    assert len({hash for hash, _ in told}) == len(told)


def test_a_table_sorts_both_ways_by_number(page: WebDriver) -> None:
    tables = page.find_elements(By.CSS_SELECTOR, "table.sortable")
    table = next(table for table in tables if "gain over base" in table.text)

    def column() -> list[str]:
        rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
        return [row.find_elements(By.TAG_NAME, "td")[0].text for row in rows]

    heads = table.find_elements(By.TAG_NAME, "button")
    reward = next(button for button in heads if button.text == "reward")
    reward.click()
    assert column() == ["flow-grpo", "dance-grpo", "gdro"]
    reward.click()
    assert column() == ["gdro", "dance-grpo", "flow-grpo"]


def test_a_worded_difference_sorts_by_its_number(page: WebDriver) -> None:
    table = page.find_element(By.CSS_SELECTOR, "table.sortable")
    heads = table.find_elements(By.TAG_NAME, "button")
    next(button for button in heads if button.text == "against gdro's").click()
    labels = [row.find_element(By.TAG_NAME, "td").text for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert labels == ["flow-grpo", "dance-grpo", "gdro"]  # -0.2, -0.1, and an empty cell


def emulate(browser: WebDriver, width: int, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def brightness(browser: WebDriver, selector: str, what: str) -> float:
    code = f"return getComputedStyle(document.querySelector('{selector}')).{what}"
    red, green, blue = map(int, re.findall(r"\d+", browser.execute_script(code))[:3])
    return (red + green + blue) / (3 * 255)


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_screen_s_colours(page: WebDriver, scheme: str, is_dark: bool) -> None:
    emulate(page, 1280, scheme)
    assert (brightness(page, "body", "backgroundColor") < 0.2) == is_dark
    assert (brightness(page, "body", "color") > 0.8) == is_dark
    assert brightness(page, "figure img", "backgroundColor") == 1.0  # figures are drawn in black on white


@pytest.mark.parametrize("width", [400, 1280])
def test_wide_tables_scroll_in_their_own_box(page: WebDriver, width: int) -> None:
    emulate(page, width, "light")
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    code = "return getComputedStyle(arguments[0]).overflowX"
    tables = page.find_elements(By.TAG_NAME, "table")
    boxes = [table.find_element(By.XPATH, "..") for table in tables]
    assert all(page.execute_script(code, box) == "auto" for box in boxes)
    if width == 1280:
        assert all(box.size["width"] >= table.size["width"] for box, table in zip(boxes, tables, strict=True))


def test_a_picture_opens_large_and_closes(page: WebDriver) -> None:
    small = page.find_element(By.CSS_SELECTOR, ".grid button img")
    page.execute_script("arguments[0].scrollIntoView()", small)
    before = small.size["width"]
    small.click()
    dialog = page.find_element(By.TAG_NAME, "dialog")
    assert dialog.is_displayed()
    assert dialog.find_element(By.TAG_NAME, "img").size["width"] > 3 * before
    dialog.click()
    assert not dialog.is_displayed()


def test_a_prompt_with_a_script_stays_text(page: WebDriver) -> None:
    assert EVIL in page.find_element(By.TAG_NAME, "body").text
    assert len(page.find_elements(By.TAG_NAME, "script")) == 1


def test_it_prints_on_a_few_pages(page: WebDriver) -> None:
    from base64 import b64decode

    printed = b64decode(page.print_page())
    assert printed[:4] == b"%PDF"
    assert 1 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") + printed.count(b"/Type /Page ") <= 12
