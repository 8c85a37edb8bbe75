"""Prompts put to the target turn by turn, with its own answers fed back to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2sd.answers.questions import Answer, Answerer, Ask, Question, Tick, as_text
from d2sd.wording import Message, chat_ids, check_ids, raw_ids

Line = dict[str, Any]
"""One line of a response file."""


@dataclass(frozen=True)
class Wording:
    """How prompts become token ids. `vocab_size` None: whoever answers knows its own tokens."""

    tokenizer: Any
    name: str
    raw: bool = False
    system: str | None = None
    vocab_size: int | None = None

    def opening(self) -> list[Message]:
        """What a conversation begins with."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A conversation as the target reads it; with `raw`, its texts one after another."""
        if self.raw:
            ids = raw_ids(self.tokenizer, as_text(messages))
        else:
            ids = chat_ids(self.tokenizer, self.name, messages)
        if self.vocab_size is not None:
            check_ids(ids, self.vocab_size, self.name)
        return ids


@dataclass(frozen=True)
class Draws:
    """How answers are drawn. `temperatures` are taken in turn, by a prompt's place in the list."""

    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0
    max_prompt_tokens: int | None = None
    """Longer prompts are left out."""

    def __post_init__(self) -> None:
        if not self.temperatures or not all(t >= 0 for t in self.temperatures):
            raise ValueError(
                f"temperatures are {', '.join(map(str, self.temperatures)) or 'none'}; give "
                'numbers of 0 (greedy) or more, such as "0,0,0.8"'
            )
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens is {self.max_prompt_tokens}; it must be 1 or more")

    def seed_of(self, ask: Ask, turn: int) -> int:
        """The seed of one answer, the same in whatever batch and order it is made."""
        name = f"{self.seed}/{ask.id}/{turn}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


class Conversations:
    """All prompts of a run, and the one who answers them."""

    def __init__(
        self, asks: Sequence[Ask], answerer: Answerer, wording: Wording, draws: Draws
    ) -> None:
        self.asks = asks
        self.answerer = answerer
        self._wording = wording
        self._draws = draws

    def held(self, numbers: Sequence[int], tick: Tick) -> list[list[Line]]:
        """The response lines of these prompts, one for each turn.

        All first turns are answered together, then all second ones. A conversation ends early
        where a prompt is too long: fewer lines than turns.
        """
        lines: dict[int, list[Line]] = {number: [] for number in numbers}
        said = {number: self._wording.opening() for number in numbers}
        for turn in range(max(len(self.asks[number].turns) for number in numbers)):
            going = {
                number: question
                for number in numbers
                if len(lines[number]) == turn < len(self.asks[number].turns)
                and (question := self._question(number, turn, said[number]))
            }
            answers = self.answerer.answer(list(going.values()), tick)
            for (number, question), answer in zip(going.items(), answers, strict=True):
                said[number] = [*question.messages, {"role": "assistant", "content": answer.text}]
                lines[number].append(_line(self.asks[number], turn, question, answer))
        return list(lines.values())

    def _question(self, number: int, turn: int, said: Sequence[Message]) -> Question | None:
        """The next turn after what was said; None where the prompt is too long."""
        ask, draws = self.asks[number], self._draws
        messages = (*said, {"role": "user", "content": ask.turns[turn]})
        ids = self._wording.ids(messages)
        if draws.max_prompt_tokens is not None and len(ids) > draws.max_prompt_tokens:
            return None
        temperature = draws.temperatures[number % len(draws.temperatures)]
        return Question(messages, ids, temperature, draws.seed_of(ask, turn))


def _line(ask: Ask, turn: int, question: Question, answer: Answer) -> Line:
    line: Line = {"id": ask.id, "kind": ask.kind}
    if len(ask.turns) > 1:
        line["turn"] = turn
    line |= {
        "prompt": ask.turns[turn],
        "temperature": question.temperature,
        "prompt_ids": list(answer.prompt_ids),
        "response_ids": list(answer.response_ids),
        "response": answer.text,
        "finish": answer.finish,
    }
    return line | ({"ids": "tokenised"} if answer.tokenised else {})
