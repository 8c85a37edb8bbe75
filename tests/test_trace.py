"""What the server tells of a step: boundaries, and every token's part of the text."""

from __future__ import annotations

import time

import pytest

from d2sd.decode import Step
from d2sd.drafters.policies import parse_policy
from d2sd.generate import Request
from d2sd.serve.jobs import Event, Finished, Job, Progress
from d2sd.serve.service import Limits, Service
from d2sd.serve.trace import boundaries, texts
from d2sd.session import ModelChoice, open_session
from d2sd.tree import Branch, Chain, TokenTree
from d2sd.verify import Verdict
from folders import byte_tokenizer, save_target, word_tokenizer


def test_boundaries_are_those_of_the_first_chain() -> None:
    branches = [Branch((5, 6, 7), "first"), Branch((5, 6, 8, 9), "second@2")]
    tree = TokenTree.from_branches(1, branches)
    verdict = Verdict((0, 1, 2, 4, 5), 3)
    assert boundaries(Step(tree, verdict)) == {"boundary": None, "predicted_boundary": None}
    told = tree.drafted_from(Chain((5, 6, 7), 1))
    assert boundaries(Step(told, verdict)) == {"boundary": 2, "predicted_boundary": 1}
    cut = tree.shallow(1).drafted_from(Chain((5, 6, 7), 3))
    assert boundaries(Step(cut, Verdict((0,), 3))) == {"boundary": 0, "predicted_boundary": 1}


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
def test_the_parts_of_a_text_are_the_text(make) -> None:
    tokenizer = make()
    tokens = tuple(tokenizer.encode("the cats sat. the", add_special_tokens=False))
    whole = tokenizer.decode(list(tokens))
    parts = texts(whole, tokens, tokenizer)
    assert "".join(parts) == whole
    assert len(parts) == len(tokens)
    assert all(len(part) <= 8 for part in parts)
    assert texts("", (), tokenizer) == []


def test_a_letter_in_pieces_falls_to_the_token_that_completes_it() -> None:
    tokenizer = byte_tokenizer()
    tokens = tuple(tokenizer.encode("é he", add_special_tokens=False))
    assert texts("é he", tokens, tokenizer) == ["", "", "é ", "he"]


def test_reading_the_prompt_is_no_part_of_the_speed(tmp_path, monkeypatch) -> None:
    choice = ModelChoice(str(save_target(tmp_path)), device="cpu", dtype="float32")
    session = open_session(choice, ["none"])
    prefill = session.target.prefill

    def slow(prompt):
        time.sleep(1)
        return prefill(prompt)

    monkeypatch.setattr(session.target, "prefill", slow)
    service = Service(session, parse_policy("none"), Limits())
    heard: list[Event] = []
    request = Request(session.raw_prompt("a"), max_new_tokens=2)
    deadline = time.monotonic() + 60
    service.queue.put(Job("me", request, service.policy, deadline, heard.append))
    service.worker.start()
    service.worker.stop(60.0)
    first, second, end = heard
    assert isinstance(first, Progress)
    assert isinstance(second, Progress)
    assert isinstance(end, Finished)
    assert 0 < first.seconds == first.step_seconds < 1
    assert second.seconds == pytest.approx(first.seconds + second.step_seconds)
