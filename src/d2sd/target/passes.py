"""One forward pass of a target over a tree: what HFTarget asks for, and the plain way to do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.target.cache import TreeCache
from d2sd.target.masks import tree_mask, tree_positions
from d2sd.target.taps import decoder_layers, tapped
from d2sd.tree import TokenTree


class PassOutput(NamedTuple):
    """What a pass says about every node; `logits` only where they were asked for."""

    logits: Float[Tensor, "nodes vocab"] | None
    features: Float[Tensor, "nodes taps hidden"]


class TargetPass(ABC):
    """Reads a tree behind the committed rows of a cache and leaves its rows there."""

    @abstractmethod
    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        """One forward pass; the nodes' keys and values follow the committed rows of `cache`."""


class EagerPass(TargetPass):
    """The transformers model itself."""

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        config = model.config.get_text_config(decoder=True)
        layers = decoder_layers(model.base_model, config.num_hidden_layers)
        self._model = model
        self._tapped = [layers[tap] for tap in taps]
        self._hidden_size = config.hidden_size

    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        model = self._model
        with tapped(self._tapped) as outputs:
            output = (model if with_logits else model.base_model)(
                input_ids=torch.tensor([tree.tokens], device=model.device),
                attention_mask=tree_mask(tree, cache.length, model.dtype, model.device),
                position_ids=tree_positions(tree, cache.length, model.device),
                past_key_values=cache,
                use_cache=True,
            )
        logits = output.logits[0] if with_logits else None
        if not self._tapped:
            nothing = torch.empty(
                len(tree), 0, self._hidden_size, dtype=model.dtype, device=model.device
            )
            return PassOutput(logits, nothing)
        return PassOutput(logits, torch.stack([outputs[layer][0] for layer in self._tapped], 1))
