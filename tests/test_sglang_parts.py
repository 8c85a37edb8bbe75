"""The parts of the SGLang plug-in that need no SGLang: layout, steps, ends, settings, arguments."""

import random
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.policies import parse_policy
from d2sd.engines.batches.batch_pass import TargetEnds
from d2sd.engines.batches.hooks import Hook
from d2sd.engines.batches.passes import BatchedNetwork
from d2sd.engines.batches.plan import BatchDrafter
from d2sd.engines.sglang.arguments import settle
from d2sd.engines.sglang.ends import NEEDED, LoadedEnds
from d2sd.engines.sglang.features import FeatureTap
from d2sd.engines.sglang.hooks import check
from d2sd.engines.sglang.layout import lay_out, path_of
from d2sd.engines.sglang.loading import Facts, load
from d2sd.engines.sglang.settings import settings_of
from d2sd.engines.sglang.steps import FixedWidth, Steps
from d2sd.sampling import Sampling
from d2sd.tree import Branch, TokenTree
from d2sd.verify import verify
from drafters import random_network
from folders import save_drafter
from sglang_engine import Engine, feature, following, greedy, links, request, tokens_of

TREE = TokenTree.from_branches(9, [Branch((1, 2)), Branch((3, 4, 5)), Branch((3, 6))])
ROWS = 9


def test_a_tree_s_mask_tells_sglang_its_positions_and_links():
    laid = lay_out([TokenTree((8,), (-1,), ("anchor",)), TREE], ROWS)
    assert laid.tokens.tolist() == [8, *[0] * 8, 9, 1, 2, 3, 4, 5, 6, 0, 0]
    assert (laid.tokens.dtype, laid.mask.dtype) == (np.int64, np.bool_)
    lone, forked = laid.mask.reshape(2, ROWS * ROWS)
    assert links(lone, ROWS) == [(0, -1, -1, -1)] * ROWS
    depths, parents, children, siblings = zip(*links(forked, ROWS), strict=True)
    assert depths == (0, 1, 2, 1, 2, 3, 2, 0, 0)
    assert parents == (-1, 0, 1, 0, 3, 4, 3, -1, -1)
    assert children == (1, 2, -1, 4, 5, -1, -1, -1, -1)
    assert siblings == (-1, 3, -1, -1, 6, -1, -1, -1, -1)


def test_every_row_sees_its_branch_and_itself_alone():
    laid = lay_out([TREE], ROWS)
    seen = torch.from_numpy(laid.mask).view(ROWS, ROWS)
    assert torch.equal(seen[:7, :7], TREE.visibility())
    assert torch.equal(seen[7:], torch.eye(ROWS, dtype=torch.bool)[7:])
    assert not seen[:7, 7:].any()


def test_sglang_s_walk_is_verify_s_and_padding_is_never_accepted():
    rng = random.Random(4)
    for _ in range(60):
        branches = [Branch(tuple(rng.randrange(3) for _ in range(4))) for _ in range(4)]
        tree = TokenTree.from_branches(1, branches)
        laid = lay_out([tree], 24)
        predicted = [rng.randrange(2) for _ in range(24)]  # padding's token half the time
        path, emitted = greedy(laid.tokens.tolist(), links(laid.mask, 24), predicted)
        logits = torch.nn.functional.one_hot(torch.tensor(predicted[: len(tree)]), 3).double()
        verdict = verify(tree, logits, Sampling(), [1])
        assert tuple(path) == verdict.path == path_of(tree, emitted)
        assert emitted == [*tree.tokens_on(path), verdict.bonus]


def test_a_tree_of_more_nodes_than_rows_is_no_layout():
    with pytest.raises(ValueError, match="could not broadcast"):
        lay_out([TREE], 4)


class Ends(TargetEnds):
    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.embedding = torch.randn(97, 32, generator=generator)
        self.head = torch.randn(97, 32, generator=generator)
        self.head[5:] = 0  # so that drafts are of the engine's few tokens

    def embed(self, ids):
        return self.embedding[ids]

    def logits(self, hidden, draft_ids):
        return hidden @ self.head.T


def steps_of(policy="merged", context=256):
    network = BatchedNetwork(random_network(), Ends(), (0, 1))
    read = []
    network.read = lambda new: (read.extend(new), BatchedNetwork.read(network, new))
    drafter = BatchDrafter(parse_policy(policy), ROWS - 1, [network])
    return Steps(drafter, ROWS, context, 2), network, read


@pytest.mark.parametrize("policy", ["merged", "planned", "block"])
def test_a_batch_is_served_as_plainly_and_the_drafters_read_what_was_committed(policy):
    steps, network, read = steps_of(policy)
    engine = Engine(steps, lay_out, ROWS)
    batch = [request("a", (1, 2, 3, 4, 1)), request("b", (2, 2)), request("c", (4, 0, 3))]
    engine.prefill(batch[0], 2)
    engine.prefill(batch[1])
    engine.decode(batch[:2])
    engine.prefill(batch[2], 1, 2)
    for _ in range(8):
        engine.decode(batch)
    for one in batch:
        plain = list(one.origin_input_ids)
        while len(plain) < len(tokens_of(one)):
            plain.append(following(plain))
        assert tokens_of(one) == plain
        held = {}
        for rows in read:
            if rows.request == one.rid:
                held.update((rows.start + r, row) for r, row in enumerate(rows.features))
        assert sorted(held) == list(range(len(plain) - 1))
        for place, row in held.items():
            assert torch.equal(row.flatten(), feature(plain[: place + 1]))
        assert network.ready(one.rid, len(plain) - 1)
    assert engine.drafted > 20
    assert engine.accepted > 0


def test_a_request_that_left_the_batch_is_forgotten_and_one_read_in_chunks_is_not():
    steps, network, _ = steps_of()
    engine = Engine(steps, lay_out, ROWS)
    batch = [request("a", (1, 2, 3)), request("b", (2, 2))]
    for one in batch:
        engine.prefill(one)
    late = request("late", (1, 2, 3, 4))
    steps.prefilled([late], [0], [2], torch.zeros(2, 64))
    engine.decode(batch)
    assert network.requests == 3
    engine.decode(batch[:1])
    assert network.requests == 2
    steps.prefilled([request("new", (1, 1))], [0], [2], torch.zeros(2, 64))  # late was aborted
    engine.decode(batch[:1])
    assert network.requests == 1  # and new ended with its first token


@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 9},
        {"max_new_tokens": 2},
    ],
)
def test_where_nodes_would_be_judged_wrongly_or_not_at_all_nothing_is_drafted(changes):
    steps, *_ = steps_of()
    engine = Engine(steps, lay_out, ROWS)
    batch = [request("a", (1, 2, 3)), request("b", (2, 2), **changes)]
    for one in batch:
        engine.prefill(one)
    drafted, alone = steps.draft(batch, [3, 2])
    assert len(drafted) > 1
    assert alone.tokens == (batch[1].output_ids[-1],)


def test_no_tree_goes_past_the_context_nor_where_the_engine_counts_otherwise():
    steps, *_ = steps_of(context=6)
    engine = Engine(steps, lay_out, ROWS)
    one = request("a", (1, 2, 3))
    engine.prefill(one)
    [tree] = steps.draft([one], [3])
    assert max(tree.depths) == 1  # 4 tokens, one drafted, the bonus
    [tree] = steps.draft([one], [2])
    assert len(tree) == 1


def test_passes_cost_by_the_batch_not_by_the_nodes_of_its_trees():
    line = FixedWidth()
    for requests in (1, 4, 2, 4, 1):
        line.now = 24 * requests
        line.add(requests, 0.1 * requests)
    line.now = 48
    assert line.at(2) == line.at(40) == pytest.approx(0.2, rel=0.1)


def test_the_tap_asks_for_all_rows_and_keeps_them_from_the_result():
    asked = {}

    def forward(batch, **kwargs):
        asked.update(kwargs)
        return SimpleNamespace(logits_output=SimpleNamespace(hidden_states=torch.ones(3, 4)))

    tap = FeatureTap(SimpleNamespace(forward_batch_generation=forward, tokenizer="t"), "full")
    result = tap.forward_batch_generation("batch", is_verify=True)
    assert asked == {"is_verify": True, "capture_hidden_mode": "full"}
    assert result.logits_output.hidden_states is None
    assert tap.take().shape == (3, 4)
    assert tap.take() is None
    assert tap.tokenizer == "t"


def model_of(head):
    embedding = torch.nn.Embedding(97, 32)
    methods = {
        "get_input_embeddings": lambda self: embedding,
        "get_embed_and_head": lambda self: (embedding.weight, head),
        "set_dflash_layers_to_capture": lambda self, layers: None,
    }
    return type("Qwen3ForCausalLM", (), methods)()


@pytest.mark.parametrize("ids", [None, torch.tensor([4, 40, 96])])
def test_ends_spread_over_ranks_are_those_of_one(ids):
    head = torch.randn(128, 32)  # 97 tokens, rounded up
    hidden = torch.randn(5, 32)
    shards = head.chunk(2)

    def gather(part, dim):
        others = [part, shards[1] if dim == 0 else hidden @ shards[1].T]
        return torch.cat(others, dim)

    whole = LoadedEnds(model_of(head), 97).logits(hidden, ids)
    assert whole.shape == (5, 97 if ids is None else 3)
    spread_out = LoadedEnds(model_of(shards[0]), 97, gather)
    assert torch.allclose(spread_out.logits(hidden, ids), whole, atol=1e-5)


def test_a_target_without_what_drafters_need_is_refused():
    with pytest.raises(ValueError, match=f"can't draft for object: it has no {NEEDED[0]}"):
        LoadedEnds(object(), 97)
    with pytest.raises(ValueError, match="its output head is quantized"):
        LoadedEnds(model_of(torch.ones(97, 4, dtype=torch.int8)), 97)


def test_drafters_of_the_target_are_loaded_and_others_refused(tmp_path):
    first = str(save_drafter(tmp_path / "first"))
    config = load_network(first).config
    cpu = torch.device("cpu")
    facts = Facts("t", config.hidden_size, config.vocab_size, 5, torch.float32, cpu)
    settings = settings_of({"D2SD_SGLANG": f'{{"first": "{first}", "second": "{first}"}}'}, 24)
    loaded = load(settings, facts, Ends())
    assert (len(loaded.networks), loaded.taps) == (1, (1, 3))
    other = Facts("big", 4096, config.vocab_size, 8, torch.float32, cpu)
    with pytest.raises(ValueError, match="the target big has 4096"):
        load(settings, other, Ends())


def test_settings_come_from_the_environment_or_are_refused_in_one_sentence():
    told = {"D2SD_SGLANG": '{"first": "f", "second": "s"}'}
    settings = settings_of(told, 24)
    assert (settings.first, settings.second, settings.budget) == ("f", "s", 23)
    for said in ({}, {"D2SD_SGLANG": "folder"}, {"D2SD_SGLANG": '{"second": "s"}'}):
        with pytest.raises(ValueError, match=r'variable D2SD_SGLANG=.* JSON with a "first"'):
            settings_of(said, 24)


def arguments(**changes):
    said = {
        "device": "cuda",
        "pp_size": 1,
        "attn_dp_size": 1,
        "page_size": 1,
        "attention_backend": "fa3",
        "speculative_accept_threshold_single": 1.0,
        "speculative_accept_threshold_acc": 1.0,
        "speculative_use_rejection_sampling": False,
        "speculative_adaptive": False,
        "max_running_requests": None,
        "speculative_num_draft_tokens": None,
    }
    return SimpleNamespace(**{**said, **changes})


def test_arguments_are_settled_twice_alike_or_refused_by_name():
    said = arguments()
    settle(said)
    once = dict(vars(said))
    settle(said)
    assert vars(said) == once
    assert said.disable_overlap_schedule
    assert (said.speculative_num_draft_tokens, said.return_hidden_states_mode) == (24, "full")
    settle(arguments(page_size=16, attention_backend="flashinfer"))
    for changes, name in (
        ({"device": "cpu"}, "--device"),
        ({"page_size": 16}, "--page-size"),
        ({"speculative_accept_threshold_acc": 0.9}, "acceptance thresholds"),
        ({"pp_size": 2}, "--pp-size"),
    ):
        with pytest.raises(ValueError, match=f"D2SD does not go with .*{name}"):
            settle(arguments(**changes))


def test_what_an_sglang_lacks_is_named(monkeypatch):
    module = types.ModuleType("some_sglang")
    module.Worker = type("Worker", (), {"draft": lambda self, batch: None})
    monkeypatch.setitem(sys.modules, "some_sglang", module)
    check((Hook("some_sglang", "Worker.draft", ("batch",)),))
    with pytest.raises(RuntimeError, match=r"need: some_sglang\.Worker\.verify is not there"):
        check((Hook("some_sglang", "Worker.verify"),))
