"""Trees inside a real vLLM, on CPU in float32: tokens are plain vLLM's, whatever is drafted."""

import collections
import inspect
import random
from importlib.util import find_spec

import pytest
import torch
from transformers import Qwen3ForCausalLM

from d2sd.drafters.export import export
from d2sd.engines.batches.hooks import missing
from d2sd.engines.vllm import hooks

# no conftest.py: it would hide the one above, which other tests import from
pytest_plugins = ("vllm_cases",)
pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="vLLM is not installed; docs/vllm.md says how to install it and run these tests",
)

LENGTHS = (10, 5, 48, 3, 20, 33, 7, 60)
GREEDY = {"max_tokens": 40}
DRAWN = [
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "top_p": 0.9, "seed": 2},
    {"temperature": 1.2, "top_k": 20, "seed": 3},
    {"temperature": 0},
    {"temperature": 1.0, "seed": 4, "presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"repetition_penalty": 1.8},
    {"temperature": 0.8, "seed": 5, "min_tokens": 20, "ignore_eos": False},
    {"temperature": 1.0, "seed": 6, "logprobs": 3},
]


def prompts(lengths=LENGTHS, common=()):
    rng = random.Random(1)
    return [[*common, *(rng.randrange(10, 500) for _ in range(n))] for n in lengths]


def forks(paths):
    """How many accepted paths left the trunk, so that rows had to move."""
    return sum(any(node != depth for depth, node in enumerate(path)) for _, path, *_ in paths)


@pytest.fixture(scope="module")
def plain(engine):
    return engine(prompts(), GREEDY)["tokens"]


@pytest.mark.parametrize("requests", [1, 3, 8])
def test_greedy_tokens_are_those_of_plain_vllm(engine, plain, requests):
    said = engine.oracle(prompts(), GREEDY, plain, max_num_seqs=requests)
    assert said["tokens"] == plain
    assert forks(said["paths"]) > 30
    assert said["accepted"] > 4 * said["drafts"]


@pytest.mark.parametrize("part", ["compaction", "positions"])
def test_the_same_with_a_part_broken_says_other_tokens(engine, plain, part):
    said = engine.oracle(prompts(), GREEDY, plain, {"D2SD_ORACLE_BREAK": part})
    assert all(ours != theirs for ours, theirs in zip(said["tokens"], plain, strict=True))


def test_a_target_that_vllm_compiles_scores_the_same_trees(engine, plain):
    said = engine.oracle(prompts(), GREEDY, plain, enforce_eager=False)
    assert said["tokens"] == plain
    assert forks(said["paths"]) > 30


@pytest.mark.parametrize("policy", ["merged:branches=3", "best-first", "block"])
def test_the_networks_draft_for_a_batch_and_change_nothing(engine, plain, policy):
    said = engine.trees(prompts(), GREEDY, d2sd={"policy": policy})
    assert said["tokens"] == plain
    assert said["drafts"] > 200


def test_a_plan_for_the_batch_soon_leaves_drafts_that_never_come_true(engine, plain):
    said = engine.trees(prompts(), GREEDY, d2sd={"policy": "planned"})
    assert said["tokens"] == plain
    assert 0 < said["drafts"] < 200


def test_prompts_read_in_chunks_stand_beside_trees(engine, plain):
    chunks = {"max_num_batched_tokens": 160, "long_prefill_token_threshold": 16}
    said = engine.oracle(prompts(), GREEDY, plain, **chunks)
    assert said["tokens"] == plain
    assert any(mixed for *_, mixed in said["paths"])
    assert forks(said["paths"]) > 30


def test_a_prompt_that_vllm_had_cached_is_drafted_for_from_the_rest(engine):
    common = prompts([300])[0]
    asked = prompts((4, 20, 7), common)
    known = engine(asked, GREEDY, max_num_seqs=1, enable_prefix_caching=True)["tokens"]
    settings = {"max_num_seqs": 1, "enable_prefix_caching": True}
    said = engine.oracle(asked, GREEDY, known, **settings)
    assert said["tokens"] == known
    assert forks(said["paths"]) > 10


def test_seeded_draws_are_those_of_plain_vllm(engine):
    sampling = [{**GREEDY, **one} for one in DRAWN]
    known = engine(prompts(), sampling)
    said = engine.oracle(prompts(), sampling, known["tokens"])
    assert said["tokens"] == known["tokens"]
    assert forks(said["paths"]) > 20
    ours, theirs = said["logprobs"][7], known["logprobs"][7]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-3)


def test_bfloat16_answers_part_only_where_two_tokens_are_as_good_as_equal(engine):
    """vLLM keeps bfloat16 keys in the tiles of AMX where the processor has it."""
    known = engine(prompts(), {**GREEDY, "logprobs": 8}, dtype="bfloat16")
    said = engine.oracle(prompts(), GREEDY, known["tokens"], dtype="bfloat16")
    assert forks(said["paths"]) > 20
    answers = zip(said["tokens"], known["tokens"], known["logprobs"], strict=True)
    for ours, theirs, places in answers:
        differ = [n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        if differ:
            chances = {int(token): value for token, value in places[differ[0]].items()}
            assert chances[theirs[differ[0]]] - chances[ours[differ[0]]] < 0.1


def law_of_three(folder, prompt, kept, temperature):
    """How likely the model begins with which three tokens when the best `kept` may be drawn."""
    model = Qwen3ForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    law = {(): 1.0}
    for _ in range(3):
        longer = {}
        for begun, chance in law.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *begun]])).logits[0, -1] / temperature
            best = logits.topk(kept)
            for token, more in zip(best.indices.tolist(), best.values.softmax(0), strict=True):
                longer[(*begun, token)] = chance * float(more)
        law = longer
    return law


def surprise(tokens, law):
    """Pearson's statistic, outcomes expected less than five times taken together."""
    counts = collections.Counter(tuple(one[:3]) for one in tokens)
    assert counts.keys() <= law.keys()
    cells = [(counts[one], len(tokens) * chance) for one, chance in law.items()]
    often = [cell for cell in cells if cell[1] >= 5]
    rare = [cell for cell in cells if cell[1] < 5]
    often += [tuple(map(sum, zip(*rare, strict=True)))] * bool(rare)
    return sum((seen - due) ** 2 / due for seen, due in often), len(often) - 1


def limit(freedom):
    """What a true law exceeds once in ten thousand times (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.719 * part**0.5) ** 3


def test_draws_without_a_seed_follow_plain_vllm_s_law(engine, folder):
    """The oracle knows one answer for each first token, so some drafts come true, many don't."""
    [prompt] = prompts((12,))
    law = law_of_three(folder, prompt, 4, 1.5)
    sampling = [{"max_tokens": 5, "temperature": 1.5, "top_k": 4}] * 1500
    plain = engine([prompt] * 1500, sampling, max_num_seqs=64)["tokens"]
    known = list({tokens[0]: tokens for tokens in plain}.values())
    known += [known[0]] * (1500 - len(known))
    said = engine.oracle([prompt] * 1500, sampling, known, max_num_seqs=64)
    assert said["accepted"] > 500
    for tokens in (plain, said["tokens"]):
        statistic, freedom = surprise(tokens, law)
        assert freedom > 15
        assert statistic < limit(freedom)
    biased = [known[0] if tokens[0] == known[0][0] else tokens for tokens in said["tokens"]]
    assert surprise(biased, law)[0] > limit(freedom)


def test_two_ranks_walk_the_same_trees(engine, plain):
    said = engine.oracle(prompts(), GREEDY, plain, tensor_parallel_size=2)
    assert said["tokens"] == plain
    assert forks(said["paths"]) > 30


def test_requests_given_up_amid_their_trees_leave_nothing_behind(engine, plain):
    said = engine.oracle(prompts(), GREEDY, plain, abort_after=3, enable_prefix_caching=False)
    assert said["tokens"] == plain
    assert said["blocks"][0] == said["blocks"][1]
    assert said["held"] <= 8  # those of the last step, which vLLM has not told us of


def test_a_cache_too_small_for_all_preempts_and_answers_the_same(engine):
    asked, longer = prompts((100, 110, 90)), {"max_tokens": 120}
    known = engine(asked, longer)["tokens"]
    small = {"num_gpu_blocks_override": 5, "enable_prefix_caching": False, "max_model_len": 384}
    said = engine.oracle(asked, longer, known, **small)
    assert said["preempted"] > 0
    assert said["tokens"] == known
    assert said["blocks"][0] == said["blocks"][1]


def test_answers_end_where_the_model_s_context_ends(engine):
    asked, long = prompts((50, 20)), {"max_tokens": 200}
    known = engine(asked, long, max_model_len=128)["tokens"]
    said = engine.oracle(asked, long, known, max_model_len=128)
    assert said["tokens"] == known
    assert [len(tokens) for tokens in known] == [78, 108]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d2sd": {"policy": "dual"}}, "policy 'dual' does not draft for a batch"),
        ({"d2sd": {"thrid": "x"}}, "has 'thrid'; it knows first, second, policy"),
        ({"drafter": "oracle.NoTrees"}, "the worker of d2sd needs its drafter"),
    ],
)
def test_what_cannot_be_is_refused_when_the_engine_starts(engine, change, message):
    with pytest.raises(RuntimeError, match=message):
        engine.trees(prompts(), GREEDY, **change)


def test_a_cache_that_is_written_otherwise_is_refused(engine, plain):
    with pytest.raises(RuntimeError, match="a cache layout 'vec' other than"):
        engine.oracle(prompts(), GREEDY, plain, {"D2SD_ORACLE_BREAK": "layout"})


@pytest.mark.filterwarnings("ignore")  # of vLLM's own imports
def test_every_hook_is_there():
    assert missing(hooks.HOOKS) == []


@pytest.mark.filterwarnings("ignore")  # of vLLM's own imports
def test_what_a_gpu_would_run_overrides_what_vllm_calls():
    """Nothing here runs on a GPU: only that the classes fit together."""
    from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from d2sd.engines.vllm import flash_attention, gpu_worker

    ours = inspect.signature(flash_attention.TreeAttention.forward).parameters
    theirs = inspect.signature(FlashAttentionImpl.forward).parameters
    assert list(ours)[:8] == list(theirs)[:8]
    runner = gpu_worker.GPUTreeRunner
    assert runner._prepare_inputs is not GPUModelRunner._prepare_inputs
    assert flash_attention.TreeAttentionBackend.get_impl_cls() is flash_attention.TreeAttention


def test_the_exported_first_drafter_is_served_by_vllm_alone(engine, folder, plain):
    """`d2sd export --format vllm`, then vLLM's own method: nothing of ours runs."""
    export(folder / "first", folder / "served", "vllm", str(folder / "target"))
    stock = {"method": "dflash", "model": str(folder / "served"), "num_speculative_tokens": 7}
    said = engine(prompts(), GREEDY, speculative_config=stock)
    assert said["tokens"] == plain
    assert said["drafts"] > 200
    ours = engine.trees(prompts(), GREEDY, d2sd={"policy": "block"}, nodes=7)
    assert abs(said["accepted"] - ours["accepted"]) <= 3  # the same chains; near-ties may differ
