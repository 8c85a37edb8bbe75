"""The lossless audit: are the emitted tokens the ones the target would have said anyway?

Two checks. *Replay*: plain decoding with the same seed must emit the same tokens; it is made in
float32 and above, where it holds exactly but for the rarest ties. *Argmax*: transformers' own
forward pass reads the emitted tokens without d2sd's cache, masks or loop, and each token must be
its argmax or a near-tie: kernels round one row and many rows differently, so logits that are
closer than a few units in the last place may swap. Argmax is made for greedy decoding only, and
not of an int8 target, where replay alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.bench.workload import Turn, Workload, conversation
from d2sd.drafters.none import NoDrafter
from d2sd.drafters.policies import Policy
from d2sd.generate import Generation, Request, generate
from d2sd.interfaces import Drafter
from d2sd.session import Session
from d2sd.verify import MATCH

EXACT = (torch.float32, torch.float64)

NEAR_TIE_ULP = {torch.bfloat16: 4, torch.float16: 4, torch.float32: 64, torch.float64: 64}
"""How far below the largest logit a near-tie may lie, in units in the last place of that logit.

Measured on SmolLM2-135M, two passes of different width over the same tokens move the differences
between the top logits by at most 4 ulp in bfloat16 and by at most 18 in float32.
"""


@dataclass(frozen=True)
class Violation:
    """A token the target would not have said. `expected` is None where it would have ended."""

    prompt: str
    turn: int
    position: int
    token: int | None
    expected: int | None
    gap: float | None
    reason: str


@dataclass(frozen=True)
class Audit:
    """The verdict on one policy. `largest_gap` is the largest one found, 0 if all are argmax."""

    lossless: bool
    policy: str
    prompts: int
    tokens: int
    near_ties: int
    largest_gap: float
    near_tie_ulp: int
    checks: tuple[str, ...]
    violations: tuple[Violation, ...]


@dataclass(frozen=True)
class Miss:
    """An emitted token that is not the argmax: its logit lies `gap` below the largest one's."""

    position: int
    token: int
    expected: int
    gap: float
    ulp: float
    """One unit in the last place of the largest logit."""


def audit(
    session: Session,
    policy: Policy,
    workload: Workload,
    on_prompt: Callable[[int], object] = lambda done: None,
) -> Audit:
    """Answer every prompt with `policy` and check every token.

    Raises ValueError for a temperature above 0 where neither check can decide: in half precision,
    and under a verifier that does not take plain decoding's draws.
    """
    checks = _checks(session, policy, workload)
    ask = _asking(session, session.drafter(policy, workload.sampling.temperature))
    tokens = 0
    misses: list[Miss] = []
    violations: list[Violation] = []
    for number, prompt in enumerate(workload.prompts):
        # all turns first: the checks must not mend the rows that a later turn builds on
        turns = list(conversation(session, ask, workload, number))
        for index, turn in enumerate(turns):
            tokens += turn.answer.new_tokens
            if "argmax" in checks:
                found = argmax_misses(plain_logits(session, turn), turn.answer.token_ids)
                misses += found
                violations += _beyond_a_tie(found, prompt.id, index, session.target.dtype)
            if "replay" in checks:
                again = replace(turn.request, sampling=workload.seeded(number, index))
                violations += _replayed(session, again, turn.answer.token_ids, prompt.id, index)
        on_prompt(number + 1)
    return Audit(
        lossless=not violations,
        policy=policy.text,
        prompts=len(workload.prompts),
        tokens=tokens,
        near_ties=len(misses) - sum(violation.gap is not None for violation in violations),
        largest_gap=max((miss.gap for miss in misses), default=0.0),
        near_tie_ulp=NEAR_TIE_ULP[session.target.dtype],
        checks=checks,
        violations=tuple(violations),
    )


def _asking(session: Session, drafter: Drafter) -> Callable[[Request], Generation]:
    return lambda request: generate(session.target, drafter, request, session.tokenizer)


@torch.inference_mode()
def plain_logits(session: Session, turn: Turn[Generation]) -> Float[Tensor, "tokens vocab"]:
    """The model's own logits where each emitted token was to be said, in one causal pass."""
    emitted = turn.answer.token_ids
    ids = torch.tensor([[*turn.request.prompt, *emitted[:-1]]], device=session.target.device)
    output = session.model(ids, use_cache=False, logits_to_keep=len(emitted))
    logits: Tensor = output.logits[0, -len(emitted) :]
    return logits


def argmax_misses(logits: Float[Tensor, "tokens vocab"], emitted: Sequence[int]) -> list[Miss]:
    """The emitted tokens that are not the argmax of their row."""
    top = logits.max(-1)
    said = logits[torch.arange(len(emitted)), list(emitted)]
    gaps = (top.values.double() - said.double()).tolist()
    best, values = top.indices.tolist(), top.values.tolist()
    return [
        Miss(position, token, best[position], gaps[position], ulp(values[position], logits.dtype))
        for position, token in enumerate(emitted)
        if token != best[position]
    ]


def ulp(value: float, dtype: torch.dtype) -> float:
    """One unit in the last place of `value`: bfloat16 has 0.125 from 16 up to 32."""
    exponent = math.frexp(value)[1] - 1  # value = m · 2^exponent with 1 ≤ |m| < 2
    return float(torch.finfo(dtype).eps * 2.0**exponent)


def _checks(session: Session, policy: Policy, workload: Workload) -> tuple[str, ...]:
    greedy = workload.sampling.temperature == 0
    if not greedy and policy.verifier is not MATCH:
        raise ValueError(
            f"temperature {workload.sampling.temperature} cannot be verified token by token under "
            f"the verifier {policy.verifier.name!r}, whose draws are its own; use temperature 0, "
            "or --verifier match"
        )
    exact = session.target.dtype in EXACT
    if not (greedy or exact):
        raise ValueError(
            f"temperature {workload.sampling.temperature} cannot be verified in half precision, "
            "where rounding moves the draws; use --dtype float32, or temperature 0"
        )
    # transformers' own attention would round differently before an int8 target's roundings
    if session.quantize != "none":
        return ("replay",)
    return ("argmax",) * greedy + ("replay",) * exact


def _beyond_a_tie(
    misses: Sequence[Miss], prompt: str, turn: int, dtype: torch.dtype
) -> Iterator[Violation]:
    for miss in misses:
        if miss.gap > NEAR_TIE_ULP[dtype] * miss.ulp:
            yield Violation(
                prompt=prompt,
                turn=turn,
                position=miss.position,
                token=miss.token,
                expected=miss.expected,
                gap=miss.gap,
                reason="the target's argmax is another token",
            )


def _replayed(
    session: Session, request: Request, emitted: Sequence[int], prompt: str, turn: int
) -> Iterator[Violation]:
    """The first place where plain decoding says something else."""
    session.target.prefill(request.prompt[:1])  # the policy's own rows are not to be trusted
    plain = generate(session.target, NoDrafter(), request, session.tokenizer)
    for position, (token, expected) in enumerate(zip_longest(emitted, plain.token_ids)):
        if token != expected:
            yield Violation(
                prompt=prompt,
                turn=turn,
                position=position,
                token=token,
                expected=expected,
                gap=None,
                reason="plain decoding with the same seed says another token",
            )
            return
