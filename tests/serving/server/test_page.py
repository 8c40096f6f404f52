"""The chat page in a real browser: send, stream, swap, compare, stop, errors, keys, widths."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.evaluation import test_browser
from tests.evaluation.test_browser import NARROW, WIDE, overflow
from tests.serving.server import test_reports
from tests.serving.server.conftest import KEY, Live, wait_for
from tests.serving.server.test_reports import HOSTILE

browser, report = test_browser.browser, test_reports.report  # fixtures
pytestmark = test_browser.pytestmark


class Page:
    """The chat page as a person uses it."""

    def __init__(self, browser: Chrome, live: Live) -> None:
        self.browser, self.live, self.url = browser, live, f"http://127.0.0.1:{live.port}/"

    def open(self, *, width: int = WIDE, scheme: str = "light", key: str = KEY) -> None:
        """Open the page anew and give it the key."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get("about:blank")
        self.browser.get(self.url)
        wait_for(lambda: self.one("#trouble").is_displayed())  # the server has a key, the page has none yet
        for log in ("browser", "performance"):
            self.browser.get_log(log)
        self.fill("key", key)
        if key == KEY:
            wait_for(lambda: len(self.all("#voice-0 option")) > 1)
            self.fill("max_tokens", "8")

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        found: list[str] = self.browser.execute_script(script, selector)
        return found

    def fill(self, name: str, value: str) -> None:
        place = self.one(f"#settings [name={name}]")
        place.clear()
        place.send_keys(value, Keys.TAB)

    def pick(self, side: int, text: str) -> None:
        place = self.one(f"#voice-{side}")
        next(o for o in place.find_elements(By.TAG_NAME, "option") if o.text == text).click()

    def send(self, text: str) -> None:
        """Send a message and wait for the answers."""
        turns = len(self.all(".turn"))
        self.one("#message").send_keys(text, Keys.ENTER)
        wait_for(lambda: len(self.all(".turn")) == turns + 1 and self.one("#send").is_enabled())

    @property
    def focus(self) -> WebElement:
        return self.browser.switch_to.active_element

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the requests for answers since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert all(each["url"].startswith((self.url, "data:")) for each in sent), "nobody else is asked"
        return [json.loads(each["postData"]) for each in sent if "postData" in each]


@pytest.fixture(scope="module")
def page(browser: Chrome, live: Live) -> Page:
    return Page(browser, live)


def expected(live: Live, model: str, *messages: dict[str, str]) -> str:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}
    text: str = live.call("POST", "/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    return text


def test_send_compare_and_swap(page: Page) -> None:
    page.open()
    assert page.texts("#voice-0 option") == [
        f"{page.live.model} (base)",
        *page.live.app.catalogue.bank.names,
        "a blend …",
    ]
    page.pick(0, "a1")
    page.pick(1, "a blend …")
    page.one("#blend-1").send_keys("a2+0.5*a3", Keys.TAB)
    wait_for(lambda: page.texts(".voice:last-child .papers button") == ["Card of a2", "Card of a3"])
    first = {"role": "user", "content": "two pizzas"}
    page.send("two pizzas")
    said = [expected(page.live, model, first) for model in ("a1", "a2+0.5*a3")]
    assert page.texts(".answer h2") == ["a1", "a2+0.5*a3"]
    assert page.texts(".answer .text") == said
    heard = page.texts("#heard p")
    for model, text in zip(("a1", "a2+0.5*a3"), said, strict=True):  # in sentences, each with who says it
        head = f"{model}: "
        assert "".join(line.removeprefix(head) for line in heard if line.startswith(head)).strip() == text.strip()
    page.pick(0, f"{page.live.model} (base)")
    page.pick(1, "nobody")
    page.send("and a cola")
    second = ({"role": "assistant", "content": said[0]}, {"role": "user", "content": "and a cola"})
    assert page.texts(".turn:last-child .text") == [expected(page.live, page.live.model, first, *second)]
    assert page.asked()[-1]["messages"] == [first, *second], "a side remembers its own answers"
    assert page.browser.get_log("browser") == [], "no error, and nothing that the policy had to refuse"
    page.one("#reset").click()
    assert page.all(".turn") == []
    page.send("hello")
    assert [m["content"] for m in page.asked()[-1]["messages"]] == ["hello"]


def test_settings_are_sent_and_an_answer_streams(page: Page) -> None:
    page.open()
    for name, value in (
        ("temperature", "0.5"),
        ("top_p", "0.9"),
        ("top_k", "5"),
        ("seed", "7"),
        ("system", "Be kind."),
    ):
        page.fill(name, value)
    # Every length that the answer has on its way.
    page.browser.execute_script(
        "window.lengths = [];"
        "const note = () => lengths.push(document.querySelector('.text')?.textContent.length);"
        "new MutationObserver(note).observe(document.getElementById('log'), {childList: true, subtree: true})"
    )
    page.one("#message").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    page.send("")
    (body,) = page.asked()
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one\ntwo"},
    ]
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_tokens": 8, "seed": 7}
    assert {name: body[name] for name in sampling} == sampling
    assert len(set(page.browser.execute_script("return lengths"))) > 3
    assert "tokens" in page.texts(".facts")[0]


def test_tokens_show_their_probabilities_by_pointer_and_by_keyboard(page: Page) -> None:
    page.open()
    page.send("hello")
    tokens = page.all(".token")
    ActionChains(page.browser).move_to_element(tokens[0]).perform()
    rows = page.texts("#tip tr")
    assert len(rows) >= 5
    assert all("%" in row for row in rows)
    page.one("#message").click()
    page.focus.send_keys(Keys.SHIFT, Keys.TAB)  # one stop for the whole answer
    assert page.focus == tokens[0]
    assert page.one("#tip").is_displayed()
    page.focus.send_keys(Keys.ARROW_RIGHT)
    assert page.focus == tokens[1]
    assert tokens[1].get_attribute("aria-describedby") == "tip"
    page.focus.send_keys(Keys.ESCAPE)
    assert not page.one("#tip").is_displayed()


@contextmanager
def held(live: Live, passes: int) -> Iterator[threading.Event]:
    """Let the model run so many times and then wait for the event: an answer lasts as long as a test wants."""
    go_on, free = threading.Event(), iter(range(passes))

    def wait(*_: object) -> None:
        if next(free, None) is None:
            go_on.wait()

    hook = live.engine.base.model.register_forward_pre_hook(wait)
    try:
        yield go_on
    finally:
        go_on.set()
        hook.remove()


@pytest.mark.parametrize("how", ["key", "button"])
def test_stop_ends_the_answer(page: Page, how: str) -> None:
    question, engine = {"role": "user", "content": "go on and on"}, page.live.engine
    told = {"model": "a1", "messages": [question], "temperature": 0, "max_tokens": 100}
    whole = page.live.call("POST", "/v1/chat/completions", told).json
    assert whole["usage"]["completion_tokens"] == 100, "by itself it goes on to the limit"
    page.open()
    page.pick(0, "a1")
    page.fill("temperature", "0")
    page.fill("max_tokens", "100")
    wait_for(lambda: page.live.app.lifecycle.in_flight == 0)
    before = engine.stats
    with held(page.live, passes=4) as go_on:
        page.one("#message").send_keys(question["content"], Keys.ENTER)
        wait_for(lambda: len(page.all(".token")) > 0)
        if how == "key":
            page.focus.send_keys(Keys.ESCAPE)
        else:
            page.one("#stop").click()
        wait_for(page.one("#send").is_enabled)
        wait_for(lambda: page.live.app.lifecycle.in_flight == 0)  # the server has heard of it
        go_on.set()
        wait_for(lambda: engine.stats.running == 0)
    after = engine.stats
    assert (after.cancelled, after.finished) == (before.cancelled + 1, before.finished)
    assert 0 < after.completion_tokens - before.completion_tokens <= 5, "what was read, and the step that was held"
    assert "stopped" in page.texts(".facts")[0]
    said = page.texts(".text")[0]
    assert said
    assert whole["choices"][0]["message"]["content"].startswith(said)
    page.fill("max_tokens", "2")
    page.send("hello")
    assert len(page.asked()[-1]["messages"]) == 3, "what was said until then is remembered"


def test_errors_are_shown_as_the_server_words_them(page: Page) -> None:
    page.open(key="sk-wrong")
    wait_for(lambda: "Incorrect API key provided" in page.texts("#trouble"))
    assert page.focus.get_attribute("name") == "key"
    page.open()
    page.fill("temperature", "3")
    page.send("hello")
    wrong = {"model": "a0", "messages": [{"role": "user", "content": "x"}], "temperature": 3}
    assert page.texts(".answer .error") == [page.live.call("POST", "/v1/chat/completions", wrong).error["message"]]
    page.fill("temperature", "0")
    page.pick(0, "a blend …")
    page.one("#blend-0").send_keys(HOSTILE)
    page.send(HOSTILE)
    assert page.texts(".turn:last-child .asked, .turn:last-child h2") == [HOSTILE, HOSTILE]
    assert "does not exist" in page.texts(".turn:last-child .error")[0]
    assert page.browser.execute_script("return typeof window.pwned") == "undefined"
    assert len(page.asked()[-1]["messages"]) == 1, "what has no answer is not sent again"


def test_card_and_report_are_a_click_away(page: Page, report: Path) -> None:
    page.open()
    wait_for(lambda: len(page.all(".papers a")) == 1)
    page.one(".papers button").click()
    facts = dict(zip(page.texts("#card dt"), page.texts("#card dd"), strict=True))
    assert facts["Method"] == "lora, r 4, alpha 16"
    page.focus.send_keys(Keys.ESCAPE)
    wait_for(lambda: not page.one("#card").is_displayed())
    page.browser.get(str(page.one(".papers a").get_attribute("href")))
    assert page.browser.find_element(By.ID, "here").is_displayed()
    assert page.browser.title == "null", "it is no part of the server, whatever it runs"


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_it_fits_and_everything_has_a_name(page: Page, width: int, scheme: str) -> None:
    page.open(width=width, scheme=scheme)
    page.pick(1, "a2")
    page.send("w" * 200)
    assert overflow(page.browser) <= 0
    colour = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(16, 19, 24)" if scheme == "dark" else "rgb(246, 247, 249)")
    for place in page.all("button, select, input, textarea, article, [role=group], [role=log]"):
        assert place.accessible_name or not place.is_displayed(), place.get_attribute("outerHTML")
    lefts = {place.rect["x"] for place in page.all(".answer")}
    assert len(lefts) == (1 if width == NARROW else 2), "side by side where there is room"
