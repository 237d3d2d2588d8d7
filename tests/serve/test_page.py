"""The chat page in a real Chromium: it streams, stops, speaks two languages and needs the key."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import KEY, Server
from tests.serve.slow_proxy import SlowProxy

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
LONG = "房间很干净，服务也好。 4"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: sync_api.Browser, server: Server) -> Iterator[sync_api.Page]:
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    sync_api.expect(page.locator("#model")).to_have_text("small · folder")
    yield page
    context.close()
    assert all(url.startswith(server.url) for url in asked)
    assert [p for p in problems if "401" not in p and "favicon" not in p and "404" not in p] == []


def test_conversation_is_streamed_and_remembered(page: sync_api.Page, server: Server) -> None:
    bodies: list[str] = []
    page.on(
        "request",
        lambda request: bodies.append(request.post_data or "") if request.method == "POST" else None,
    )
    page.fill("#key", KEY)
    page.fill("#tokens", "40")
    page.fill("#prompt", "房间 1")
    page.press("#prompt", "Enter")
    sync_api.expect(page.locator("#send")).to_be_enabled()
    sync_api.expect(page.locator("p.assistant")).to_have_count(1)
    body = {"messages": [{"role": "user", "content": "房间 1"}], "max_tokens": 40}
    expected = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"][
        "content"
    ]
    assert page.locator("p.assistant").text_content() == expected
    assert page.locator("p.user").text_content() == "房间 1"
    page.fill("#prompt", "and <b>now</b>?")
    page.click("#send")
    sync_api.expect(page.locator("p.user")).to_have_count(2)
    sync_api.expect(page.locator("#send")).to_be_enabled()
    assert page.locator("main b").count() == 0  # text stays text
    assert '"role":"assistant"' in bodies[1]


@pytest.fixture
def proxy(server: Server) -> Iterator[SlowProxy]:
    proxy = SlowProxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture
def slow(browser: sync_api.Browser, proxy: SlowProxy) -> Iterator[sync_api.Page]:
    """The page over a connection that gives an event every 0.1 s."""
    proxy.delay = 0.1
    context = browser.new_context(locale="en-GB", viewport={"width": 600, "height": 400})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=proxy.url)
    page = context.new_page()
    page.goto(proxy.url)
    sync_api.expect(page.locator("#model")).to_have_text("small · folder")
    page.fill("#key", KEY)
    yield page
    context.close()


def ask(page: sync_api.Page, text: str) -> None:
    """Ask and wait for the first text of the answer."""
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    sync_api.expect(page.locator("p.assistant").last).not_to_be_empty()


def picture(page: sync_api.Page, name: str) -> None:
    """Keep a picture for people in the folder that OPENBA_SCREENSHOTS names."""
    if folder := os.environ.get("OPENBA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/chat-{name}.png")


def done(page: sync_api.Page) -> None:
    sync_api.expect(page.locator("#send")).to_be_enabled(timeout=30_000)


@pytest.mark.parametrize("key", [False, True], ids=["button", "Escape"])
def test_stop_keeps_what_is_there_and_says_so(slow: sync_api.Page, key: bool) -> None:
    ask(slow, LONG)
    if key:
        slow.press("#prompt", "Escape")
    else:
        slow.click("#stop")
    done(slow)
    sync_api.expect(slow.locator(".answer.incomplete .mark")).to_have_text("stopped")
    picture(slow, "stopped")
    text = slow.locator("p.assistant").text_content()
    slow.wait_for_timeout(500)
    assert slow.locator("p.assistant").text_content() == text  # nothing comes after it
    slow.click("#language")
    assert slow.locator(".mark").text_content() == "已停止"


def test_clear_while_an_answer_comes_drops_all_of_it(slow: sync_api.Page, proxy: SlowProxy) -> None:
    bodies: list[dict[str, Any]] = []
    slow.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    ask(slow, LONG)
    slow.click("#clear")
    sync_api.expect(slow.locator("#talk")).to_be_empty()
    proxy.delay = 0.0
    ask(slow, "def")
    done(slow)
    slow.wait_for_timeout(500)
    assert slow.locator("p.assistant").count() == 1
    assert [message["content"] for message in bodies[-1]["messages"]] == ["def"]
    ask(slow, "again")
    assert [message["role"] for message in bodies[-1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("cut", ["broken", "polite"])
def test_an_answer_that_was_cut_looks_cut(slow: sync_api.Page, proxy: SlowProxy, cut: Any) -> None:
    proxy.cut = cut
    proxy.cut_after = 6
    proxy.delay = 0.05  # the browser must have read the first events when the reset of the connection comes
    ask(slow, LONG)
    done(slow)
    sync_api.expect(slow.locator(".answer.incomplete .mark")).to_have_text("cut off")
    sync_api.expect(slow.locator("p.problem")).to_be_visible()
    picture(slow, "cut")
    proxy.cut_after = None
    ask(slow, "def")
    done(slow)
    assert slow.locator(".answer.incomplete").count() == 1


def test_a_token_limit_is_told_and_is_no_fault(slow: sync_api.Page, proxy: SlowProxy) -> None:
    proxy.delay = 0.0
    slow.fill("#tokens", "3")
    ask(slow, LONG)
    done(slow)
    assert slow.locator(".mark").text_content() == "token limit reached"
    assert slow.locator(".answer.incomplete").count() == 0


def test_who_reads_further_up_is_not_moved(slow: sync_api.Page, proxy: SlowProxy) -> None:
    proxy.delay = 0.0
    for text in (LONG, LONG, LONG):
        ask(slow, text)
        done(slow)
    place = "document.getElementById('talk').scrollTop"
    end = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.getElementById('talk'))"
    assert slow.evaluate(place) > 100  # there is something to scroll
    assert slow.evaluate(end) < 5  # and the end was followed
    proxy.delay = 0.1
    ask(slow, LONG)
    assert slow.evaluate(end) < 40
    slow.evaluate(f"{place} = 20")
    before = slow.locator("p.assistant").last.text_content()
    done(slow)
    assert slow.evaluate(place) == 20
    assert slow.locator("p.assistant").last.text_content() != before


def test_copy_and_history_of_prompts(slow: sync_api.Page, proxy: SlowProxy) -> None:
    proxy.delay = 0.0
    for text in ("def", LONG):
        ask(slow, text)
        done(slow)
    slow.locator(".copy").last.click()
    sync_api.expect(slow.locator(".copy").last).to_have_text("Copied")
    copied = slow.evaluate("navigator.clipboard.readText()")
    assert copied == slow.locator("p.assistant").last.text_content()
    slow.fill("#prompt", "a draft")
    for key, shown in (("ArrowUp", LONG), ("ArrowUp", "def"), ("ArrowUp", "def"), ("ArrowDown", LONG)):
        slow.press("#prompt", key)
        assert slow.input_value("#prompt") == shown
    slow.press("#prompt", "ArrowDown")
    assert slow.input_value("#prompt") == "a draft"
    slow.fill("#prompt", "one\ntwo")
    slow.press("#prompt", "ArrowUp")  # moves the cursor in the text, as everywhere
    assert slow.input_value("#prompt") == "one\ntwo"


def test_an_enter_of_an_input_method_sends_nothing(slow: sync_api.Page) -> None:
    """Chromium's own input method by the devtools protocol; then Safari's order of the same events."""
    slow.focus("#prompt")
    devtools = slow.context.new_cdp_session(slow)
    devtools.send("Input.imeSetComposition", {"text": "nihao", "selectionStart": 5, "selectionEnd": 5})
    enter = {"windowsVirtualKeyCode": 229, "key": "Enter", "code": "Enter"}
    devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    assert slow.locator("p.user").count() == 0
    devtools.send("Input.insertText", {"text": "你好"})
    assert slow.input_value("#prompt") == "你好"
    slow.evaluate(
        """() => { const options = {bubbles: true, cancelable: true};
             const area = document.getElementById('prompt');
             area.dispatchEvent(new CompositionEvent('compositionend', options));
             area.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', ...options})); }"""
    )
    assert slow.locator("p.user").count() == 0
    slow.wait_for_timeout(100)
    slow.press("#prompt", "Enter")
    sync_api.expect(slow.locator("p.user")).to_have_text("你好")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_fits_any_width_in_both_colours(
    browser: sync_api.Browser, server: Server, width: int, scheme: Any
) -> None:
    context = browser.new_context(
        locale="zh-CN", viewport={"width": width, "height": 640}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(server.url)
    page.fill("#key", KEY)
    ask(page, "请用中文介绍一下这家酒店的房间，" * 3)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= 640
    for name in ("#prompt", "#send", "#stop", "#clear", "#language", "#temperature"):
        box = page.locator(name).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    dark = page.evaluate("getComputedStyle(document.querySelector('main')).color") != "rgb(0, 0, 0)"
    assert dark is (scheme == "dark")
    picture(page, f"{width}-{scheme}")
    context.close()


def test_two_languages_and_the_key(page: sync_api.Page) -> None:
    assert page.text_content("#send") == "Send"
    page.click("#language")
    assert page.text_content("#send") == "发送"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.fill("#prompt", "你好")
    page.click("#send")
    sync_api.expect(page.locator("p.problem")).to_contain_text("API key")
    sync_api.expect(page.locator("p.assistant")).to_have_count(0)
