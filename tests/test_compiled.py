"""Compiled passes say what the eager ones say, at every size; without a compiler, no harm."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from d2sd.cli import run
from d2sd.decode import decode
from d2sd.drafters.compiled import CompiledDraftPass, compile_draft
from d2sd.drafters.none import NoDrafter
from d2sd.drafters.passes import ContextRows, EagerDraftPass
from d2sd.generate import Request, generate
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, open_session
from d2sd.target import compiled
from d2sd.target.compiled import CompiledPass, bucket, compile_pass
from d2sd.target.hf import HFTarget
from d2sd.target.taps import decoder_layers
from d2sd.tree import TokenTree
from d2sd.tuning import packages
from d2sd.tuning.packages import fingerprint
from fakes import ScriptedDrafter
from folders import save_drafter, save_target, tiny_llama, write_prompts

# torch.export and inductor still use old parts of torch
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]
TAPS = (1, 3)


def random_tree(anchor: int, nodes: int, rng: random.Random) -> TokenTree:
    tokens = [anchor, *(rng.randrange(200) for _ in range(nodes - 1))]
    parents = [-1, *(rng.randrange(max(0, node - 4), node) for node in range(1, nodes))]
    return TokenTree(tuple(tokens), tuple(parents), ("random",) * nodes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two targets over one model with grouped heads: eager, and compiled."""
    model = tiny_llama()
    package = tmp_path_factory.mktemp("compiled") / "target.pt2"
    compile_pass(model, TAPS, package)
    eager, fast = HFTarget(model, TAPS), HFTarget(model, TAPS)
    fast.run = CompiledPass(package, model)
    return eager, fast


@pytest.mark.parametrize("committed", [0, 1, 2, 3, 40, 150])
def test_every_size_gives_the_eager_numbers(pair, committed) -> None:
    rng = random.Random(committed)
    prompt = [rng.randrange(200) for _ in range(committed + 1)]
    eager, fast = pair
    contexts = eager.prefill(prompt), fast.prefill(prompt)
    torch.testing.assert_close(contexts[1].features, contexts[0].features, atol=1e-4, rtol=1e-4)
    for nodes in (1, 2, 3, 16, 17, 70):
        with torch.inference_mode():
            for buffer in fast._cache.buffers:
                buffer[:, :, committed:] = torch.nan  # nothing there may count
        tree = random_tree(prompt[-1], nodes, rng)
        one, other = eager.score(contexts[0], tree), fast.score(contexts[1], tree)
        torch.testing.assert_close(other.logits, one.logits, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(other.features, one.features, atol=1e-4, rtol=1e-4)


def test_the_embedding_is_the_models_own_and_not_in_the_package(pair) -> None:
    """Its memory is shared with the drafters; so a token that is embedded anew reads anew."""
    eager, fast = pair
    tree, embedding = random_tree(7, 3, random.Random(0)), eager.embed
    before = embedding.detach().clone()
    try:
        with torch.no_grad():
            embedding[7].add_(0.5)
        one, other = (target.score(target.prefill([5, 7]), tree) for target in pair)
        torch.testing.assert_close(other.logits, one.logits, atol=1e-3, rtol=1e-4)
    finally:
        with torch.no_grad():
            embedding.copy_(before)
    old = fast.score(fast.prefill([5, 7]), tree)
    assert not torch.allclose(old.logits, other.logits, atol=1e-2)


def test_accepted_paths_move_in_the_compiled_cache_too(pair) -> None:
    """The right branch comes after a wrong one, so its rows have to move."""
    eager, fast = pair
    prompt = [5, 9, 2]
    truth = tokens_of(eager, NoDrafter(), prompt)

    def branches(context):
        at = len(context.tokens) - len(prompt)
        right = truth[at : at + 4]
        return [[*right[:1], 0, 1, 0], [7, 7], [*right, 0]]

    steps = list(islice(decode(fast, ScriptedDrafter(branches), prompt, Sampling()), 12))
    assert [token for step in steps for token in step.emitted][:60] == truth[:60]
    assert max(len(step.emitted) for step in steps) == 5


def tokens_of(target, drafter, prompt, count=70):
    steps = decode(target, drafter, prompt, Sampling())
    return list(islice((token for step in steps for token in step.emitted), count))


def test_a_cache_that_grows_keeps_the_numbers(pair, monkeypatch) -> None:
    eager, fast = pair
    small = HFTarget(eager._model, TAPS)
    small.run = fast.run
    small._cache._capacity = 8
    prompt = list(range(3, 60))
    one, other = eager.prefill(prompt), small.prefill(prompt)
    tree = random_tree(prompt[-1], 9, random.Random(1))
    torch.testing.assert_close(
        small.score(other, tree).logits, eager.score(one, tree).logits, atol=1e-3, rtol=1e-4
    )


def test_padding_is_to_the_next_size() -> None:
    assert [bucket(n) for n in (1, 2, 3, 64, 65, 512, 513, 641)] == [
        2,
        2,
        4,
        64,
        80,
        512,
        640,
        768,
    ]


def test_drafters_passes_equal_the_networks(tmp_path) -> None:
    from d2sd.networks import load_networks

    network = load_networks(save_drafter(tmp_path / "drafter"), None).first
    target = HFTarget(tiny_llama(), TAPS)
    compile_draft(network, target.head, tmp_path / "compiled")
    eager = EagerDraftPass(network, target.embed, target.head)
    fast = CompiledDraftPass(tmp_path / "compiled", eager)
    rng = torch.Generator().manual_seed(0)
    contexts = [ContextRows(network.config, torch.float32, torch.device("cpu"), 8) for _ in "ab"]
    with torch.inference_mode():
        for appended in (0, 1, 1, 3, 40, 2):
            features = torch.randn(appended, len(TAPS), 32, generator=rng)
            for run_pass, context in zip((eager, fast), contexts, strict=True):
                if appended:
                    run_pass.read(features, context)
            assert contexts[0].length == contexts[1].length
            for context in contexts:
                context.keys[:, :, context.length :] = torch.nan  # nothing there may count
                context.values[:, :, context.length :] = torch.nan
            for rows in (1, 2, 5, 9):
                ids = torch.randint(0, 200, (rows, 5), generator=rng)
                asked = torch.randperm(rows * 5, generator=rng)[: rows * 4].sort().values
                divisors = torch.rand(len(asked), generator=rng) + 0.5
                one = eager(ids, asked, divisors, contexts[0])
                other = fast(ids, asked, divisors, contexts[1])
                torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    save_target(folder / "target")
    save_drafter(folder / "first")
    save_drafter(folder / "second", seed=1)
    return folder


def choice(home, **changes) -> ModelChoice:
    paths = [str(home / name) for name in ("target", "first", "second")]
    return ModelChoice(*paths, dtype="float32", device="cpu", **changes)


def answer(session, policy: str):
    request = Request(session.raw_prompt("hello there"), max_new_tokens=40)
    return generate(session.target, session.drafter(policy), request, session.tokenizer).token_ids


def test_tune_compiles_once_and_later_sessions_run_it(home, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("D2SD_CACHE", str(tmp_path))
    policies = ["none", "block", "merged:budget=9"]
    plain = open_session(choice(home, compiled=False), policies)
    expected = [answer(plain, policy) for policy in policies]
    assert not open_session(choice(home), policies).is_compiled
    options = ["--model", str(home / "target"), "--drafter", str(home / "first")]
    options += ["--second-drafter", str(home / "second"), "--dtype", "float32", "--device", "cpu"]
    tune = ["tune", *options, "--contexts", "8", "--repeats", "1"]
    assert run(tune) == 0
    assert "compiling" in capsys.readouterr().err
    session = open_session(choice(home), policies)
    assert session.is_compiled
    assert [answer(session, policy) for policy in policies] == expected
    body = decoder_layers(session.model.base_model, session.target.num_layers)
    assert all(weight.is_meta for weight in body.parameters())  # not held twice
    passes = session.networks.passes.of(session.networks.first, session.target)
    assert "_head" not in vars(passes._eager)  # nor the head's rows
    monkeypatch.setattr(packages, "compile_pass", pytest.fail)
    assert run([*tune, "--force"]) == 0  # compiled before
    assert not open_session(choice(home, compiled=False), policies).is_compiled
    prompts = write_prompts(tmp_path / "p.jsonl", ["hello"])
    bench = ["bench", *options, "--prompts", str(prompts), "--max-new-tokens", "8"]
    assert run([*bench, "--policies", "none,block"]) == 0
    audit = ["verify", *options, "--prompts", str(prompts), "--max-new-tokens", "8"]
    assert run([*audit, "--policy", "block"]) == 0  # reads with the model itself, kept for it


def test_without_a_compiler_the_eager_passes_stay_and_one_note_says_so(
    home, tmp_path, monkeypatch, capsys
) -> None:
    def no_compiler(*_: object) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setenv("D2SD_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "compile_program", no_compiler)
    tune = ["tune", "--model", str(home / "target"), "--dtype", "float32", "--device", "cpu"]
    assert run([*tune, "--contexts", "8", "--repeats", "1"]) == 0
    assert capsys.readouterr().err.count("eager") == 1
    assert not open_session(choice(home), ["none"]).is_compiled


def test_other_weights_have_another_fingerprint() -> None:
    one, same, other = tiny_llama(), tiny_llama(), tiny_llama()
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
