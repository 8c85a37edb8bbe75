"""The page of `d2sd serve` in a headless Chromium, against the server of the tiny model."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from d2sd.drafters.policies import parse_policy
from d2sd.generate import Request
from d2sd.serve.jobs import Job
from d2sd.serve.service import Limits
from d2sd.session import ModelChoice, Session, open_session
from pages import ask, chromium, focus_on, greedy, opened, wait_for_answer
from serving import Serving, serving

SUM = "What is 12 + 30?"
BUSY = "429 (Too Many Requests)"
DENIED = "401 (Unauthorized)"
LOST = "net::ERR"


@pytest.fixture(scope="module")
def session() -> Session:
    """The shipped tiny model: its drafters are accepted often enough for every colour."""
    return open_session(ModelChoice("proving-ground", device="cpu", dtype="float32"), ["merged"])


@pytest.fixture(scope="module")
def server(session: Session) -> Iterator[Serving]:
    with serving(session, "dual", Limits(max_tokens=40)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, server: Serving):
    with opened(browser, server) as page:
        page.get_by_text("Ready.").wait_for()
        yield page


@pytest.fixture
def unhurried(session: Session, monkeypatch) -> None:
    """Steps take long enough for somebody to do something meanwhile."""
    score = session.target.score

    def slow(*args):
        time.sleep(0.03)
        return score(*args)

    monkeypatch.setattr(session.target, "score", slow)


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_an_answer_is_the_apis_and_every_token_tells_its_proposer(page, server) -> None:
    ask(page, SUM)
    assert wait_for_answer(page) == greedy(server, SUM, 40)
    tokens = page.locator(".text .token")
    assert "".join(tokens.all_text_contents()) == page.locator(".text").text_content()
    classes = set(tokens.evaluate_all("all => all.map(one => one.classList[1])"))
    assert classes == {"src-first", "src-second", "src-target"}
    drawn = tokens.evaluate_all("all => all.map(token => getComputedStyle(token).textDecoration)")
    assert len(set(drawn)) == len(classes)  # told apart by line and colour
    assert len({words.split("rgb")[0] for words in drawn}) == len(classes)  # and by line alone
    assert "tokens in" in page.locator("#status").text_content()
    assert float(page.locator("#acceptance").text_content()) >= 1
    assert page.locator("#shares li").count() == len(classes)


def test_policy_and_budget_are_sent_and_outlast_a_reload(page) -> None:
    page.select_option("#policy", "merged")
    page.fill("#budget", "9")
    page.fill("#max-tokens", "24")
    page.focus("#question")
    with page.expect_request("**/chat/completions") as caught:
        ask(page, "hello")
    assert caught.value.post_data_json["policy"] == "merged:budget=9"
    wait_for_answer(page)
    assert page.locator(".print").text_content().startswith("policy merged:budget=9, 24 tokens")
    assert page.locator(".node").count() <= 1 + 9 + 1  # the anchor, the budget, the bonus
    page.reload()
    page.get_by_text("Ready.").wait_for()
    assert [page.input_value(f"#{name}") for name in ("policy", "budget", "max-tokens")] == [
        "merged", "9", "24",
    ]  # fmt: skip
    page.select_option("#policy", "block")
    assert page.locator("#budget-field").is_hidden()
    with page.expect_request("**/chat/completions") as caught:
        page.focus("#question")
        ask(page, "hello")
    assert caught.value.post_data_json["policy"] == "block"
    wait_for_answer(page)


def test_plain_speed_is_measured_by_a_plain_answer(page) -> None:
    page.select_option("#policy", "none")
    page.focus("#question")
    ask(page, "hello")
    wait_for_answer(page)
    assert page.locator("#plain").text_content() == page.locator("#rate").text_content() != "–"
    assert page.locator("#gain").text_content() == "1.00 × plain"
    assert page.locator(".node").count() == 2  # nothing drafted: the anchor and the bonus


def test_the_tree_of_every_step_can_be_walked(page) -> None:
    ask(page, SUM)
    wait_for_answer(page)
    steps = int(page.locator("#step-number").text_content().split()[-1])
    shown = page.locator(".token").count()
    assert steps > 1
    focus_on(page, "#previous")
    page.keyboard.press("Enter")
    assert page.locator("#step-number").text_content() == f"{steps - 1} of {steps}"
    assert page.locator("#follow").get_attribute("aria-pressed") == "false"
    seen = 0
    for _ in range(steps - 2):
        page.keyboard.press("Enter")
        accepted = page.locator(".node.accepted").count()  # the anchor is one of them
        words = page.locator("#step-words").text_content()
        assert f", {accepted - 1} accepted" in words
        assert page.locator(".edge.accepted").count() == accepted  # and one to the bonus
        assert page.locator(".node.rejected").count() > 0
        assert page.locator(".token.lit").count() == accepted
        predicted, real = page.locator(".boundary text").all_text_contents()
        assert f"held for {real.removeprefix('real ')} token" in words
        assert f", {predicted.removeprefix('predicted ')} expected." in words
        seen += accepted
    assert page.locator("#step-number").text_content() == f"1 of {steps}"
    assert page.locator("#previous").is_disabled()
    assert 0 < seen < shown


def apart(box, other, start: str, size: str) -> bool:
    """Whether two boxes have nothing in common along one side."""
    return box[start] >= other[start] + other[size] or other[start] >= box[start] + box[size]


def test_no_two_nodes_of_a_full_tree_overlap(page) -> None:
    page.select_option("#policy", "best-first")
    page.focus("#question")
    ask(page, "hello")
    wait_for_answer(page)
    page.click("#sparkline", position={"x": 2, "y": 30})  # the first step
    boxes = [node.bounding_box() for node in page.locator(".node rect").all()]
    assert len(boxes) == 66
    for at, box in enumerate(boxes):
        for other in boxes[:at]:
            apart_x = (
                box["x"] >= other["x"] + other["width"] or other["x"] >= box["x"] + box["width"]
            )
            apart_y = (
                box["y"] >= other["y"] + other["height"] or other["y"] >= box["y"] + box["height"]
            )
            assert apart_x or apart_y


def test_tokens_are_walked_with_the_arrow_keys(page) -> None:
    page.fill("#max-tokens", "16")
    page.focus("#question")
    ask(page, "hello")
    wait_for_answer(page)
    page.keyboard.press("Shift+Tab")
    assert page.locator(".token:focus").get_attribute("data-step") == "0"
    page.keyboard.press("End")
    last = page.locator(".token:focus").get_attribute("data-step")
    assert page.locator("#step-number").text_content() == f"{int(last) + 1} of {int(last) + 1}"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("#question:focus").count() == 1
    assert page.locator("#step-number").text_content().startswith("1 of")  # Enter stays there


def test_light_dark_and_less_motion_are_the_systems_until_told(page) -> None:
    page.emulate_media(color_scheme="light")
    light = background(page)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = background(page)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    page.click("#theme")
    assert background(page) == light
    page.reload()
    assert background(page) == light  # remembered, and never painted dark
    ask(page, "hello")
    style = "getComputedStyle(document.querySelector('.text'), '::after').animationName"
    assert page.evaluate(style) == "none"
    wait_for_answer(page)


def test_nothing_is_wider_than_the_window(page) -> None:
    page.fill("#max-tokens", "16")
    page.focus("#question")
    ask(page, "x" * 200 + "\n y" * 200)
    wait_for_answer(page)
    for width in (360, 768, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width >= 1280:  # the parts scroll, the window does not
            assert page.evaluate("document.documentElement.scrollHeight") == 800


def test_markup_is_shown_as_text(page) -> None:
    words = "<img src=x onerror=\"document.title='bad'\"><b>bold</b> & <script>1</script>"
    page.fill("#max-tokens", "8")
    page.focus("#question")
    ask(page, words)
    wait_for_answer(page)
    assert page.locator(".question").text_content() == f"You{words}"
    assert page.locator(".question :not(h3)").count() == 0
    assert page.title() == "d2sd"


def test_an_empty_question_is_not_sent(page) -> None:
    ask(page, "   ")
    assert page.locator(".exchange").count() == 0
    assert page.locator("#welcome").is_visible()


def test_a_value_that_cannot_be_is_not_sent(page) -> None:
    page.fill("#temperature", "3")
    page.focus("#question")
    ask(page, "hello")
    assert page.locator(".exchange").count() == 0
    assert page.input_value("#question") == "hello"


def test_a_conversation_goes_on(page) -> None:
    page.fill("#max-tokens", "8")
    page.focus("#question")
    ask(page, "one")
    first = wait_for_answer(page)
    with page.expect_request("**/chat/completions") as caught:
        ask(page, "two")
    assert caught.value.post_data_json["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    page.locator(".exchange:nth-of-type(3) .answer:not(.open)").wait_for()


@pytest.mark.usefixtures("unhurried")
def test_an_answer_can_be_stopped_and_the_chat_begun_anew(page, server) -> None:
    ask(page, "hello")
    page.locator(".token").nth(3).wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".print").text_content() == "stopped"
    ask(page, "again")
    page.locator(".exchange:last-child .token").nth(3).wait_for()
    page.click("#stop")
    assert page.locator("#status").text_content() == "Stopped."
    page.focus("#question")
    ask(page, "and again")
    page.locator(".exchange:last-child .token").nth(3).wait_for()
    page.click("#new-chat")
    assert page.locator(".exchange").count() == page.locator(".node").count() == 0
    page.fill("#max-tokens", "8")
    page.focus("#question")
    ask(page, "hello")
    assert wait_for_answer(page) == greedy(server, "hello", 8)
    assert page.locator(".exchange").count() == 1


def test_a_key_is_asked_for_until_it_is_right(browser, session) -> None:
    with (
        serving(session, "none", key="secret") as server,
        opened(browser, server, fails=DENIED) as page,
    ):
        page.locator("#key-dialog[open]").wait_for()
        assert page.locator("#key:focus").count() == 1
        with page.expect_response("**/v1/models"):
            ask(page, "wrong")
        page.locator("#key-dialog[open]").wait_for()
        assert "wrong" in page.locator("#key-words").text_content()
        ask(page, "secret")
        page.get_by_text("Ready.").wait_for()
        page.reload()
        page.get_by_text("Ready.").wait_for()  # kept in this tab


def busy_job(session: Session, over: threading.Event) -> Job:
    """One that holds the worker until `over`."""
    request = Request(session.raw_prompt("a"), max_new_tokens=1)
    deadline = time.monotonic() + 30
    return Job("another", request, parse_policy("none"), deadline, lambda event: over.wait(20))


def test_a_full_queue_is_said_and_the_question_can_be_asked_again(browser, session) -> None:
    over = threading.Event()
    with (
        serving(session, "none", Limits(queue=1)) as server,
        opened(browser, server, fails=BUSY) as page,
    ):
        page.get_by_text("Ready.").wait_for()
        server.service.queue.put(busy_job(session, over))
        page.fill("#max-tokens", "8")
        page.focus("#question")
        while len(server.service.queue):
            time.sleep(0.01)
        server.service.queue.put(busy_job(session, over))
        ask(page, "hello")
        notice = page.get_by_role("alert")
        notice.wait_for()
        assert "The server is busy (1 requests wait already" in notice.text_content()
        assert "Try again in" in notice.text_content()
        over.set()
        notice.get_by_role("button").click()
        notice.wait_for(state="detached")
        assert wait_for_answer(page)


def test_a_server_that_is_gone_is_said(browser, session) -> None:
    with ExitStack() as life:
        server = life.enter_context(serving(session, "none"))
        with opened(browser, server, fails=LOST) as page:
            page.get_by_text("Ready.").wait_for()
            life.close()
            ask(page, "hello")
            notice = page.get_by_role("alert")
            notice.wait_for()
            assert "The server cannot be reached" in notice.text_content()
            assert page.locator("#send").is_visible()


def test_the_page_and_its_scripts_are_served_safely(server) -> None:
    for path, kind in (("", "text/html"), ("main.js", "text/javascript"), ("page.css", "text/css")):
        with urllib.request.urlopen(f"{server.url}/{path}") as answer:
            headers = answer.headers
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
