"""A target's pass as a graph of tensor operations: for any model that attends by the interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from d2sd.target.cascade import two_level
from d2sd.target.passes import attending
from d2sd.target.quantized import has_int8
from d2sd.target.taps import decoder_layers, tapped

SPLIT = "d2sd_split"
EXAMPLE_NODES, EXAMPLE_CONTEXT, EXAMPLE_CAPACITY = 7, 11, 64  # all different, none 0 or 1


class SplitRows(NamedTuple):
    """Keys or values of a pass in two parts, so that the context is neither copied nor written."""

    context: Float[Tensor, "1 kv_heads context dim"]
    own: Float[Tensor, "1 kv_heads nodes dim"]
    far: Float[Tensor, ""]


class SplitCache(Cache):
    """Stands in for the model's cache: shows the context and keeps what the pass adds."""

    def __init__(self, keys: Tensor, values: Tensor, rows: int | torch.SymInt, far: Tensor) -> None:
        super().__init__(layers=[])
        self._keys, self._values = keys, values
        self._rows, self._far = rows, far
        self.own_keys: list[Float[Tensor, "kv_heads nodes dim"]] = []
        self.own_values: list[Float[Tensor, "kv_heads nodes dim"]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[SplitRows, SplitRows]:
        assert layer_idx == len(self.own_keys), "the layers of a pass come in their order"
        self.own_keys.append(key_states[0])
        self.own_values.append(value_states[0])
        seen = (layer_idx, None, slice(None), slice(self._rows))
        return (
            SplitRows(self._keys[seen], key_states, self._far),
            SplitRows(self._values[seen], value_states, self._far),
        )

    def __len__(self) -> int:
        return len(self._keys)

    def get_seq_length(self, layer_idx: int = 0) -> int | torch.SymInt:
        return self._rows

    def get_mask_sizes(
        self, query_length: int, layer_idx: int = 0
    ) -> tuple[int | torch.SymInt, int]:
        return self._rows + query_length, 0


def split_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads nodes dim"],
    key: SplitRows,
    value: SplitRows,
    attention_mask: Float[Tensor, "1 1 nodes nodes"],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 nodes heads dim"], None]:
    """What transformers calls for attention while a pass is exported."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = torch.float64 if has_int8(module) else query.dtype
    out = two_level(
        query.to(dtype),
        key.context.to(dtype),
        value.context.to(dtype),
        key.own.to(dtype),
        value.own.to(dtype),
        attention_mask.to(dtype),
        scale,
        key.far,
    )
    out = out.to(query.dtype)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(SPLIT, split_attention)


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
        ids: Int[Tensor, "1 nodes"],
        positions: Int[Tensor, "1 nodes"],
        mask: Float[Tensor, "1 1 nodes nodes"],
        asked: Int[Tensor, " asked"],
        keys: Float[Tensor, "layers kv_heads capacity key_dim"],
        values: Float[Tensor, "layers kv_heads capacity value_dim"],
        context: Float[Tensor, " context"],
        far: Float[Tensor, ""],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of the `asked` nodes; features [nodes, taps, hidden]; the nodes' keys and values.

        `context` says by its length how many rows of `keys` and `values` are committed, since a
        number cannot be an argument; `far` is added to their log-sum-exp (see `two_level`).
        """
        cache = SplitCache(keys, values, context.shape[0], far)
        with tapped(self._tapped) as outputs:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=asked,
            )
        features = [outputs[layer][0] for layer in self._tapped]
        nothing = keys.new_empty(ids.shape[1], 0, self.config.hidden_size)
        return (
            output.logits[0],
            torch.stack(features, 1) if features else nothing,
            torch.stack(cache.own_keys),
            torch.stack(cache.own_values),
        )


def export_pass(model: Any, taps: Sequence[int]) -> ExportedProgram:
    """The pass over a tree with node count, context length and cache capacity left free."""
    exported = ExportedPass(model, taps)
    auto = Dim.AUTO
    free = ({1: auto}, {1: auto}, {2: auto, 3: auto}, {0: auto}, {2: auto}, {2: auto}, {0: auto})
    with attending(exported.config, SPLIT), torch.no_grad():
        example = _example(model, exported.config)
        return torch.export.export(exported, example, dynamic_shapes=(*free, None), strict=False)


def _example(model: Any, config: Any) -> tuple[Tensor, ...]:
    """Arguments of a pass, their sizes neither 0, 1 nor equal by chance."""
    device, dtype = model.device, model.dtype
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    buffer = torch.zeros(
        config.num_hidden_layers, heads, EXAMPLE_CAPACITY, dim, dtype=dtype, device=device
    )
    nodes = torch.arange(EXAMPLE_NODES, device=device)
    return (
        nodes[None],
        EXAMPLE_CONTEXT + nodes[None],
        torch.zeros(1, 1, EXAMPLE_NODES, EXAMPLE_NODES, dtype=dtype, device=device),
        nodes[:5],
        buffer,
        buffer.clone(),
        torch.empty(EXAMPLE_CONTEXT, device=device),
        torch.zeros((), device=device),
    )
