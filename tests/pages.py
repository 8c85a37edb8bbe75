"""The page of `d2sd serve` in a headless Chromium, as a reader with a keyboard uses it."""

from __future__ import annotations

import json
import shutil
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serving import Serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium():
    """The system's browser, or the one that playwright has installed; a skip without either."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, BROWSERS)), own if Path(own).exists() else None)
        if found is None:
            pytest.skip(f"no Chromium is installed ({', '.join(BROWSERS)})")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@contextmanager
def opened(browser, server: Serving, *, fails: str | None = None):
    """The page, ready; afterwards no other host was asked and nothing complained.

    `fails` is what the browser says of requests that were meant to fail.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    said: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(server.url)
    try:
        yield page
    finally:
        context.close()
    assert hosts == {urlsplit(server.url).netloc}
    assert [words for words in said if fails is None or fails not in words] == []


def ask(page, words: str) -> None:
    """As a reader with a keyboard does: the question has the focus."""
    page.keyboard.type(words)
    page.keyboard.press("Enter")


def wait_for_answer(page) -> str:
    """The text of the newest answer once it is complete."""
    page.locator(".exchange:last-child .answer:not(.open)").wait_for()
    return page.locator(".exchange:last-child .text").text_content()


def focus_on(page, selector: str) -> None:
    """Walk there with the Tab key."""
    for _ in range(40):
        if page.locator(f"{selector}:focus").count():
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with the Tab key")


def greedy(server: Serving, words: str, tokens: int) -> str:
    """What the API answers."""
    body = {
        "model": server.session.name,
        "messages": [{"role": "user", "content": words}],
        "temperature": 0,
        "max_tokens": tokens,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]
