"""Trials: everyone answers every prompt, in turn, and a killed run goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d2sd.bench.contenders import Absent, Contender, PolicyContender
from d2sd.bench.prompts import Prompt
from d2sd.bench.records import Answer, Steps
from d2sd.bench.results import read_results, write_results
from d2sd.bench.run import LOG, Order, logged, run
from d2sd.bench.trials import Bench, Task, rotated
from d2sd.bench.workload import Workload, conversation
from d2sd.drafters.policies import parse_policies, parse_policy
from d2sd.generate import Request, generate
from d2sd.interfaces import Context, Drafter
from d2sd.journal import Journal
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, Session, open_session
from d2sd.tree import Branch, TokenTree
from folders import save_target

PROMPTS = (
    Prompt("a", ("hello hello hello",)),
    Prompt("b", ("the cat", "and the dog")),
    Prompt("c", ("tell me",)),
)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = save_target(tmp_path_factory.mktemp("target"))
    choice = ModelChoice(model=str(folder), device="cpu")
    return open_session(choice, ["none", "ngram:length=3"])


def order(policies: str = "ngram:length=3,none,ngram", **changes) -> Order:
    chosen = tuple(parse_policies(policies))
    return replace(Order({"s": PROMPTS}, chosen, workload=Workload((), 20)), **changes)


def test_policies_are_compared_on_the_same_prompts(session: Session, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    results = run(session, order(), Journal(tmp_path / LOG), lambda *at: heard.append(at))
    [section] = results.sections
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (section.suite, section.temperature, section.prompts) == ("s", 0.0, 3)
    assert list(section.rows) == ["ngram:length=3", "none", "ngram"]
    rows = section.rows
    assert {row.identical for row in rows.values()} == {4}  # turns
    assert len({row.new_tokens for row in rows.values()}) == 1
    assert rows["none"].acceptance_length == (1.0, 1.0, 1.0)
    assert rows["none"].nodes_per_step == 0.0
    assert rows["ngram"].steps < rows["none"].steps
    assert rows["ngram"].sources.keys() == {"ngram"}
    ratio = rows["ngram"].tokens_per_second / rows["none"].tokens_per_second
    assert rows["ngram"].speedup is not None
    assert rows["ngram"].speedup.value == pytest.approx(ratio)
    milliseconds = sum(rows["ngram"].stages_ms.values()) * rows["ngram"].steps
    decoded = rows["ngram"].new_tokens / rows["ngram"].tokens_per_second
    assert milliseconds == pytest.approx(1000 * decoded)


def test_sampled_answers_are_identical_too(session: Session, tmp_path: Path) -> None:
    work = Workload((), 20, Sampling(top_k=50), seed=4)
    asked = order("none,ngram", workload=work, temperatures=(0.9, 0.0))
    results = run(session, asked, Journal(tmp_path / LOG))
    assert [section.temperature for section in results.sections] == [0.9, 0.0]
    assert [section.rows["ngram"].identical for section in results.sections] == [4, 4]
    ids = [answer["token_ids"] for answer in answers_in(tmp_path, "none", 0)]
    assert ids[:4] != ids[4:]  # the temperature was used


def answers_in(folder: Path, name: str, start: int) -> list[dict]:
    parts = [json.loads(line)["holds"] for line in (folder / LOG).read_text().splitlines()]
    return [answer for part in parts[1 + start :] for answer in part["answers"][name]]


def test_results_are_those_of_the_log(session: Session, tmp_path: Path) -> None:
    results = run(session, order(), Journal(tmp_path / LOG))
    assert logged(tmp_path) == results
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    log = answers_in(tmp_path, "ngram", 0)
    steps = sum(len(answer["steps"]["emitted"]) for answer in log)
    tokens = sum(len(answer["token_ids"]) for answer in log)
    seconds = sum(sum(answer["steps"]["seconds"]) for answer in log)
    row = results.sections[0].rows["ngram"]
    assert row.acceptance_length.value == pytest.approx(tokens / steps)
    assert row.tokens_per_second == pytest.approx(tokens / seconds)
    with pytest.raises(ValueError, match=r"holds no log\.jsonl"):
        logged(tmp_path / "elsewhere")


class Counting(PolicyContender):
    """Counts what it is asked; is killed at the `last`th answer."""

    asked = 0
    last = 10**9

    def answer(self, request: Request) -> Answer:
        if request.max_new_tokens == 20:  # not the warm-up
            Counting.asked += 1
            if Counting.asked > Counting.last:
                raise KeyboardInterrupt
        return super().answer(request)


def test_a_killed_run_goes_on_and_measures_nothing_twice(session, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("d2sd.bench.run.PolicyContender", Counting)
    monkeypatch.setattr(Counting, "asked", 0)
    monkeypatch.setattr(Counting, "last", 5)
    asked = order("none,ngram", temperatures=(0.0, 1.0))
    with pytest.raises(KeyboardInterrupt):
        run(session, asked, Journal(tmp_path / LOG))
    assert len(Journal(tmp_path / LOG)) == 2  # what it is, and the first prompt
    first = (tmp_path / LOG).read_text().splitlines()[1]
    monkeypatch.setattr(Counting, "last", 10**9)
    heard = []
    results = run(session, asked, Journal(tmp_path / LOG), lambda *at: heard.append(at))
    assert heard[0] == (1, 6)
    assert Counting.asked == 6 + 2 * (3 + 4)  # the second prompt once more, then all others
    assert [section.prompts for section in results.sections] == [3, 3]
    assert (tmp_path / LOG).read_text().splitlines()[1] == first
    run(session, asked, Journal(tmp_path / LOG))
    assert Counting.asked == 20


def test_a_log_of_other_settings_is_refused(session: Session, tmp_path: Path) -> None:
    run(session, order("none"), Journal(tmp_path / LOG))
    with pytest.raises(ValueError, match="was begun with other settings"):
        run(session, order("ngram"), Journal(tmp_path / LOG))
    with pytest.raises(ValueError, match="was begun with other settings"):
        run(session, order("none", workload=Workload((), 21)), Journal(tmp_path / LOG))


class Noting(Contender):
    """Says one token and notes when it was asked."""

    kind = "peer"
    arithmetic = "none at all"

    def __init__(self, name: str, heard: list[str], sampled: bool = True) -> None:
        self.name, self.heard, self.sampled = name, heard, sampled

    def begin(self, temperature: float) -> None:
        self.heard.append(f"begin {self.name}")

    def answer(self, request: Request) -> Answer:
        self.heard.append(self.name)
        return Answer("x", (1,), len(request.prompt), Steps((1,), (0,), (0,), (0,), (0.5,)), 0.1)


def test_the_order_rotates_and_everyone_is_warm(session: Session, tmp_path: Path) -> None:
    heard: list[str] = []
    contenders = {name: Noting(name, heard) for name in ("x", "y")}
    bench = Bench(session, contenders, [Task("s", Workload(PROMPTS), ("x", "y"))])
    bench.run(Journal(tmp_path / LOG), {}, {})
    warm_up = ["begin x", "x", "begin y", "y"]
    assert heard == [*warm_up, "begin x", "begin y", "x", "y", "y", "y", "x", "x", "x", "y"]
    assert rotated(("a", "b", "c"), 4) == ["b", "c", "a"]


def test_peers_take_part_where_they_can(session: Session, tmp_path: Path, monkeypatch) -> None:
    def open_peers(names, session, assistant):
        assert (names, assistant) == (("x", "y", "z"), "small")
        return [Noting("x", []), Noting("y", [], sampled=False), Absent("z", "it is not there")]

    monkeypatch.setattr("d2sd.bench.run.open_peers", open_peers)
    asked = order("none", peers=("x", "y", "z"), assistant="small", temperatures=(0.0, 1.0))
    results = run(session, asked, Journal(tmp_path / LOG))
    assert [list(section.rows) for section in results.sections] == [["none", "x", "y"], ["none"]]
    everywhere = replace(asked, peer_temperatures=(0.0, 1.0))
    results = run(session, everywhere, Journal(tmp_path / "other.jsonl"))
    assert [list(s.rows) for s in results.sections] == [["none", "x", "y"], ["none", "x"]]
    assert results.absent == {"z": "it is not there"}
    assert [one.kind for one in results.participants] == ["policy", "peer", "peer"]


class Breaking(Noting):
    """Breaks down after four answers."""

    def answer(self, request: Request) -> Answer:
        if self.heard.count(self.name) == 4:
            raise RuntimeError("too\nmuch")
        return super().answer(request)


def test_another_program_that_breaks_down_is_reported(session, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("d2sd.bench.run.open_peers", lambda *_: [Breaking("x", [])])
    asked = order("none", suites={"s": PROMPTS[:2], "t": PROMPTS[2:]}, peers=("x",))
    results = run(session, asked, Journal(tmp_path / LOG))
    assert [list(section.rows) for section in results.sections] == [["none", "x"], ["none"]]
    assert list(results.means[0].rows) == ["none"]
    assert "broke down on t at temperature 0, prompt c" in results.absent["x"]
    assert results.absent["x"].endswith("too much")
    assert logged(tmp_path) == results


def test_a_policy_that_breaks_down_ends_the_bench(session, tmp_path, monkeypatch) -> None:
    broken = Breaking("none", ["none"] * 4)
    broken.kind = "policy"
    bench = Bench(session, {"none": broken}, [Task("s", Workload(PROMPTS), ("none",))])
    with pytest.raises(RuntimeError, match="much"):
        bench.run(Journal(tmp_path / LOG), {}, {})


def test_every_prompt_and_turn_has_its_own_draws() -> None:
    workload = Workload(PROMPTS, sampling=Sampling(temperature=1.0), seed=3)
    seeds = {workload.seeded(n, t).rng.initial_seed() for n in range(30) for t in range(3)}
    assert len(seeds) == 90
    first, again = workload.seeded(1, 0), workload.seeded(1, 0)
    assert torch.rand(3, generator=first.rng).equal(torch.rand(3, generator=again.rng))


def asking(session: Session, drafter: Drafter):
    return lambda request: generate(session.target, drafter, request, session.tokenizer)


def test_answers_are_fed_back(session: Session) -> None:
    ask = asking(session, session.drafter("none"))
    turns = list(conversation(session, ask, Workload(PROMPTS, 8), 1))
    text = session.tokenizer.decode(turns[1].request.prompt)
    said = turns[0].answer.text
    assert f"the cat<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n" in text
    assert text.endswith("and the dog<|im_end|>\n<|im_start|>assistant\n")


def test_thinking_is_left_to_the_template_or_told_to_it(session: Session, monkeypatch) -> None:
    template = session.tokenizer.chat_template + "{{ enable_thinking }}"
    monkeypatch.setattr(session.tokenizer, "chat_template", template)
    message = [{"role": "user", "content": "x"}]
    ends = {session.tokenizer.decode(session.chat_prompt(message, t))[-5:] for t in (True, False)}
    assert ends == {"\nTrue", "False"}
    assert not session.tokenizer.decode(session.chat_prompt(message)).endswith(("True", "False"))


def test_each_conversation_starts_from_an_empty_cache(session: Session) -> None:
    class Watching(Drafter):
        def draft(self, context: Context) -> TokenTree:
            rows.append(context.committed)
            return TokenTree.from_branches(context.anchor, [Branch(())])

    rows: list[int] = []
    read: list[int] = []
    hook = session.model.base_model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(output[0].shape[1]), with_kwargs=True
    )
    workload = Workload(PROMPTS, max_new_tokens=3)
    for _ in range(2):
        list(conversation(session, asking(session, Watching()), workload, 0))
    hook.remove()
    assert read[:4] == read[4:]
    assert read[0] == rows[0]  # the prefill of all tokens but one, the second time as well


def test_policies_given_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="name one twice"):
        order("none,none")


def test_a_prompt_that_is_too_long_is_named(session: Session, tmp_path: Path) -> None:
    asked = order("none", suites={"s": (Prompt("long", ("x" * 300,)),)})
    with pytest.raises(ValueError, match="prompt long: the prompt has 3"):
        run(session, asked, Journal(tmp_path / LOG))


def test_a_policy_alone_has_nothing_to_be_compared_with(session: Session, tmp_path: Path) -> None:
    row = run(session, order("ngram"), Journal(tmp_path / LOG)).sections[0].rows["ngram"]
    assert (row.identical, row.speedup, row.speedup_with_prefill) == (None, None, None)


def test_a_policy_says_what_it_computes_with(session: Session) -> None:
    assert PolicyContender(session, parse_policy("none")).arithmetic == "float32, eager"


def test_a_run_says_where_it_comes_from(session: Session) -> None:
    facts = json.loads(json.dumps(session.provenance(seed=3)))
    assert facts["seed"] == 3
    assert facts["dtype"] == "float32"
    assert facts["device"].startswith("cpu")
    assert set(facts["versions"]) == {"python", "d2sd", "torch", "transformers"}
    assert facts["date"].endswith("+00:00")
