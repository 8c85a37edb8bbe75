"""Events of the worker in OpenAI's JSON: chunks of a stream, whole answers, log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from d2sd.serve.jobs import Finished, Progress
from d2sd.serve.processors import TokenChances


@dataclass
class Choice:
    """One answer as it grows.

    `index` is its place among all choices of a request, `prompt` that of its prompt among the
    prompts, and `said` how many characters of a stream have gone out.
    """

    index: int
    prompt: int = 0
    said: int = 0
    text: str = ""
    chances: list[tuple[int, TokenChances]] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, progress: Progress) -> None:
        self.text += progress.piece.text
        self.chances += zip(progress.piece.tokens, progress.chances, strict=False)


@dataclass(frozen=True)
class Wire:
    """What all parts of one response have in common."""

    id: str
    created: int
    model: str
    chat: bool
    tokenizer: Any

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    def chunk(self, index: int, text: str, *, first: bool = False) -> dict[str, Any]:
        """A piece of a stream."""
        return self._chunk(index, text, None, first)

    def end(self, index: int, finished: Finished) -> dict[str, Any]:
        """The piece that says why a choice has ended."""
        return self._chunk(index, "", finished.reason, False)

    def _chunk(self, index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            choice["delta"] = {**role, **({"content": text} if text or first else {})}
        else:
            choice["text"] = text
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice]}

    def usage_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The last piece where usage was asked for."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [], "usage": usage(choices)}

    def whole(self, choices: Sequence[Choice], with_chances: bool) -> dict[str, Any]:
        """The response of a request without a stream."""
        kind = "chat.completion" if self.chat else "text_completion"
        listed = [self._choice(choice, with_chances) for choice in choices]
        return {**self._head, "object": kind, "choices": listed, "usage": usage(choices)}

    def _choice(self, choice: Choice, with_chances: bool) -> dict[str, Any]:
        assert choice.finished is not None
        logprobs = self.logprobs(choice.chances) if with_chances else None
        common = {
            "index": choice.index,
            "finish_reason": choice.finished.reason,
            "logprobs": logprobs,
        }
        if self.chat:
            return {
                **common,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
            }
        return {**common, "text": choice.text}

    def logprobs(
        self, chances: Sequence[tuple[int, TokenChances]], start: int = 0
    ) -> dict[str, Any]:
        """Log-probabilities of tokens in the shape of either kind of completion.

        The first token stands behind `start` characters of the answer.
        """
        if self.chat:
            content = [
                {
                    **self._token(token, one.chosen),
                    "top_logprobs": [self._token(*pair) for pair in one.alternatives],
                }
                for token, one in chances
            ]
            return {"content": content, "refusal": None}
        texts = [self.tokenizer.decode([token]) for token, _ in chances]
        offsets = list(accumulate(map(len, texts), initial=start))[:-1]
        return {
            "tokens": texts,
            "token_logprobs": [one.chosen for _, one in chances],
            "top_logprobs": [
                {self.tokenizer.decode([token]): value for token, value in one.alternatives}
                for _, one in chances
            ],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens of all choices, and what drafting gained, which is our own addition."""
    done = [choice.finished for choice in choices if choice.finished is not None]
    # the choices of one prompt read it once
    prompts = {one.prompt: one.finished for one in choices if one.finished is not None}
    prompt = sum(one.prompt_tokens for one in prompts.values())
    new, steps = sum(one.new_tokens for one in done), sum(one.steps for one in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {
            "cached_tokens": max((one.reused_tokens for one in done), default=0)
        },
        "steps": steps,
        "acceptance_length": new / steps if steps else 0.0,
    }


def event(values: object) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
