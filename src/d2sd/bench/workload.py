"""What is answered, and how: prompts turn by turn, every contender with the same draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch

from d2sd.bench.prompts import Prompt
from d2sd.bench.records import Answer
from d2sd.generate import Generation, Request
from d2sd.sampling import Sampling
from d2sd.session import Message, Session

Answered = TypeVar("Answered", Generation, Answer)


@dataclass(frozen=True)
class Workload:
    """Prompts and how they are answered: the same draws for everyone, seeded anew for each turn.

    `thinking` is handed to chat templates that know `enable_thinking`; None leaves it to them.
    """

    prompts: tuple[Prompt, ...]
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    thinking: bool | None = None

    def seeded(self, number: int, turn: int) -> Sampling:
        """The sampling of one turn of prompt `number`, its generator at the start."""
        rng = torch.Generator().manual_seed(self.seed + 1009 * number + turn)
        return replace(self.sampling, rng=rng)


@dataclass(frozen=True)
class Turn(Generic[Answered]):
    """One answered turn: the tokens the target read and what was said."""

    request: Request
    answer: Answered


def conversation(
    session: Session, ask: Callable[[Request], Answered], workload: Workload, number: int
) -> Iterator[Turn[Answered]]:
    """Answer the turns of prompt `number` from an empty cache; `ask`'s own answers are fed back.

    Raises ValueError, naming the prompt, where a turn cannot be answered.
    """
    prompt = workload.prompts[number]
    messages: list[Message] = []
    for turn, text in enumerate(prompt.turns):
        messages.append({"role": "user", "content": text})
        request = Request(
            prompt=session.chat_prompt(messages, workload.thinking),
            sampling=workload.seeded(number, turn),
            max_new_tokens=workload.max_new_tokens,
            stop_tokens=session.stop_tokens,
        )
        if turn == 0:
            session.target.prefill(request.prompt[:1])  # empties the cache: one token is no row
        try:
            answer = ask(request)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id}: {error}") from error
        yield Turn(request, answer)
        messages.append({"role": "assistant", "content": answer.text})
