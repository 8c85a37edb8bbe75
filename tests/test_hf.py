"""HFTarget over tiny random models in float64: any tree, the same tokens; exact features."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch
from transformers import AutoTokenizer

from conftest import tiny_model
from d2sd.decode import decode
from d2sd.interfaces import Drafter
from d2sd.sampling import Sampling
from d2sd.target import hf, masks, passes
from d2sd.target.cache import TreeCache
from d2sd.target.hf import HFTarget
from d2sd.tree import Branch, TokenTree
from d2sd.verify import verify

VOCAB = 97
PROMPTS = {1: [5], 2: [5, 17], 5: [5, 17, 3, 3, 60]}
LENGTH = 24


class RandomTrees(Drafter):
    """Three branches of five: wrong, right for two tokens, right to the end; in random order."""

    def __init__(self, truth, seed):
        self.truth, self.rng = truth, random.Random(seed)

    def draft(self, context):
        right = self.truth[len(context.tokens) :][:5]
        branches = [
            Branch((*right[:kept], *(self.rng.randrange(VOCAB) for _ in range(5 - kept))))
            for kept in self.rng.sample([0, 2, 5], 3)
        ]
        return TokenTree.from_branches(context.anchor, branches)


class Nothing(Drafter):
    def draft(self, context):
        return TokenTree.from_branches(context.anchor, [])


def tokens_of(target, drafter, prompt, length=LENGTH):
    steps = decode(target, drafter, prompt, Sampling())
    return list(islice((token for step in steps for token in step.emitted), length))


def generated(model, prompt, length=LENGTH):
    """What transformers' own greedy generation gives."""
    ids = torch.tensor([prompt])
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": length, "do_sample": False}
    return model.generate(ids, **asked)[0, len(prompt) :].tolist()


def stepped(target, drafter, prompt, steps):
    """The contexts before each step and after the last."""
    contexts = [target.prefill(prompt)]
    for _ in range(steps):
        context = contexts[-1]
        scores = target.score(context, drafter.draft(context))
        verdict = verify(scores.tree, scores.logits, Sampling(), context.tokens)
        contexts.append(target.commit(context, scores, verdict))
    return contexts


@pytest.fixture
def long_truth(tiny_llama):
    return [*PROMPTS[5], *generated(tiny_llama, PROMPTS[5], 60)]


# --- tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=str)
def test_any_tree_gives_the_tokens_of_plain_greedy_and_of_transformers(tiny, prompt):
    expected = generated(tiny, prompt, LENGTH + 6)
    assert len(set(expected)) > 3, "a continuation that repeats itself proves little"
    assert tokens_of(HFTarget(tiny), Nothing(), prompt) == expected[:LENGTH]
    for seed in range(2):
        trees = RandomTrees([*prompt, *expected], seed)
        assert tokens_of(HFTarget(tiny), trees, prompt) == expected[:LENGTH]


def test_oracle_branches_are_accepted_whole(tiny_llama, long_truth):
    steps = decode(HFTarget(tiny_llama), RandomTrees(long_truth, 0), PROMPTS[5], Sampling())
    assert [len(step.emitted) for step in islice(steps, 6)] == [6] * 6


def sequential_positions(tree, committed, device="cpu"):
    return torch.arange(committed, committed + len(tree), device=device)[None]


def causal_mask(tree, committed, dtype, device="cpu"):
    chain = TokenTree.from_branches(tree.tokens[0], [Branch(tree.tokens[1:])])
    # equal tokens do not merge in a chain, so it has as many nodes as the tree
    return masks.tree_mask(chain, committed, dtype, device)


def keep_first_rows(cache, path):
    cache.length += len(path)


@pytest.mark.parametrize(
    ("place", "name", "mutant"),
    [
        (passes, "tree_positions", sequential_positions),
        (passes, "tree_mask", causal_mask),
        (TreeCache, "keep_path", keep_first_rows),
    ],
    ids=["positions by index", "siblings visible", "no compaction"],
)
def test_mutants_are_found_out(tiny_llama, long_truth, monkeypatch, place, name, mutant):
    def tokens():
        return tokens_of(HFTarget(tiny_llama), RandomTrees(long_truth, 1), PROMPTS[5], 40)

    expected = long_truth[5:45]
    assert tokens() == expected
    monkeypatch.setattr(place, name, mutant)
    assert tokens() != expected


def test_logits_of_every_node_are_those_of_its_own_sequence(tiny):
    target = HFTarget(tiny)
    context = target.prefill(PROMPTS[5])
    branches = [Branch((1, 2, 3)), Branch((1, 4)), Branch((9, 2, 3))]
    tree = TokenTree.from_branches(context.anchor, branches)
    logits = target.score(context, tree).logits
    for node in range(len(tree)):
        ids = torch.tensor([[*context.tokens, *tree.tokens_on(tree.path_to(node))]])
        alone = tiny(ids, use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[node], alone, rtol=0, atol=1e-11)


def test_scoring_changes_nothing(tiny_llama):
    target = HFTarget(tiny_llama, taps=(0,))
    context = target.prefill(PROMPTS[5])
    tree = TokenTree.from_branches(context.anchor, [Branch((1, 2)), Branch((3,))])
    first = target.score(context, tree)
    target.score(context, TokenTree.from_branches(context.anchor, [Branch((8,) * 9)]))
    again = target.score(context, tree)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.features, again.features)


def test_an_outdated_context_is_refused(tiny_llama):
    target = HFTarget(tiny_llama)
    old = stepped(target, Nothing(), PROMPTS[2], 1)[0]
    with pytest.raises(AssertionError, match="latest context"):
        target.score(old, TokenTree.from_branches(old.anchor, []))


# --- features -------------------------------------------------------------------------------


def test_features_are_the_layers_outputs(tiny):
    taps = (2, 0, 1)  # the last layer, and not in order
    truth = [*PROMPTS[5], *generated(tiny, PROMPTS[5], 40)]
    context = stepped(HFTarget(tiny, taps), RandomTrees(truth, 3), PROMPTS[5], 4)[-1]
    assert context.committed > 20, "accepted tree rows are among them"
    with torch.inference_mode():
        ids = torch.tensor([context.tokens[:-1]])
        states = tiny(ids, output_hidden_states=True).hidden_states
        normed = tiny.model.norm(context.features[:, 0])
    assert context.features.shape == (context.committed, 3, 32)
    for column, tap in ((1, 0), (2, 1)):
        expected = states[tap + 1][0]
        torch.testing.assert_close(context.features[:, column], expected, rtol=0, atol=1e-11)
    # transformers gives the last layer after the final norm, a feature is taken before it
    torch.testing.assert_close(normed, states[3][0], rtol=0, atol=1e-11)


def test_without_taps_there_are_rows_of_no_features(tiny_llama):
    context = HFTarget(tiny_llama).prefill(PROMPTS[5])
    assert context.features.shape == (4, 0, 32)


def test_contexts_stay_what_they_were(tiny_llama, long_truth, monkeypatch):
    monkeypatch.setattr(hf, "first_capacity", lambda device: 8)  # buffers grow on the way
    target = HFTarget(tiny_llama, taps=(1,))
    contexts, copies = [target.prefill(PROMPTS[5])], []
    for _ in range(4):
        context = contexts[-1]
        copies.append((context.tokens, context.features.clone()))
        scores = target.score(context, RandomTrees(long_truth, 0).draft(context))
        verdict = verify(scores.tree, scores.logits, Sampling(), context.tokens)
        contexts.append(target.commit(context, scores, verdict))
    for context, (tokens, features) in zip(contexts[:-1], copies, strict=True):
        assert context.tokens == tokens
        assert torch.equal(context.features, features)
        assert torch.equal(contexts[-1].features[: context.committed], features)


def test_hooks_are_gone_after_a_pass(tiny_llama):
    def hooks():
        return [len(module._forward_hooks) for module in tiny_llama.modules()]

    before = hooks()
    HFTarget(tiny_llama, taps=(0, 2)).prefill(PROMPTS[5])
    assert hooks() == before


def test_a_tap_that_does_not_exist_is_named(tiny_llama):
    with pytest.raises(ValueError, match=r"feature layer 3 does not exist: .* layers 0 to 2"):
        HFTarget(tiny_llama, taps=(0, 3))


# --- prefill --------------------------------------------------------------------------------


@pytest.fixture
def rows_read(tiny_llama):
    """Number of tokens in each pass over the model's body."""
    rows = []
    embedding = tiny_llama.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda *call: rows.append(call[1][0].shape[1]))
    yield rows
    handle.remove()


FIRST = [5, 17, 3, 60, 11, 42, 8]


@pytest.mark.parametrize(
    ("second", "read"),
    [
        ([5, 17, 3, 60, 11, 9, 9, 9], [2]),  # the first five rows hold
        ([5, 17, 3], []),  # the end is dropped
        (FIRST, []),
        ([*FIRST, 1, 2], [2]),
        ([7, 17, 3], [2]),
    ],
    ids=["other end", "shorter", "same", "longer", "other start"],
)
def test_a_second_prefill_reads_only_what_is_new(tiny_llama, rows_read, second, read):
    target, fresh = HFTarget(tiny_llama, taps=(0, 2)), HFTarget(tiny_llama, taps=(0, 2))
    target.prefill(FIRST)
    rows_read.clear()
    context = target.prefill(second)
    assert rows_read == read
    same_state(target, context, fresh, fresh.prefill(second))


def same_state(target, context, fresh, expected):
    assert context.tokens == expected.tokens
    torch.testing.assert_close(context.features, expected.features, rtol=0, atol=1e-11)
    tree = TokenTree.from_branches(context.anchor, [Branch((1, 2)), Branch((3,))])
    logits = [side.score(at, tree).logits for side, at in ((target, context), (fresh, expected))]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-11)


def test_a_second_turn_reuses_the_answer(tiny_llama, long_truth, rows_read):
    target, fresh = HFTarget(tiny_llama, taps=(1,)), HFTarget(tiny_llama, taps=(1,))
    last = stepped(target, RandomTrees(long_truth, 2), PROMPTS[5], 3)[-1]
    turn = [*last.tokens, 20, 21, 22]
    rows_read.clear()
    context = target.prefill(turn)
    assert rows_read == [3]  # the old anchor and two of the new tokens
    same_state(target, context, fresh, fresh.prefill(turn))


def test_long_prompts_are_read_in_chunks_without_the_head(tiny_llama, rows_read, monkeypatch):
    prompt = [(7 * place) % VOCAB for place in range(12)]
    whole = HFTarget(tiny_llama, taps=(2,))
    expected = whole.prefill(prompt)
    rows_read.clear()
    monkeypatch.setattr(hf, "CHUNK", 4)
    handle = tiny_llama.get_output_embeddings().register_forward_hook(pytest.fail)
    chunked = HFTarget(tiny_llama, taps=(2,))
    context = chunked.prefill(prompt)
    handle.remove()
    assert rows_read == [4, 4, 3]
    same_state(chunked, context, whole, expected)


def test_an_interrupted_prefill_leaves_a_target_that_works(tiny_llama, monkeypatch):
    monkeypatch.setattr(hf, "CHUNK", 4)
    prompt, seen = [(7 * place) % VOCAB for place in range(12)], []

    def interrupt(*_):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    target, fresh = HFTarget(tiny_llama, taps=(0,)), HFTarget(tiny_llama, taps=(0,))
    handle = tiny_llama.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        target.prefill(prompt)
    handle.remove()
    other = [*prompt[:6], 1, 1, 1]
    same_state(target, target.prefill(other), fresh, fresh.prefill(other))


# --- limits ---------------------------------------------------------------------------------


def test_an_empty_prompt_is_refused(tiny_llama):
    with pytest.raises(ValueError, match="the prompt is empty"):
        HFTarget(tiny_llama).prefill([])


def test_a_prompt_longer_than_the_context_is_refused(tiny_llama):
    target = HFTarget(tiny_llama)
    assert target.context_limit == 256
    with pytest.raises(ValueError, match=r"has 257 tokens .* at most 256; shorten"):
        target.prefill([1] * 257)


def until_full(target, drafter, prompt):
    tokens = []

    def decode_on():
        for step in decode(target, drafter, prompt, Sampling()):
            tokens.extend(step.emitted)

    with pytest.raises(ValueError, match="is full: it holds 16 tokens"):
        decode_on()
    return tokens


@pytest.mark.parametrize("prompt", [[5, 17], [5, 17, 3, 3, 60, 1]], ids=["far over", "just over"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_steps_run_up_to_the_end_of_the_context(architecture, prompt):
    sizes = {"max_position_embeddings": 16}
    if architecture == "GPT2":  # positions are a table here: one too many is an error
        sizes |= {"num_key_value_heads": None, "head_dim": None}
    model = tiny_model(architecture, **sizes)
    plain = until_full(HFTarget(model), Nothing(), prompt)
    assert len(plain) == 17 - len(prompt)  # 16 positions are read, the last one gives a token too
    trees = RandomTrees([*prompt, *plain, 1, 2, 3, 4, 5], 0)  # the last tree does not fit whole
    assert until_full(HFTarget(model), trees, prompt) == plain


# --- the real model -------------------------------------------------------------------------


def test_smollm2_in_float32_gives_the_tokens_of_transformers(smollm2):
    target = HFTarget.load(smollm2, taps=(1, 28))
    chat = [{"role": "user", "content": "Explain in two sentences why the sky is blue."}]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    expected = generated(target._model, prompt, 30)
    assert len(expected) == 30
    assert tokens_of(target, Nothing(), prompt, 24) == expected[:24]
    assert tokens_of(target, RandomTrees([*prompt, *expected], 0), prompt, 24) == expected[:24]
