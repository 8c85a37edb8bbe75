"""Random inputs of a pass's attention, and what must come out: the softmax of `masks.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d2sd.target.cascade import TreeRows
from d2sd.target.masks import tree_mask
from d2sd.tree import TokenTree

CAPACITY = 600  # rows of the buffers; those behind the pass are NaN: nobody may read them


@dataclass(frozen=True)
class Heads:
    """How many query heads, how many KV heads, and how wide they are."""

    query: int
    kv: int
    width: int = 16
    value_width: int = 16


HEADS = {"MHA": Heads(4, 4), "GQA": Heads(6, 2), "MQA": Heads(3, 1)}


@dataclass(frozen=True)
class Case:
    """One layer of a pass: `nodes` of a random tree after `committed` rows."""

    query: Tensor
    keys: Tensor
    values: Tensor
    tree: TokenTree
    committed: int
    scale: float = 0.4

    @property
    def rows(self) -> TreeRows:
        own = tree_mask(self.tree, 0, self.query.dtype, self.query.device)
        return TreeRows(own, self.committed, self.query.shape[1] // self.keys.shape[1])

    def on(self, device: str) -> Case:
        moved = {name: getattr(self, name).to(device) for name in ("query", "keys", "values")}
        return replace(self, **moved)

    def levels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values of the context, then keys and values of the nodes."""
        context, own = slice(None, self.committed), slice(self.committed, None)
        parts = (self.keys[:, :, context], self.values[:, :, context])
        return (*parts, self.keys[:, :, own], self.values[:, :, own])

    def expected(self) -> Tensor:
        """Plain softmax attention under `tree_mask`, in float64 from the same numbers."""
        mask = tree_mask(self.tree, self.committed, torch.float64)
        group = self.query.shape[1] // self.keys.shape[1]
        keys = self.keys.double().repeat_interleave(group, 1)
        values = self.values.double().repeat_interleave(group, 1)
        scores = self.query.double() @ keys.transpose(-1, -2) * self.scale + mask
        return scores.softmax(-1) @ values


def random_case(heads: Heads, nodes: int, committed: int, dtype: torch.dtype) -> Case:
    """The layout of a real pass: heads of a node together, rows in views of a larger buffer."""
    draws = torch.Generator().manual_seed(1000 * nodes + committed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)

    def buffered(width: int) -> Tensor:
        buffer = normal(2, heads.kv, max(CAPACITY, committed + nodes), width)
        buffer[:, :, committed + nodes :] = torch.nan
        return buffer[1, None, :, : committed + nodes]

    query = normal(1, nodes, heads.query, heads.width).transpose(1, 2)
    keys, values = buffered(heads.width), buffered(heads.value_width)
    return Case(query, keys, values, random_tree(nodes, draws), committed)


def random_tree(nodes: int, draws: torch.Generator) -> TokenTree:
    parents = [int(torch.randint(node, (), generator=draws)) for node in range(1, nodes)]
    return TokenTree(tuple(range(nodes)), (-1, *parents), ("anchor", *["draft"] * (nodes - 1)))
