"""The plug-in and a real SGLang 0.5.23, as far as both can be looked at without a GPU.

Nothing is served. SGLang's kernels are CUDA-only, so stand-ins take their place at import.
"""

import importlib
import importlib.metadata
import inspect
import json
import random
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from absent_kernels import stand_in
from sglang_worker import HIDDEN, VOCABULARY, Target, sampled_greedily, serve

from d2sd.engines.batches.hooks import missing
from d2sd.engines.sglang import hooks, plugin
from d2sd.engines.sglang.arguments import settle
from d2sd.engines.sglang.layout import lay_out
from d2sd.sampling import Sampling
from d2sd.tree import Branch, TokenTree
from d2sd.verify import verify
from folders import save_drafter
from sglang_engine import following, links, request, tokens_of

pytestmark = [
    pytest.mark.skipif(
        find_spec("sglang") is None,
        reason="SGLang is not installed; docs/sglang.md says how to run these tests",
    ),
    pytest.mark.filterwarnings("ignore"),  # SGLang's own
]

MODULES = {
    "registry": "sglang.srt.speculative.spec_registry",
    "info": "sglang.srt.speculative.spec_info",
    "ngram": "sglang.srt.speculative.ngram_worker",
    "overlap": "sglang.srt.managers.overlap_utils",
    "arguments": "sglang.srt.server_args",
    "overrides": "sglang.srt.arg_groups.overrides",
    "reconstruct": "sglang.kernels.ops.speculative.reconstruct_tree",
    "walk": "sglang.kernels.ops.speculative.spec_tree",
    "modes": "sglang.srt.model_executor.forward_batch_info",
    "ours": "d2sd.engines.sglang.algorithm",
    "worker": "d2sd.engines.sglang.worker",
}


@pytest.fixture(scope="module")
def sglang():
    """Its modules that are looked at, and ours that subclass them."""
    stand_in()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SimpleNamespace(
            **{name: importlib.import_module(place) for name, place in MODULES.items()}
        )


@pytest.fixture
def registered(sglang):
    sglang.registry._REGISTRY.pop("D2SD", None)
    plugin.register()
    yield sglang.info.SpeculativeAlgorithm.from_string("d2sd")
    sglang.registry._REGISTRY.pop("D2SD", None)


def test_this_sglang_lacks_nothing(sglang):
    assert missing(hooks.REGISTRATION) == []
    assert missing(hooks.RUNNING) == []


def test_the_plug_in_makes_the_algorithm_known(sglang, registered):
    assert isinstance(registered, sglang.ours.TreeAlgorithm)
    assert registered.name == "D2SD"
    assert registered.is_ngram()
    assert registered.is_speculative()
    assert not registered.is_eagle()


def test_the_entry_point_that_sglang_looks_for_is_declared():
    written = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    [[name, place]] = written["project"]["entry-points"]["sglang.srt.plugins"].items()
    point = importlib.metadata.EntryPoint(name, place, "sglang.srt.plugins")
    assert point.load() is plugin.register


@pytest.mark.parametrize("name", ["NGRAM", "dflash", "nextn"])
def test_sglang_keeps_its_own_names(sglang, name):
    with pytest.raises(ValueError, match="is a reserved speculative algorithm name"):
        sglang.ours.register(name)


def test_the_algorithm_answers_all_that_sglang_asks_of_its_own(sglang):
    asked = {
        name
        for name, value in vars(sglang.info.SpeculativeAlgorithm).items()
        if inspect.isfunction(value)
    }
    ours = {name for name in dir(sglang.ours.TreeAlgorithm) if not name.startswith("_")}
    assert {name for name in asked if not name.startswith("_")} - ours <= {
        "get_platform_worker_cls"
    }
    ngram = sglang.info.SpeculativeAlgorithm.NGRAM
    custom = sglang.ours.TreeAlgorithm("D2SD", lambda said: None)
    for name in sorted(asked):
        if name.startswith(("is_", "supports_", "has_", "need_", "carries_")):
            assert getattr(custom, name)() == getattr(ngram, name)(), name


def test_the_future_map_is_sglang_s(sglang, registered, monkeypatch):
    made = []
    monkeypatch.setattr(
        sglang.overlap, "FutureMap", lambda *said, **more: made.append((said, more))
    )
    registered.create_future_map("cuda", "pool", needs_cpu_seq_lens=True)
    assert made == [(("cuda", registered, "pool"), {"needs_cpu_seq_lens": True})]


def test_the_worker_is_the_n_gram_one_with_the_same_signatures(sglang):
    ours, theirs = sglang.worker.TreeWorker, sglang.ngram.NGRAMWorker
    assert issubclass(ours, theirs)
    shapes = {}
    for kind in (ours, theirs):
        shapes[kind] = [
            [
                (one.name, one.kind, one.default)
                for one in inspect.signature(function).parameters.values()
            ]
            for function in (
                kind.__init__,
                kind._prepare_draft_tokens,
                kind._update_ngram_corpus,
                kind.forward_batch_generation,
            )
        ]
    assert shapes[ours] == shapes[theirs]
    overridden = {name for name in vars(ours) if inspect.isfunction(vars(ours)[name])}
    assert overridden <= set(dir(theirs))


def test_sglang_makes_the_worker_without_overlapped_schedules_only(sglang, registered):
    said = SimpleNamespace(disable_overlap_schedule=True)
    assert registered.create_worker(said) is sglang.worker.TreeWorker
    with pytest.raises(ValueError, match="does not support overlap scheduling"):
        registered.create_worker(SimpleNamespace(disable_overlap_schedule=False))


def test_what_is_set_are_arguments_of_sglang(sglang):
    known = sglang.overrides.field_names(sglang.arguments.ServerArgs)
    written = {}

    class Said:
        def __getattr__(self, name):
            assert name in known
            return DEFAULTS.get(name)

        def __setattr__(self, name, value):
            assert name in known
            written[name] = value

    settle(Said())
    assert written["disable_overlap_schedule"] is True
    assert written["return_hidden_states_mode"] == "full"


DEFAULTS = {
    "device": "cuda",
    "pp_size": 1,
    "attn_dp_size": 1,
    "speculative_accept_threshold_single": 1.0,
    "speculative_accept_threshold_acc": 1.0,
    "speculative_num_draft_tokens": 24,
}


def test_sglang_s_own_links_of_our_mask_are_those_expected(sglang):
    tree = TokenTree.from_branches(9, [Branch((1, 2)), Branch((3, 4, 5)), Branch((3, 6))])
    laid = lay_out([tree, tree.first(2)], 9)
    children, siblings = sglang.ngram._derive_tree_links(laid.mask, 2, 9)
    for number, mask in enumerate(laid.mask.reshape(2, 81)):
        _, _, child, sibling = zip(*links(mask, 9), strict=True)
        assert torch.equal(children[number], torch.tensor(child))
        assert torch.equal(siblings[number], torch.tensor(sibling))


@pytest.mark.parametrize("seed", [1, 2])
def test_sglang_s_own_kernels_place_our_trees_and_walk_them_as_verify_does(sglang, seed):
    rng, rows = random.Random(seed), 13
    trees = [
        TokenTree.from_branches(
            1, [Branch(tuple(rng.randrange(3) for _ in range(4))) for _ in range(branches)]
        )
        for branches in (0, 1, 3)
    ]
    laid = lay_out(trees, rows)
    computed = torch.tensor([7, 40, 3])
    positions = torch.empty(len(trees) * rows, dtype=torch.int64)
    found = [torch.empty(len(trees), rows, dtype=torch.int64) for _ in range(3)]
    sglang.reconstruct.reconstruct_indices_from_tree_mask_triton(
        torch.from_numpy(laid.mask), computed, positions, *found, len(trees), rows
    )
    for number, tree in enumerate(trees):
        depths = positions.view(len(trees), rows)[number] - computed[number]
        assert depths.tolist() == [*tree.depths, *[0] * (rows - len(tree))]
    predicted = torch.tensor([[rng.randrange(3) for _ in range(rows)] for _ in trees])
    said = torch.zeros(len(trees) * rows, dtype=torch.int32)
    accepted = torch.full((len(trees), rows), -1, dtype=torch.int32)
    counts = torch.empty(len(trees), dtype=torch.int32)
    candidates = torch.from_numpy(laid.tokens).view(len(trees), rows)
    sglang.walk.verify_tree_greedy_triton(said, accepted, counts, candidates, *found, predicted)
    for number, tree in enumerate(trees):
        logits = torch.nn.functional.one_hot(predicted[number, : len(tree)], 3).double()
        verdict = verify(tree, logits, Sampling(), [1])
        nodes = accepted[number, : counts[number] + 1] - number * rows
        assert tuple(nodes.tolist()) == verdict.path
        emitted = said[accepted[number, : counts[number] + 1].long()].tolist()
        assert emitted == [*tree.tokens_on(verdict.path), verdict.bonus]


@pytest.fixture
def worker(sglang, monkeypatch, tmp_path):
    """Our worker, its parent's start and the calls into CUDA replaced, on the CPU."""
    rows = 12

    def start(self, server_args, gpu_id, nccl_port, target_worker):
        self._target_worker, self.model_runner = target_worker, target_worker.model_runner
        self.draft_token_num = self.speculative_num_draft_tokens = rows
        self.device, self.enable_overlap, self.max_batch_size = "cpu", False, 4
        self._prev_decode_rids, self.grammar_tree_host = set(), None
        self.token_to_kv_pool_allocator = None
        self.ngram_corpus = SimpleNamespace(erase_match_state=lambda names: None)
        self._init_preallocated_tensors()

    folder = save_drafter(tmp_path / "first", vocab_size=VOCABULARY, hidden_size=HIDDEN)
    told = json.dumps({"first": str(folder), "policy": "merged:branches=3"})
    monkeypatch.setenv("D2SD_SGLANG", told)
    group = SimpleNamespace(world_size=1, broadcast_object=lambda decided: decided)
    monkeypatch.setattr(sglang.worker, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    monkeypatch.setattr(sglang.ngram.NGRAMWorker, "__init__", start)
    kernel = sglang.reconstruct.reconstruct_indices_from_tree_mask_triton
    for name, stand_in_for in {
        "reconstruct_indices_from_tree_mask_func": kernel,
        "eagle_sample": sampled_greedily(sglang.walk),
        **{name: lambda *said, **more: None for name in LEFT_OUT},
    }.items():
        monkeypatch.setattr(sglang.ngram, name, stand_in_for)
    return sglang.worker.TreeWorker(SimpleNamespace(model_path="t"), 0, 0, Target(rows))


LEFT_OUT = (
    "assign_extend_cache_locs_func",
    "commit_mamba_states_after_verify",
    "maybe_detect_inf",
    "maybe_detect_nan",
    "move_accept_tokens_to_target_kvcache",
    "prepare_mamba_track_for_verify",
    "record_stream_for_v2_verify",
    "set_time_batch",
)


def test_sglang_s_worker_with_our_draft_says_what_its_target_says(sglang, worker):
    assert worker.model_runner.model.taps == [1, 3]
    batch = [
        request("a", (1, 2, 3, 4, 1), max_new_tokens=90),
        request("b", (2, 2, 0), max_new_tokens=90, presence_penalty=1.0),
        request("c", (4, 0, 3), max_new_tokens=90),
    ]
    accepted = serve(worker, sglang.modes.ForwardMode, batch, 8)
    for one in batch:
        plain = list(one.origin_input_ids)
        while len(plain) < len(tokens_of(one)):
            plain.append(following(plain))
        assert tokens_of(one) == plain
    assert accepted > 0
    assert len(batch[1].output_ids) == 9  # nothing is drafted under a penalty
