"""Answers by a server: a small one in a thread, in all the moods that a server has."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from d2sd.answers.conversations import Conversations, Draws, Wording
from d2sd.answers.endpoint import (
    Asking,
    Connection,
    Endpoint,
    EndpointAnswerer,
    key_from,
    served_model,
)
from d2sd.answers.questions import Ask, Question
from d2sd.answers.regenerate import regenerate
from d2sd.cli import run
from folders import byte_tokenizer, save_target

END = 2
QUESTION = Question(({"role": "user", "content": "hello"},), (4, 5), 0.5, 2**40 + 3)
ASKS = [Ask(i, "k", ("hello " * (i % 3 + 1), "more")[: 1 + i % 2]) for i in range(12)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Mood:
    """What the server answers: `react(request, number)` gives (status, body, headers)."""

    def __init__(self, react):
        self.react = react
        self.requests, self.keys = [], []
        self.lock = threading.Lock()


def reply(text="hi you", finish="stop", **more):
    message = {"message": {"content": text}, "text": text, "finish_reason": finish, **more}
    return 200, {"choices": [message]}, {}


def refused(code, words="busy", **headers):
    return code, {"error": {"message": words}}, headers


@contextmanager
def served(react):
    """A server's address and its mood."""
    mood = Mood(react)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            request = json.loads(self.rfile.read(size) or "null")
            with mood.lock:
                mood.requests.append((self.path, request))
                mood.keys.append(self.headers.get("Authorization"))
                number = len(mood.requests)
            status, body, headers = mood.react(request, number)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", mood
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answerer(url, raw=False, **options):
    endpoint = Endpoint(url, **{"wait": 0.01, "timeout": 5.0, **options})
    asking = Asking("served", 9, 0.9, raw)
    return EndpointAnswerer(endpoint, asking, byte_tokenizer(), frozenset({END}))


def answered(url, **options):
    return answerer(url, **options).answer([QUESTION], lambda count: None)[0]


def test_a_question_is_put_as_it_is_and_text_is_tokenised():
    with served(lambda request, number: reply()) as (url, mood):
        answer = answered(url, key="secret")
    path, request = mood.requests[0]
    assert path == "/v1/chat/completions"
    assert request == {
        "model": "served", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3,
        "messages": [{"role": "user", "content": "hello"}], "return_token_ids": True,
    }  # fmt: skip
    assert mood.keys == ["Bearer secret"]
    assert (answer.text, answer.finish, answer.tokenised) == ("hi you", "stop", True)
    assert answer.prompt_ids == (4, 5)
    assert answer.response_ids[-1] == END
    assert byte_tokenizer().decode(answer.response_ids[:-1]) == "hi you"


@pytest.mark.parametrize("given", [[7, 8], [7, 8, END]])
def test_the_servers_own_ids_are_taken(given):
    def react(request, number):
        status, body, headers = reply(token_ids=given)
        return status, {**body, "prompt_token_ids": [1, 2, 3]}, headers

    with served(react) as (url, _):
        answer = answered(url)
    assert (answer.prompt_ids, answer.response_ids) == ((1, 2, 3), (7, 8, END))
    assert not answer.tokenised


def test_an_answer_cut_at_the_limit_gets_no_end():
    with served(lambda request, number: reply("hi", "length", token_ids=[7, 8])) as (url, _):
        answer = answered(url)
    assert (answer.response_ids, answer.finish) == ((7, 8), "length")


def test_raw_prompts_go_to_completions():
    with served(lambda request, number: reply("bc", "length")) as (url, mood):
        assert answered(url, raw=True).text == "bc"
    path, request = mood.requests[0]
    assert (path, request["prompt"]) == ("/v1/completions", "hello")


def test_a_server_that_knows_no_token_ids_is_asked_without_from_then_on():
    def react(request, number):
        return refused(400, "unknown option") if "return_token_ids" in request else reply()

    with served(react) as (url, mood):
        ours = answerer(url)
        answers = ours.answer([QUESTION, QUESTION], lambda count: None)
    assert ["return_token_ids" in request for _, request in mood.requests] == [True, False, False]
    assert all(answer.tokenised for answer in answers)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_what_may_pass_is_tried_again(code):
    def react(request, number):
        return refused(code, Retry_After="0.02") if number < 3 else reply()

    with served(react) as (url, mood):
        assert answered(url).text == "hi you"
    assert len(mood.requests) == 3


def test_a_silent_server_is_tried_again():
    def react(request, number):
        if number == 1:
            time.sleep(0.5)
        return reply()

    with served(react) as (url, mood):
        assert answered(url, timeout=0.2).text == "hi you"
        time.sleep(0.5)
    assert len(mood.requests) == 2


def test_waits_grow_and_a_servers_own_wish_comes_first(monkeypatch):
    waits = []
    connection = Connection(Endpoint("http://127.0.0.1/v1", tries=5, wait=1.0))
    monkeypatch.setattr(connection._closed, "wait", waits.append)
    wishes = iter([None, None, "7", "soon", "9999"])

    def react(request, number):
        wish = next(wishes)
        return refused(429, **({"Retry_After": wish} if wish else {}))

    with served(react) as (url, _):
        object.__setattr__(connection._endpoint, "url", url)
        with pytest.raises(ValueError, match="5 tries"):
            connection.ask("/models")
    assert waits == [1.0, 2.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("react", "tries", "words"),
    [
        (lambda request, number: refused(500), 3, r"failed \(3 tries\): 500 .*busy"),
        (lambda request, number: refused(401, "who is secret?"), 1, "failed: 401 .*who is …?"),
        (lambda request, number: (200, b"<html>", {}), 1, "something else than JSON"),
        (lambda request, number: (200, {"choices": []}, {}), 1, "no choices with a text"),
    ],
)
def test_what_does_not_pass_is_one_sentence_without_the_key(react, tries, words):
    with served(react) as (url, mood):
        with pytest.raises(ValueError, match=words) as caught:
            answered(url, tries=3, key="secret")
        assert "secret" not in str(caught.value)
    assert len(mood.requests) == tries
    assert "secret" not in repr(Endpoint(url, "secret"))


def test_no_server_is_one_sentence():
    with served(lambda request, number: reply()) as (url, _):
        pass
    with pytest.raises(ValueError, match=r"failed \(2 tries\): .*refused"):
        answered(url, tries=2)


def test_the_one_served_model_is_found_and_several_are_listed():
    def models(*names):
        return served(lambda request, number: (200, {"data": [{"id": n} for n in names]}, {}))

    with models("one") as (url, mood):
        assert served_model(Connection(Endpoint(url)), "--it") == "one"
    assert mood.requests == [("/v1/models", None)]
    with models("one", "two") as (url, _), pytest.raises(ValueError, match="one, two; choose"):
        served_model(Connection(Endpoint(url)), "--it")


def test_a_key_that_is_not_set_is_missed(monkeypatch):
    monkeypatch.setenv("HERE", "k")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert (key_from(None), key_from("HERE")) == (None, "k")
    with pytest.raises(ValueError, match="NOT_HERE for the API key is not set"):
        key_from("NOT_HERE")


def talk(url, **options):
    wording = Wording(byte_tokenizer(), "m")
    return Conversations(ASKS, answerer(url, **options), wording, Draws((0.0, 1.0)))


def echo(request, number):
    time.sleep(0.02 * (number % 3))  # answers overtake each other
    return reply(f"{request['messages'][-1]['content']} {request['seed']}")


def test_a_run_that_a_server_broke_goes_on_to_the_same_file(tmp_path):
    with served(echo) as (url, mood):
        wanted = regenerate(talk(url, parallel=1), tmp_path / "whole.jsonl")
        asked = len(mood.requests)
    out = tmp_path / "broken.jsonl"

    def failing(request, number):
        return echo(request, number) if number <= 8 else refused(500)

    with served(failing) as (url, _), pytest.raises(ValueError, match="500"):
        regenerate(talk(url, parallel=3, tries=2), out)
    with (tmp_path / "broken.jsonl.batches").open("ab") as journal:
        journal.write(b'{"part": 3, "hol')
    with served(echo) as (url, mood):
        assert regenerate(talk(url, parallel=3), out) == wanted
        assert len(mood.requests) < asked
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["ids"] for line in lines] == ["tokenised"] * 18
    assert [line["id"] for line in lines] == [ask.id for ask in ASKS for _ in ask.turns]


def test_the_command_asks_a_server_with_the_targets_tokenizer(tmp_path, capsys, monkeypatch):
    target = save_target(tmp_path / "target")
    (tmp_path / "target" / "model.safetensors").unlink()  # not needed
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "prompt": "hello"}\n{"id": "b", "prompt": "the cat"}\n')
    monkeypatch.setenv("KEY", "secret")

    def react(request, number):
        return (200, {"data": [{"id": "it"}]}, {}) if request is None else reply()

    out = tmp_path / "out.jsonl"
    with served(react) as (url, mood):
        options = ["--model", str(target), "--endpoint", url, "--api-key-env", "KEY", "--json"]
        assert run(["regenerate", str(prompts), "--out", str(out), *options]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["answers"] == 2
    record = (tmp_path / "out.jsonl.json").read_text()
    assert json.loads(record)["settings"]["endpoint_model"] == "it"
    assert set(mood.keys) == {"Bearer secret"}
    assert "secret" not in record + shown.out + shown.err + out.read_text()
