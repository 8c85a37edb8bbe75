"""`d2sd chat`: turns, commands, Ctrl-C, and a target that does not read twice."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Iterator

import pytest

from d2sd.cli import run
from d2sd.cli.talking import HELP, LocalConversation, interruptible, talk
from d2sd.drafters.policies import parse_policies
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, Session, open_session
from folders import save_target
from serving import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_target(tmp_path_factory.mktemp("target"), max_position_embeddings=400))


@pytest.fixture(scope="module")
def session(folder) -> Session:
    choice = ModelChoice(model=folder, device="cpu")
    return open_session(choice, parse_policies("ngram"), tell=lambda words: None)


def conversation(session: Session, system: str | None = None, limit: int = 10) -> LocalConversation:
    return LocalConversation(session, session.drafter("ngram"), Sampling(), limit, system)


@pytest.fixture
def typed(monkeypatch):
    """Makes `input` give these lines, then the end of the input; an exception is raised."""

    def script(*lines: str | type[BaseException]) -> None:
        waiting: Iterator[str | type[BaseException]] = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", read)

    return script


def test_turns_are_answered_in_order(folder, typed, capsys) -> None:
    typed("hello", "", "  ", "and then", "/exit", "never read")
    arguments = ["--model", folder, "--device", "cpu", "--policy", "ngram"]
    assert run(["chat", *arguments, "--max-new-tokens", "6"]) == 0
    out, notes = capsys.readouterr()
    assert notes.count("6 tokens ·") == 2
    assert out.strip()


def test_a_turn_reads_only_what_is_new(session) -> None:
    talked = conversation(session)
    read: list[int] = []
    hook = session.model.base_model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(output[0].shape[1]), with_kwargs=True
    )
    talked.reply("hello, tell me more", lambda piece: None)
    first = read[0]
    read.clear()
    talked.reply("and", lambda piece: None)
    hook.remove()
    assert first > 20
    # the question, its frame, and at most the end of the answer where it is read back otherwise
    assert read[0] < first + 15
    assert len(session.chat_prompt(talked.messages)) > 2 * first


def test_answers_are_those_of_a_fresh_target(session, folder) -> None:
    talked = conversation(session)
    answers = [talked.reply(text, lambda piece: None).token_ids for text in ("hello", "and")]
    choice = ModelChoice(model=folder, device="cpu")
    fresh = open_session(choice, parse_policies("none"), tell=lambda words: None)
    again = LocalConversation(fresh, fresh.drafter("none"), Sampling(), 10, None)
    for text, answer in zip(("hello", "and"), answers, strict=True):
        fresh.target.prefill((5,))  # forgets every row
        assert again.reply(text, lambda piece: None).token_ids == answer


def test_clear_forgets_all_but_the_system_text(session) -> None:
    talked = conversation(session, system="be brief")
    talked.reply("hello", lambda piece: None)
    assert [message["role"] for message in talked.messages] == ["system", "user", "assistant"]
    talked.clear()
    assert talked.messages == [{"role": "system", "content": "be brief"}]


def test_commands_are_no_prompts(session, typed, capsys) -> None:
    talked = conversation(session)
    typed("/help", "/what", KeyboardInterrupt, "/clear")
    with pytest.raises(KeyboardInterrupt):  # not a terminal: Ctrl-C ends a script
        talk(talked)
    assert talked.messages == []
    assert capsys.readouterr().err.count(HELP) == 2


def test_control_c_at_the_prompt_does_not_end_the_program(
    session, typed, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed(KeyboardInterrupt, "/clear")
    talk(conversation(session))
    assert "the conversation is forgotten" in capsys.readouterr().err


def test_control_c_stops_the_answer_and_keeps_what_was_said(session, typed, capsys) -> None:
    talked = conversation(session, limit=100)
    reply = talked.reply

    def interrupted_reply(text, on_piece):
        def show(piece):
            signal.raise_signal(signal.SIGINT)
            return on_piece(piece)

        return reply(text, show if text == "hello" else on_piece)

    talked.reply = interrupted_reply
    typed("hello", "and", "/exit")
    talk(talked)
    notes = capsys.readouterr().err
    assert notes.count("stopped ·") == 1
    assert len(talked.messages) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_control_c_ends_the_program() -> None:
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_full_context_is_said_and_the_talk_goes_on(session, typed, capsys) -> None:
    talked = conversation(session)
    typed("x" * 500, "hello")
    talk(talked)
    notes = capsys.readouterr().err
    assert "context holds 400" in notes
    assert "/clear" in notes
    assert [message["content"] for message in talked.messages[:1]] == ["hello"]


def test_a_conversation_with_a_server(folder, session, typed, capsys, monkeypatch) -> None:
    local = conversation(session)
    answers = [local.reply(text, lambda piece: None).text for text in ("hello", "and")]
    monkeypatch.setenv("THE_KEY", "secret")
    typed("hello", "and", "/exit")
    with serving(session, "ngram", key="secret") as server:
        options = ["--server", server.url, "--key-variable", "THE_KEY", "--max-new-tokens", "10"]
        assert run(["chat", *options, "--policy", "ngram"]) == 0
    out, notes = capsys.readouterr()
    assert [line for line in out.splitlines() if line] == [
        line for answer in answers for line in answer.splitlines() if line
    ]
    assert notes.count("10 tokens ·") == 2
    assert notes.count("acceptance length") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "float32", "--server", "URL"], "--dtype cannot be set"),
        (["--server", "URL", "--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--server", "URL", "--policy", "magic"], "unknown policy 'magic'"),
        (["--server", "URL", "--model", "other"], "the model 'other' is not here"),
        (["--server", "nowhere"], "no web address"),
        (["--key-variable", "HOME"], "--server"),
    ],
)
def test_what_a_server_cannot_do_is_said(session, typed, capsys, options, words) -> None:
    typed("hello")
    with serving(session, "ngram") as server:
        run(["chat", *(server.url if one == "URL" else one for one in options)])
    assert words in " ".join(capsys.readouterr().err.split())
