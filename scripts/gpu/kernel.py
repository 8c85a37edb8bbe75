"""The cascade on its own: seconds against one masked call and against its bandwidth floor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2sd.target.cascade import TreeRows, one_level, tree_attention

SHAPES = {  # query heads, KV heads, width of a head
    "smollm2-135m": (9, 3, 64),
    "qwen3-4b": (32, 8, 128),
}


@dataclass(frozen=True)
class Measuring:
    """Where, with what, and how much."""

    device: torch.device
    model: str
    first: str | None
    second: str | None
    tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def contexts(self) -> tuple[int, ...]:
        return (64, 128) if self.tiny else (1024, 2048, 4096, 8192, 16384, 32768)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median of `repeats` runs after three warm-ups, on the device's own clock."""
    for _ in range(3):
        work()
    return statistics.median(_once(work, device) for _ in range(repeats))


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    event: Any = torch.cuda.Event
    begun, ended = event(enable_timing=True), event(enable_timing=True)
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize(device)
    return begun.elapsed_time(ended) / 1000


def as_graph(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same as one launch, so that starting kernels is not what is timed."""
    if device.type == "cpu":
        return work
    for _ in range(2):
        work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def bandwidth(measuring: Measuring) -> float:
    """Bytes a second of a large copy, read and written bytes counted."""
    size = 1 << (22 if measuring.tiny else 31)
    source = torch.randint(127, (size,), dtype=torch.int8, device=measuring.device)
    goal = torch.empty_like(source)
    return 2 * size / seconds(lambda: goal.copy_(source), measuring.device, 9)


def kernel(measuring: Measuring, nodes: int = 64) -> dict[str, object]:
    """The cascade by context length: seconds, those of one masked call, those of the reads alone.

    `error` is the relative difference of the cascade from one masked call in float32.
    """
    rate = bandwidth(measuring)
    rows = [
        _attention(measuring, shape, context, nodes, rate)
        for shape in SHAPES
        for context in measuring.contexts
    ]
    return {"bandwidth": rate, "nodes": nodes, "rows": rows}


class Inputs(NamedTuple):
    """Of one attention."""

    query: Tensor
    keys: Tensor
    values: Tensor


Attend = Callable[[Tensor, Tensor, Tensor, TreeRows, float], Tensor]


def _attention(
    measuring: Measuring, shape: str, context: int, nodes: int, rate: float
) -> dict[str, object]:
    heads, kv_heads, width = SHAPES[shape]
    device, dtype = measuring.device, measuring.dtype

    def drawn(count: int, length: int) -> Tensor:
        return torch.randn(1, count, length, width, device=device, dtype=dtype)

    whole = context + nodes
    sets = [  # several, so that no cache holds them all
        Inputs(drawn(heads, nodes), drawn(kv_heads, whole), drawn(kv_heads, whole))
        for _ in range(2 if measuring.tiny else 8)
    ]
    hidden = torch.ones(nodes, nodes, device=device).triu(1).bool()  # a chain is a tree, too
    mask = torch.zeros(1, 1, nodes, nodes, device=device, dtype=dtype)
    rows = TreeRows(mask.masked_fill_(hidden, torch.finfo(dtype).min), context, heads // kv_heads)
    scale = width**-0.5
    assert len(rows.words) == len(rows.dense[0, 0]) // rows.group  # made before the clock runs
    _ = rows.length

    def all_sets(attend: Attend) -> Callable[[], object]:
        return as_graph(lambda: [attend(*given, rows, scale) for given in sets], device)

    wide = TreeRows(rows.mask.float(), context, rows.group)
    exact = Inputs(*(tensor.float() for tensor in sets[0]))
    right = one_level(*exact, wide, scale)
    error = (tree_attention(*sets[0], rows, scale).float() - right).norm() / right.norm()
    read = sum(tensor.numel() * tensor.element_size() for tensor in (*sets[0], sets[0][0]))
    return {
        "shape": shape,
        "context": context,
        "cascade": seconds(all_sets(tree_attention), device, 15) / len(sets),
        "masked": seconds(all_sets(one_level), device, 15) / len(sets),
        "floor": read / rate,
        "error": float(error),
    }
