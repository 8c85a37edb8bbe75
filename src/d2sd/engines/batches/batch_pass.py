"""A drafter network's two passes over a batch's sequences: what they say, and the plain way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from d2sd.drafters.network import DraftNetwork, KeyValues
from d2sd.drafters.passes import ContextRows, key_values, scaled


class TargetEnds(ABC):
    """The target's frozen embedding and output head, as far as a drafter needs them."""

    @abstractmethod
    def embed(self, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens hidden"]:
        """The embeddings of tokens."""

    @abstractmethod
    def logits(
        self, hidden: Float[Tensor, "slots hidden"], draft_ids: Int[Tensor, " draft_vocab"] | None
    ) -> Float[Tensor, "slots draft_vocab"]:
        """Float32 logits of the draft vocabulary (of all tokens, where there is none)."""


class BatchPass(ABC):
    """How a network is run over many sequences at once."""

    fewest_rows = 1
    """Blocks of each sequence that a pass should have."""

    @abstractmethod
    def read(
        self, features: Float[Tensor, "rows taps hidden"], positions: Int[Tensor, " rows"]
    ) -> tuple[
        Float[Tensor, "layers kv_heads rows dim"], Float[Tensor, "layers kv_heads rows dim"]
    ]:
        """Every layer's keys and values of context rows at these positions."""

    @abstractmethod
    def draft(
        self,
        embeds: Float[Tensor, "sequences rows slots hidden"],
        first: Int[Tensor, " sequences"],
        asked: Int[Tensor, " asked"],
        held: Sequence[ContextRows],
    ) -> Float[Tensor, "asked draft_vocab"]:
        """Float32 logits at the `asked` places, counted through sequences, rows and slots.

        `first` is the position of every sequence's first slot.
        """


class EagerBatchPass(BatchPass):
    """The network itself, between the target's ends."""

    def __init__(self, network: DraftNetwork, ends: TargetEnds) -> None:
        self._network, self._ends = network, ends

    def read(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return key_values(self._network, features, positions)

    def draft(
        self, embeds: Tensor, first: Tensor, asked: Tensor, held: Sequence[ContextRows]
    ) -> Tensor:
        sequences, rows, slots, _ = embeds.shape
        positions = (first[:, None, None] + torch.arange(slots, device=first.device)).expand(
            sequences, rows, slots
        )
        if sequences == 1:
            hidden = self._network(embeds, positions, held[0].layers())
        else:
            keys, values, padding = padded(held, sequences)
            layers = [KeyValues(*both) for both in zip(keys, values, strict=True)]
            unseen = padding[:, None].expand(-1, rows, -1)
            hidden = self._network(embeds, positions, layers, unseen)
        logits = self._ends.logits(hidden.flatten(0, 2)[asked], self._network.draft_ids)
        return scaled(logits, self._network.config)


def padded(
    held: Sequence[ContextRows], sequences: int
) -> tuple[
    Float[Tensor, "layers sequences kv_heads context dim"],
    Float[Tensor, "layers sequences kv_heads context dim"],
    Bool[Tensor, "sequences context"],
]:
    """Every layer's keys and values of so many sequences, flush right, and what is mere padding."""
    most = max(one.length for one in held)
    layers, kv_heads, _, dim = held[0].keys.shape
    keys, values = held[0].keys.new_zeros(2, layers, sequences, kv_heads, most, dim)
    for s, one in enumerate(held):
        keys[:, s, :, most - one.length :] = one.keys[:, :, : one.length]
        values[:, s, :, most - one.length :] = one.values[:, :, : one.length]
    counts = [one.length for one in held] + [0] * (sequences - len(held))
    lengths = torch.tensor(counts, device=keys.device)
    return keys, values, torch.arange(most, device=keys.device) < most - lengths[:, None]
