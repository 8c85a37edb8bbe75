"""A target's pass as a graph of tensor operations: for any model that attends by the interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from d2sd.attention import attention_with_lse
from d2sd.target.cache import CacheLayout, TreeCache
from d2sd.target.cascade import folded, unfolded
from d2sd.target.passes import attending
from d2sd.target.quantized import has_int8
from d2sd.target.taps import decoder_layers, tapped

WRITTEN = "d2sd_written"
EXAMPLE_NODES, EXAMPLE_CONTEXT, EXAMPLE_CAPACITY = 7, 11, 64  # all different, none 0 or 1


class WrittenCache(Cache):
    """Stands in for the model's cache: a pass writes its rows into the buffers and reads on.

    Every layer has buffers of its own. Were they parts of one, inductor would take each writing
    for a change of all layers, and copy the whole.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        rows: Int[Tensor, " nodes"],
        columns: int | torch.SymInt,
    ) -> None:
        super().__init__(layers=[])
        self._keys, self._values = keys, values
        self._rows, self._columns = rows, columns

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys.index_copy_(1, self._rows, key_states[0])
        values.index_copy_(1, self._rows, value_states[0])
        return keys[None, :, : self._columns], values[None, :, : self._columns]

    def __len__(self) -> int:
        return len(self._keys)

    def get_seq_length(self, layer_idx: int = 0) -> int | torch.SymInt:
        return self._columns

    def get_mask_sizes(
        self, query_length: int, layer_idx: int = 0
    ) -> tuple[int | torch.SymInt, int]:
        return self._columns, 0


def written_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads nodes dim"],
    key: Float[Tensor, "1 kv_heads columns dim"],
    value: Float[Tensor, "1 kv_heads columns dim"],
    attention_mask: Float[Tensor, "1 1 rows columns"],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 nodes heads dim"], None]:
    """What transformers calls for attention while a pass is exported: one call for all columns.

    The mask has a row for every node and query head of a group, as `folded` lays them out.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.float64 if has_int8(module) else query.dtype
    rows = folded(query, key).to(dtype)
    mask = attention_mask.to(dtype)
    out = attention_with_lse(rows, key.to(dtype), value.to(dtype), mask, scale).output
    return unfolded(out.to(query.dtype), query.shape[1]).transpose(1, 2), None


AttentionInterface.register(WRITTEN, written_attention)


class ExportedPass(nn.Module):
    """The model's pass as a function of tensors only, which is what torch.export needs."""

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        layers = decoder_layers(model.base_model, self.config.num_hidden_layers)
        self._tapped = [layers[tap] for tap in taps]

    def forward(  # noqa: PLR0913 - a program takes tensors, one by one
        self,
        embeds: Float[Tensor, "1 nodes hidden"],
        positions: Int[Tensor, "1 nodes"],
        mask: Float[Tensor, "1 1 rows columns"],
        asked: Int[Tensor, " asked"],
        places: Int[Tensor, " nodes"],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Logits of the `asked` nodes and features [nodes, taps, hidden].

        Tokens come embedded: a program that looked them up would hold a second copy of the table.
        The nodes' keys and values are written to rows `places` of each layer's buffers
        [kv_heads, capacity, dim], of which the first `columns` are read.
        """
        cache = WrittenCache(keys, values, places, mask.shape[-1])
        with tapped(self._tapped) as outputs:
            output = self.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=asked,
            )
        if not self._tapped:
            return output.logits[0], keys[0].new_empty(embeds.shape[1], 0, self.config.hidden_size)
        return output.logits[0], torch.stack([outputs[layer][0] for layer in self._tapped], 1)


def export_pass(model: Any, taps: Sequence[int]) -> ExportedProgram:
    """The pass over a tree with node count, context length and cache capacity left free."""
    exported = ExportedPass(model, taps)
    auto = Dim.AUTO
    with attending(exported.config, WRITTEN), torch.no_grad():
        example = _example(model, exported.config)
        buffers = [{1: auto}] * len(example[-1])
        free = ({1: auto}, {1: auto}, {2: auto, 3: auto}, {0: auto}, {0: auto}, buffers, buffers)
        return torch.export.export(exported, example, dynamic_shapes=free, strict=False)


def _example(model: Any, config: Any) -> tuple[Any, ...]:
    """Arguments of a pass, their sizes neither 0, 1 nor equal by chance."""
    layout = CacheLayout.of(config, model.dtype, model.device)
    cache = TreeCache(layout.layers, EXAMPLE_CAPACITY)
    keys, values = cache.allocated(layout, EXAMPLE_CAPACITY)
    nodes = torch.arange(EXAMPLE_NODES, device=layout.device)
    columns = EXAMPLE_CONTEXT + EXAMPLE_NODES
    group = config.num_attention_heads // layout.kv_heads
    return (
        model.get_input_embeddings()(nodes[None]),
        EXAMPLE_CONTEXT + nodes[None],
        keys.new_zeros(1, 1, group * EXAMPLE_NODES, columns),
        nodes[:5],
        EXAMPLE_CONTEXT + nodes,
        [layer.clone() for layer in keys],
        [layer.clone() for layer in values],
    )
