"""Other programs in the bench: the same tokens, passes that add up, and reasons for absence."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch

from d2sd.bench.contenders import Absent, PolicyContender
from d2sd.bench.peers import PEERS, dflash, llama_open, open_peers
from d2sd.bench.peers.huggingface import tokenizers
from d2sd.bench.peers.watch import PassLog
from d2sd.drafters.policies import parse_policy
from d2sd.generate import Request
from d2sd.networks import load_networks
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, Session, open_session
from folders import byte_tokenizer, save_drafter, save_target, tiny_llama

OURS = PEERS[:3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, an assistant of the same tokens and a drafter."""
    base = tmp_path_factory.mktemp("peers")
    assistant = save_target(base / "assistant", num_hidden_layers=2)
    drafter = save_drafter(base / "drafter", dflash_config=taps([1, 2]))
    return save_target(base / "target"), assistant, drafter


def taps(layers):
    return {"mask_token_id": 0, "target_layer_ids": layers}


@pytest.fixture(scope="module")
def session(folders) -> Session:
    target, _, drafter = folders
    choice = ModelChoice(str(target), drafter=str(drafter), device="cpu", compiled=False)
    return open_session(choice, ["none", "block"])


def ask(session, text="the cat sat and the cat sat and the cat", tokens=40, **changes):
    changes.setdefault("stop_tokens", frozenset({2}))
    return Request(session.raw_prompt(text), max_new_tokens=tokens, **changes)


def plain(session, request):
    return PolicyContender(session, parse_policy("none")).answer(request)


def opened(session, name, assistant=None):
    (peer,) = open_peers([name], session, assistant and str(assistant))
    assert not isinstance(peer, Absent), peer
    return peer


def assert_adds_up(answer):
    steps = answer.steps
    assert answer.prefill_tokens + sum(steps.emitted) == answer.new_tokens
    assert answer.prefill_tokens >= 1
    assert steps.depth == steps.nodes
    for emitted, accepted, nodes in zip(
        steps.emitted[:-1], steps.accepted[:-1], steps.nodes[:-1], strict=True
    ):
        assert accepted == emitted - 1 <= nodes
    assert all(seconds > 0 for seconds in steps.seconds)


@pytest.mark.parametrize("name", OURS)
def test_transformers_gives_the_tokens_of_plain_decoding(session, folders, name):
    request = ask(session)
    wanted = plain(session, request)
    answer = opened(session, name, folders[1]).answer(request)
    assert answer.token_ids == wanted.token_ids
    assert answer.text == wanted.text
    assert answer.prompt_tokens == len(request.prompt)
    assert_adds_up(answer)


@pytest.mark.parametrize("name", OURS)
def test_a_stop_token_is_kept_and_ends_the_answer(session, folders, name):
    free = plain(session, ask(session, stop_tokens=frozenset())).token_ids
    stop = free[len(free) // 2]
    request = ask(session, stop_tokens=frozenset({stop, 2}))
    answer = opened(session, name, folders[1]).answer(request)
    assert answer.token_ids == free[: free.index(stop) + 1]
    assert_adds_up(answer)


@pytest.mark.parametrize("name", OURS)
def test_draws_follow_the_requests_seed_alone(session, folders, name):
    peer = opened(session, name, folders[1])

    def drawn(seed):
        how = Sampling(1.0, top_k=50, top_p=0.95, rng=torch.Generator().manual_seed(seed))
        return peer.answer(ask(session, sampling=how)).token_ids

    before = torch.get_rng_state()
    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is left as it was"


def test_plain_generate_passes_over_one_row_at_a_time(session):
    answer = opened(session, "transformers").answer(ask(session, tokens=12))
    assert answer.prefill_tokens == 1
    assert answer.steps.nodes == (0,) * 11
    assert answer.steps.emitted == (1,) * 11


def test_drafts_save_passes_and_are_counted(session, folders):
    """A copy of the target as its own assistant is always right."""
    answer = opened(session, "transformers:assisted", folders[0]).answer(ask(session))
    assert_adds_up(answer)
    assert answer.new_tokens == 40
    assert len(answer.steps) <= 20  # where it is unsure, transformers drafts one token
    assert answer.steps.accepted[:-1] == answer.steps.nodes[:-1]


def test_prompt_lookup_takes_fewer_passes_over_a_text_that_repeats(session):
    repeated = ask(session, tokens=120, stop_tokens=frozenset())
    answer = opened(session, "transformers:prompt-lookup").answer(repeated)
    assert_adds_up(answer)
    assert answer.token_ids == plain(session, repeated).token_ids
    assert max(answer.steps.nodes) == 10
    assert len(answer.steps) < 119


def test_seconds_add_up_to_the_time_outside(session):
    peer, request = opened(session, "transformers"), ask(session)
    peer.answer(request)
    start = time.perf_counter()
    answer = peer.answer(request)
    outside = time.perf_counter() - start
    assert answer.prefill_seconds + answer.seconds == pytest.approx(outside, rel=0.1, abs=0.003)


def test_one_token_comes_from_reading_the_prompt(session):
    answer = opened(session, "transformers").answer(ask(session, tokens=1))
    assert answer.prefill_tokens == answer.new_tokens == 1
    assert len(answer.steps) == 0
    assert answer.prefill_seconds > 0


def test_a_passes_log_counts_what_the_next_pass_finds(session):
    """Three drafted of which two are right; then an answer that ends within a right draft."""
    log = PassLog(ask(session, "abc", tokens=5), torch.device("cpu"))
    prompt = ask(session, "abc").prompt
    for cached, ids in [(0, prompt), (3, (10, 11, 12, 99)), (6, (13, 14, 15))]:
        log.begins(cached, ids)
        log.ends()
    answer = log.answer((10, 11, 12, 13, 14), session.tokenizer)
    assert answer.prefill_tokens == 1
    assert answer.steps.emitted == (3, 1)
    assert answer.steps.accepted == (2, 1)
    assert answer.steps.nodes == (3, 2)


def test_the_models_own_settings_stay_and_do_not_mix_in(session):
    model = session.model
    before = model.generation_config
    model.generation_config = type(before)(repetition_penalty=5.0, max_length=3, eos_token_id=2)
    own = model.generation_config
    try:
        answer = opened(session, "transformers").answer(ask(session))
        assert model.generation_config is own
    finally:
        model.generation_config = before
    assert answer.token_ids == plain(session, ask(session)).token_ids
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_assistant_of_other_tokens_is_told_from_one_of_the_same(session):
    same, fewer = tiny_llama(), tiny_llama(vocab_size=200)
    assert tokenizers(session, same, byte_tokenizer(), "it") == {}
    given = tokenizers(session, fewer, byte_tokenizer(), "it")
    assert set(given) == {"tokenizer", "assistant_tokenizer"}
    other = byte_tokenizer()
    other.add_tokens(["<other>"])
    with pytest.raises(ValueError, match=r"as many tokens .* not the same ones"):
        tokenizers(session, same, other, "it")


def test_an_assistant_of_other_tokens_drafts_for_greedy_answers_only(session, tmp_path):
    folder = save_target(tmp_path, vocab_size=300)
    peer = opened(session, "transformers:assisted", folder)
    assert peer.sampled is False
    answer = peer.answer(ask(session))
    assert answer.token_ids == plain(session, ask(session)).token_ids
    assert_adds_up(answer)
    with pytest.raises(ValueError, match="does not draw from the target's law"):
        peer.answer(ask(session, sampling=Sampling(1.0)))


def test_unknown_names_are_errors(session):
    with pytest.raises(ValueError, match="no peer 'vllm'; choose among transformers, "):
        open_peers(["transformers", "vllm"], session)


def reasons(session, assistant=None, names=PEERS):
    found = open_peers(names, session, assistant)
    assert [one.name for one in found] == list(names)
    return {one.name: one.reason for one in found if isinstance(one, Absent)}


def test_what_is_missing_is_said(session, monkeypatch):
    for package in ("dflash.model", "llama_cpp"):
        monkeypatch.setitem(sys.modules, package, None)
    missing = reasons(session)
    assert set(missing) == set(PEERS) - {"transformers", "transformers:prompt-lookup"}
    assert "give one with --assistant" in missing["transformers:assisted"]
    assert "pip install --no-deps dflash==0.1.0" in missing["dflash"]
    assert "pip install 'd2sd[peers]'" in missing["llama.cpp:lookup"]
    absent = reasons(session, "./nowhere", ["transformers:assisted"])
    assert "'./nowhere' does not exist" in absent["transformers:assisted"]


def test_a_package_without_its_weights_or_drafter_is_absent(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "dflash.model", object())
    monkeypatch.setitem(sys.modules, "llama_cpp", object())
    bare = replace(session, networks=load_networks(None, None))
    missing = reasons(bare)
    assert "no first drafter; give one with --drafter" in missing["dflash"]
    assert f"no GGUF file of {session.name} is known" in missing["llama.cpp"]


def test_other_models_than_the_sessions_are_refused(session, folders):
    assert set(reasons(replace(session, quantize="int8"))) == set(PEERS)
    choice = ModelChoice(str(folders[0]), device="cpu", compiled=False)
    dropped = open_session(choice, ["none"])
    dropped.model.model.layers.to("meta")
    assert "keep_layers=True" in reasons(dropped)["transformers"]


def test_stop_strings_are_refused(session):
    with pytest.raises(ValueError, match="without stop strings"):
        opened(session, "transformers").answer(ask(session, stop_strings=("x",)))


def test_dflash_gives_the_tokens_of_plain_decoding(session):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("dflash.model", reason=f"needs dflash: {dflash.INSTALL}")
    request = ask(session)
    answer = opened(session, "dflash").answer(request)
    assert answer.token_ids == plain(session, request).token_ids
    assert_adds_up(answer)
    block = PolicyContender(session, parse_policy("block")).answer(
        replace(request, prompt=(*request.prompt, answer.token_ids[0]), max_new_tokens=39)
    )
    assert answer.steps.emitted[:-2] == block.steps.emitted[: len(answer.steps) - 2]


@pytest.fixture(scope="module")
def smollm2_session(smollm2):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install 'd2sd[peers]'")
    choice = ModelChoice("smollm2-135m", dtype="float32", device="cpu", compiled=False)
    return open_session(choice, ["none"])


@pytest.mark.parametrize("name", PEERS[4:])
def test_llama_cpp_reads_and_gives_the_targets_token_ids(smollm2_session, name):
    session = smollm2_session
    peer = opened(session, name)
    text = "Repeat after me: one two three four one two three four one two three"
    prompt = session.chat_prompt([{"role": "user", "content": text}])
    assert tuple(peer._llama.tokenize(b"one two three", add_bos=False)) == session.raw_prompt(
        "one two three"
    )
    request = Request(prompt, max_new_tokens=16, stop_tokens=session.stop_tokens)
    answer, again = peer.answer(request), peer.answer(request)
    assert answer.token_ids == again.token_ids
    assert answer.steps.emitted == again.steps.emitted, "nothing of the first one was reused"
    assert_adds_up(answer)
    wanted = plain(session, request).token_ids
    assert answer.token_ids[:4] == wanted[:4], "4-bit arithmetic, the same model"
    assert max(answer.steps.nodes) > 0 or name == "llama.cpp"
    assert peer.arithmetic.startswith("Q4_1 and Q8_0 weights, llama.cpp ")


def test_a_way_that_crashes_is_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    tried = []

    def runs(file, repacked):
        tried.append((file, repacked))
        return not repacked

    monkeypatch.setattr(llama_open, "_runs", runs)
    assert llama_open.running_way(path) is False
    assert tried == [(path, True), (path, False)]
    monkeypatch.setattr(llama_open, "_runs", lambda file, repacked: False)
    with pytest.raises(ValueError, match=r"cannot evaluate other\.gguf on this machine"):
        llama_open.running_way(tmp_path / "other.gguf")


def test_a_trial_that_fails_is_a_way_that_does_not_run(tmp_path):
    assert not llama_open._runs(tmp_path / "nothing.gguf", False)
