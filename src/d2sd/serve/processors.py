"""What acts on the target's logits before a token is drawn: penalties, and a log of the rows.

Each is a logits processor of `d2sd.sampling`: it is called at every visited node with that node's
exact history, so it means what it means in plain decoding and stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class CountPenalties:
    """OpenAI's presence and frequency penalties over what was generated after the prompt."""

    prompt_tokens: int
    presence: float = 0.0
    frequency: float = 0.0

    def __call__(
        self, ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
    ) -> Float[Tensor, "1 vocab"]:
        said = ids[0, self.prompt_tokens :]
        counts = torch.bincount(said, minlength=logits.shape[1])[: logits.shape[1]].to(logits)
        penalty = self.frequency * counts + self.presence * (counts > 0).to(logits)
        return logits - penalty[None]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Logits of tokens seen before, prompt included, divided (below 0 multiplied) by `value`."""

    value: float

    def __call__(
        self, ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
    ) -> Float[Tensor, "1 vocab"]:
        seen = torch.unique(ids[0])
        old = logits[0, seen]
        logits[0, seen] = torch.where(old > 0, old / self.value, old * self.value)
        return logits


@dataclass(frozen=True)
class TokenChances:
    """The target's own log-probability of a token, and of the likeliest ones in its place."""

    chosen: float
    alternatives: tuple[tuple[int, float], ...]


class RowLog:
    """Keeps the log-probabilities of the rows that tokens are drawn from, before anything acts.

    Rows come in the order of the emitted tokens: every visited node emits exactly one.
    """

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        self._rows: list[Float[Tensor, " vocab"]] = []

    def __call__(
        self, ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
    ) -> Float[Tensor, "1 vocab"]:
        self._rows.append(logits[0].float().log_softmax(-1))
        return logits

    def taken(self, tokens: Sequence[int]) -> list[TokenChances]:
        """Those of the step that just emitted `tokens`; all rows of the step are forgotten."""
        rows, self._rows = self._rows[: len(tokens)], []
        return [self._chances(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _chances(self, row: Float[Tensor, " vocab"], token: int) -> TokenChances:
        best = row.topk(min(self._alternatives, len(row))) if self._alternatives else None
        listed = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
        return TokenChances(float(row[token]), tuple(listed))
