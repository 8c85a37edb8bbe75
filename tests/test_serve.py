"""The server as clients see it, with OpenAI's own Python client."""

from __future__ import annotations

import json
import threading
import time
import urllib.request

import openai
import pytest

from d2sd.serve.service import Limits
from d2sd.session import ModelChoice, Session, open_session
from folders import save_drafter, save_target
from serving import Serving, serving


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    home = tmp_path_factory.mktemp("home")
    folder = save_target(home / "target")
    first = save_drafter(home / "first")
    second = save_drafter(home / "second", seed=1)
    choice = ModelChoice(str(folder), str(first), str(second), device="cpu", dtype="float32")
    return open_session(choice, ["dual"])


@pytest.fixture(scope="module")
def server(session: Session):
    with serving(session, "dual") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(session: Session) -> str:
    return session.name


HELLO = [{"role": "user", "content": "hello there"}]


def plain(session: Session, tokens: int, messages=HELLO) -> str:
    from d2sd.generate import Request, generate

    request = Request(
        session.chat_prompt(messages), max_new_tokens=tokens, stop_tokens=session.stop_tokens
    )
    return generate(session.target, session.drafter("none"), request, session.tokenizer).text


def test_greedy_answers_are_plain_decodings(server, client, model) -> None:
    found = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=24
    )
    assert found.choices[0].message.content == plain(server.session, 24)
    assert found.usage.completion_tokens <= 24
    assert found.usage.acceptance_length == found.usage.completion_tokens / found.usage.steps


def test_a_stream_is_the_same_text_piece_by_piece(client, model) -> None:
    ask = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**ask)
    pieces = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length"


def test_seeds_and_choices(client, model) -> None:
    ask = {"model": model, "messages": HELLO, "temperature": 1.0, "max_tokens": 16, "n": 3}
    first = client.chat.completions.create(**ask, seed=4)
    again = client.chat.completions.create(**ask, seed=4, extra_body={"policy": "none"})
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]


def test_log_probabilities_are_the_targets_own(client, model) -> None:
    found = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for one in content:
        assert one.logprob <= 0
        assert one.top_logprobs[0].logprob == one.logprob  # greedy: the likeliest was said
        assert len(one.top_logprobs) == 3


def test_a_stop_string_ends_the_text_before_it(client, model, session) -> None:
    text = plain(session, 24)
    stop = text[3:5]
    found = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=24, stop=stop
    )
    assert found.choices[0].message.content == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_the_older_completions_go_on(client, model) -> None:
    found = client.completions.create(model=model, prompt="once", temperature=0, max_tokens=5)
    assert found.usage.completion_tokens <= 5
    assert found.choices[0].text


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "other"}, 404, "other"),
        ({"temperature": 3}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"extra_body": {"tools": []}}, 400, "tools"),
        ({"extra_body": {"policy": "magic"}}, 400, "unknown policy 'magic'"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "context"),
    ],
)
def test_what_cannot_be_done_is_said(client, model, change, status, words) -> None:
    ask = {"model": model, "messages": HELLO, "max_tokens": 4, **change}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.status_code == status
    assert words in str(caught.value)


def test_a_key_is_asked_for(session, model) -> None:
    with serving(session, "none", key="secret") as server:
        url = f"{server.url}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        [listed] = openai.OpenAI(base_url=url, api_key="secret").models.list().data
        assert listed.id == model


def test_a_client_that_leaves_frees_the_worker(server, client, model) -> None:
    stream = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=200, stream=True
    )
    next(iter(stream))
    stream.close()
    start = time.monotonic()
    client.chat.completions.create(model=model, messages=HELLO, max_tokens=1)
    assert time.monotonic() - start < 5


def test_a_full_queue_says_when_to_come_back(session, model) -> None:
    with serving(session, "none", Limits(queue=1)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        statuses: list[int] = []
        waits: list[int] = []

        def ask() -> None:
            try:
                client.chat.completions.create(model=model, messages=HELLO, max_tokens=60)
                statuses.append(200)
            except openai.RateLimitError as error:
                waits.append(int(error.response.headers["retry-after"]))
                statuses.append(429)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(statuses) == 8
        assert set(statuses) == {200, 429}
        assert min(waits) >= 1


def test_health_metrics_and_trace(server, client, model) -> None:
    with urllib.request.urlopen(f"{server.url}/health") as answer:
        assert json.load(answer)["status"] == "ok"
    pieces = list(
        client.chat.completions.create(
            model=model,
            messages=HELLO,
            temperature=0,
            max_tokens=12,
            stream=True,
            extra_body={"trace": True, "policy": "dual"},
        )
    )
    steps = [piece.model_extra["d2sd"] for piece in pieces if "d2sd" in (piece.model_extra or {})]
    assert steps[-1]["acceptance_length"] >= 1
    for piece in pieces:
        if "d2sd" in (piece.model_extra or {}):
            traced = piece.model_extra["d2sd"]
            text = "".join(token["text"] for token in traced["tokens"])
            assert text == (piece.choices[0].delta.content or "")
            assert len(traced["tree"]["tokens"]) == len(traced["tree"]["parents"])
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    assert "d2sd_generated_tokens_total" in text
    assert 'd2sd_stage_seconds_total{stage="score"}' in text


def test_only_policies_that_can_be_had_are_offered(session, client, tmp_path) -> None:
    [listed] = client.models.list().data
    assert {"none", "ngram", "dual", "merged"} <= set(listed.d2sd["policies"])
    bare = open_session(ModelChoice(str(save_target(tmp_path / "bare")), device="cpu"), ["none"])
    with serving(bare, "none") as server:
        url = f"{server.url}/v1"
        [listed] = openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list().data
    assert listed.d2sd["policies"] == ["none", "ngram", "planned"]  # which copies at least


@pytest.mark.parametrize(
    "change",
    [
        {"logprobs": True},
        {"response_format": {"type": "regex", "regex": "[a-z]+"}},
    ],
)
def test_what_counts_on_the_order_of_rows_needs_the_default_verifier(client, model, change) -> None:
    ask = {"model": model, "messages": HELLO, "max_tokens": 4, "temperature": 1}
    policy = {"policy": "drawn:verifier=traversal"}
    assert client.chat.completions.create(**ask, extra_body=policy).usage.completion_tokens == 4
    with pytest.raises(openai.BadRequestError, match="need a policy with verifier=match"):
        client.chat.completions.create(**ask, **change, extra_body=policy)


def test_the_published_document_has_the_errors_that_are_sent(server) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        document = json.load(answer)
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"400", "404", "429"} <= set(responses)
    assert "422" not in responses
    assert "HTTPValidationError" not in document["components"]["schemas"]
