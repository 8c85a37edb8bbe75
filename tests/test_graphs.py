"""The pass in static buffers says what the eager pass says; on a GPU, as a CUDA graph too."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from conftest import tiny_model
from d2sd.attention import reference_attention
from d2sd.decode import decode
from d2sd.drafters.none import NoDrafter
from d2sd.sampling import Sampling
from d2sd.target import graphs
from d2sd.target.graphs import GraphedPass
from d2sd.target.hf import HFTarget
from d2sd.tree import TokenTree
from fakes import ScriptedDrafter

TAPS = (0, 2)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
PROMPT = [5, 17, 3, 3, 60]


@pytest.fixture(params=DEVICES)
def pair(request):
    """Two targets over one model with grouped heads: eager, and in static buffers."""
    # float64 shows any difference on a CPU; the kernels for GPUs have float32 at most
    dtype = torch.float64 if request.param == "cpu" else torch.float32
    model = tiny_model("Llama").to(device=request.param, dtype=dtype)
    eager, static = HFTarget(model, TAPS), HFTarget(model, TAPS)
    static.run = GraphedPass(model, TAPS)
    return eager, static


def random_tree(nodes, rng):
    tokens = [PROMPT[-1], *(rng.randrange(97) for _ in range(nodes - 1))]
    parents = [-1, *(rng.randrange(max(0, node - 4), node) for node in range(1, nodes))]
    return TokenTree(tuple(tokens), tuple(parents), ("random",) * nodes)


def assert_equal_scores(one, other):
    close = 1e-9 if one.logits.dtype == torch.float64 else 1e-3
    torch.testing.assert_close(other.logits, one.logits, atol=close, rtol=0)
    torch.testing.assert_close(other.features, one.features, atol=close, rtol=0)


@pytest.mark.parametrize("committed", [0, 1, 2, 40])
def test_every_size_gives_the_eager_numbers(pair, committed):
    rng = random.Random(committed)
    prompt = [*(rng.randrange(97) for _ in range(committed)), PROMPT[-1]]
    contexts = [target.prefill(prompt) for target in pair]
    for nodes in (1, 2, 3, 16, 17, 70, 3):
        tree = random_tree(nodes, rng)
        assert_equal_scores(*(t.score(c, tree) for t, c in zip(pair, contexts, strict=True)))


def up_to(query, key, value, rows, length, scale):
    """Attention over a whole buffer up to a length that is a tensor, as the GPU kernel does it."""
    capacity = key.context.shape[2]
    far = torch.arange(capacity) >= length
    context = torch.zeros(1, 1, rows.mask.shape[2], capacity, dtype=query.dtype)
    hidden = context.masked_fill(far, torch.finfo(query.dtype).min)
    mask = torch.cat([hidden, rows.mask], 3).repeat(1, 1, rows.group, 1)
    keys, values = torch.cat([key.context, key.own], 2), torch.cat([value.context, value.own], 2)
    folded = query.reshape(1, keys.shape[1], -1, query.shape[3])
    return reference_attention(folded, keys, values, mask, scale).output.view_as(query)


def test_a_recording_replays_other_trees_at_other_lengths(monkeypatch):
    """A recording of the tensor operations stands in for a CUDA graph: it fixes what one fixes."""
    model = tiny_model("Llama")
    eager, static = HFTarget(model, TAPS), HFTarget(model, TAPS)
    static.run = GraphedPass(model, TAPS)
    for buffer in static._cache.allocated(static.run._layout, 1):
        buffer.zero_()  # for `up_to` multiplies all rows
    monkeypatch.setattr(graphs, "_on_cpu", up_to)
    recordings = []

    def traced(compute, device):
        recordings.append(make_fx(compute)())
        return recordings[-1]

    monkeypatch.setattr(graphs, "recorded", traced)
    rng = random.Random(4)
    for prompt in (PROMPT, [7, *PROMPT], PROMPT * 8, PROMPT[-1:]):
        contexts = eager.prefill(prompt), static.prefill(prompt)
        for nodes in (8, 5, 7):
            tree = random_tree(nodes, rng)
            assert_equal_scores(eager.score(contexts[0], tree), static.score(contexts[1], tree))
    assert len(recordings) == 1


def test_a_score_outlives_the_next_pass(pair):
    _, static = pair
    context, rng = static.prefill(PROMPT), random.Random(1)
    first = static.score(context, random_tree(7, rng))
    kept = first.logits.clone(), first.features.clone()
    static.score(context, random_tree(7, rng))
    assert torch.equal(first.logits, kept[0])
    assert torch.equal(first.features, kept[1])


def tokens_of(target, drafter, count=60):
    steps = decode(target, drafter, PROMPT, Sampling())
    return list(islice((token for step in steps for token in step.emitted), count))


def test_the_same_tokens_while_the_cache_grows_and_moves(pair):
    eager, static = pair
    truth = tokens_of(eager, NoDrafter())
    static._cache._capacity = 8

    def branches(context):
        at = len(context.tokens) - len(PROMPT)
        right = truth[at : at + 4]
        return [[*right[:1], 0, 1, 0], [7, 7], [*right, 0]]

    assert tokens_of(static, ScriptedDrafter(branches), 50) == truth[:50]
    assert static._cache.buffers[0].shape[2] > 8


def test_a_size_is_recorded_once_for_each_place_of_the_cache(pair, monkeypatch):
    recordings = []
    real = graphs.recorded

    def counted(compute, device):
        recordings.append(compute.args[0].ids.shape[1])
        return real(compute, device)

    monkeypatch.setattr(graphs, "recorded", counted)
    static = pair[1]
    context, rng = static.prefill(PROMPT), random.Random(2)
    for nodes in (5, 8, 7, 12, 5, 12):
        static.score(context, random_tree(nodes, rng))
    assert recordings == [8, 12]
    static._cache._keys = static._cache._keys.clone()
    static.score(context, random_tree(6, rng))
    assert recordings == [8, 12, 8]


def test_prompts_and_very_large_trees_are_read_without_a_graph(pair, monkeypatch):
    def never(compute, device):
        raise AssertionError("recorded")

    monkeypatch.setattr(graphs, "recorded", never)
    monkeypatch.setattr(graphs, "LARGEST", 16)
    eager, static = pair
    contexts = eager.prefill(PROMPT), static.prefill(PROMPT)
    tree = random_tree(17, random.Random(3))
    assert_equal_scores(eager.score(contexts[0], tree), static.score(contexts[1], tree))


def test_a_gpu_without_triton_is_refused(monkeypatch):
    class OnGPU:
        device, dtype = torch.device("cuda"), torch.float32

    monkeypatch.setattr(graphs, "triton_is_here", lambda: False)
    with pytest.raises(ValueError, match="need Triton"):
        GraphedPass(OnGPU(), ())
