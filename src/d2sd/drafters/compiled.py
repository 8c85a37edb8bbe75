"""A drafter's passes compiled ahead of time, for any number of rows and any context length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from d2sd.aot import FEWEST, Marker, compile_program
from d2sd.attention import Attended, attention_with_lse, merge
from d2sd.drafters.network import Attend, DraftNetwork, KeyValues, attend
from d2sd.drafters.passes import (
    ContextRows,
    DraftPass,
    EagerDraftPass,
    key_values,
    narrowed,
    scaled,
)

READ, DRAFT = "read.pt2", "draft.pt2"
ROWS = (2, 4, 6, 8)
"""Rows that a pass is padded to; more are rounded up to a multiple of 4."""


def flash_attend(
    query: Float[Tensor, "sequences kv_heads blocks slots groups dim"],
    context: KeyValues,
    own: KeyValues,
    mask: Tensor | None,
) -> Float[Tensor, "sequences kv_heads blocks slots groups dim"]:
    """`network.attend` for one sequence in two levels: the context, and each block by itself.

    Layers with a mask (sliding windows, causal blocks) are left to the definition.
    """
    if mask is not None:
        return attend(query, context, own, mask)
    _, kv, a, b, g, d = query.shape
    far = attention_with_lse(
        query.reshape(1, kv, a * b * g, d), context.keys, context.values, None, 1.0
    )
    keys, values = own.keys[0].transpose(0, 1), own.values[0].transpose(0, 1)
    rows = query[0].transpose(0, 1).reshape(a, kv, b * g, d)
    near = attention_with_lse(rows, keys, values, None, 1.0)
    moved = Attended(
        near.output.transpose(0, 1).reshape(1, kv, a * b * g, d),
        near.lse.transpose(0, 1).reshape(1, kv, a * b * g),
    )
    return merge(far, moved).view(1, kv, a, b, g, d)


class Drafting(nn.Module):
    """One pass as a function of tensors only, which is what torch.export needs."""

    def __init__(self, network: DraftNetwork, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = narrowed(head, network.draft_ids)

    def forward(
        self,
        embeds: Float[Tensor, "rows block hidden"],
        asked: Int[Tensor, " asked"],
        keys: Float[Tensor, "layers kv_heads capacity dim"],
        values: Float[Tensor, "layers kv_heads capacity dim"],
        context: Float[Tensor, " context"],
    ) -> Float[Tensor, "asked draft_vocab"]:
        """Undivided float32 logits at the `asked` places; `context` counts by its length."""
        rows, block, _ = embeds.shape
        length = context.shape[0]
        positions = length + torch.arange(block, device=embeds.device)
        both = zip(keys[:, None, :, :length], values[:, None, :, :length], strict=True)
        layers = [KeyValues(*layer) for layer in both]
        hidden = self.network(embeds[None], positions.expand(1, rows, block), layers)
        return scaled(self.head(hidden.flatten(0, 2)[asked]).float(), self.network.config)


class Reading(nn.Module):
    """Keys and values of new context rows, as a function of tensors only."""

    def __init__(self, network: DraftNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Float[Tensor, "rows taps hidden"], positions: Int[Tensor, " rows"]
    ) -> tuple[Tensor, Tensor]:
        """Both [layers, kv_heads, rows, dim]."""
        return key_values(self.network, features, positions)


def compile_draft(network: DraftNetwork, head: nn.Module, folder: Path) -> None:
    """Write both compiled passes of `network` to `folder`.

    Takes some seconds and a C++ compiler; what torch cannot do here it says as an exception.
    """
    config, auto = network.config, Dim.AUTO
    device, dtype = network.fc.weight.device, network.fc.weight.dtype
    rows = ContextRows(config, dtype, device, capacity=32)
    embeds = torch.zeros(3, config.block_size, config.hidden_size, dtype=dtype, device=device)
    asked = torch.arange(7, device=device)
    context = torch.empty(11, device=device)
    example = (embeds, asked, rows.keys, rows.values, context)
    free = ({0: auto, 1: auto}, {0: auto}, {2: auto}, {2: auto}, {0: auto})
    with torch.no_grad(), attending_by(network, flash_attend):
        program = torch.export.export(
            Drafting(network, head), example, dynamic_shapes=free, strict=False
        )
        compile_program(program, folder / DRAFT, device)
    compile_reading(network, folder)


def compile_reading(network: DraftNetwork, folder: Path) -> None:
    """Write the compiled reading of context rows alone; raises as `compile_draft` does."""
    config, weight, auto = network.config, network.fc.weight, Dim.AUTO
    features = weight.new_zeros(5, len(config.taps), config.hidden_size)
    with torch.no_grad():
        program = torch.export.export(
            Reading(network),
            (features, torch.arange(5, device=weight.device)),
            dynamic_shapes=({0: auto}, {0: auto}),
            strict=False,
        )
        compile_program(program, folder / READ, weight.device)


@contextmanager
def attending_by(network: DraftNetwork, function: Attend) -> Iterator[None]:
    """All layers of `network` attend by `function` inside the `with` block."""
    before = [layer.self_attn.attend for layer in network.layers]
    try:
        for layer in network.layers:
            layer.self_attn.attend = function
        yield
    finally:
        for layer, own in zip(network.layers, before, strict=True):
            layer.self_attn.attend = own


def is_compiled(folder: Path) -> bool:
    """Whether `compile_draft` has finished in `folder`."""
    return (folder / READ).exists() and (folder / DRAFT).exists()


class CompiledDraftPass(DraftPass):
    """Runs what `compile_draft` wrote; blocks behind a context of less than two rows by `eager`."""

    def __init__(self, folder: Path, eager: EagerDraftPass) -> None:
        self._draft = torch._inductor.aoti_load_package(str(folder / DRAFT))
        self._read = torch._inductor.aoti_load_package(str(folder / READ))
        self._eager = eager
        self._marker = Marker(eager.device)

    def key_values(
        self, features: Float[Tensor, "rows taps hidden"], positions: Int[Tensor, " rows"]
    ) -> tuple[
        Float[Tensor, "layers kv_heads rows dim"], Float[Tensor, "layers kv_heads rows dim"]
    ]:
        keys, values = self._read(features, positions)
        return keys, values

    def __call__(
        self,
        ids: Int[Tensor, "rows block"],
        asked: Int[Tensor, " asked"],
        divisors: Float[Tensor, " asked"],
        context: ContextRows,
    ) -> Float[Tensor, "asked draft_vocab"]:
        if context.length < FEWEST:
            return self._eager(ids, asked, divisors, context)
        rows, block = ids.shape
        size = next((size for size in ROWS if size >= rows), -(-rows // 4) * 4)
        embeds = self._eager.embeds(ids, context.keys.dtype)
        if rows < size:
            embeds = nn.functional.pad(embeds, (0, 0, 0, 0, 0, size - rows))
        wanted = nn.functional.pad(asked, (0, size * (block - 1) - len(asked)))
        logits = self._draft(
            embeds, wanted, context.keys, context.values, self._marker(context.length)
        )
        return logits[: len(asked)].div_(divisors[:, None])
