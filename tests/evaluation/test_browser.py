"""report.html in a real browser: filters, links, widths; it asks nothing of anybody and runs nothing foreign."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from finetune.evaluation.render import render_html
from tests.evaluation.builders import PNG, an_evaluation
from tests.evaluation.hostile_outputs import PAYLOADS, spoiled

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs a browser: apt-get install chromium chromium-driver",
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
)  # fmt: skip
NARROW, WIDE = 360, 1280  # CSS pixels


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report as there are many, and one with everything hostile."""
    folder = tmp_path_factory.mktemp("pages")
    base = [["one pizza"] * 3 if i % 4 == 0 else ["a cola"] * 3 for i in range(24)]
    adapter = [
        ["two pizza", "no", "no"] if i == 8 else ["no"] * 3 if i in (4, 5) else ["a pizza"] * 3 for i in range(24)
    ]
    found = an_evaluation(base, adapter, {"other": [["pizza of others"] * 3] * 24})
    (folder / "report.html").write_text(render_html(found.report, found.samples, PNG, "name: pizza"), encoding="utf-8")
    hurt = spoiled(PAYLOADS)
    (folder / "hostile.html").write_text(
        render_html(hurt.report, hurt.samples, PNG, "\n".join(PAYLOADS)), encoding="utf-8"
    )
    leaky = '<img src="http://127.0.0.1:9/x.png"><script>window.pwned=1</script><p style="width:900px">wide</p>'
    (folder / "leaky.html").write_text(f"<!doctype html>{leaky}", encoding="utf-8")
    return folder


def show(browser: Chrome, page: Path, fragment: str = "", *, width: int = WIDE, scheme: str = "light") -> None:
    """Open a page anew, so that nothing of an earlier test is left."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri() + fragment)


def asked(browser: Chrome) -> list[str]:
    """Everything the page requested, itself left out."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:"))]


def shown(browser: Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('.sample')].filter(c => c.checkVisibility()).map(c => c.id)"
    found: list[str] = browser.execute_script(script)
    return found


def count(browser: Chrome) -> str:
    return browser.find_element(By.CSS_SELECTOR, ".filters output").text


def pick(browser: Chrome, outcome: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"input[value={outcome}]").click()


def overflow(browser: Chrome) -> int:
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return int(browser.execute_script(script))


def screenshot(browser: Chrome, to: Path) -> tuple[int, int, int]:
    """Save a picture; return its width, height and size in bytes."""
    data = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    to.write_bytes(data)
    width, height = struct.unpack(">II", data[16:24])
    return width, height, len(data)


def test_filters_show_what_is_asked_for_and_how_much_that_is(browser: Chrome, pages: Path) -> None:
    show(browser, pages / "report.html")
    assert count(browser) == "24 of 24 prompts shown"
    assert shown(browser) == ["p-4", "p-8", "p-5"]  # what passed is folded away
    pick(browser, "regressed")
    assert shown(browser) == ["p-4", "p-8"]
    pick(browser, "flaky")
    assert shown(browser) == ["p-8"]
    assert count(browser) == "1 of 24 prompts shown"
    pick(browser, "passed")
    assert len(shown(browser)) == 21  # and is unfolded
    browser.find_element(By.CSS_SELECTOR, "select").send_keys("odd")
    assert len(shown(browser)) == 11
    assert browser.execute_script("return location.hash") == "#outcome=passed&tag=odd"
    search = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    search.send_keys("QUESTION 23")
    assert shown(browser) == ["p-23"]
    search.send_keys(" nowhere")
    assert count(browser) == "0 of 24 prompts shown"
    browser.find_element(By.CSS_SELECTOR, ".filters button").click()
    assert count(browser) == "24 of 24 prompts shown"
    assert browser.find_element(By.CSS_SELECTOR, "input[value=error]").get_attribute("disabled") == "true"


def test_filters_work_by_keyboard_alone(browser: Chrome, pages: Path) -> None:
    show(browser, pages / "report.html")
    browser.find_element(By.CSS_SELECTOR, "input[type=search]").click()
    browser.switch_to.active_element.send_keys("p-5", Keys.TAB)
    assert browser.switch_to.active_element.tag_name == "select"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("value") == "all"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script("return location.hash") == "#q=p-5&outcome=failed"
    assert shown(browser) == ["p-5"]


def test_a_link_leads_to_a_filter_or_to_one_prompt(browser: Chrome, pages: Path) -> None:
    show(browser, pages / "report.html", "#outcome=regressed&tag=even")
    assert shown(browser) == ["p-4", "p-8"]
    show(browser, pages / "report.html", "#p-17")  # passed, so it is folded away
    assert "p-17" in shown(browser)
    reached = "return Math.abs(document.getElementById('p-17').getBoundingClientRect().top - 150) < 150"
    WebDriverWait(browser, 3).until(lambda driver: driver.execute_script(reached))
    assert browser.switch_to.active_element.get_attribute("id") == "p-17"
    browser.execute_script("location.hash = '#p-99'")
    WebDriverWait(browser, 3).until(lambda driver: "p-99 is not on this page" in count(driver))


def test_without_script_everything_is_there_and_no_filter_pretends_to_work(browser: Chrome, pages: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        for name in ("p-4", "p-17"):  # p-17 is folded away: the browser unfolds what a link leads to
            show(browser, pages / "report.html", f"#{name}")
            lines = laid_out(browser, f"question {name[2:]}")
            assert not any("prompts shown" in line or line == "Outcome" for line in lines)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def laid_out(browser: Chrome, wanted: str) -> list[str]:
    """The texts that have a place on the page, as soon as one of them is there: cards far away have none yet."""
    for _ in range(50):
        tree = browser.execute_cdp_cmd("DOMSnapshot.captureSnapshot", {"computedStyles": []})
        lines = [tree["strings"][place] for place in tree["documents"][0]["layout"]["text"] if place >= 0]
        if any(wanted in line for line in lines):
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{wanted!r} is not shown")


@pytest.mark.parametrize(
    ("page", "width", "scheme"),
    [("report.html", WIDE, "light"), ("report.html", NARROW, "dark"), ("hostile.html", NARROW, "dark")],
)
def test_it_asks_nothing_runs_nothing_and_fits(
    browser: Chrome, pages: Path, tmp_path: Path, page: str, width: int, scheme: str
) -> None:
    show(browser, pages / page, width=width, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert overflow(browser) <= 0
    found = screenshot(browser, tmp_path / "page.png")
    assert found[:2] == (width, 900)
    assert found[2] > 10_000
    assert asked(browser) == []
    assert browser.get_log("browser") == []  # no error, and nothing that the policy had to refuse
    assert browser.execute_script("return typeof window.pwned") == "undefined"
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(16, 19, 24)" if scheme == "dark" else "rgb(246, 247, 249)")


def test_what_a_page_asks_or_runs_would_be_seen(browser: Chrome, pages: Path) -> None:
    show(browser, pages / "leaky.html", width=NARROW)
    assert asked(browser) == ["http://127.0.0.1:9/x.png"]
    assert browser.execute_script("return window.pwned") == 1
    assert overflow(browser) > 0
    log: list[dict[str, Any]] = browser.get_log("browser")
    assert any("x.png" in entry["message"] for entry in log)
