"""Filters equal transformers' own; bad values are refused; draws do not depend on the tree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from d2sd.sampling import Noise, Sampling, favourites, filtered
from d2sd.tree import Branch, TokenTree
from d2sd.verify import verify_at_once, verify_row_by_row

VOCAB = 12


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What transformers' generate samples from, in generate's own order."""
    warpers = LogitsProcessorList()
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(None, logits[None].clone())[0].softmax(-1)


FILTERS = st.builds(
    dict,
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.sampled_from([1.0, 0.95, 0.9, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
)


@given(FILTERS, st.integers(0, 2**31), st.booleans())
def test_filters_equal_transformers_warpers(filters, seed, ties):
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    if ties:
        logits = logits.round()
    sampling = Sampling(temperature=1.0, **filters)
    expected = warped(logits, sampling)
    ours = filtered(logits, sampling)
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected)


def test_temperature_divides_before_the_filters():
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0])
    sampling = Sampling(temperature=0.5, top_p=0.9, rng=torch.Generator().manual_seed(0))
    allowed = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.5)(None, logits[None]))
    expected = allowed.softmax(-1)[0]
    draws = torch.tensor([sampling.draw(logits, [0]) for _ in range(2000)])
    frequency = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(frequency, expected, atol=0.04, rtol=0)
    assert torch.equal(frequency > 0, expected > 0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.5}, "min_p is -0.5"),
        ({"min_p": 1.0}, "min_p is 1.0"),
    ],
)
def test_a_value_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling(**wrong)


def test_greedy_takes_the_argmax_and_leaves_the_generator_alone():
    rng = torch.Generator().manual_seed(3)
    before = rng.get_state()
    assert Sampling(rng=rng).draw(torch.tensor([0.0, 2.0, 1.0]), [0]) == 1
    assert torch.equal(rng.get_state(), before)


def test_of_equal_favourites_the_first_is_taken():
    logits = torch.randn(300, 40, generator=torch.Generator().manual_seed(2)).round()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(favourites(logits.to(dtype)), logits.argmax(-1))


@pytest.mark.parametrize("verify", [verify_row_by_row, verify_at_once])
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=8),
    st.integers(0, 2**31),
)
def test_equal_seeds_emit_equal_tokens_whatever_the_tree(verify, rows, seed):
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))

    def emitted(rows: list[tuple[int, ...]]) -> list[int]:
        """Tokens of a next-token table, drafted by the same rows at every step."""
        sampling = Sampling(temperature=1.0, rng=torch.Generator().manual_seed(seed))
        tokens = [0]
        while len(tokens) < 20:  # more than the noise that is made at a time
            tree = TokenTree.from_branches(tokens[-1], [Branch(row) for row in rows])
            verdict = verify(tree, table[list(tree.tokens)], sampling, tokens)
            tokens += [*tree.tokens_on(verdict.path), verdict.bonus]
        return tokens[:20]

    assert emitted(rows) == emitted([])


CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=8))
def test_noise_is_handed_out_in_order_however_far_one_looks_ahead(steps):
    def noise(positions, looked, seen=0):
        found = looked.ahead(positions, 5, CPU, torch.Generator().manual_seed(seen))
        return found.clone()

    everything, looked, emitted = noise(400, Noise()), Noise(), 0
    for ahead, kept in steps:
        assert torch.equal(noise(ahead, looked), everything[emitted : emitted + ahead])
        looked.emitted(min(kept, ahead))
        emitted += min(kept, ahead)


def test_noise_follows_the_seed_and_each_use_of_it_differs():
    def draws(rng):
        return Noise().ahead(3, 50, CPU, rng)

    rng = torch.Generator().manual_seed(1)
    first, second = draws(rng), draws(rng)
    assert torch.equal(first, draws(torch.Generator().manual_seed(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draws(torch.Generator().manual_seed(2)))


def test_another_vocabulary_gets_noise_of_its_own_size():
    noise, rng = Noise(), torch.Generator()
    assert noise.ahead(2, 5, CPU, rng).shape == (2, 5)
    assert noise.ahead(3, 8, CPU, rng).shape == (3, 8)


def test_half_precision_logits_are_filtered_in_full_precision():
    logits = torch.linspace(-2, 2, 1000).bfloat16()
    sampling = Sampling(temperature=0.7, top_p=0.9, rng=torch.Generator().manual_seed(5))
    twin = Sampling(temperature=0.7, top_p=0.9, rng=torch.Generator().manual_seed(5))
    draws = [sampling.draw(logits, [0]) for _ in range(20)]
    assert draws == [twin.draw(logits.float(), [0]) for _ in range(20)]
