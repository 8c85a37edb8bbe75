import copy as copying

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2sd.drafters.best_first import RankedRow, Slot, ranked_paths
from d2sd.drafters.copied import named, spliced
from d2sd.drafters.hits import HitRates
from d2sd.drafters.merged import merged_slots
from d2sd.drafters.ngram import Copy

FIRST = RankedRow((), [[1, 2, 3], [4, 5, 6]], [[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]], "first")
SECOND = RankedRow((2,), [[0, 0, 0], [7, 8, 9]], [[0.0] * 3, [0.7, 0.2, 0.05]], "second@0+1")


def chances(start, budget=100):
    """Every path after `start` with its probability."""
    paths, found = ranked_paths(start, budget), {}
    where = [()]
    for token, parent, chance in zip(paths.tokens, paths.parents, paths.chances, strict=True):
        where.append((*where[parent], token))
        found[where[-1]] = chance
    return found


def test_without_a_pass_a_copy_is_a_chain_of_its_hit_rates():
    hits = HitRates()
    joined = spliced(None, Copy((5, 6), matched=3), hits)
    assert joined.opinions == (None, None)
    first, second = hits.chance(3), hits.chance(4)
    assert chances(joined.start) == {(5,): first, (5, 6): pytest.approx(first * second)}


def test_nothing_copied_changes_nothing():
    start = merged_slots([FIRST])
    assert spliced(start, Copy(), HitRates()).start is start
    assert spliced(None, Copy(), HitRates()).start is None


def test_a_copy_stops_where_it_is_improbable():
    hits = HitRates()
    for _ in range(300):
        for matched in range(1, 20):
            hits.add(matched, None, False)
    assert len(spliced(None, Copy(tuple(range(60)), 1), hits).opinions) < 5


@pytest.mark.parametrize("rows", [[FIRST], [FIRST, SECOND]], ids=["one pass", "both passes"])
@pytest.mark.parametrize("tokens", [(1, 4), (2, 7), (2, 40, 41), (30, 31), (3,)])
def test_only_the_copys_own_path_changes(rows, tokens):
    hits, start = HitRates(), merged_slots(rows)
    before, untouched = chances(start), copying.deepcopy(chances(start))
    joined = spliced(start, Copy(tokens, matched=4), hits)
    after = chances(joined.start)
    assert chances(start) == untouched
    assert after[tokens] == pytest.approx(expected(before, tokens, hits))
    # under any other first token all is as before, but for what that first token lost or won
    scale = {path[0]: after[path] / before[path] for path in before if len(path) == 1}
    for path in before:
        if path[0] != tokens[0]:
            assert after[path] / before[path] == pytest.approx(scale[path[0]])
    assert sum(after[path] for path in after if len(path) == 1) <= 1 + 1e-9


def expected(before, tokens, hits):
    """The copy's probability, from the passes' own at every token."""
    total = 1.0
    for depth in range(len(tokens)):
        path = tokens[: depth + 1]
        said = any(len(other) == len(path) and other[:-1] == path[:-1] for other in before)
        own = before.get(path, 0.0) / before.get(path[:-1], 1.0) if said or depth < 2 else None
        total *= hits.chance(4 + depth, own)
    return total


probs = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=5)


@given(probs, st.integers(0, 6), st.integers(1, 20))
def test_a_changed_slot_stays_a_distribution_best_first(weights, token, matched):
    whole = sum(weights) * 1.1
    slot = Slot(
        list(range(len(weights))), sorted((w / whole for w in weights), reverse=True), "first", None
    )
    joined = spliced(slot, Copy((token,), matched), HitRates()).start
    assert joined.probs == sorted(joined.probs, reverse=True)
    assert sum(joined.probs) <= 1 + 1e-9
    assert sorted(joined.tokens) == sorted({*slot.tokens, token})


def test_what_no_pass_proposed_is_named_after_the_copy():
    start = merged_slots([FIRST])
    copy = Copy((2, 50, 51), matched=9)
    paths = named(ranked_paths(spliced(start, copy, HitRates()).start, 30), copy, start)
    tree = paths.tree(0)
    sources = {tree.tokens_on(tree.path_to(n)): tree.sources[n] for n in range(1, len(tree))}
    assert sources[2,] == "first"
    assert sources[2, 50] == sources[2, 50, 51] == "ngram"
    assert sources[1,] == sources[2, 4] == "first"
