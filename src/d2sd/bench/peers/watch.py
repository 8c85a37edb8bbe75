"""Other programs' passes seen from outside: what each one read, and when it was done."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from d2sd.bench.contenders import Contender
from d2sd.bench.records import Answer, Steps
from d2sd.generate import Request
from d2sd.sampling import Sampling
from d2sd.session import Session
from d2sd.text import plain_text

Ids = Int[Tensor, " rows"] | Sequence[int]


@dataclass(frozen=True)
class Seen:
    """A pass of the target over the rows `ids`, behind `cached` ones that it kept."""

    cached: int
    ids: Ids


class PassLog:
    """Notes the target's passes of one answer; makes its records once the tokens are known.

    The first pass reads the prompt. Whatever lies between two passes belongs to the later one,
    and what follows the last pass belongs to it, so the passes' seconds add up to the time from
    the end of the first pass to the end of the answer.
    """

    def __init__(self, request: Request, device: torch.device) -> None:
        self._request, self._device = request, device
        self._seen: list[Seen] = []
        self._ends: list[float] = []
        self._start = self._now()

    def begins(self, cached: int, ids: Ids) -> None:
        """The target is about to read `ids`, of which the rows of `cached` others are kept."""
        self._seen.append(Seen(cached, ids))

    def ends(self) -> None:
        """The pass that began last is over.

        Only the first one waits for the device: the others' seconds add up without it, and a
        program that runs ahead of its device must not be held up.
        """
        self._ends.append(time.perf_counter() if self._ends else self._now())

    def answer(self, tokens: Sequence[int], tokenizer: Any) -> Answer:
        """The record of an answer of `tokens`, which ends now."""
        end = self._now()
        if len(self._ends) > 1:
            self._ends[-1] = end
        else:
            self._ends = [end]  # an answer that the first pass gave whole
        emitted = self._emitted(len(tokens))
        drafted = [[int(token) for token in seen.ids[1:]] for seen in self._seen[1:]]
        starts = [sum(emitted[: n + 1]) for n in range(len(drafted))]
        nodes = tuple(len(draft) for draft in drafted)
        steps = Steps(
            emitted=tuple(emitted[1:]),
            accepted=tuple(
                agreeing(draft, tokens[start : start + count])
                for draft, start, count in zip(drafted, starts, emitted[1:], strict=True)
            ),
            nodes=nodes,
            depth=nodes,
            seconds=tuple(b - a for a, b in pairwise(self._ends)),
        )
        closed = bool(tokens) and tokens[-1] in self._request.stop_tokens
        return Answer(
            text=plain_text(tokenizer, tokens[:-1] if closed else tokens),
            token_ids=tuple(tokens),
            prompt_tokens=len(self._request.prompt),
            steps=steps,
            prefill_seconds=self._ends[0] - self._start,
            prefill_tokens=emitted[0],
        )

    def _emitted(self, tokens: int) -> list[int]:
        """How far each pass brought the answer: the next one finds all but one token cached."""
        prompt = len(self._request.prompt)
        reached = [0, *(seen.cached + 1 - prompt for seen in self._seen[1:]), tokens]
        return [b - a for a, b in pairwise(min(count, tokens) for count in reached)]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def agreeing(draft: Sequence[int], emitted: Sequence[int]) -> int:
    """How many of the drafted tokens were right: those that were emitted, up to the first other."""
    pairs = zip(draft, emitted, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@contextmanager
def watched(model: Any, log: PassLog) -> Iterator[None]:
    """Every call of the transformers model in the block is a pass in `log`."""

    def before(_: object, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        cache = given.get("past_key_values")
        log.begins(0 if cache is None else int(cache.get_seq_length()), ids[0].clone())

    def after(*_: object) -> None:
        log.ends()

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Peer(Contender):
    """Another program that answers with the session's model, or one made from the same file."""

    kind = "peer"

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session

    def begin(self, temperature: float) -> None:
        """Peers keep nothing between answers."""

    def answer(self, request: Request) -> Answer:
        """Raises ValueError for a request that asks for what peers can't do."""
        self._check(request)
        room = min(request.max_new_tokens, self._session.target.context_limit - len(request.prompt))
        log = PassLog(request, self._session.target.device)
        tokens = kept(self._generate(request, room, log), room, request.stop_tokens)
        return log.answer(tokens, self._session.tokenizer)

    @abstractmethod
    def _generate(self, request: Request, room: int, log: PassLog) -> Sequence[int]:
        """New tokens, `room` of them unless a stop token ends them; passes are noted in `log`."""

    def _check(self, request: Request) -> None:
        if request.stop_strings or request.sampling.processors:
            raise ValueError(
                f"{self.name} is measured without stop strings and logits processors; leave them "
                "out of the request"
            )
        limit = self._session.target.context_limit
        if len(request.prompt) >= limit:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens and the target's context holds "
                f"{limit}, which leaves no room for an answer; shorten the prompt"
            )


def kept(tokens: Sequence[int], room: int, stop_tokens: frozenset[int]) -> tuple[int, ...]:
    """The first `room` tokens at most, up to and including the first stop token."""
    tokens = tokens[:room]
    stop = next((n for n, token in enumerate(tokens) if token in stop_tokens), len(tokens))
    return tuple(tokens[: stop + 1])


def drawn_seed(sampling: Sampling) -> int:
    """A seed for another program's generator, from the request's own."""
    rng = sampling.rng
    return int(torch.randint(2**31, (), generator=rng, device=rng.device))


@contextmanager
def seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """torch's own generators follow the request's in the block, and are as before after it."""
    if sampling.temperature == 0:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(drawn_seed(sampling))
        yield


def check_plain(session: Session) -> None:
    """Raises ValueError where other programs cannot run the session's model."""
    if session.quantize != "none":
        raise ValueError(
            f"the target is made of {session.quantize} layers here, which only d2sd's own passes "
            "run without loss; bench with --quantize none"
        )
    if any(parameter.device.type == "meta" for parameter in session.model.parameters()):
        raise ValueError(
            "the model's layers were dropped when its compiled passes were loaded; open the "
            "session with keep_layers=True"
        )


def dtype_name(session: Session) -> str:
    return str(session.target.dtype).removeprefix("torch.")
