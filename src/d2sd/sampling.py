"""How the target's next token is drawn from its logits: the only source of emitted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

LogitsProcessor = Callable[[Int[Tensor, "1 length"], Float[Tensor, "1 vocab"]], Tensor]
"""Same call as a transformers LogitsProcessor: (all token ids so far, logits) -> logits."""


class Noise:
    """Exponential noise for the tokens still to be emitted: one vector for each position.

    Vectors are drawn in the order of the positions, and a position's vector is given up only when
    its token is emitted. So a token's noise never depends on what was drafted.
    """

    def __init__(self) -> None:
        self._rows: Float[Tensor, "positions vocab"] | None = None
        self._rng = torch.Generator()

    def ahead(
        self, positions: int, vocab: int, device: torch.device, seeds: torch.Generator
    ) -> Float[Tensor, "positions vocab"]:
        """The vectors of the next `positions` tokens, on `device`; they stay until `emitted`."""
        rows = self._rows
        if rows is None or rows.shape[1] != vocab or rows.device != device:
            seed = int(torch.randint(2**62, (), generator=seeds, device=seeds.device))
            self._rng = torch.Generator(device).manual_seed(seed)
            rows = torch.empty(0, vocab, device=device)
        while len(rows) < positions:
            # always as many at a time: how a generator fills a tensor depends on its shape
            more = torch.empty(POSITIONS_AT_A_TIME, vocab, device=device)
            rows = torch.cat([rows, more.exponential_(generator=self._rng)])
        self._rows = rows
        return rows[:positions]

    def emitted(self, tokens: int) -> None:
        """The next `tokens` positions have their tokens now."""
        if self._rows is not None:
            self._rows = self._rows[tokens:]


POSITIONS_AT_A_TIME = 16


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off.

    `processors` are applied first, at every visited node, with the exact token history of that
    node, so penalties and grammar masks mean what they mean in plain decoding. Randomness is
    consumed once per emitted token whatever the tree, so with equal seeds every policy emits the
    tokens that plain decoding would. `draw` takes it from `rng`, row by row; `draw_all` from
    `noise`, whose seed comes from `rng`. The two give different tokens of the same law. Verifiers
    for drawn trees take `coin` and `pick` from `rng`, as often as they need.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    processors: tuple[LogitsProcessor, ...] = ()
    rng: torch.Generator = field(default_factory=torch.Generator)
    noise: Noise = field(default_factory=Noise, init=False, repr=False, compare=False)

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
            return int(favourites(logits))
        probs = filtered(logits.float() / self.temperature, self).cpu()
        return int(torch.multinomial(probs, 1, generator=self.rng))

    def draw_all(
        self, logits: Float[Tensor, "nodes vocab"], depths: Sequence[int]
    ) -> Int[Tensor, " nodes"]:
        """The target's own draw at every node, were it visited; nothing leaves the device.

        `depths[n]` says how many tokens node n stands after the next one to be emitted: nodes of
        one depth share their noise, and `noise.emitted` must be told how many of the draws came
        to be emitted. The draw is the first arrival in a race, argmax p / q with q ~ Exp(1),
        which is what torch.multinomial does too. Processors need histories: use `draw`.
        """
        assert not self.processors
        if self.temperature == 0:
            return favourites(logits)
        probs = filtered(logits.float() / self.temperature, self)
        noise = self.noise.ahead(max(depths) + 1, logits.shape[1], logits.device, self.rng)
        return (probs / noise[_uploaded(depths, logits.device)]).argmax(-1)

    def probs(self, logits: Float[Tensor, " vocab"], history: Sequence[int]) -> Tensor:
        """The law that `draw` draws from [vocab], float64, on the CPU; at temperature 0 certain."""
        logits = self._processed(logits, history).double()
        if self.temperature > 0:
            return filtered(logits / self.temperature, self).cpu()
        return torch.zeros_like(logits, device="cpu").index_fill_(0, favourites(logits).cpu(), 1)

    def coin(self, chance: float) -> bool:
        """True with this probability; surely from 1 on."""
        return float(torch.rand((), generator=self.rng, dtype=torch.float64)) < chance

    def pick(self, weights: Float[Tensor, " vocab"]) -> int:
        """A token by these weights, which need not sum to 1."""
        return int(torch.multinomial(weights, 1, generator=self.rng))

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


def favourites(logits: Float[Tensor, "*rows vocab"]) -> Int[Tensor, "*rows"]:
    """The most probable token of every row; of equals the first, as argmax has it.

    On CPUs torch finds it 3 to 5 times as fast together with its value.
    """
    return logits.max(-1).indices


def _uploaded(values: Sequence[int], device: torch.device) -> Int[Tensor, " values"]:
    """A tensor on `device`; the host does not wait for the copy, as it would without pinning."""
    return torch.tensor(values, pin_memory=device.type == "cuda").to(device, non_blocking=True)


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
