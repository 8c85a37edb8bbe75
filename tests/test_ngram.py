import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2sd.decode import decode
from d2sd.drafters.ngram import NgramDrafter, Ngrams
from d2sd.sampling import Sampling
from fakes import MarkovTarget, context_of, random_table


def drafted(tokens, **options):
    return NgramDrafter(**options).draft(context_of(tokens)).tokens[1:]


def test_continues_the_suffix_seen_before():
    assert drafted([1, 2, 3, 8, 9, 7, 1, 2, 3], length=2) == (8, 9)


def test_the_longest_suffix_wins_over_a_later_shorter_one():
    assert drafted([1, 2, 3, 8, 5, 3, 9, 1, 2, 3], length=1) == (8,)


def test_the_latest_of_equal_suffixes_wins():
    assert drafted([2, 3, 8, 0, 2, 3, 9, 0, 2, 3], length=1) == (9,)


def test_a_repeated_phrase_goes_on_past_the_end():
    assert drafted([7, 1, 2, 3, 1, 2, 3], length=8) == (1, 2, 3, 1, 2, 3, 1, 2)


def test_orders_bound_the_suffix():
    tokens = [1, 2, 3, 8, 0, 3, 9, 0, 2, 3]
    assert drafted(tokens, length=1, max_order=1) == (9,)
    assert drafted(tokens, length=1, min_order=2) == (8,)
    assert drafted(tokens, length=1, min_order=3) == ()


@pytest.mark.parametrize("tokens", [[4], [1, 2, 3]])
def test_nothing_seen_before_drafts_nothing(tokens):
    assert drafted(tokens) == ()


def slow_reference(tokens, length, orders):
    """Search the whole sequence for each order, from the end."""
    for order in orders:
        suffix = tokens[len(tokens) - order :]
        for start in range(len(tokens) - 1, order - 1, -1):
            if order <= len(tokens) and tokens[start - order : start] == suffix:
                copied = list(tokens)
                for place in range(start, start + length):
                    copied.append(copied[place])
                return copied[len(tokens) :]
    return []


edits = st.tuples(st.integers(0, 6), st.lists(st.integers(0, 2), min_size=1, max_size=6))


@given(st.lists(edits, min_size=1, max_size=6))
def test_after_any_growth_and_cropping_equals_a_search_of_the_whole_sequence(steps):
    drafter, tokens = NgramDrafter(length=4, max_order=3), [0]
    for dropped, added in steps:
        tokens = tokens[: max(1, len(tokens) - dropped)] + added
        tree = drafter.draft(context_of(tokens))
        assert list(tree.tokens[1:]) == slow_reference(tokens, 4, [3, 2, 1])


def test_a_step_reads_only_new_tokens(monkeypatch):
    read = []
    index = Ngrams._ngrams_before

    def counted(self, place, tokens):
        read.append(place)
        return index(self, place, tokens)

    monkeypatch.setattr(Ngrams, "_ngrams_before", counted)
    drafter = NgramDrafter()
    drafter.draft(context_of(range(500)))
    read.clear()
    drafter.draft(context_of(range(503)))
    assert read == [500, 501, 502, 503]  # three to index, one to look up


def test_greedy_output_is_the_targets_and_repetition_is_accepted():
    target = MarkovTarget(random_table(5, order=2, seed=3))
    steps = list(itertools.islice(decode(target, NgramDrafter(), [1, 2], Sampling()), 20))
    emitted = [token for step in steps for token in step.emitted]
    assert tuple(emitted) == target.greedy([1, 2], len(emitted))
    assert len(emitted) > 2 * len(steps)  # greedy decoding of so small a table soon repeats


def test_orders_that_are_no_range_are_refused():
    with pytest.raises(ValueError, match="min_order is 3 and max_order 2"):
        NgramDrafter(max_order=2, min_order=3)


def test_an_empty_chain_is_refused():
    with pytest.raises(ValueError, match="length is 0"):
        NgramDrafter(length=0)


def test_what_a_dropped_sequence_held_is_given_up():
    """Else a server's index would grow with every answer it ever gave."""
    ngrams = Ngrams()
    for start in range(0, 1000, 10):
        ngrams.copy((1, 2, *range(start, start + 10)), 4)
    fresh = Ngrams()
    fresh.copy((1, 2, *range(990, 1000)), 4)
    assert ngrams._places == fresh._places
