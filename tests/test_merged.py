import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2sd.drafters import merged
from d2sd.drafters.best_first import BestFirstDrafter, RankedRow, best_first_tree, ranked_rows
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.merged import (
    MergedDrafter,
    alternative_anchors,
    merged_tree,
    mixed_anchors,
    prefix_anchors,
)
from d2sd.drafters.proposer import Proposal
from fakes import (
    MarkovProposer,
    ScriptedProposer,
    context_of,
    draw,
    paths_of,
    random_table,
    spread,
)

CHAIN = (11, 12, 13, 14, 15)
CONFIDENCE = (0.95, 0.84, 0.62, 0.70, 0.42)


def worked_example(second_choice=0.5):
    """The paper's confidences; the runner-up of slot s is 20 + s with that share of the rest."""
    rows = [
        spread({token: sure, 21 + slot: second_choice * (1 - sure)}, 40)
        for slot, (token, sure) in enumerate(zip(CHAIN, CONFIDENCE, strict=True))
    ]
    return torch.stack(rows)


def first_row(probs, count=8):
    [row] = ranked_rows(Proposal.from_probs(probs[None]).top(count), [()], ["first"])
    return row


def random_rows(kept, slots, vocab, seed):
    """A first pass and a second row for each of `kept`, with their probabilities."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 + len(kept), slots, vocab, generator=rng, dtype=torch.float64)
    probs = (1.5 * noise).softmax(-1)
    kept = [(), *kept]
    sources = ["first", *(f"row {tokens}" for tokens in kept[1:])]
    return ranked_rows(Proposal.from_probs(probs).top(vocab), kept, sources), dict(
        zip(kept, probs, strict=True)
    )


def conditional(path, tables):
    """The definition: the row that shows most of the path speaks about its next token."""
    covering = max((kept for kept in tables if path[: len(kept)] == kept), key=len)
    return tables[covering][len(path)]


def chance_of(path, tables):
    chance = 1.0
    for place, token in enumerate(path):
        chance *= float(conditional(path[:place], tables)[token])
    return chance


kept_paths = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), max_size=5, unique=True
)


@settings(max_examples=80, deadline=None)
@given(kept_paths, st.integers(0, 10_000), st.integers(1, 40))
def test_holds_the_most_probable_of_all_paths(kept, seed, budget):
    rows, tables = random_rows(kept, slots=4, vocab=3, seed=seed)
    tree = merged_tree(7, rows, budget)
    every_path = [
        path for length in range(1, 5) for path in itertools.product(range(3), repeat=length)
    ]
    best = sorted((chance_of(path, tables) for path in every_path), reverse=True)[:budget]
    found = [tree.tokens_on(tree.path_to(node)) for node in range(1, len(tree))]
    assert [chance_of(path, tables) for path in found] == pytest.approx(best)
    assert len(set(found)) == len(found)
    assert all(parent < node for node, parent in enumerate(tree.parents))


@settings(max_examples=30, deadline=None)
@given(kept_paths, st.integers(0, 10_000))
def test_a_nodes_source_is_the_row_that_speaks_for_it(kept, seed):
    rows, tables = random_rows(kept, slots=4, vocab=3, seed=seed)
    tree = merged_tree(7, rows, 60)
    for node in range(1, len(tree)):
        path = tree.tokens_on(tree.path_to(node))[:-1]
        covering = max((kept for kept in tables if path[: len(kept)] == kept), key=len)
        assert tree.sources[node] == (f"row {covering}" if covering else "first")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_without_second_rows_it_is_the_best_first_tree(seed, budget):
    probs = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    candidates = Proposal.from_probs(probs).top(budget)
    rows = ranked_rows(candidates, [()], ["first"])
    assert merged_tree(3, rows, budget) == best_first_tree(3, candidates, budget)


def test_rows_that_know_no_more_change_nothing_but_the_sources():
    table = random_table(12, scale=3.0, seed=4)
    deaf = MarkovProposer(table, 6)
    slots = deaf.propose(context_of([5]), [(5,)]).probs[0]
    tables = {(): slots, **{(a,): slots for a in range(12)}}
    tables |= {(a, b): slots for a in range(12) for b in range(12)}
    proposer = ScriptedProposer(6, tables)
    merged = MergedDrafter(proposer, proposer, 30, branches=2).draft(context_of([5]))
    assert merged.tokens == BestFirstDrafter(deaf, 30).draft(context_of([5])).tokens


def test_prefix_rows_and_a_huge_budget_contain_the_dual_tree():
    table = random_table(7, seed=2)
    first = MarkovProposer(table, 5, noise=1.0, seed=1)
    second = MarkovProposer(table, 5, seed=2)
    found = 0
    for anchor in range(7):
        context = context_of([anchor])
        dual = DualDrafter(first, second, choose=lambda posterior, branches: [1, 2, 3])
        merged = MergedDrafter(first, second, 7**5, branches=3, anchors="prefix")
        dual_paths = paths_of(dual.draft(context))
        assert dual_paths <= paths_of(merged.draft(context))
        found += len(dual_paths) - 4
    assert found > 0  # some redraft differed from the chain


def test_prefix_anchors_are_the_papers_boundaries():
    kept = prefix_anchors(first_row(worked_example()), 4)
    assert kept == [CHAIN[:2], CHAIN[:4], CHAIN[:1], CHAIN[:3]]
    assert len(prefix_anchors(first_row(worked_example()), 9)) == 4  # the empty one is left out


def test_alternative_anchors_are_the_most_probable_departures_from_the_chain():
    # masses: reach .95, .798, .495, .346 times half of the confidence's rest
    kept = alternative_anchors(first_row(worked_example()), 4)
    assert kept == [(11, 12, 23), (11, 22), (11, 12, 13, 24), (21,)]


def test_mixed_anchors_take_the_larger_gain():
    # r: .303 .201 .152 .148 for prefixes of 2, 4, 1, 3; alternatives have .8 of r(i), so (11, 12)
    # and another token (.243) comes before the prefix of 4, and 22 (.122) last.
    kept = mixed_anchors(first_row(worked_example(second_choice=0.8)), 6)
    assert kept == [
        CHAIN[:2],
        (11, 12, 23),
        CHAIN[:4],
        CHAIN[:1],
        CHAIN[:3],
        (11, 22),
    ]


@pytest.mark.parametrize("choose", [prefix_anchors, alternative_anchors, mixed_anchors])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), slots=st.integers(1, 5), branches=st.integers(1, 9))
def test_anchors_are_distinct_and_leave_something_to_redraft(choose, seed, slots, branches):
    probs = torch.randn(slots, 4, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    kept = choose(first_row(probs, 4), branches)
    assert len(set(kept)) == len(kept) <= branches
    assert all(1 <= len(tokens) < slots for tokens in kept)


def test_alternatives_are_the_most_probable_of_all_there_are():
    probs = torch.rand(4, 5, generator=torch.Generator().manual_seed(8)).softmax(-1)
    row = first_row(probs, 5)
    assert set(alternative_anchors(row, 3)) == set(alternative_anchors(row, 99)[:3])
    assert len(alternative_anchors(row, 99)) == 3 * 4  # slots before the last, tokens but the best


def slots(*choices):
    """{token: probability} per slot; None where the slot is visible."""
    unread = torch.full((40,), torch.nan, dtype=torch.float64)
    return torch.stack([unread if c is None else spread(c, 40) for c in choices])


def test_a_mixed_tree_by_hand():
    first = ScriptedProposer(4, {(): slots({1: 0.6, 2: 0.39}, {3: 0.5, 4: 0.3}, {5: 0.5})})
    second = ScriptedProposer(
        4,
        {
            (1,): slots(None, {4: 0.9, 3: 0.1}, {6: 0.8, 5: 0.2}),
            (2,): slots(None, {7: 0.99}, {8: 0.99}),
        },
    )
    drafter = MergedDrafter(first, second, budget=7, branches=2)
    tree = drafter.draft(context_of([0, 9]))
    # .6 .54=.6*.9 .432=.54*.8 .39 .3861 .382 .108=.54*.2; next would be .06
    assert draw(tree) == "\n".join(
        [
            "9 anchor",
            ". 1 first",
            ". . 4 second@1",
            ". . . 6 second@1",
            ". . . 5 second@1",
            ". 2 first",
            ". . 7 second@0+1",
            ". . . 8 second@0+1",
        ]
    )
    assert [visible for visible, _ in second.passes] == [((9, 2), (9, 1))]


def test_a_block_of_one_token_needs_no_second_pass():
    first = ScriptedProposer(2, {(): slots({1: 0.6, 2: 0.3})})
    second = ScriptedProposer(2, {})
    tree = MergedDrafter(first, second, budget=2).draft(context_of([9]))
    assert draw(tree) == "9 anchor\n. 1 first\n. 2 first"
    assert second.passes == []


def test_unknown_anchors_are_refused():
    proposer = ScriptedProposer(2, {})
    with pytest.raises(ValueError, match="anchors is 'best'; choose one of prefix, alternative"):
        MergedDrafter(proposer, proposer, anchors="best")


def test_rows_are_a_value_one_can_build_by_hand():
    rows = [
        RankedRow((), [[1, 2], [3, 4]], [[0.6, 0.4], [0.5, 0.5]], "first"),
        RankedRow((2,), [[0, 0], [6, 5]], [[0.0, 0.0], [0.9, 0.1]], "second"),
    ]
    assert draw(merged_tree(0, rows, 4)) == (
        "0 anchor\n. 1 first\n. . 3 first\n. 2 first\n. . 6 second"
    )


def sampled_length(tree, table):
    """Expected tokens of a step when the target samples: the chances of all nodes, anchor's 1."""
    chances = [1.0]
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        chances.append(chances[parent] * table[tree.tokens[parent]][tree.tokens[node]])
    return sum(chances)


def greedy_length(tree, table):
    """Tokens of a step when the target is greedy."""
    node, length = 0, 1
    while True:
        best = max(range(len(table)), key=table[tree.tokens[node]].__getitem__)
        node = tree.children.get((node, best))
        if node is None:
            return length
        length += 1


TOYS = {
    "sampled": (sampled_length, {"scale": 4.3}, {}),
    "greedy": (greedy_length, {"scale": 2.9}, {"noise": 0.7, "sharpness": 2.0}),
}


@pytest.mark.parametrize("toy", TOYS)
def test_at_equal_nodes_two_passes_beat_one(toy):
    """The claim of merged, without sampling error: 64 tokens, block 16, mean over all anchors."""
    length, target, errors = TOYS[toy]
    table = random_table(64, seed=1, **target)
    first, second = (MarkovProposer(table, 16, seed=seed, **errors) for seed in (1, 2))
    rows = table.tolist()

    def mean_length(drafter):
        trees = [drafter.draft(context_of([anchor])) for anchor in range(64)]
        assert all(len(tree) == 65 for tree in trees)
        return sum(length(tree, rows) for tree in trees) / 64

    best_first = mean_length(BestFirstDrafter(first, 64))
    merged = {
        anchors: mean_length(MergedDrafter(first, second, 64, anchors=anchors))
        for anchors in ("prefix", "alternative", "mixed")
    }
    assert merged["mixed"] > 1.1 * best_first
    assert min(merged.values()) > 1.05 * best_first
    assert merged["mixed"] == max(merged.values())


@pytest.mark.parametrize("anchors", ["prefix", "alternative", "mixed"])
@pytest.mark.parametrize("scale", [0.2, 0.7, 3.0])
def test_fetched_candidates_give_the_tree_of_all(monkeypatch, anchors, scale):
    first, second = (MarkovProposer(random_table(80, scale=scale, seed=s), 4) for s in (1, 2))
    drafter = MergedDrafter(first, second, 60, branches=20, anchors=anchors)
    ours = [drafter.draft(context_of([anchor])) for anchor in range(6)]
    monkeypatch.setattr(merged, "FEW", 60)
    assert ours == [drafter.draft(context_of([anchor])) for anchor in range(6)]
