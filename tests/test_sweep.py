"""`d2sd bench --backend openai`: servers under load, by the clock of their clients."""

from __future__ import annotations

import json
import threading

import pytest

from d2sd.answers.endpoint import Connection, Endpoint
from d2sd.bench.sweep import Load, Run, Served, Server, loaded, sweep
from d2sd.cli import run as command
from d2sd.session import ModelChoice, Session, open_session
from folders import save_target
from serving import serving

PROMPTS = ("hello there", "and then", "tell me more", "why")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = save_target(tmp_path_factory.mktemp("target"))
    return open_session(ModelChoice(str(folder), device="cpu", dtype="float32"), ["ngram"])


class Barrier(Connection):
    """A server that answers only once so many ask at the same time."""

    def __init__(self, clients: int) -> None:
        self._gate = threading.Barrier(clients)

    def stream(self, path, values):
        self._gate.wait(10)
        text = values["messages"][0]["content"].upper()
        yield {"choices": [{"delta": {"content": text}}]}
        yield {"choices": [], "usage": {"completion_tokens": len(text), "steps": 2}}


def test_so_many_clients_ask_at_once_and_answers_keep_their_order() -> None:
    run = loaded(Server("it", Barrier(4), "m"), Load(PROMPTS, 8), clients=4)
    assert [answer.text for answer in run.answers] == [prompt.upper() for prompt in PROMPTS]
    assert run.acceptance_length == sum(map(len, PROMPTS)) / 8


def test_figures_of_a_run() -> None:
    answers = (Served("a", 6, 0.5, 1.0, 3), Served("b", 2, 1.5, 2.0, 1))
    run = Run("it", 2, 4.0, answers)
    assert run.tokens_per_second == 2.0
    assert run.first_token == 1.0
    assert run.acceptance_length == 2.0
    uncounted = Run("it", 2, 4.0, (*answers[:1], Served("c", 2, 1.0, 1.0, None)))
    assert uncounted.acceptance_length is None
    assert run.same_texts(uncounted) == 1


def test_servers_take_turns(session) -> None:
    with serving(session, "ngram") as server:
        connection = Connection(Endpoint(f"{server.url}/v1", tries=1))
        servers = [Server(name, connection, session.name) for name in ("one", "two")]
        runs = list(sweep(servers, Load(PROMPTS[:2], 4), [1, 2], lambda done, total: None))
    assert [(run.clients, run.server) for run in runs] == [
        (1, "one"),
        (1, "two"),
        (2, "two"),
        (2, "one"),
    ]
    assert all(run.same_texts(runs[0]) == 2 for run in runs)
    assert all(run.acceptance_length >= 1 for run in runs)


def test_a_table_and_a_file(session, tmp_path, capsys) -> None:
    prompts = tmp_path / "p.jsonl"
    lines = [json.dumps({"id": text, "turns": [text]}) for text in PROMPTS]
    prompts.write_text("\n".join(lines))
    with serving(session, "ngram") as server:
        options = ["--backend", "openai", "--base-url", f"a={server.url}", "--concurrency", "1,3"]
        options += ["--base-url", f"b={server.url}/v1", "--prompts", str(prompts)]
        assert command(["bench", *options, "--max-new-tokens", "4", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("4 of 4") == 4
    rows = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [row["clients"] for row in rows] == [1, 1, 3, 3]
    assert [row["to_first"] for row in rows if row["server"] == "a"] == [1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "openai"], "--base-url"),
        (["--base-url", "http://x"], "--backend openai"),
        (["--backend", "openai", "--base-url", "x=nowhere"], "no web address"),
        (["--backend", "openai", "--base-url", "http://x", "--concurrency", "0"], "--concurrency"),
        (["--backend", "openai", "--base-url", "http://x", "--temperature", "0,1"], "at one"),
    ],
)
def test_what_cannot_be_measured_is_said(options, words, capsys) -> None:
    assert command(["bench", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
