"""`d2sd verify`'s audit: passes what is lossless and finds what is not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from d2sd.bench.audit import NEAR_TIE_ULP, argmax_misses, audit, ulp
from d2sd.bench.prompts import Prompt
from d2sd.bench.workload import Workload
from d2sd.drafters.none import NoDrafter
from d2sd.drafters.policies import parse_policies, parse_policy
from d2sd.interfaces import Drafter
from d2sd.sampling import Sampling
from d2sd.session import ModelChoice, Session, open_session
from d2sd.target.cache import TreeCache
from d2sd.verify import Verdict, Verifier, verify
from folders import save_target

NGRAM = parse_policy("ngram")
PROMPTS = (Prompt("a", ("hello hello hello",)), Prompt("b", ("the cat", "the cat")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_target(tmp_path_factory.mktemp("target")))


def opened(folder: str, dtype: str) -> Session:
    choice = ModelChoice(model=folder, device="cpu", dtype=dtype)
    return open_session(choice, [NGRAM], tell=lambda words: None)


@pytest.fixture(scope="module")
def session(folder: str) -> Session:
    return opened(folder, "float32")


@pytest.mark.parametrize("policy", parse_policies("none,ngram,ngram:length=3"))
def test_lossless_policies_pass(session: Session, policy) -> None:
    done: list[int] = []
    verdict = audit(session, policy, Workload(PROMPTS, 30), done.append)
    assert verdict.lossless
    assert verdict.checks == ("argmax", "replay")
    assert (verdict.violations, verdict.near_ties, verdict.largest_gap) == ((), 0, 0.0)
    assert (verdict.policy, verdict.prompts, done) == (policy.text, 2, [1, 2])
    assert verdict.tokens > 60


def test_sampled_answers_are_replayed(session: Session) -> None:
    workload = Workload(PROMPTS, 30, Sampling(temperature=1.0), seed=2)
    verdict = audit(session, NGRAM, workload)
    assert (verdict.lossless, verdict.checks) == (True, ("replay",))


def test_bfloat16_allows_near_ties_of_a_stated_size(folder: str) -> None:
    verdict = audit(opened(folder, "bfloat16"), NGRAM, Workload(PROMPTS, 30))
    assert verdict.checks == ("argmax",)
    assert verdict.near_tie_ulp == 4
    assert verdict.lossless


def test_sampling_in_bfloat16_cannot_be_verified(folder: str) -> None:
    workload = Workload(PROMPTS, 30, Sampling(temperature=1.0))
    with pytest.raises(ValueError, match=r"temperature 1\.0 cannot be verified .* float32"):
        audit(opened(folder, "bfloat16"), NGRAM, workload)


def accepts_one_too_many(tree, logits, sampling, history) -> Verdict:
    """Follows the target's draws, and then one child that the target did not draw."""
    verdict = verify(tree, logits, sampling, history)
    wrong = [n for n in range(1, len(tree)) if tree.parents[n] == verdict.path[-1]]
    if not wrong:
        return verdict
    path = (*verdict.path, wrong[0])
    return Verdict(path, int(logits[wrong[0]].argmax()))


@pytest.mark.parametrize(
    ("dtype", "temperature"), [("float32", 0.0), ("float32", 1.0), ("bfloat16", 0.0)]
)
def test_a_verify_that_accepts_too_much_is_found(
    folder: str, monkeypatch: pytest.MonkeyPatch, dtype: str, temperature: float
) -> None:
    monkeypatch.setattr(Drafter, "verify", Verifier("wrong", accepts_one_too_many))
    workload = Workload(PROMPTS, 30, Sampling(temperature=temperature))
    verdict = audit(opened(folder, dtype), NGRAM, workload)
    assert not verdict.lossless
    first = verdict.violations[0]
    assert first.prompt == "a"
    assert first.token != first.expected
    if temperature == 0:
        assert first.gap is not None
        assert verdict.largest_gap >= first.gap > 0
        assert "argmax" in first.reason
    else:
        assert "plain decoding" in first.reason


def test_draws_of_a_verifiers_own_cannot_be_replayed(session: Session) -> None:
    policy = parse_policy("ngram:verifier=traversal")
    assert audit(session, policy, Workload(PROMPTS, 30)).lossless
    with pytest.raises(ValueError, match=r"verifier 'traversal', .* temperature 0, or --verifier"):
        audit(session, policy, Workload(PROMPTS, 30, Sampling(temperature=1.0)))


def test_a_lossy_verifier_is_found(session: Session) -> None:
    policy = parse_policy("ngram:verifier=near-best", allow_lossy=True)
    assert not audit(session, policy, Workload(PROMPTS, 60)).lossless


def test_a_cache_that_keeps_the_wrong_rows_is_found(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of rejected nodes stay; the tokens are the argmax of a context nobody said."""
    keep_path = TreeCache.keep_path

    def keeps_neighbours(cache, path) -> None:
        keep_path(cache, [max(node - 1, 0) for node in path])

    monkeypatch.setattr(TreeCache, "keep_path", keeps_neighbours)
    verdict = audit(session, NGRAM, Workload(PROMPTS, 30))
    assert not verdict.lossless
    assert any("argmax" in violation.reason for violation in verdict.violations)
    monkeypatch.undo()
    session.target.prefill((5,))  # drop the rows that the mutant left


def test_an_answer_that_ends_too_late_is_found(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = audit(session, NGRAM, Workload(PROMPTS[:1], 6))
    import d2sd.bench.audit as module

    generate = module.generate

    def shorter(target, drafter, request, tokenizer):
        if isinstance(drafter, NoDrafter):
            request = dataclasses.replace(request, max_new_tokens=4)
        return generate(target, drafter, request, tokenizer)

    monkeypatch.setattr(module, "generate", shorter)
    verdict = audit(session, NGRAM, Workload(PROMPTS[:1], 6))
    assert plain.lossless
    [violation] = verdict.violations
    assert (violation.position, violation.expected) == (4, None)


def test_misses_by_hand() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [20.0, 19.875, 0.0], [2.0, 2.0, 1.0]]).bfloat16()
    assert argmax_misses(logits, [1, 0, 0]) == []
    low, tie = argmax_misses(logits, [2, 1, 0])
    assert (low.position, low.token, low.expected, low.gap) == (0, 2, 1, 2.0)
    assert (tie.position, tie.gap, tie.ulp) == (1, 0.125, 0.125)
    assert tie.gap <= NEAR_TIE_ULP[torch.bfloat16] * tie.ulp < low.gap


@pytest.mark.parametrize("value", [1.0, 1.5, 16.0, 31.9, 32.0, -17.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ulp_is_the_distance_to_the_next_number(value: float, dtype: torch.dtype) -> None:
    at = torch.tensor(abs(value), dtype=dtype)
    beyond = torch.nextafter(at, torch.tensor(torch.inf, dtype=dtype))
    assert ulp(float(at), dtype) == float(beyond.double() - at.double())
