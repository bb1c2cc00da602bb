"""The report's page in a real browser: pictures there, tables sort, a picture opens large, a prompt stays text."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from test_compare import EVIL, SLOWER, make_run

from gdro_bench.compare import entries, report

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


@pytest.fixture
def page(browser: WebDriver, tmp_path: Path) -> WebDriver:
    make_run(tmp_path / "gdro")
    make_run(tmp_path / "flow", "flow-grpo", rewards=SLOWER, pool=0)
    make_run(tmp_path / "dance", "dance-grpo", rewards=(0.4, 0.5, 0.6, 0.65, 0.7), pool=0)
    runs = [entries.load(folder) for folder in sorted(entries.find(tmp_path)[0])]
    report.write(entries.compare(runs, False), tmp_path / "out", "evaluations", None)
    browser.get((tmp_path / "out" / "page.html").as_uri())
    return browser


def test_every_picture_is_there_and_nothing_complains(page: WebDriver) -> None:
    widths = page.execute_script("return [...document.images].filter(i => i.src).map(i => i.naturalWidth)")
    assert len(widths) >= 2 + 4 * 8
    assert all(width > 0 for width in widths)
    assert page.get_log("browser") == []


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
