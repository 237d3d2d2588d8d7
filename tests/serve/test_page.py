"""The chat page in a real Chromium: it streams, stops, speaks two languages and needs the key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.serve.conftest import KEY, Server

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
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


def test_stop_ends_the_answer(page: sync_api.Page, server: Server) -> None:
    page.fill("#key", KEY)
    # The answer is held back in the page's own reader until Stop: a real one would be over too soon.
    page.evaluate(
        """() => { const real = window.fetch; window.fetch = (url, options) => real(url, options).then((r) =>
             url.startsWith('/v1') ? new Response(r.body.pipeThrough(new TransformStream({
               transform: (chunk, out) => new Promise((go, stop) => { out.enqueue(chunk);
                 options.signal.addEventListener('abort', () => stop(options.signal.reason)); })
               })), r) : r); }"""
    )
    page.fill("#prompt", "房间 1")
    page.click("#send")
    sync_api.expect(page.locator("#stop")).to_be_enabled()
    page.click("#stop")
    sync_api.expect(page.locator("#send")).to_be_enabled()
    assert page.locator("p.note").last.text_content() == "stopped"


def test_two_languages_and_the_key(page: sync_api.Page) -> None:
    assert page.text_content("#send") == "Send"
    page.click("#language")
    assert page.text_content("#send") == "发送"
    assert page.get_attribute("html", "lang") == "zh"
    page.fill("#prompt", "你好")
    page.click("#send")
    sync_api.expect(page.locator("p.problem")).to_contain_text("API key")
    sync_api.expect(page.locator("p.assistant")).to_have_count(0)
