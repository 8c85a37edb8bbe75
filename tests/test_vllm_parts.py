"""The parts of the vLLM plug-in that need no vLLM: placement, walk, batched passes, plan, pace."""

import random
import sys
import types

import pytest
import torch

from d2sd.drafters.merged import MergedDrafter
from d2sd.drafters.policies import parse_policy
from d2sd.drafters.proposer import NetworkProposer
from d2sd.engines.batches.batch_pass import TargetEnds
from d2sd.engines.batches.hooks import Hook, missing
from d2sd.engines.batches.passes import BatchedNetwork, NewRows, Wanted
from d2sd.engines.batches.placement import Placement, PlainPass, Scheduled, place
from d2sd.engines.batches.plan import Asking, BatchDrafter
from d2sd.engines.batches.settings import Settings
from d2sd.engines.batches.unread import MANY, UnreadPasses
from d2sd.engines.batches.walk import walk
from d2sd.engines.vllm.attention import ContextBlocks, TreePass, begin, tree_attention
from d2sd.engines.vllm.cache_layout import LAYOUTS, fault, unpacked
from d2sd.engines.vllm.hooks import check
from d2sd.engines.vllm.tree_attention import TreeRows, unfit
from d2sd.interfaces import Context
from d2sd.tree import Branch, TokenTree
from drafters import random_network

TREE = TokenTree.from_branches(9, [Branch((1, 2)), Branch((3, 4, 5)), Branch((3, 6))])
TAPS = (0, 2)


def scheduled(request="a", first_row=0, rows=7, computed=20, anchor=9, drafts=(1, 2, 3, 4, 5, 6)):
    return Scheduled(request, first_row, rows, computed, anchor, drafts)


def test_nodes_stand_by_depth_and_accepted_rows_move_to_a_plain_continuation():
    placement = place(
        [scheduled("other", 0, 4, 8, 5, ()), scheduled("a", 4, 9)], {"a": TREE}
    )  # two known tokens are read before the anchor of "a"
    rows, positions = placement.positions()
    assert rows.tolist() == [6, 7, 8, 9, 10, 11, 12]
    assert positions.tolist() == [22, 23, 24, 23, 24, 25, 24]
    placement.paths = [(0,), (0, 3, 4, 5)]
    sources, goals = placement.moves()
    assert (sources.tolist(), goals.tolist()) == ([9, 10, 11], [7, 8, 9])
    assert placement.committed_rows(0) == [0, 1, 2, 3]
    assert placement.committed_rows(1) == [4, 5, 6, 9, 10, 11]


def test_a_plain_pass_is_a_placement_of_anchors_alone():
    alone = place([scheduled("a", 0, 1, 20, 9, ()), scheduled("b", 1, 1, 7, 3, ())], {})
    alone.paths = [(0,), (0,)]
    plain = PlainPass(["a", "b"], [20, 7])
    for name in ("rows", "prompts", "accepted"):
        assert getattr(plain, name) == getattr(alone, name)
    assert list(plain.forked) == alone.forked
    features = torch.randn(2, 2, 4)
    for one, other in zip(unread((plain, features)), unread((alone, features)), strict=True):
        assert (one.request, one.start) == (other.request, other.start)
        assert torch.equal(one.features, other.features)


def unread(*passes, alive=("a", "b", "c")):
    kept = UnreadPasses()
    for placed, features in passes:
        kept.add(placed, features)
    found = kept.take(alive)
    assert kept.take(alive) == []
    return found


def values(found):
    """What was kept of each request: position -> value."""
    kept = {}
    for one in found:
        for row, value in enumerate(one.features[:, 0, 0].tolist(), one.start):
            kept.setdefault(one.request, {})[row] = value
    return kept


def test_passes_nobody_drafted_from_are_handed_over_by_request_and_in_order():
    def rows(*numbers):
        return torch.tensor(numbers, dtype=torch.float)[:, None, None]

    tree = place([scheduled("b", 0, 1, 10, 5, ()), scheduled("a", 1)], {"a": TREE})
    tree.paths = [(0,), (0, 3, 5)]
    passes = [
        (PlainPass(["a", "b"], [18, 7]), rows(1, 2)),
        (PlainPass(["a", "b"], [19, 8]), rows(3, 4)),
        (PlainPass(["b"], [9]), rows(5)),
        (tree, rows(6, 7, 0, 0, 8, 0, 9, 0)),
        (PlainPass(["a", "b"], [23, 2]), rows(10, 11)),  # "b" was set back
        (PlainPass(["a", "c"], [24, 0]), rows(12, 13)),
    ]
    found = unread(*passes, alive=("a", "b"))
    assert values(found) == {
        "a": {18: 1, 19: 3, 20: 7, 21: 8, 22: 9, 23: 10, 24: 12},
        "b": {7: 2, 8: 4, 9: 5, 10: 6, 2: 11},
    }
    assert [one.start for one in found if one.request == "b"] == [7, 9, 10, 2]
    for alive in ("a", "b"):
        alone = unread(*passes, alive=(alive,))
        assert values(alone) == {alive: values(found)[alive]}
    assert unread(*passes, alive=()) == []


def test_unread_passes_do_not_pile_up():
    kept = UnreadPasses()
    for start in range(MANY):
        assert not kept.many
        kept.add(PlainPass(["a"], [start]), torch.zeros(1, 2, 4))
    assert kept.many
    [rows] = kept.take(["a"])
    assert (rows.start, rows.features.shape) == (0, (MANY, 2, 4))
    assert not kept.many


def test_drafts_cut_short_are_the_tree_s_beginning_and_foreign_ones_a_chain():
    [cut] = place([scheduled(rows=5, drafts=(1, 2, 3, 4))], {"a": TREE}).trees
    assert cut.tree == TREE.first(5)
    [foreign] = place([scheduled(rows=3, drafts=(0, 0))], {"a": TREE}).trees
    assert foreign.tree.parents == (-1, 0, 1)
    assert not foreign.forked
    [stale] = place([scheduled(anchor=8)], {"a": TREE}).trees
    assert not stale.forked


def test_the_walk_emits_what_each_request_draws_and_asks_once_a_token():
    draws = {0: {0: 3, 3: 6, 6: 7}, 1: {0: 1, 1: 8}}
    asked = []

    def draw(nodes, emitted, walking):
        asked.append(set(walking))
        return [draws[number].get(node, -5) for number, node in enumerate(nodes)]

    walked = walk([TREE, TREE], draw)
    assert walked.emitted == [[3, 6, 7], [1, 8]]
    assert walked.paths == [(0, 3, 6), (0, 1)]
    assert asked == [{0, 1}, {0, 1}, {0}]


class Layer:
    """An attention layer whose cache holds a value a slot."""

    def do_kv_cache_update(self, layer, keys, values, kv_cache, slots):
        kv_cache[0][slots], kv_cache[1][slots] = keys, values


def test_compaction_writes_what_the_nodes_had_even_where_slots_overlap():
    placement = place([scheduled("x", 0, 2, 3, 1, (7,)), scheduled("a", 2)], {"a": TREE})
    tree_pass = TreePass(placement)
    assert tree_pass.mixed
    keys = torch.arange(9.0)[:, None, None].expand(9, 2, 4).contiguous()
    cache = torch.zeros(2, 30, 2, 4)
    slots = torch.arange(11, 20)
    cache[0, slots], cache[1, slots] = keys, -keys
    tree_pass.remember(Layer(), object(), keys, -keys, (cache, slots))
    keys.zero_()  # the engine reuses its buffers
    placement.paths = [(0,), (0, 3, 4, 5)]
    tree_pass.compact()
    assert cache[0, 11:20, 0, 0].tolist() == [0, 1, 2, 5, 6, 7, 6, 7, 8]
    assert torch.equal(cache[1], -cache[0])


def test_tree_attention_is_masked_attention_over_context_and_tree():
    torch.manual_seed(0)
    query = torch.randn(7, 4, 8, dtype=torch.float64)
    own, context = (torch.randn(2, 1, 2, n, 8, dtype=torch.float64) for n in (7, 5))
    [placed] = place([scheduled()], {"a": TREE}).trees
    mask = TreePass(Placement([placed])).mask(placed, 2, query)
    out = tree_attention(query, ContextBlocks(*own), ContextBlocks(*context), mask, 0.3)
    seen = torch.cat([torch.ones(7, 5, dtype=torch.bool), TREE.visibility()], 1)
    keys, values = (
        torch.cat([c, o], 2)[0].repeat_interleave(2, 0) for c, o in zip(context, own, strict=True)
    )
    scores = (query.transpose(0, 1) @ keys.transpose(1, 2) * 0.3).masked_fill(~seen, -torch.inf)
    assert torch.allclose(out, (scores.softmax(-1) @ values).transpose(0, 1))


def write_by_row(keys, values, cache, slots):
    """As vLLM's kernel without AMX does."""
    _, heads, block, _ = cache.shape
    for row, slot in enumerate(slots.tolist()):
        place = cache[slot // block].view(heads, 2, -1)
        place[:, 0].view(heads, -1, block)[:, :, slot % block] = keys[row]
        place[:, 1].view(heads, block, -1)[:, slot % block] = values[row]


def write_by_tile(keys, values, cache, slots):
    """As vLLM's kernel for AMX does: element by element from its description."""
    _, heads, block, twice = cache.shape
    dim = twice // 2
    for row, slot in enumerate(slots.tolist()):
        place, token = cache[slot // block].view(heads, 2, -1), slot % block
        for d in range(dim):
            at = token // 16 * 16 * dim + d // 2 * 32 + token % 16 * 2 + d % 2
            place[:, 0, at] = keys[row, :, d]
            at = d // 16 * 16 * block + token // 2 * 32 + d % 16 * 2 + token % 2
            place[:, 1, at] = values[row, :, d]


def write_in_rows(keys, values, cache, slots):
    """As vLLM's FlashAttention does."""
    block = cache.shape[2]
    for row, slot in enumerate(slots.tolist()):
        cache[slot // block, :, slot % block] = torch.cat([keys[row], values[row]], -1)


WRITES = {
    "vec": write_by_row,
    "vec16": write_by_row,
    "amx": write_by_tile,
    "row": write_in_rows,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_is_read_as_the_engine_writes_it(layout, dtype):
    cache = torch.zeros(5, 3, 32, 2 * 32, dtype=dtype)
    assert fault(cache, layout, WRITES[layout]) is None
    keys, values = torch.randn(2, 40, 3, 32).to(dtype)
    slots = torch.cat([torch.arange(64, 96), torch.arange(8)])  # block 2, then block 0
    WRITES[layout](keys, values, cache, slots)
    read = unpacked(cache, torch.tensor([2, 0]), layout)
    assert torch.equal(read[0][0, :, :40].transpose(0, 1), keys)
    assert torch.equal(read[1][0, :, :40].transpose(0, 1), values)


@pytest.mark.parametrize(("layout", "other"), [("vec", "amx"), ("amx", "row"), ("row", "vec")])
def test_a_cache_written_otherwise_is_found_out(layout, other):
    cache = torch.zeros(5, 3, 32, 2 * 32)
    said = fault(cache, layout, WRITES[other])
    assert said == f"a cache layout {layout!r} other than that of vLLM 0.32"
    assert fault(cache, "neon", write_by_row) == "the cache layout 'neon', which nobody reads here"


class Kernel:
    """An attention backend whose own kernel is never to be called."""

    scale = 0.3
    sinks = None

    def forward(self, *args, **kwargs):
        raise AssertionError("no row of this pass is plain")

    def do_kv_cache_update(self, layer, keys, values, kv_cache, slots):
        write_in_rows(keys, values, kv_cache, slots)


class Trees(TreeRows, Kernel):
    def layout(self, layer):
        return "row"


def test_a_layer_scores_a_tree_over_the_blocks_of_its_request():
    torch.manual_seed(1)
    cache, impl = torch.zeros(4, 2, 16, 2 * 8, dtype=torch.float64), Trees()
    keys, values = torch.randn(2, 27, 2, 8, dtype=torch.float64)  # 20 committed, 7 nodes
    slots = torch.tensor([48 + n if n < 16 else 16 + n - 16 for n in range(27)])
    write_in_rows(keys[:20], values[:20], cache, slots[:20])
    query = torch.randn(7, 4, 8, dtype=torch.float64)
    placement = place([scheduled()], {"a": TREE})
    metadata = types.SimpleNamespace(slot_mapping=slots[20:], block_table=torch.tensor([[3, 1, 0]]))
    layer, output = types.SimpleNamespace(kv_cache=cache), torch.zeros(7, 32, dtype=torch.float64)
    begin(TreePass(placement))
    try:
        impl.forward(layer, query, keys[20:], values[20:], cache, metadata, output)
    finally:
        begin(None)
    own, context = (
        ContextBlocks(*(part[rows].transpose(0, 1)[None] for part in (keys, values)))
        for rows in (slice(20, 27), slice(0, 20))
    )
    mask = TreePass(placement).mask(placement.trees[0], 2, query)
    expected = tree_attention(query, own, context, mask, 0.3)
    assert torch.allclose(output.view_as(expected), expected)
    assert unfit(impl, layer) is None


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("sinks", torch.ones(2), "attention sinks"), ("sliding_window", (7, 0), "a sliding window")],
)
def test_a_layer_that_trees_cannot_be_scored_by_is_named(attribute, value, reason):
    impl = Trees()
    setattr(impl, attribute, value)
    assert unfit(impl, None) == f"it has {reason}"
    assert unfit(Kernel(), None) == "its attention is Kernel, which d2sd doesn't know"


class Ends(TargetEnds):
    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.embedding = torch.randn(97, 32, generator=generator)
        self.head = torch.nn.Linear(32, 97, bias=False).requires_grad_(False)
        self.head.weight.copy_(torch.randn(97, 32, generator=generator))

    def embed(self, ids):
        return self.embedding[ids]

    def logits(self, hidden, draft_ids):
        logits = self.head(hidden).float()
        return logits if draft_ids is None else logits[:, draft_ids]


SEQUENCES = {"short": (3, 1, 4), "long": (2, 7, 1, 8, 2, 8, 1, 8), "middle": (1, 1, 2, 3, 5)}


def features(name):
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(len(SEQUENCES[name]) - 1, 2, 32, generator=generator)


def alone(network, ends, name):
    """The proposer of one sequence, and that sequence's context."""
    proposer = NetworkProposer(network, ends.embedding, ends.head, TAPS)
    return proposer, Context(SEQUENCES[name], features(name))


def networks(**changes):
    both = [random_network(seed, **changes) for seed in (0, 1)]
    ends = Ends()
    return both, ends, [BatchedNetwork(network, ends, (0, 1)) for network in both]


def read_all(batched):
    for one in batched:
        for name in SEQUENCES:
            rows = features(name)
            one.read([NewRows(name, 0, rows[:1]), NewRows(name, 1, rows[1:])])


SLIDING = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}
IDS = torch.tensor([4, 40, 41, 96])


@pytest.mark.parametrize("changes", [{}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("ids", [None, IDS], ids=["whole vocabulary", "reduced"])
def test_a_batched_pass_proposes_what_each_sequence_alone_would(changes, ids):
    (network, _), ends, (batched, _) = networks(**changes)
    network.draft_ids = ids
    read_all([batched])
    visible = {"short": [(4,)], "long": [(8, 5), (8, 5, 6), (8, 9)], "middle": [(5, 7), (5,)]}
    wanted = [Wanted(name, rows, len(SEQUENCES[name]) - 1, 0.0) for name, rows in visible.items()]
    found = batched.propose(wanted, 5)
    for name, rows in visible.items():
        proposer, context = alone(network, ends, name)
        expected = proposer.propose(context, rows, 5)
        assert torch.allclose(found[name].probs, expected.probs, atol=1e-5)


def test_a_request_read_anew_forgets_what_no_longer_holds():
    (network, _), ends, (batched, _) = networks()
    batched.read([NewRows("short", 0, torch.ones(6, 2, 32))])
    batched.propose([Wanted("short", [(1,)], 6, 0.0)], 5)
    batched.read([NewRows("short", 0, features("short"))])  # as after a preemption
    assert batched.ready("short", 2)
    found = batched.propose([Wanted("short", [(4,)], 2, 0.0)], 5)
    proposer, context = alone(network, ends, "short")
    assert torch.allclose(found["short"].probs, proposer.propose(context, [(4,)], 5).probs)
    batched.forget("short")
    assert batched.requests == 0


def test_a_gap_in_what_was_seen_drops_the_rows_before_it():
    _, _, (late, fresh) = networks()
    fresh._pass = late._pass
    rows = features("long")
    late.read([NewRows("long", 0, torch.ones(2, 2, 32)), NewRows("long", 4, rows[4:])])
    fresh.read([NewRows("long", 4, rows[4:])])
    wanted = [Wanted("long", [(8,)], 7, 0.0)]
    assert late.ready("long", 7)
    after, before = (one.propose(wanted, 5)["long"].probs for one in (late, fresh))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-9)  # sums over other row counts


def asking(name, **changes):
    tokens = SEQUENCES[name]
    return Asking(name, tokens[-1], len(tokens), **{"deepest": 9, **changes})


@pytest.mark.parametrize("anchors", ["mixed", "prefix"])
def test_a_batch_s_trees_are_those_of_the_policy_merged(anchors):
    pair, ends, batched = networks()
    read_all(batched)
    policy = parse_policy(f"merged:branches=3,anchors={anchors}")
    trees = BatchDrafter(policy, 12, batched).draft([asking(name) for name in SEQUENCES], 9)
    for name in SEQUENCES:
        proposers = [alone(network, ends, name)[0] for network in pair]
        context = alone(pair[0], ends, name)[1]
        expected = MergedDrafter(*proposers, budget=12, branches=3, anchors=anchors).draft(context)
        assert trees[name] == expected


def test_a_chain_is_a_chain_and_no_tree_is_deeper_than_asked():
    _, _, batched = networks()
    read_all(batched)
    drafter = BatchDrafter(parse_policy("merged"), 12, batched)
    trees = drafter.draft([asking("short", chain=True), asking("long", deepest=2)], 9)
    assert trees["short"].parents == (-1, 0, 1, 2, 3)
    assert max(trees["long"].depths) == 2
    assert "middle" not in trees
    assert drafter.draft([asking("middle", deepest=0)], 9) == {}


def test_ranks_that_agree_run_the_same_passes():
    _, _, batched = networks()
    read_all(batched)
    said = []

    def agree(decided):
        said.append(decided)
        return decided

    drafter = BatchDrafter(parse_policy("merged"), 12, batched, agree)
    trees = drafter.draft([asking("long")], drafter.wanted(1))
    assert said[0] == 1
    assert said[-1][1] == trees
    assert len(said) == 3  # for how many to draft, what second rows keep, the trees


def test_settings_are_read_or_refused_in_one_sentence():
    told = {"d2sd": {"first": "f", "second": "s", "policy": "merged:budget=9"}}
    settings = Settings.of(told, 24)
    assert (settings.first, settings.second, settings.budget) == ("f", "s", 9)
    assert Settings.of({"d2sd": {"first": "f"}}, 24).policy.name == "planned"
    with pytest.raises(ValueError, match='there is no "first"'):
        Settings.of({}, 24)
    with pytest.raises(ValueError, match="has 'thrid'; it knows first, second, policy"):
        Settings.of({"d2sd": {"first": "f", "thrid": "s"}}, 24)
    with pytest.raises(ValueError, match="policy 'dual' does not draft for a batch"):
        Settings.of({"d2sd": {"first": "f", "policy": "dual"}}, 24)


def test_what_an_engine_lacks_is_named(monkeypatch):
    module = types.ModuleType("some_engine")
    module.Runner = type("Runner", (), {"prepare": lambda self, batch: None})
    monkeypatch.setitem(sys.modules, "some_engine", module)
    hooks = (
        Hook("some_engine", "Runner.prepare", ("batch",)),
        Hook("some_engine", "Runner.prepare", ("batch", "rows")),
        Hook("some_engine", "Runner.finish"),
        Hook("no_engine_at_all", "Runner"),
    )
    assert missing(hooks[:1]) == []
    assert missing(hooks) == [
        "some_engine.Runner.prepare has no parameter rows",
        "some_engine.Runner.finish is not there",
        "no_engine_at_all.Runner is not there",
    ]
    with pytest.raises(RuntimeError, match="lacks what d2sd's trees need: some_engine"):
        check(hooks)


def test_random_trees_walk_as_verify_does():
    rng = random.Random(3)
    for _ in range(50):
        branches = [Branch(tuple(rng.randrange(3) for _ in range(4))) for _ in range(5)]
        tree = TokenTree.from_branches(0, branches)
        draws = [rng.randrange(3) for _ in range(len(tree))]
        walked = walk([tree], lambda nodes, *_, draws=draws: [draws[nodes[0]]])
        path, emitted = [0], []
        while True:
            emitted.append(draws[path[-1]])
            node = tree.children.get((path[-1], emitted[-1]))
            if node is None:
                break
            path.append(node)
        assert (walked.paths, walked.emitted) == ([tuple(path)], [emitted])
