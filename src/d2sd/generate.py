"""Answers on top of the loop: where to stop, what to show, what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from d2sd.decode import Step, decode
from d2sd.interfaces import Context, Drafter, Target
from d2sd.sampling import Sampling
from d2sd.stages import Stage, untimed
from d2sd.text import TextStream, Tokenizer
from d2sd.tree import TokenTree

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What to answer and where to stop.

    Generation stops after a token of `stop_tokens`, which is kept in the token ids and left out
    of the text; at a string of `stop_strings`, of which nothing is kept in the text; and after
    `max_new_tokens`, or earlier when the target's context is full.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 256
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if "" in self.stop_strings:
            raise ValueError("a stop string is empty; leave it out or give it some text")


@dataclass(frozen=True)
class Piece:
    """One step as the reader sees it: its kept tokens and the text that is now certain."""

    step: Step
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Generation:
    """A finished answer. Times are in seconds; `seconds` leaves the prefill out."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    steps: int
    nodes: int
    seconds: float
    prefill_seconds: float

    @property
    def new_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per target pass, the bonus included."""
        return self.new_tokens / self.steps

    @property
    def nodes_per_step(self) -> float:
        """Drafted nodes that the target scored in a step, the anchor not counted."""
        return self.nodes / self.steps

    @property
    def tokens_per_second(self) -> float:
        """New tokens by decoding time, prefill excluded."""
        return self.new_tokens / self.seconds


def stream(
    target: Target,
    drafter: Drafter,
    request: Request,
    tokenizer: Tokenizer,
    stage: Stage = untimed,
) -> Iterator[Piece]:
    """Yield one Piece per step; the last one, and only that one, has a finish reason.

    Raises ValueError when the prompt is empty or fills the target's context.
    """
    room = min(request.max_new_tokens, _room_after(request.prompt, target))
    drafter = WithinRoom(drafter, len(request.prompt) + room)
    text = TextStream(tokenizer, request.stop_strings)
    for step in decode(target, drafter, request.prompt, request.sampling, stage):
        piece = _cut(step, request, text, room)
        yield piece
        room -= len(piece.tokens)
        if piece.finish_reason:
            return


def generate(
    target: Target,
    drafter: Drafter,
    request: Request,
    tokenizer: Tokenizer,
    stage: Stage = untimed,
    on_piece: Callable[[Piece], object] | None = None,
) -> Generation:
    """The whole answer. `on_piece` sees every step; when it returns True, the answer ends there."""
    clock = _PrefillClock(stage)
    pieces: list[Piece] = []
    cancelled = False
    start = time.perf_counter()
    for piece in stream(target, drafter, request, tokenizer, clock):
        pieces.append(piece)
        if on_piece is not None and on_piece(piece) is True:
            cancelled = True
            break
    end = time.perf_counter()
    return Generation(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.tokens),
        prompt_tokens=len(request.prompt),
        finish_reason=pieces[-1].finish_reason or ("cancelled" if cancelled else "length"),
        steps=len(pieces),
        nodes=sum(piece.step.drafted for piece in pieces),
        seconds=end - clock.prefilled,
        prefill_seconds=clock.prefilled - start,
    )


class WithinRoom(Drafter):
    """Leaves out nodes that could not be emitted any more: `end` tokens are the most there are.

    So no step emits too much, and no position is ever beyond the target's context.
    """

    def __init__(self, inner: Drafter, end: int) -> None:
        self.inner = inner
        self.end = end
        self.verify = inner.verify

    def draft(self, context: Context) -> TokenTree:
        deepest = self.end - len(context.tokens) - 1  # the bonus needs a place too
        if deepest < 1:
            return TokenTree.from_branches(context.anchor, [])
        return self.inner.draft(context).shallow(deepest)


def _room_after(prompt: tuple[int, ...], target: Target) -> int:
    """How many tokens the target's context has room for behind the prompt."""
    limit = target.context_limit
    if len(prompt) >= limit:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens and the target's context holds {limit}, "
            "which leaves no room for an answer; shorten the prompt"
        )
    return limit - len(prompt)


def _cut(step: Step, request: Request, text: TextStream, room: int) -> Piece:
    """The step up to and including the token that ends the answer, if one does."""
    tokens: list[int] = []
    printed = ""
    reason: FinishReason | None = None
    for token in step.emitted:
        tokens.append(token)
        if token in request.stop_tokens:
            reason = "stop"
        else:
            printed += text.add(token)
            if text.stopped:
                reason = "stop"
            elif len(tokens) == room:
                reason = "length"
        if reason:
            printed += text.finish()
            break
    return Piece(step, tuple(tokens), printed, reason)


class _PrefillClock:
    """A stage that notes when the prefill ended and otherwise does what the inner one does."""

    def __init__(self, inner: Stage) -> None:
        self.prefilled = 0.0
        self._inner = inner

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with self._inner(name):
            yield
        if name == "prefill":
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
            self.prefilled = time.perf_counter()
