"""Embedding and output head of SGLang's target, also where they are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from d2sd.engines.batches.batch_pass import TargetEnds

NEEDED = ("get_input_embeddings", "get_embed_and_head", "set_dflash_layers_to_capture")
"""What SGLang's models have that it can draft for by DFlash."""

Gather = Callable[[Tensor, int], Tensor]
"""(a rank's part, the dimension it is a part in) -> the whole."""


class LoadedEnds(TargetEnds):
    """The ends of a loaded target of so many tokens. Raises ValueError where they are not given."""

    def __init__(self, model: Any, vocabulary: int, gather: Gather | None = None) -> None:
        name = type(model).__name__
        if lacking := [one for one in NEEDED if not hasattr(model, one)]:
            raise ValueError(f"d2sd can't draft for {name}: it has no {', '.join(lacking)}")
        self._embedding = model.get_input_embeddings()
        self._weight: Tensor = model.get_embed_and_head()[1]
        if not self._weight.is_floating_point():
            raise ValueError(f"d2sd can't draft for {name}: its output head is quantized")
        self._vocabulary, self._gather = vocabulary, gather
        self._heads: dict[int, Tensor] = {}

    def embed(self, ids: Tensor) -> Tensor:
        return self._embedding(ids)

    def logits(self, hidden: Tensor, draft_ids: Tensor | None) -> Tensor:
        if draft_ids is not None:
            return torch.nn.functional.linear(hidden, self._head(draft_ids)).float()
        logits = torch.nn.functional.linear(hidden, self._weight)
        if self._gather is not None:
            logits = self._gather(logits, -1)
        return logits[:, : self._vocabulary].float()  # engines round the vocabulary up

    def _head(self, draft_ids: Tensor) -> Tensor:
        """The head's rows of the draft vocabulary, gathered once."""
        if id(draft_ids) not in self._heads:
            weight = self._weight
            if self._gather is not None:
                weight = self._gather(weight, 0)
            self._heads[id(draft_ids)] = weight[draft_ids.to(weight.device)].clone()
        return self._heads[id(draft_ids)]
