"""How the target's next token is drawn from its logits: the only source of emitted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

LogitsProcessor = Callable[[Int[Tensor, "1 length"], Float[Tensor, "1 vocab"]], Tensor]
"""Same call as a transformers LogitsProcessor: (all token ids so far, logits) -> logits."""


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off.

    `processors` are applied first, at every visited node, with the exact token history of that
    node, so penalties and grammar masks mean what they mean in plain decoding. The generator is
    consumed once per emitted token whatever the tree, so with equal seeds every policy emits the
    tokens that plain decoding would.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: tuple[LogitsProcessor, ...] = ()
    rng: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; it must be at least 0 (off) and below 1")

    def draw(self, logits: Float[Tensor, " vocab"], history: Sequence[int]) -> int:
        """The target's own draw after `history` (prompt, emitted tokens, anchor included)."""
        logits = self._processed(logits, history)
        if self.temperature == 0:
            return int(logits.argmax())
        probs = filtered(logits.float() / self.temperature, self).cpu()
        return int(torch.multinomial(probs, 1, generator=self.rng))

    def _processed(
        self, logits: Float[Tensor, " vocab"], history: Sequence[int]
    ) -> Float[Tensor, " vocab"]:
        if not self.processors:
            return logits
        ids = torch.tensor([list(history)], device=logits.device)
        row = logits[None].clone()  # some processors write into their argument
        for process in self.processors:
            row = process(ids, row)
        return row[0]


def filtered(
    logits: Float[Tensor, "*rows vocab"], sampling: Sampling
) -> Float[Tensor, "*rows vocab"]:
    """Probabilities after top-k, then top-p, then min-p (transformers' order and tie rules)."""
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        dropped[..., -1] = False  # at least one token stays
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    probs = logits.softmax(-1)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs
