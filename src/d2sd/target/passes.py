"""One forward pass of a target over a tree: what HFTarget asks for, and the plain way to do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from d2sd.target.cache import TreeCache
from d2sd.target.cascade import TreeRows, tree_attention
from d2sd.target.masks import tree_mask, tree_positions
from d2sd.target.quantized import has_int8
from d2sd.target.taps import decoder_layers, tapped
from d2sd.tree import TokenTree

TREE = "d2sd_tree"
REPLACED = "sdpa"
"""The attention that tree attention stands in for; any other is left as the model has it."""


class PassOutput(NamedTuple):
    """What a pass says about every node; `logits` only where they were asked for."""

    logits: Float[Tensor, "nodes vocab"] | None
    features: Float[Tensor, "nodes taps hidden"]


class TargetPass(ABC):
    """Reads a tree behind the committed rows of a cache and leaves its rows there."""

    @abstractmethod
    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        """One forward pass; the nodes' keys and values follow the committed rows of `cache`."""


def attend_to_tree(
    module: nn.Module,
    query: Float[Tensor, "1 heads nodes dim"],
    key: Float[Tensor, "1 kv_heads rows dim"],
    value: Float[Tensor, "1 kv_heads rows value_dim"],
    attention_mask: object,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Float[Tensor, "1 nodes heads value_dim"], None]:
    """What transformers calls for attention in an eager pass over a tree."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows: TreeRows = given["tree_rows"]
    dtype = rows.mask.dtype
    out = tree_attention(query.to(dtype), key.to(dtype), value.to(dtype), rows, scale)
    return out.to(query.dtype).transpose(1, 2), None


AttentionInterface.register(TREE, attend_to_tree)


@contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """The model of the decoder's `config` attends by the named function in the `with` block."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


class EagerPass(TargetPass):
    """The transformers model itself; its `sdpa` attention replaced by one made for trees.

    That one reads keys where they lie; transformers' repeats them for every query head of a
    group, and its mask covers the context.
    """

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        config = model.config.get_text_config(decoder=True)
        layers = decoder_layers(model.base_model, config.num_hidden_layers)
        self._model = model
        self._tapped = [layers[tap] for tap in taps]
        self._hidden_size = config.hidden_size
        self._config = config
        self._rounds = has_int8(layers)
        heads = config.num_attention_heads
        self._group = heads // (getattr(config, "num_key_value_heads", None) or heads)

    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        model = self._model
        with tapped(self._tapped) as outputs, self._attention(tree, cache.length) as how:
            output = (model if with_logits else model.base_model)(
                input_ids=torch.tensor([tree.tokens], device=model.device),
                position_ids=tree_positions(tree, cache.length, model.device),
                past_key_values=cache,
                use_cache=True,
                **how,
            )
        logits = output.logits[0] if with_logits else None
        if not self._tapped:
            nothing = torch.empty(
                len(tree), 0, self._hidden_size, dtype=model.dtype, device=model.device
            )
            return PassOutput(logits, nothing)
        return PassOutput(logits, torch.stack([outputs[layer][0] for layer in self._tapped], 1))

    @contextmanager
    def _attention(self, tree: TokenTree, committed: int) -> Iterator[dict[str, Any]]:
        """The arguments that tell the model what each node sees."""
        dtype, device = self._model.dtype, self._model.device
        if self._config._attn_implementation != REPLACED:
            yield {"attention_mask": tree_mask(tree, committed, dtype, device)}
            return
        own = tree_mask(tree, 0, dtype, device)
        rows = TreeRows(own.double() if self._rounds else own, committed, self._group)
        with attending(self._config, TREE):
            yield {"attention_mask": own, "tree_rows": rows}
