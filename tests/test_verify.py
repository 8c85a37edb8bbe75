"""The walk along the target's own draws: hand cases, a slow reference, exact histories."""

import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.overrides import TorchFunctionMode

from d2sd.sampling import Sampling
from d2sd.tree import Branch, TokenTree
from d2sd.verify import Verdict, verify, verify_at_once, verify_row_by_row

ANCHOR = 0
VOCAB = 4
ROWS = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5).map(tuple), max_size=6)


def grown(*rows: tuple[int, ...]) -> TokenTree:
    return TokenTree.from_branches(ANCHOR, [Branch(row) for row in rows])


def choosing(tokens: list[int]) -> torch.Tensor:
    """Logits of one row per node whose argmax are `tokens`."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).double()


def judged(tree: TokenTree, tokens: list[int]) -> Verdict:
    """The verdict of the walk, the same whether rows are read one by one or all at once."""
    verdict = verify_row_by_row(tree, choosing(tokens), Sampling(), [ANCHOR])
    assert verify_at_once(tree, choosing(tokens), Sampling(), [ANCHOR]) == verdict
    return verdict


def test_an_anchor_alone_emits_the_bonus_only():
    assert judged(grown(), [3]) == Verdict((0,), bonus=3)


def test_a_chain_is_followed_up_to_the_first_miss():
    # nodes: 0 anchor, 1 token 1, 2 token 2, 3 token 3
    chain = grown((1, 2, 3))
    assert judged(chain, [1, 2, 0, 3]) == Verdict((0, 1, 2), bonus=0)
    assert judged(chain, [2, 2, 3, 3]) == Verdict((0,), bonus=2)


def test_a_chain_accepted_whole_still_gets_its_bonus():
    assert judged(grown((1, 2, 3)), [1, 2, 3, 0]) == Verdict((0, 1, 2, 3), bonus=0)


def test_the_walk_leaves_a_branch_where_another_goes_on():
    # nodes: 1 = "1", 2 = "1 2", 3 = "1 2 3", 4 = "1 3", 5 = "1 3 2"
    tree = grown((1, 2, 3), (1, 3, 2))
    assert judged(tree, [1, 3, 0, 0, 2, 0]) == Verdict((0, 1, 4, 5), bonus=0)


def test_a_token_elsewhere_in_the_tree_is_no_match():
    tree = grown((1, 2), (3,))
    assert judged(tree, [3, 0, 0, 2]) == Verdict((0, 3), bonus=2)


@given(ROWS, st.lists(st.integers(0, VOCAB - 1), min_size=31, max_size=31))
def test_greedy_walk_equals_the_longest_agreeing_row(rows, choices):
    tree = grown(*rows)
    choice_after = {tree.tokens_on(tree.path_to(n)): choices[n] for n in range(len(tree))}

    def agreed(row: tuple[int, ...]) -> tuple[int, ...]:
        length = 0
        while length < len(row) and choice_after[row[:length]] == row[length]:
            length += 1
        return row[:length]

    longest = max((agreed(row) for row in [(), *rows]), key=len)
    verdict = judged(tree, choices[: len(tree)])
    assert tree.tokens_on(verdict.path) == longest
    assert verdict.bonus == choice_after[longest]


@given(ROWS, st.lists(st.integers(0, VOCAB - 1), min_size=6, max_size=6))
def test_only_draws_are_emitted_and_processors_get_exact_histories(rows, draws):
    histories = []

    def force_next_draw(ids, logits):
        histories.append(ids[0].tolist())
        return choosing([draws[len(histories) - 1]])

    tree = grown(*rows)
    logits = torch.zeros(len(tree), VOCAB).double()
    verdict = verify(tree, logits, Sampling(processors=(force_next_draw,)), [7, ANCHOR])
    emitted = [*tree.tokens_on(verdict.path), verdict.bonus]
    assert emitted == draws[: len(emitted)]
    assert histories == [[7, ANCHOR, *emitted[:n]] for n in range(len(emitted))]


def test_a_processor_that_writes_into_its_argument_leaves_the_scores_alone():
    def forbid_repeats(ids, logits):
        logits[0, ids[0]] = -torch.inf
        return logits

    logits = torch.tensor([[9.0, 3.0, 2.0, 1.0]]).repeat(2, 1)
    untouched = logits.clone()
    verdict = verify(grown((2,)), logits, Sampling(processors=(forbid_repeats,)), [1, ANCHOR])
    assert verdict == Verdict((0, 1), bonus=3)
    assert torch.equal(logits, untouched)


def test_a_row_of_logits_too_many_is_refused():
    with pytest.raises(TypeCheckError):
        verify(grown((1,)), torch.zeros(2, 3, VOCAB), Sampling(), [ANCHOR])


@pytest.mark.parametrize(
    ("device", "processors", "rule"),
    [
        ("meta", (), "verify_at_once"),  # not the CPU: every transfer is waited for
        ("meta", (lambda ids, logits: logits,), "verify_row_by_row"),
        ("cpu", (), "verify_row_by_row"),
    ],
)
def test_all_draws_are_made_at_once_where_transfers_are_waited_for(
    monkeypatch, device, processors, rule
):
    chosen = Verdict((0,), bonus=2)
    monkeypatch.setattr(sys.modules["d2sd.verify.match"], rule, lambda *given: chosen)
    logits = torch.zeros(2, VOCAB, device=device)
    assert verify(grown((1,)), logits, Sampling(processors=processors), [ANCHOR]) == chosen


SETTINGS = [{}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.2}]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, *SETTINGS], ids=str)
def test_all_at_once_reads_one_tensor(settings):
    tree, sampling = grown((1, 2, 3), (1, 3)), Sampling(**{"temperature": 1.0} | settings)
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1))
    verify_at_once(tree, logits, sampling, [ANCHOR])  # the first draw seeds the noise
    for _ in range(20):
        with HostReads() as reads:
            verify_at_once(tree, logits, sampling, [ANCHOR])
        assert reads.names == ["tolist"]


class HostReads(TorchFunctionMode):
    """Collects the calls by which Python reads a tensor's values."""

    READING = frozenset(
        ["tolist", "item", "cpu", "numpy", "__int__", "__float__", "__bool__", "__index__"]
    )

    def __init__(self):
        self.names = []

    def __torch_function__(self, called, types, args=(), kwargs=None):
        if called.__name__ in self.READING:
            self.names.append(called.__name__)
        return called(*args, **(kwargs or {}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, *SETTINGS], ids=str)
def test_a_step_waits_for_the_gpu_once(settings):
    tree, sampling = grown((1, 2, 3), (1, 3)), Sampling(**{"temperature": 1.0} | settings)
    logits = torch.randn(5, VOCAB, device="cuda")
    verify(tree, logits, sampling, [ANCHOR])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            verify(tree, logits, sampling, [ANCHOR])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
