"""A target's pass compiled ahead of time, for any number of nodes and any context length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from d2sd.aot import FEWEST, compile_program
from d2sd.target.cache import CacheLayout, TreeCache
from d2sd.target.cascade import TreeRows
from d2sd.target.exported import export_pass
from d2sd.target.passes import PassOutput, TargetPass
from d2sd.tree import TokenTree

BUCKETS = (2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512)
"""Node counts that passes are padded to: each new matrix shape costs time and memory once."""


def compile_pass(model: Any, taps: Sequence[int], package: Path) -> None:
    """Write the compiled pass of `model`, its weights but for the embedding included, to `package`.

    Takes a minute or two and a C++ compiler; what torch cannot do here it says as an exception.
    """
    compile_program(export_pass(model, taps), package, model.device)


class CompiledPass(TargetPass):
    """Runs the package that `compile_pass` wrote for `model`, whose embedding it goes on using."""

    def __init__(self, package: Path, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        self._run = torch._inductor.aoti_load_package(str(package))
        self._embedding: nn.Module = model.get_input_embeddings()
        weight = self._embedding.weight
        self._layout = CacheLayout.of(config, weight.dtype, weight.device)
        self._group = config.num_attention_heads // self._layout.kv_heads
        self._inputs: dict[int, PaddedNodes] = {}
        self._buffers: tuple[Tensor | None, list[Tensor], list[Tensor]] = (None, [], [])

    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        nodes, committed = len(tree), cache.length
        padded = self._padded(nodes)
        padded.fill(tree, committed)
        keys, values = self._layers(cache, committed + len(padded.numbers))
        logits, features = self._run(
            self._embedding(padded.ids),
            padded.positions,
            padded.rows_mask(committed, self._group),
            padded.numbers if with_logits else padded.numbers[:FEWEST],
            padded.numbers + committed,
            keys,
            values,
        )
        return PassOutput(logits[:nodes] if with_logits else None, features[:nodes])

    def _layers(self, cache: TreeCache, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's buffers. One row stays free: the program reads a part, never the whole."""
        keys, values = cache.allocated(self._layout, rows + 1)
        if keys is not self._buffers[0]:
            self._buffers = keys, list(keys.unbind()), list(values.unbind())
        return self._buffers[1:]

    def _padded(self, nodes: int) -> PaddedNodes:
        size = bucket(nodes)
        if size not in self._inputs:
            self._inputs[size] = PaddedNodes(size, self._layout)
        return self._inputs[size]


def bucket(nodes: int) -> int:
    """The size that a pass of `nodes` nodes is padded to."""
    return next((size for size in BUCKETS if size >= nodes), -(-nodes // 128) * 128)


class PaddedNodes:
    """A pass's inputs at one size, kept and filled anew for each tree.

    Nodes past the tree's own see themselves only and are seen by none.
    """

    def __init__(self, size: int, layout: CacheLayout) -> None:
        device = layout.device
        self.ids = torch.zeros(1, size, dtype=torch.long, device=device)
        self.positions = torch.zeros(1, size, dtype=torch.long, device=device)
        self.numbers = torch.arange(size, device=device)
        self._hidden = torch.finfo(layout.dtype).min
        self._alone = torch.eye(size, dtype=torch.bool, device=device)
        self.mask = torch.zeros(1, 1, size, size, dtype=layout.dtype, device=device)

    def rows_mask(self, committed: int, group: int) -> Float[Tensor, "1 1 rows columns"]:
        """The mask over all columns, for every node once for each query head of a group."""
        return TreeRows(self.mask, committed, group).dense

    def fill(self, tree: TokenTree, committed: int) -> None:
        nodes, size = len(tree), len(self.numbers)
        rest = [0] * (size - nodes)
        self.ids[0] = torch.tensor([*tree.tokens, *rest])
        self.positions[0] = torch.tensor([*tree.depths, *rest]).add_(committed)
        seen = self._alone.clone()
        seen[:nodes, :nodes] = tree.visibility().to(seen.device)
        self.mask[0, 0].zero_().masked_fill_(~seen, self._hidden)
