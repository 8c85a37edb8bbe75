"""Regenerating: prompt files, batches, killed runs, and what a user may get wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from d2sd.answers.conversations import Conversations, Draws, Wording
from d2sd.answers.questions import Answer, Answerer, Ask, Reading, read_asks
from d2sd.answers.regenerate import Progress, batches_of, begin, regenerate
from d2sd.cli import run
from d2sd.journal import Journal, lines_of, written_whole
from d2sd.train.responses import read_responses
from folders import byte_tokenizer, save_target, write_prompts

SINGLE = [{"id": i, "kind": "chat", "prompt": "hello " * (i % 4 + 1)} for i in range(11)]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return save_target(tmp_path_factory.mktemp("target"))


def write_lines(path, rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def read_lines(path):
    return [json.loads(line) for line in lines_of(path)]


def command(target, prompts, out, *more):
    options = ["--model", target, "--dtype", "float32", "--device", "cpu", "--threads", 1]
    options += ["--max-new-tokens", 8, "--batch", 3, "--temperatures", "0,1", *more]
    return ["regenerate", *map(str, [*prompts, "--out", out, *options])]


class Parrot(Answerer):
    """Says the last message again; dies at the call it is told to."""

    def __init__(self, batch=2, parallel=1, dies_at=None):
        self.batch, self.parallel, self.dies_at = batch, parallel, dies_at
        self.calls = 0

    def answer(self, questions, tick):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        tick(len(questions))
        return [
            Answer(q.prompt_ids, (5, q.seed % 97), q.messages[-1]["content"], "length")
            for q in questions
        ]


def conversations(asks, answerer, **options):
    return Conversations(asks, answerer, Wording(byte_tokenizer(), "m"), Draws(**options))


def test_a_response_line_says_all_that_training_reads(target, tmp_path):
    prompts = write_lines(tmp_path / "prompts.jsonl", SINGLE)
    assert run(command(target, [prompts], tmp_path / "out.jsonl")) == 0
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["id"] for line in lines] == list(range(11))
    assert [line["temperature"] for line in lines] == [0.0, 1.0] * 5 + [0.0]
    assert set(lines[0]) == {
        "id", "kind", "prompt", "temperature", "prompt_ids", "response_ids", "response", "finish",
    }  # fmt: skip
    for line in lines:
        ended = line["response_ids"][-1] == 2
        assert (line["finish"], len(line["response_ids"]) < 8 or ended) in [
            ("stop", True), ("length", False),
        ]  # fmt: skip
        worded = byte_tokenizer().apply_chat_template(
            [{"role": "user", "content": line["prompt"]}], add_generation_prompt=True
        )["input_ids"]
        assert line["prompt_ids"] == worded
    assert len(read_responses(tmp_path / "out.jsonl")) >= 10
    assert not (tmp_path / "out.jsonl.batches").exists()


def test_turns_are_answered_after_the_models_own_answers(tmp_path):
    asks = [Ask("a", "k", ("one", "two", "three")), Ask("b", "k", ("four",))]
    lines = conversations(asks, Parrot(4)).held([0, 1], lambda count: None)
    assert [[line.get("turn") for line in told] for told in lines] == [[0, 1, 2], [None]]
    whole = byte_tokenizer().decode(lines[0][2]["prompt_ids"])
    said = ["one", "one", "two", "two", "three"]
    assert [part.split("\n")[1] for part in whole.split("<|im_end|>")[:-1]] != said  # no Parrot yet
    texts = [part.split("\n", 2) for part in whole.replace("<|im_end|>", "").split("<|im_start|>")]
    assert [text[1] for text in texts[1:-1]] == said
    assert [text[0] for text in texts[1:]] == ["user", "assistant"] * 3


def test_raw_prompts_have_no_template_and_systems_come_first():
    asks = [Ask(0, "k", ("hello",))]
    told = byte_tokenizer()
    raw = Conversations(asks, Parrot(), Wording(told, "m", raw=True, system="be kind"), Draws())
    assert told.decode(raw.held([0], lambda n: None)[0][0]["prompt_ids"]) == "be kind\nhello"
    chat = Conversations(asks, Parrot(), Wording(told, "m", system="be kind"), Draws())
    text = told.decode(chat.held([0], lambda n: None)[0][0]["prompt_ids"])
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello")


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path):
    asks = [Ask(i, "k", ("x" * n, "more")) for i, n in enumerate([1, 40, 8])]
    talk = conversations(asks, Parrot(), max_prompt_tokens=40)
    summary = regenerate(talk, tmp_path / "out.jsonl")
    lines = read_lines(tmp_path / "out.jsonl")
    assert [(line["id"], line["turn"]) for line in lines] == [(0, 0), (2, 0)]
    assert (summary.answers, summary.left_out) == (2, 4)


def test_batches_hold_prompts_of_like_length_near_their_place():
    asks = [Ask(i, "k", ("x" * (i * 7 % 50 + 1),)) for i in range(300)]
    batches = batches_of(asks, 4)
    assert sorted(number for batch in batches for number in batch) == list(range(300))
    assert {len(batch) for batch in batches} == {4}
    assert all(len({number // 64 for number in batch}) == 1 for batch in batches)
    lengths = [[len(asks[number].turns[0]) for number in batch] for batch in batches]
    assert sum(max(batch) - min(batch) for batch in lengths) < 5 * len(batches)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("dies_at", [1, 2, 5, 6])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_run_that_died_goes_on_to_the_same_file(dies_at, parallel, name, tmp_path):
    asks = [Ask(i, "k", ("hello " * (i * 5 % 7 + 1), "and then")) for i in range(11)]
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    wanted = regenerate(conversations(asks, Parrot(), seed=3), tmp_path / "whole" / name)
    out = tmp_path / "broken" / name
    with pytest.raises(KeyboardInterrupt):
        regenerate(conversations(asks, Parrot(2, parallel, dies_at), seed=3), out)
    assert not out.exists()
    done = len(Journal(tmp_path / "broken" / f"{name}.batches"))
    again, heard = Parrot(2, parallel), []
    summary = regenerate(conversations(asks, again, seed=3), out, heard.append)
    assert summary == wanted
    assert out.read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.calls == 2 * (6 - done)  # what was done is not asked again
    assert heard[0] == Progress(4 * done, 22, 0)
    assert heard[-1] == Progress(22, 22, 22 - 4 * done)
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [name]


def test_a_finished_run_is_left_alone(tmp_path):
    asks, out = [Ask(i, "k", ("hello",)) for i in range(3)], tmp_path / "out.jsonl"
    first = regenerate(conversations(asks, Parrot()), out)
    before = out.stat().st_mtime_ns
    again = Parrot()
    assert regenerate(conversations(asks, again), out) == first
    assert (again.calls, out.stat().st_mtime_ns) == (0, before)


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_torn_part_is_cut_off_and_written_again(cut, tmp_path):
    whole = Journal(tmp_path / "whole")
    parts = [["é"], [], [{"a": 1}], [1, 2, 3]]
    for part in parts:
        whole.append(part)
    torn = tmp_path / "torn"
    torn.write_bytes((tmp_path / "whole").read_bytes()[:cut])
    journal = Journal(torn)
    assert list(journal) == parts[: len(journal)]
    for part in parts[len(journal) :]:
        journal.append(part)
    assert torn.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_damaged_journal_is_named(tmp_path):
    for text in ('{"part": 0, "holds": 1}\n{"part": 7, "holds": 1}\n', "{}\n{}\n", "[\n"):
        (tmp_path / "j").write_text(text)
        with pytest.raises(ValueError, match=r"j, line \d is damaged"):
            Journal(tmp_path / "j")


def test_two_runs_into_one_file_are_noticed(tmp_path):
    ours, theirs = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    theirs.append(1)
    with pytest.raises(ValueError, match="being written by another run"):
        ours.append(1)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "f.gz"
    writing = written_whole(path)
    writing.__enter__().write("half")
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not path.exists()
    for _ in range(2):
        with written_whole(path) as file:
            file.write("whöle\n")
        assert gzip.decompress(path.read_bytes()) == "whöle\n".encode()


def test_other_settings_are_refused_once_there_is_something_to_lose(target, tmp_path, capsys):
    prompts = write_lines(tmp_path / "prompts.jsonl", SINGLE[:4])
    out = tmp_path / "deep" / "out.jsonl"
    begin(out, {"seed": 7}, {})  # nothing is answered yet: free to change
    assert run(command(target, [prompts], out)) == 0
    record = json.loads((tmp_path / "deep" / "out.jsonl.json").read_text())
    assert record["settings"]["seed"] == 0
    assert record["provenance"]["versions"]["torch"]
    capsys.readouterr()
    assert run(command(target, [prompts], out, "--seed", 1, "--top-p", 0.5)) == 2
    complaint = capsys.readouterr().err
    assert "was begun with top_p 1.0, now 0.5; seed 0, now 1: give the settings" in complaint
    write_lines(prompts, SINGLE[:3])
    assert run(command(target, [prompts], out)) == 2
    assert "digest of the prompts" in capsys.readouterr().err
    (tmp_path / "deep" / "out.jsonl.json").unlink()
    assert run(command(target, [prompts], out)) == 2
    assert "it was not made here" in capsys.readouterr().err


def killed(arguments, out, parts):
    """Run the command in a process of its own and kill it once so many parts are on disk."""
    words = [sys.executable, "-m", "d2sd.cli", *arguments]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = out.with_name(f"{out.name}.batches")
    try:
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= parts:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def test_a_killed_command_goes_on_to_the_same_bytes(target, tmp_path):
    rows = [{"id": i, "turns": ["hello " * (i % 5 + 1), "and then"]} for i in range(24)]
    prompts = write_lines(tmp_path / "suite.jsonl", rows)
    more = ("--max-new-tokens", 16)
    assert run(command(target, [prompts], tmp_path / "whole.jsonl.gz", *more)) == 0
    broken = tmp_path / "broken.jsonl.gz"
    arguments = command(target, [prompts], broken, *more)
    assert killed(arguments, broken, 2) == -signal.SIGKILL
    assert not broken.exists()
    with (tmp_path / "broken.jsonl.gz.batches").open("ab") as journal:
        journal.write(b'{"part": ')  # and torn as well
    assert run(arguments) == 0
    assert broken.read_bytes() == (tmp_path / "whole.jsonl.gz").read_bytes()
    assert {line["kind"] for line in read_lines(broken)} == {"suite"}


BROKEN = [
    ("{", "is not JSON"),
    ("[1]", "is no object"),
    ('{"id": 1}', "has no text"),
    ('{"id": 1, "prompt": " "}', "has no text"),
    ('{"id": 1, "turns": []}', "has no text"),
    ('{"prompt": "x"}', 'has no "id"'),
    ('{"id": 1, "prompt": "x", "kind": 3}', 'has a "kind" that is no text'),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_named_and_fatal_or_left_out(line, reason, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [SINGLE[0], "", line, SINGLE[1]])
    with pytest.raises(ValueError, match=f"p.jsonl, line 3 {reason}.*--broken skip"):
        read_asks([path], Reading())
    told = []
    asks = read_asks([path], Reading(broken="skip"), told.append)
    assert [ask.id for ask in asks] == [0, 1]
    assert len(told) == 1
    assert f"p.jsonl, line 3 {reason}" in told[0]


def test_kinds_and_limits_of_several_files(tmp_path):
    suite = write_prompts(tmp_path / "mt.jsonl", ["a", "b"], ["c"], ["d"])
    plain = write_lines(tmp_path / "plain.jsonl", [*SINGLE[:1], {"id": "z", "prompt": "p"}])
    asks = read_asks([suite, plain], Reading(limit=2))
    assert [(ask.id, ask.kind) for ask in asks] == [
        ("p0", "mt"), ("p1", "mt"), (0, "chat"), ("z", "plain"),
    ]  # fmt: skip
    assert asks[0].turns == ("a", "b")
    assert [ask.kind for ask in read_asks([suite, plain], Reading("k"))][2:] == ["k", "chat", "k"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--temperatures", "0,hot"), "temperatures are '0,hot'"),
        (("--temperatures", "-1"), "temperatures are -1.0"),
        (("--top-p", 0), "top_p is 0.0"),
        (("--batch", 0), "batch is 0"),
        (("--limit", 0), "limit is 0"),
        (("--max-new-tokens", 0), "max_new_tokens is 0"),
        (("--max-prompt-tokens", 0), "max_prompt_tokens is 0"),
        (("--broken", "mend"), "broken is 'mend'"),
        (("--endpoint", "localhost:8000"), "no web address"),
    ],
)
def test_what_a_user_may_get_wrong_is_said_in_one_sentence(
    more, complaint, target, tmp_path, capsys
):
    prompts = write_lines(tmp_path / "prompts.jsonl", SINGLE[:2])
    assert run(command(target, [prompts], tmp_path / "out.jsonl", *more)) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.json").exists()
