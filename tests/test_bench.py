"""Prompt files, the paired measurement and where its numbers come from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from d2sd.bench.measure import Workload, conversation, figures, measure
from d2sd.bench.prompts import Prompt, read_prompts
from d2sd.drafters.policies import parse_policies, parse_policy
from d2sd.generate import Generation
from d2sd.interfaces import Context, Drafter
from d2sd.provenance import commit
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


def test_prompts_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"id": "x", "turns": ["é"]}\n\n{"id": 7, "turns": ["a", "b"], "category": "c"}\nrest'
    )
    assert read_prompts(file, 2) == [Prompt("x", ("é",)), Prompt("7", ("a", "b"))]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "x", "turns": ["a"', "line 2 is not JSON"),
        ('["x"]', "line 2 is no object"),
        ('{"id": "x"}', 'line 2 has no list of texts under "turns"'),
        ('{"id": "x", "turns": []}', 'line 2 has no list of texts under "turns"'),
        ('{"id": "x", "turns": [3]}', 'line 2 has no list of texts under "turns"'),
        ('{"turns": ["a"]}', 'line 2 has no "id"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "x", "turns": ["a"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"prompts.jsonl, {words}"):
        read_prompts(file)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"id": "x", "turns": ["\xff"]}')
    with pytest.raises(ValueError, match="line 1 is not UTF-8"):
        read_prompts(file)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jsonl cannot be read: No such file"):
        read_prompts(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="limit is 0"):
        read_prompts(tmp_path / "empty.jsonl", 0)


def answer(tokens: tuple[int, ...], steps: int, seconds: float) -> Generation:
    return Generation("", tokens, 5, "stop", steps, 3 * steps, seconds, 1.0)


def test_figures_by_hand() -> None:
    baseline = [[answer((1, 2, 3, 4), 4, 4.0)], [answer((5, 6), 2, 2.0), answer((7, 8), 2, 2.0)]]
    ours = [[answer((1, 2, 3, 4), 2, 1.0)], [answer((5, 6), 1, 1.0), answer((7, 9), 1, 1.0)]]
    row = figures(ours, baseline)
    assert (row.new_tokens, row.steps) == (8, 4)
    assert row.acceptance_length == 2.0
    assert row.nodes_per_step == 3.0
    assert row.tokens_per_second == pytest.approx(8 / 3)
    assert row.median_tokens_per_second == pytest.approx((4 + 2) / 2)
    assert row.tokens_per_second_with_prefill == pytest.approx(8 / 6)
    assert row.speedup_over_none == pytest.approx(8 / 3)
    assert row.identical_to_none is False  # the last token differs
    assert figures(baseline, baseline).identical_to_none is True
    alone = figures(ours, None)
    assert (alone.identical_to_none, alone.speedup_over_none) == (None, None)


def test_policies_are_compared_on_the_same_prompts(session: Session) -> None:
    done: list[int] = []
    policies = parse_policies("ngram:length=3,none,ngram")
    workload = Workload(PROMPTS, max_new_tokens=20)
    comparison = measure(session, policies, workload, done.append)
    assert comparison.prompts == 3
    assert done == [1, 2, 3]
    assert list(comparison.policies) == ["ngram:length=3", "none", "ngram"]
    rows = comparison.policies
    assert all(row.identical_to_none for row in rows.values())
    assert len({row.new_tokens for row in rows.values()}) == 1
    assert rows["none"].acceptance_length == 1.0
    assert rows["none"].nodes_per_step == 0.0
    assert rows["ngram"].steps < rows["none"].steps
    assert rows["ngram"].speedup_over_none == pytest.approx(
        rows["ngram"].tokens_per_second / rows["none"].tokens_per_second
    )


def test_sampled_answers_are_identical_too(session: Session) -> None:
    workload = Workload(PROMPTS, 20, Sampling(temperature=0.9), seed=4)
    rows = measure(session, parse_policies("none,ngram"), workload).policies
    assert rows["ngram"].identical_to_none is True


def test_every_prompt_and_turn_has_its_own_draws() -> None:
    workload = Workload(PROMPTS, sampling=Sampling(temperature=1.0), seed=3)
    seeds = {workload.seeded(n, t).rng.initial_seed() for n in range(30) for t in range(3)}
    assert len(seeds) == 90
    first, again = workload.seeded(1, 0), workload.seeded(1, 0)
    assert torch.rand(3, generator=first.rng).equal(torch.rand(3, generator=again.rng))


def test_answers_are_fed_back(session: Session) -> None:
    turns = list(conversation(session, session.drafter("none"), Workload(PROMPTS, 8), 1))
    text = session.tokenizer.decode(turns[1].request.prompt)
    said = turns[0].answer.text
    assert f"the cat<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n" in text
    assert text.endswith("and the dog<|im_end|>\n<|im_start|>assistant\n")


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
        list(conversation(session, Watching(), workload, 0))
    hook.remove()
    assert read[:4] == read[4:]
    assert read[0] == rows[0]  # the prefill of all tokens but one, the second time as well


def test_policies_given_twice_are_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="name one twice"):
        measure(session, parse_policies("none,none"), Workload(PROMPTS))


def test_a_prompt_that_is_too_long_is_named(session: Session) -> None:
    workload = Workload((Prompt("long", ("x" * 300,)),))
    with pytest.raises(ValueError, match="prompt long: the prompt has 3"):
        measure(session, [parse_policy("none")], workload)


def test_a_run_says_where_it_comes_from(session: Session) -> None:
    facts = json.loads(json.dumps(session.provenance(seed=3)))
    assert facts["seed"] == 3
    assert facts["dtype"] == "float32"
    assert facts["device"].startswith("cpu")
    assert set(facts["versions"]) == {"python", "d2sd", "torch", "transformers"}
    assert facts["date"].endswith("+00:00")


def test_the_commit_is_that_of_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "file.py"
    file.write_text("1")
    assert commit(file) is None  # no repository
    git("init")
    assert commit(file) is None  # a repository that does not know the file
    git("add", "file.py")
    git("commit", "-m", "m")
    assert commit(file) == git("rev-parse", "HEAD")
    file.write_text("2")
    assert commit(file) == git("rev-parse", "HEAD") + "+changes"
