"""Costs measured, stored, found again, and shown by `d2sd tune`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from d2sd.cli import run
from d2sd.costs import CostTable
from d2sd.drafters.passes import EagerDraftPass
from d2sd.drafters.proposer import NetworkProposer
from d2sd.generate import Request, generate
from d2sd.networks import Networks
from d2sd.session import ModelChoice, Session, open_session
from d2sd.target.hf import HFTarget
from d2sd.tuning import store
from d2sd.tuning.measure import DEEPEST, QUICK, Scope, measure_costs, random_tree
from d2sd.tuning.store import StoredCosts, cost_file, cost_key, store_costs, stored_costs
from drafters import random_network
from folders import save_drafter, save_target

SMALL = Scope((8, 24), (1, 3, 9), (1, 2, 3), repeats=3, steps=4)
MILLISECOND = 1e-3
OPTIONS = ("--device", "cpu", "--dtype", "float32", "--eager")
TABLE = CostTable((1, 8), (64,), ((0.01,), (0.02,)), (1,), ((0.003,),), (), 0.001)
KEY = {"threads": 2, "versions": {"torch": "2"}}
STORED = StoredCosts(TABLE, SMALL, {"date": "today"})


class Clock:
    """Stands still until somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def price(nodes: int, context: int) -> float:
    return (10 + nodes + context / 8) * MILLISECOND


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """A clock that moves by made-up prices: passes by size, a commit by half a millisecond."""
    clock = Clock()
    score, commit, propose = HFTarget.score, HFTarget.commit, NetworkProposer.propose

    def priced_score(self, context, tree):
        clock.now += price(len(tree), context.committed)
        return score(self, context, tree)

    def priced_commit(self, context, scores, verdict):
        clock.now += 0.5 * MILLISECOND
        return commit(self, context, scores, verdict)

    def priced_propose(self, context, visible, block_size=None):
        clock.now += len(visible) * MILLISECOND
        return propose(self, context, visible, block_size)

    monkeypatch.setattr(HFTarget, "score", priced_score)
    monkeypatch.setattr(HFTarget, "commit", priced_commit)
    monkeypatch.setattr(NetworkProposer, "propose", priced_propose)
    return clock


@pytest.fixture
def target(tiny_llama) -> HFTarget:
    return HFTarget(tiny_llama, (0, 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return {
        "target": str(save_target(home / "target")),
        "first": str(save_drafter(home / "first", seed=1)),
        "second": str(save_drafter(home / "second", seed=2)),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("D2SD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "costs"


def opened(folders: dict[str, str], told: list[str] | None = None, policy: str = "dual") -> Session:
    choice = ModelChoice(folders["target"], folders["first"], folders["second"], "float32", "cpu")
    return open_session(choice, [policy], [].append if told is None else told.append)


@pytest.fixture
def d2sd(folders, capsys):
    """Runs `d2sd tune` on the tiny model with few repeats."""

    def command(*more: str, drafters: bool = True):
        line = ["tune", "--model", folders["target"], *OPTIONS]
        if drafters:
            line += ["--drafter", folders["first"], "--second-drafter", folders["second"]]
        given = {"--repeats": "1", "--contexts": "8,24"}
        line += [part for option in given.items() if option[0] not in more for part in option]
        return run([*line, *more]), *capsys.readouterr()

    return command


def test_the_table_holds_what_the_clock_says(target, clock) -> None:
    networks = Networks(random_network(1), random_network(2))
    table = measure_costs(target, networks, SMALL, clock=clock)
    for nodes, row in zip(SMALL.nodes, table.target, strict=True):
        assert row == pytest.approx([price(nodes, context) for context in SMALL.contexts])
    assert table.first == table.second
    for rows, row in zip(SMALL.rows, table.first, strict=True):
        assert row == pytest.approx([rows * MILLISECOND] * 2)
    assert table.overhead == pytest.approx(0.5 * MILLISECOND)


def test_the_warm_up_and_one_slow_pass_do_not_count(target, clock, monkeypatch) -> None:
    score, seen = HFTarget.score, []

    def hiccups(self, context, tree):
        seen.append(len(tree))
        if seen.count(len(tree)) in (1, 3):  # the warm-up, and one of three
            clock.now += 1.0
        return score(self, context, tree)

    monkeypatch.setattr(HFTarget, "score", hiccups)
    table = measure_costs(target, Networks(), replace(SMALL, contexts=(8,)), clock=clock)
    assert [row[0] for row in table.target] == pytest.approx([price(n, 8) for n in SMALL.nodes])


def test_a_cost_that_falls_with_size_is_evened_out(target, clock, monkeypatch) -> None:
    prices = {1: 4.0, 3: 2.0, 9: 6.0}
    score = HFTarget.score

    def odd(self, context, tree):
        start = clock.now
        scores = score(self, context, tree)
        clock.now = start + prices.get(len(tree), 1.0)
        return scores

    monkeypatch.setattr(HFTarget, "score", odd)
    table = measure_costs(target, Networks(), SMALL, clock=clock)
    assert [row[0] for row in table.target] == pytest.approx([3.0, 3.0, 6.0])


def test_every_timed_pass_of_a_drafter_reads_three_new_features(target, monkeypatch) -> None:
    read: list[int] = []
    propose = NetworkProposer.propose

    def noted(self, context, visible, block_size=None):
        assert all(row[0] == context.anchor for row in visible)
        read.append(context.committed)
        return propose(self, context, visible, block_size)

    monkeypatch.setattr(NetworkProposer, "propose", noted)
    scope = replace(SMALL, contexts=(24,), repeats=1)
    measure_costs(target, Networks(random_network(), None), scope)
    turns = [read[start : start + 4] for start in range(0, len(read), 4)]
    assert turns == [[15, 18, 21, 24]] * 2  # one that forgets, then three row counts


def test_without_drafters_the_target_alone_is_measured(target, clock) -> None:
    table = measure_costs(target, Networks(), SMALL, clock=clock)
    assert (table.first, table.second) == ((), ())
    one = measure_costs(target, Networks(random_network()), SMALL, clock=clock)
    assert len(one.first) == len(SMALL.rows)
    assert one.second == ()


def test_one_network_for_both_passes_is_measured_once(target, clock) -> None:
    network, moves = random_network(), []
    table = measure_costs(
        target, Networks(network, network), SMALL, lambda *move: moves.append(move), clock
    )
    assert table.first == table.second != ()
    total = 2 * 4 * (3 + 3)  # contexts, turns with the warm-up, node counts and row counts
    assert moves == [(done, total) for done in range(1, total + 1)]


def test_a_context_that_does_not_fit_is_refused_or_shortened(target) -> None:
    with pytest.raises(ValueError, match=r"256, of which a tree needs 17; give at most 239$"):
        measure_costs(target, Networks(), replace(SMALL, contexts=(8, 240)))
    assert QUICK.within(256).contexts == (64, 239)
    assert Scope().within(256).contexts == (64, 239)
    assert QUICK.within(10_000) == QUICK
    longest = replace(SMALL, contexts=(239,), repeats=1)
    assert measure_costs(target, Networks(), longest).contexts == (239,)
    with pytest.raises(ValueError, match="holds 17 tokens"):
        QUICK.within(17)


@pytest.mark.parametrize("wrong", [{"contexts": ()}, {"nodes": (4, 2)}, {"repeats": 0}])
def test_sizes_that_cannot_be_measured_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} to measure are"):
        Scope(**wrong)


def test_a_random_tree_has_the_size_and_depth_asked_for() -> None:
    from random import Random

    for nodes in (1, 2, 50):
        tree = random_tree(5, nodes, 97, Random(1), deepest=3)
        assert len(tree) == nodes
        assert max(tree.depths) <= 3
        assert tree.tokens[0] == 5
    assert max(random_tree(5, 128, 2, Random(1)).depths) <= DEEPEST


def test_a_session_measures_once_and_says_so(folders, cache) -> None:
    told: list[str] = []
    table = opened(folders, told).costs
    assert [line for line in told if "d2sd tune" in line]
    assert len(list(cache.glob("*.json"))) == 1
    assert (table.contexts, table.nodes) == ((64, 239), QUICK.nodes)
    again: list[str] = []
    session = opened(folders, again)
    assert session.costs == table
    assert not [line for line in again if "d2sd tune" in line]
    stored = stored_costs(session.cost_key)
    assert stored.run.keys() >= {"date", "commit", "versions", "device", "dtype", "threads"}
    assert stored.scope == QUICK.within(256)
    cost_file(session.cost_key).write_text("damaged")
    opened(folders, again).costs.to_json()
    assert [line for line in again if "d2sd tune" in line]
    assert stored_costs(session.cost_key) is not None


def test_costs_are_measured_only_for_a_policy_that_goes_by_them(folders, cache) -> None:
    opened(folders, policy="merged")
    assert not cache.exists()
    opened(folders, policy="planned")
    assert len(list(cache.glob("*.json"))) == 1


def test_a_session_decodes_the_same_after_measuring(folders) -> None:
    session = opened(folders)
    prompt = session.chat_prompt([{"role": "user", "content": "hello"}])

    def answer():
        session.target.prefill(prompt[:1])
        drafter = session.drafter("dual")
        request = Request(prompt, max_new_tokens=12)
        return generate(session.target, drafter, request, session.tokenizer).token_ids

    before = answer()
    assert session.costs.overhead >= 0
    assert answer() == before


def test_a_cache_that_cannot_be_written_does_not_stop_a_session(folders, cache) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    told: list[str] = []
    assert opened(folders, told).costs.nodes == QUICK.nodes
    assert "D2SD_CACHE" in told[-1]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": {}}', "costs", "scope", "key"])
def test_a_damaged_file_is_as_none(damage: str) -> None:
    file = store_costs(KEY, STORED)
    assert stored_costs(KEY) == STORED
    if damage.isalpha():
        damage = json.dumps({**json.loads(file.read_text()), damage: None})
    file.write_text(damage)
    assert stored_costs(KEY) is None


class OtherPass(EagerDraftPass):
    """A way to run a drafter that costs something else."""


def test_costs_are_stale_when_anything_they_depend_on_is_another(
    tiny_models, target, monkeypatch
) -> None:
    config, networks = tiny_models["Llama"].config, Networks(random_network(1), random_network(2))
    key = cost_key(config, target, networks)
    assert key == cost_key(config, HFTarget(tiny_models["Llama"], (0, 2)), networks)
    retrained = Networks(random_network(3), random_network(4))
    assert key == cost_key(config, target, retrained)  # weights cost nothing
    wider = random_network(1, intermediate_size=64)
    others = [
        cost_key(tiny_models["Qwen3"].config, target, networks),
        cost_key(config, target, Networks(wider, networks.second)),
        cost_key(config, target, Networks(networks.first, wider)),
        cost_key(config, target, Networks(networks.first)),
        cost_key(config, target, Networks()),
    ]

    def changed(where: object, name: str, value: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            others.append(cost_key(config, target, networks))

    changed(target, "dtype", torch.bfloat16)
    changed(target, "run", object())
    compiled = Networks(random_network(1), random_network(2))
    other = OtherPass(compiled.second, target.embed, target.head)
    compiled.passes.set(compiled.second, target, other)
    others.append(cost_key(config, target, compiled))
    changed(torch, "get_num_threads", lambda: 77)
    changed(config, "_attn_implementation", "eager")
    for name in ("device_name", "processor"):
        changed(store, name, lambda *_: "another")
    for package in ("torch", "transformers"):
        older = {"torch": "2", "transformers": "5", package: "0"}
        changed(store, "version", older.__getitem__)
    changed(store, "FORMAT", 0)
    files = {cost_file(other) for other in (key, *others)}
    assert len(files) == 1 + len(others)


def test_another_key_in_the_same_file_is_not_believed() -> None:
    file = store_costs({**KEY, "threads": 77}, STORED)
    file.rename(cost_file(KEY))
    assert stored_costs(KEY) is None


def test_tune_stores_what_a_session_then_finds(d2sd, folders) -> None:
    code, out, _ = d2sd("--json")
    values = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert values.keys() == {"costs", "scope", "key", "file", "run"}
    assert values["scope"]["contexts"] == [8, 24]
    assert values["scope"]["repeats"] == 1
    told: list[str] = []
    session = opened(folders, told)
    assert session.costs == CostTable.from_json(values["costs"])
    assert not [line for line in told if "d2sd tune" in line]
    assert len(session.costs.second) == len(session.costs.rows) == 8


def test_tune_measures_again_only_when_it_must(d2sd) -> None:
    def date_and_costs(*more: str):
        _, out, notes = d2sd("--json", *more)
        return json.loads(out)["costs"], "--force measures again" in notes

    first = date_and_costs()
    assert first[1] is False
    assert date_and_costs() == (first[0], True)
    assert date_and_costs("--force")[0] != first[0]
    other = date_and_costs("--contexts", "24,9")
    assert (other[0]["contexts"], other[1]) == ([9, 24], False)
    assert date_and_costs("--contexts", "9,24") == (other[0], True)
    assert date_and_costs("--contexts", "9,24", "--repeats", "2")[1] is False


def test_tune_shows_tables_and_a_drawing(d2sd, tmp_path) -> None:
    code, out, notes = d2sd("--plot", str(tmp_path / "costs.png"))
    lines = out.splitlines()
    assert code == 0
    heads = [line.split() for line in lines if line.endswith("24 tokens")]
    assert heads == [
        [*name.split(), "8", "tokens", "24", "tokens"]
        for name in ("target, nodes", "first drafter, rows", "second drafter, rows")
    ]
    counts = [line.split()[0] for line in lines[1:4]]
    assert counts == ["1", "2", "4"]
    assert "a 8 tokens   b 24 tokens" in out
    assert "outside the passes a step takes" in out
    assert f"wrote {tmp_path / 'costs.png'}" in notes
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_the_drawing_follows_the_figures() -> None:
    from d2sd.cli.costing import HEIGHT, WIDTH, drawn_costs

    table = CostTable((1, 60), (64, 512), ((0.01, 0.02), (0.05, 0.1)), (1,), (), (), 0.0)
    lines = [line.plain for line in drawn_costs(table)]
    rows = [line.split("│")[1] for line in lines[:HEIGHT]]
    assert all(len(row) == WIDTH for row in rows)
    assert lines[0].split("│")[0].strip() == "100.0"
    assert rows[0][-1] == "b"  # the top is the dearest
    for mark in "ab":  # each rises from left to right
        levels = [next(i for i, row in enumerate(rows) if row[x] == mark) for x in range(5, WIDTH)]
        assert all(left >= right for left, right in pairwise(levels))
        assert levels[0] > levels[-1]


def test_tune_measures_a_target_without_drafters(d2sd) -> None:
    code, out, _ = d2sd("--json", drafters=False)
    values = json.loads(out)["costs"]
    assert code == 0
    assert (values["first"], values["second"]) == ([], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--contexts", "8,9000"), "can't be measured"),
        (("--contexts", "8,x"), "give whole numbers with commas"),
        (("--contexts", "0,8"), "contexts to measure are (0, 8)"),
        (("--repeats", "0"), "repeats is 0; it must be 1 or more"),
    ],
)
def test_bad_input_is_one_sentence(d2sd, options, words: str) -> None:
    code, out, notes = d2sd(*options)
    assert (code, out) == (2, "")
    [sentence] = [line for line in notes.splitlines() if line.startswith("d2sd: ")]
    assert words in sentence
