"""What `d2sd generate` shows: an answer, plain decoding beside it, the gain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from d2sd.cli.tables import split_json
from d2sd.cli.terminal import notes
from d2sd.drafters.policies import Policy
from d2sd.generate import Generation, Request, generate
from d2sd.session import Session
from d2sd.stages import Split, Stages, split
from d2sd.verify import MATCH

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """A generation and the seconds spent in each of its stages."""

    generation: Generation
    stages: dict[str, float]

    @property
    def split(self) -> Split:
        """Where the time of its steps went."""
        return split(self.stages, self.generation.seconds, self.generation.steps)


@dataclass(frozen=True)
class Gain:
    """Plain decoding's answer to the same prompt, and what the policy's is beside it."""

    plain: Generation
    speedup: float
    identical: bool
    sampled: bool


def answer(
    session: Session,
    policy: Policy | str,
    request: Request,
    on_text: Callable[[str], object] = lambda text: None,
) -> Answer:
    """Answer from an empty cache, the draws at their seed. Repeats itself exactly."""
    rng = torch.Generator().manual_seed(request.sampling.rng.initial_seed())
    request = replace(request, sampling=replace(request.sampling, rng=rng))
    session.target.prefill(request.prompt[:1])  # one token is no row: the cache is empty now
    stages = Stages(session.target.device)
    generation = generate(
        session.target,
        session.drafter(policy, request.sampling.temperature, stages),
        request,
        session.tokenizer,
        stages,
        on_piece=lambda piece: on_text(piece.text) and None,
    )
    return Answer(generation, stages.seconds)


def warm_up(session: Session, policy: Policy | str, request: Request) -> None:
    """A few tokens, so that neither side of a comparison pays for a cold start."""
    answer(session, policy, replace(request, max_new_tokens=WARM_UP_TOKENS))


def gain(session: Session, request: Request, ours: Generation) -> Gain:
    """Answer once more without drafting."""
    plain = answer(session, "none", request).generation
    return Gain(
        plain,
        speedup=ours.tokens_per_second / plain.tokens_per_second,
        identical=ours.token_ids == plain.token_ids,
        sampled=request.sampling.temperature > 0,
    )


def as_json(
    session: Session, policy: Policy, ours: Answer, gained: Gain | None
) -> dict[str, object]:
    """The object that `--json` prints. Times are in seconds."""
    generation = ours.generation
    values: dict[str, object] = {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": generation.new_tokens,
        "steps": generation.steps,
        "nodes_per_step": generation.nodes_per_step,
        "acceptance_length": generation.acceptance_length,
        "tokens_per_second": generation.tokens_per_second,
        "seconds": generation.seconds,
        "prefill_seconds": generation.prefill_seconds,
        "stages": ours.stages,
        "split": split_json(ours.split),
        "policy": policy.text,
        "verifier": policy.verifier.name,
        "lossless": policy.verifier.lossless,
        "model": session.name,
        "dtype": str(session.target.dtype).removeprefix("torch."),
        "device": str(session.target.device),
        "finish_reason": generation.finish_reason,
    }
    if gained is not None:
        values["compare"] = {
            "policy": "none",
            "token_ids": gained.plain.token_ids,
            "steps": gained.plain.steps,
            "tokens_per_second": gained.plain.tokens_per_second,
            "speedup": gained.speedup,
            "identical": gained.identical,
        }
    return values


def print_summary(session: Session, policy: Policy, ours: Answer, gained: Gain | None) -> None:
    """One line of figures, one of stages, and the comparison, on standard error."""
    generation = ours.generation
    figures = [
        f"[bold]{policy.text}[/]" + ("" if policy.verifier.lossless else " [bold red]lossy[/]"),
        f"[bold]{generation.tokens_per_second:.1f} tokens/s[/]",
        f"acceptance length [bold]{generation.acceptance_length:.2f}[/]",
        f"{generation.new_tokens} tokens in {generation.steps} steps",
        f"{generation.nodes_per_step:.1f} nodes a step",
        f"{str(session.target.dtype).removeprefix('torch.')} on {session.target.device}",
    ]
    notes.print("\n" + " · ".join(figures))
    notes.print(time_line(ours), style="dim")
    if generation.finish_reason == "length":
        notes.print("cut at the length limit (--max-new-tokens)", style="dim")
    if gained is not None:
        same = likeness(policy, generation, gained)
        notes.print(
            f"none: {gained.plain.tokens_per_second:.1f} tokens/s → [bold]{gained.speedup:.2f} × "
            f"as fast[/], {same}"
        )


def time_line(ours: Answer) -> str:
    """How long the prefill and a step took."""
    return (
        f"prefill {ours.generation.prefill_seconds:.2f} s · a step "
        f"{ours.split.milliseconds():.1f} ms, {ours.split.overhead:.1%} of it outside the passes"
    )


def likeness(policy: Policy, ours: Generation, gained: Gain) -> str:
    """Whether both answers are the same, and if not, whether they should be."""
    verifier = policy.verifier
    if gained.identical:
        return "identical tokens"
    if not verifier.lossless:
        return f"other tokens: the verifier {verifier.name} is lossy"
    if gained.sampled and verifier is not MATCH:
        return f"other tokens of the same law: the verifier {verifier.name} has draws of its own"
    return difference(ours, gained.plain)


def difference(ours: Generation, plain: Generation) -> str:
    """Where two answers part, and why that may be."""
    pairs = zip(ours.token_ids, plain.token_ids, strict=False)
    place = next((n for n, (left, right) in enumerate(pairs) if left != right), None)
    at = "at their ends" if place is None else f"from token {place + 1} on"
    return (
        f"[bold red]different tokens[/] {at}: in bfloat16 near-ties round either way, which "
        "d2sd verify tells from an error"
    )
