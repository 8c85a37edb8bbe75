"""One drafter network over the sequences of a whole batch: what was read of each, and one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.drafters.network import DraftNetwork
from d2sd.drafters.passes import ContextRows
from d2sd.drafters.proposer import Asked, Proposal
from d2sd.engines.batches.batch_pass import BatchPass, EagerBatchPass, TargetEnds


@dataclass(frozen=True)
class NewRows:
    """Features of consecutive tokens of one request, the first at position `start`."""

    request: str
    start: int
    features: Float[Tensor, "rows taps hidden"]


@dataclass(frozen=True)
class Wanted:
    """What is drafted for one request: rows of visible tokens, the anchor first in each.

    The anchor's position is `committed`; `temperature` is the one its tokens are drawn at.
    """

    request: str
    visible: Sequence[tuple[int, ...]]
    committed: int
    temperature: float


class BatchedNetwork:
    """A network with the context rows of many requests.

    A request's rows are those of its last consecutive tokens: where some were never seen, as with
    a prompt whose beginning the engine had cached, it drafts from the rest.
    """

    def __init__(
        self,
        network: DraftNetwork,
        ends: TargetEnds,
        columns: Sequence[int],
        run: BatchPass | None = None,
    ) -> None:
        """`run` is how the network is run; by itself it runs eagerly."""
        self.block_size = network.config.block_size
        self._network, self._ends, self._columns = network, ends, list(columns)
        self._pass = run or EagerBatchPass(network, ends)
        self._held: dict[str, ContextRows] = {}
        self._waiting: dict[str, list[NewRows]] = {}
        self._next: dict[str, int] = {}
        self._read_to: dict[str, int] = {}

    @property
    def requests(self) -> int:
        """Of how many requests something is kept."""
        return len(self._next)

    def forget(self, request: str) -> None:
        """The request has ended."""
        for kept in (self._held, self._waiting, self._next, self._read_to):
            kept.pop(request, None)

    def read(self, new: Sequence[NewRows]) -> None:
        """What was committed. It is kept as features until something is drafted from it."""
        for rows in new:
            self._waiting.setdefault(rows.request, []).append(rows)
            self._next[rows.request] = rows.start + len(rows.features)

    def _append(self, new: Sequence[NewRows]) -> None:
        """The keys and values of new rows, those of all requests in one go."""
        if not new:
            return
        weight = self._network.fc.weight
        features = torch.cat([rows.features for rows in new])[:, self._columns]
        places = [
            torch.arange(rows.start, rows.start + len(rows.features), device=weight.device)
            for rows in new
        ]
        keys, values = self._pass.read(features.to(weight.dtype), torch.cat(places))
        begin = 0
        for rows in new:
            end = begin + len(rows.features)
            own_keys, own_values = self._room(rows)
            own_keys.copy_(keys[:, :, begin:end])
            own_values.copy_(values[:, :, begin:end])
            begin = end

    def _room(self, rows: NewRows) -> tuple[Tensor, Tensor]:
        """Where the new rows go; rows that no longer hold are dropped."""
        weight = self._network.fc.weight
        held = self._held.get(rows.request)
        gone = 0 if held is None else self._read_to[rows.request] - rows.start
        if held is None or not 0 <= gone <= held.length:
            held = ContextRows(self._network.config, weight.dtype, weight.device)
            self._held[rows.request] = held
        else:
            held.truncate(held.length - gone)
        self._read_to[rows.request] = rows.start + len(rows.features)
        return held.extended(len(rows.features))

    def warm_up(self) -> None:
        """Run once what is slow the first time."""
        config, weight = self._network.config, self._network.fc.weight
        name, count = "warm up", 2
        features = weight.new_zeros(count, max(self._columns) + 1, config.hidden_size)
        self.read([NewRows(name, 0, features)])
        self.propose([Wanted(name, [(0,)], count, 0.0)], self.block_size)
        self.forget(name)

    def ready(self, request: str, committed: int) -> bool:
        """Whether everything up to the anchor was read."""
        return self._next.get(request) == committed

    @torch.inference_mode()
    def propose(self, wanted: Sequence[Wanted], block_size: int) -> Mapping[str, Proposal]:
        """One pass over all rows of all requests."""
        self._append([rows for one in wanted for rows in self._waiting.pop(one.request, [])])
        ids, kept = self._blocks(wanted, block_size)
        rows = ids.shape[1]
        embeds = self._ends.embed(ids.flatten()).view(*ids.shape, -1)
        embeds = embeds * self._network.config.embedding_scale
        first = torch.tensor([one.committed for one in wanted], device=ids.device)
        asked = [Asked.of(shown, block_size - 1, ids.device) for shown in kept]
        places = [one.places + s * rows * block_size for s, one in enumerate(asked)]
        logits = self._pass.draft(
            embeds.to(self._network.fc.weight.dtype),
            first,
            torch.cat(places),
            [self._held[one.request] for one in wanted],
        )
        parts = torch.split(logits, [len(one.places) for one in asked])
        return {
            one.request: Proposal(self._tempered(part, place, one), place, self._network.draft_ids)
            for one, place, part in zip(wanted, asked, parts, strict=True)
        }

    def _blocks(
        self, wanted: Sequence[Wanted], block_size: int
    ) -> tuple[Int[Tensor, "sequences rows slots"], list[tuple[int, ...]]]:
        """The blocks' tokens, and how many each row shows; short requests repeat their last row."""
        mask = self._network.config.mask_token_id
        most = max(self._pass.fewest_rows, *(len(one.visible) for one in wanted))
        blocks = [
            [(*row, *(mask,) * (block_size - len(row))) for row in _filled(one.visible, most)]
            for one in wanted
        ]
        kept = [tuple(len(row) - 1 for row in one.visible) for one in wanted]
        return torch.tensor(blocks, device=self._network.fc.weight.device), kept

    def _tempered(self, logits: Tensor, asked: Asked, one: Wanted) -> Tensor:
        """Divided by the temperatures that make confidences honest."""
        fitted = self._network.config.temperatures_for(one.temperature)
        if not fitted:
            return logits
        slots = [range(asked.slots - shown) for shown in asked.kept]
        divisors = [fitted[min(distance, len(fitted) - 1)] for row in slots for distance in row]
        return logits / torch.tensor(divisors, device=logits.device)[:, None]


def _filled(visible: Sequence[tuple[int, ...]], rows: int) -> list[tuple[int, ...]]:
    return [*visible, *[visible[-1]] * (rows - len(visible))]
