"""One batched diffusion pass as the drafting policies see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from d2sd.drafters.network import DraftNetwork, KeyValues
from d2sd.interfaces import Context, shared_prefix


@dataclass(frozen=True)
class Candidates:
    """Most probable tokens of each slot, best first, as target token ids.

    `cut` says that there are less probable ones.
    """

    tokens: Int[Tensor, "rows slots candidates"]
    probs: Float[Tensor, "rows slots candidates"]
    cut: bool = False


@dataclass(frozen=True)
class Proposal:
    """What one pass says about every slot: slot s is block position s + 1.

    Slots whose position is visible in their row say nothing. `token_ids[i]` is the target's id of
    draft token i; None when the drafter speaks the whole vocabulary.
    """

    probs: Float[Tensor, "rows slots draft_vocab"]
    token_ids: Int[Tensor, " draft_vocab"] | None = None

    def top(self, count: int) -> Candidates:
        """The `count` most probable tokens of every slot (fewer if the vocabulary is smaller)."""
        vocabulary = self.probs.shape[-1]
        probs, ids = self.probs.topk(min(count, vocabulary), dim=-1)
        tokens = ids if self.token_ids is None else self.token_ids[ids]
        return Candidates(tokens, probs, cut=count < vocabulary)

    def greedy(self) -> Candidates:
        """The most probable token of every slot with its confidence (paper Eq. 3)."""
        return self.top(1)


class Proposer(ABC):
    """A drafter network bound to one target and one sequence."""

    block_size: int

    @abstractmethod
    def propose(
        self, context: Context, visible: Sequence[tuple[int, ...]], block_size: int | None = None
    ) -> Proposal:
        """One pass over rows of `visible` tokens (anchor first), each padded with masks."""


class NetworkProposer(Proposer):
    """A DraftNetwork with the target's frozen embedding and output head.

    Keeps the keys and values of the context's features, appended once per step and never
    recomputed; a changed sequence drops the rows that no longer hold. `decoding_temperature` is
    the one the target's tokens are drawn at: it chooses the fitted temperatures.
    """

    def __init__(
        self,
        network: DraftNetwork,
        embedding: Float[Tensor, "vocab hidden"],
        head: nn.Module,
        target_taps: Sequence[int],
        decoding_temperature: float = 0.0,
    ) -> None:
        self.network = network
        self.block_size = network.config.block_size
        self._temperatures = network.config.temperatures_for(decoding_temperature)
        self._columns = _columns(network.config.taps, target_taps)
        self._embedding = embedding
        self._head = _narrowed(head, network.draft_ids)
        self._cache = _ContextCache(network)
        self._tokens: tuple[int, ...] = ()

    @torch.inference_mode()
    def propose(
        self, context: Context, visible: Sequence[tuple[int, ...]], block_size: int | None = None
    ) -> Proposal:
        self._read(context)
        slots = block_size or self.block_size
        mask = self.network.config.mask_token_id
        rows = [(*row, *[mask] * (slots - len(row))) for row in visible]
        ids = torch.tensor(rows, device=self._embedding.device)
        embeds = self._embedding[ids] * self.network.config.embedding_scale
        positions = context.committed + torch.arange(slots, device=ids.device)
        hidden = self.network(
            embeds[None].to(self.network.fc.weight.dtype),
            positions.expand(1, len(rows), slots),
            self._cache.layers(),
        )
        logits = self._logits(hidden[0, :, 1:])
        temperatures = self._divisors([len(row) for row in visible], slots, logits)
        return Proposal((logits / temperatures).softmax(-1), self.network.draft_ids)

    def _read(self, context: Context) -> None:
        """Append the features of the tokens committed since the last call."""
        committed = context.tokens[:-1]
        kept = shared_prefix(self._tokens, committed)
        self._cache.truncate(kept)
        if kept < len(committed):
            self._cache.append(context.features[kept:, self._columns])
        self._tokens = committed

    def _logits(self, hidden: Float[Tensor, "rows slots hidden"]) -> Tensor:
        config = self.network.config
        # as a matrix: else torch makes one product per row, each with its own copy of the head
        flat = self._head(hidden.flatten(0, 1)).float() * config.output_multiplier
        logits = flat.unflatten(0, hidden.shape[:2])
        if config.logit_softcap:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        return logits

    def temperature(self, distance: int) -> float:
        """What the logits `distance` slots after the last visible token's are divided by."""
        fitted = self._temperatures
        return fitted[min(max(distance, 0), len(fitted) - 1)] if fitted else 1.0

    def _divisors(self, visible: Sequence[int], slots: int, like: Tensor) -> Tensor:
        """[rows, slots - 1, 1]: the temperature by distance from the last visible token."""
        if not self._temperatures:
            return like.new_ones(1, 1, 1)
        rows = [[self.temperature(p - count) for p in range(1, slots)] for count in visible]
        return like.new_tensor(rows)[..., None]


class _ContextCache:
    """Keys and values of the context for every layer, in buffers that double when full."""

    def __init__(self, network: DraftNetwork, capacity: int = 256) -> None:
        net = network.config.network
        weight = network.fc.weight
        shape = (2, net.num_hidden_layers, 1, net.num_key_value_heads, capacity, net.head_dim)
        self._network = network
        self._rows = weight.new_empty(shape)
        self._length = 0

    def truncate(self, length: int) -> None:
        self._length = min(self._length, length)

    def append(self, features: Float[Tensor, "rows taps hidden"]) -> None:
        start, end = self._length, self._length + len(features)
        if end > self._rows.shape[4]:
            grown = self._rows.new_empty(
                (*self._rows.shape[:4], max(end, 2 * self._rows.shape[4]), self._rows.shape[5])
            )
            grown[..., :start, :] = self._rows[..., :start, :]
            self._rows = grown
        positions = torch.arange(start, end, device=features.device)[None]
        features = features[None].to(self._rows.dtype)
        for index, layer in enumerate(self._network.read(features, positions)):
            self._rows[0, index, :, :, start:end] = layer.keys
            self._rows[1, index, :, :, start:end] = layer.values
        self._length = end

    def layers(self) -> list[KeyValues]:
        keys, values = self._rows[..., : self._length, :]
        return [KeyValues(k, v) for k, v in zip(keys, values, strict=True)]


def _columns(taps: Sequence[int], target_taps: Sequence[int]) -> slice | list[int]:
    """Where the drafter's taps lie among the target's; a slice (no copy) when they are equal."""
    if tuple(taps) == tuple(target_taps):
        return slice(None)
    if lacking := [tap for tap in taps if tap not in target_taps]:
        raise ValueError(
            f"the drafter needs target layers {lacking}; only {list(target_taps)} are tapped"
        )
    return [list(target_taps).index(tap) for tap in taps]


def _narrowed(head: nn.Module, draft_ids: Tensor | None) -> nn.Module:
    """The output head's rows of the draft vocabulary."""
    if draft_ids is None:
        return head
    assert isinstance(head, nn.Linear)
    narrowed = nn.Linear(
        head.in_features,
        len(draft_ids),
        bias=head.bias is not None,
        device="meta",
        dtype=head.weight.dtype,
    )
    narrowed.weight = nn.Parameter(head.weight[draft_ids], requires_grad=False)
    if head.bias is not None:
        narrowed.bias = nn.Parameter(head.bias[draft_ids], requires_grad=False)
    return narrowed
