"""The loop on a target whose answers are known: any drafter, the same tokens."""

from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.decode import decode
from d2sd.interfaces import Target, shared_prefix
from d2sd.sampling import Sampling
from fakes import MarkovTarget, ScriptedDrafter, random_table

VOCAB = 5
TABLE = random_table(VOCAB, order=2, seed=2)
ROWS = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=4).map(tuple), max_size=5)
PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)


def oracle(context):
    """The target's own next four tokens, and a wrong branch beside them."""
    return [MarkovTarget(TABLE).greedy(context.tokens, 4), (0, 0)]


def half_right(context):
    right = MarkovTarget(TABLE).greedy(context.tokens, 4)
    return [(*right[:2], (right[2] + 1) % VOCAB)]


def wrong(context):
    (right,) = MarkovTarget(TABLE).greedy(context.tokens, 1)
    return [((right + 1) % VOCAB, 0, 0), ((right + 2) % VOCAB,)]


def nothing(context):
    return []


def emitted(script, prompt, length, sampling):
    tokens = []
    for step in decode(MarkovTarget(TABLE), ScriptedDrafter(script), prompt, sampling):
        tokens += step.emitted
        if len(tokens) >= length:
            return tuple(tokens[:length])
    raise AssertionError("decode ended by itself")


@pytest.mark.parametrize("script", [nothing, wrong, half_right, oracle])
@pytest.mark.parametrize("prompt", [[3], [1, 4], [2, 0, 1, 3]], ids=str)
def test_greedy_output_is_plain_greedy_decoding(script, prompt):
    expected = MarkovTarget(TABLE).greedy(prompt, 20)
    assert emitted(script, prompt, 20, Sampling()) == expected


@given(ROWS, PROMPTS)
def test_any_rows_at_every_step_leave_greedy_output_alone(rows, prompt):
    expected = MarkovTarget(TABLE).greedy(prompt, 12)
    assert emitted(lambda context: rows, prompt, 12, Sampling()) == expected


@given(ROWS, st.integers(0, 2**31))
def test_equal_seeds_give_plain_decodings_samples(rows, seed):
    def sampling():
        return Sampling(temperature=1.0, rng=torch.Generator().manual_seed(seed))

    plain = emitted(nothing, [1, 2], 10, sampling())
    assert emitted(lambda context: rows, [1, 2], 10, sampling()) == plain


@pytest.mark.parametrize(
    ("script", "tokens_per_step"), [(nothing, 1), (wrong, 1), (half_right, 3), (oracle, 5)]
)
def test_every_step_is_one_target_pass_and_its_tokens_are_the_accepted_and_the_bonus(
    script, tokens_per_step
):
    target = MarkovTarget(TABLE)
    steps = list(islice(decode(target, ScriptedDrafter(script), [0, 1], Sampling()), 6))
    assert target.passes == 6
    assert [len(step.emitted) for step in steps] == [tokens_per_step] * 6
    assert all(step.emitted[-1] == step.verdict.bonus for step in steps)


def test_a_step_reports_what_was_drafted():
    rows = ScriptedDrafter(lambda context: [(1, 2), (1, 3)])
    step = next(decode(MarkovTarget(TABLE), rows, [0], Sampling()))
    assert step.drafted == 3


class ShortSighted(Target):
    """Scores no more than the first nodes of a tree, as a target near its context's end does."""

    def __init__(self, inner, nodes):
        self.inner, self.nodes = inner, nodes

    def prefill(self, prompt):
        return self.inner.prefill(prompt)

    def score(self, context, tree):
        return self.inner.score(context, tree.first(self.nodes))

    def commit(self, context, scores, verdict):
        return self.inner.commit(context, scores, verdict)


@pytest.mark.parametrize("nodes", [1, 3])
def test_what_the_target_leaves_unscored_is_neither_accepted_nor_counted(nodes):
    target = ShortSighted(MarkovTarget(TABLE), nodes)
    steps = list(islice(decode(target, ScriptedDrafter(oracle), [0, 1], Sampling()), 4))
    tokens = [token for step in steps for token in step.emitted]
    assert [step.drafted for step in steps] == [nodes - 1] * 4
    assert tuple(tokens) == MarkovTarget(TABLE).greedy([0, 1], 4 * nodes)


def test_the_drafter_sees_every_token_so_far_and_the_anchor_last():
    contexts = []

    def keep(context):
        contexts.append(context)
        return oracle(context)

    steps = islice(decode(MarkovTarget(TABLE), ScriptedDrafter(keep), [4, 2], Sampling()), 3)
    tokens = [4, 2]
    for step in steps:
        assert contexts[-1].tokens == tuple(tokens)
        assert contexts[-1].anchor == tokens[-1]
        assert contexts[-1].committed == len(tokens) - 1
        tokens += step.emitted


def test_stages_wrap_the_four_verbs_in_order():
    names = []

    @contextmanager
    def stage(name):
        names.append(name)
        yield

    list(islice(decode(MarkovTarget(TABLE), ScriptedDrafter(wrong), [0], Sampling(), stage), 2))
    assert names == ["prefill", *["draft", "score", "verify", "commit"] * 2]


def test_processors_rule_every_emitted_token():
    def no_token_twice(ids, logits):
        logits[0, ids[0]] = -torch.inf
        return logits

    sampling = Sampling(processors=(no_token_twice,))
    tokens = emitted(oracle, [3], VOCAB - 1, sampling)
    assert sorted(tokens) == [0, 1, 2, 4]
    again = Sampling(processors=(no_token_twice,))
    assert tokens == emitted(nothing, [3], VOCAB - 1, again)


def test_the_targets_refusal_reaches_the_caller():
    with pytest.raises(ValueError, match="prompt is empty"):
        next(decode(MarkovTarget(TABLE), ScriptedDrafter(nothing), [], Sampling()))


def test_the_roles_cannot_be_made_without_their_verbs():
    class Half(Target):
        def prefill(self, prompt):
            return None

    with pytest.raises(TypeError, match="score"):
        Half()


@given(PROMPTS, PROMPTS)
def test_shared_prefix_is_the_longest_common_one(left, right):
    length = shared_prefix(left, right)
    assert left[:length] == right[:length]
    assert left[: length + 1] != right[: length + 1] or length == min(len(left), len(right))
