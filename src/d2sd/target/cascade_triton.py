"""Two-level attention for GPUs in Triton: the numbers of `cascade.two_level`, in two launches.

The context is cut into parts that run side by side, each with its own softmax (flash decoding).
The second launch attends to the nodes' own rows, whose visibility is one bit per pair, and merges
all parts. The context's length is read on the GPU, so a CUDA graph can be replayed at any length.

Tested on a CPU: in Triton's interpreter, and compiled for GPUs. Never run on one so far, nor timed.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr, tensor

MOST_ROWS = 64  # at a time, and likewise
MOST_COLUMNS = 64  # the bits of a word
SHORTEST_PART = 256  # columns of context worth a part of their own
ENOUGH_PROGRAMS = 264  # two for every multiprocessor of a large GPU


class Level(NamedTuple):
    """Keys and values of one level; the last dimension is contiguous, the others need not be."""

    keys: Float[Tensor, "1 kv_heads columns head_dim"]
    values: Float[Tensor, "1 kv_heads columns value_dim"]


class Seen(NamedTuple):
    """What the nodes see, in memory the GPU can read.

    The first `length` rows of the context's level are seen by all; bit j of a node's words, 64 to a
    word, is set where it sees node j. Every node sees itself.
    """

    length: Int[Tensor, ""]
    words: Int[Tensor, "nodes words"]


def cascade(
    query: Float[Tensor, "1 heads nodes head_dim"],
    context: Level,
    own: Level,
    seen: Seen,
    scale: float,
) -> Float[Tensor, "1 heads nodes value_dim"]:
    """Attention of nodes over the context they all see and over each other, for fp32 and halves.

    `context` may be longer than `seen.length`: the rest is never read, so a whole preallocated
    buffer will do. No context at all is allowed too.
    """
    heads, nodes, width = query.shape[1:]
    kv_heads, capacity = context.keys.shape[1:3]
    value_width = own.values.shape[-1]
    rows = heads // kv_heads * nodes
    block = min(MOST_ROWS, max(16, triton.next_power_of_2(rows)))
    blocks = triton.cdiv(rows, block)
    parts = part_count(capacity, kv_heads * blocks)
    outputs = query.new_empty(parts, kv_heads, rows, value_width, dtype=torch.float32)
    sums = query.new_empty(parts, kv_heads, rows, dtype=torch.float32)
    merged = query.new_empty(1, nodes, heads, value_width).transpose(1, 2)
    sizes = {"nodes": nodes, "group": heads // kv_heads, "row_block": block}
    sizes |= _widths(width, value_width, query.dtype)
    _context_kernel[(parts, kv_heads, blocks)](
        *_placed(query), *_placed(context.keys), *_placed(context.values),
        outputs, sums, seen.length, scale, **sizes,
    )  # fmt: skip
    _own_kernel[(kv_heads, blocks)](
        *_placed(query), *_placed(own.keys), *_placed(own.values), *_placed(merged),
        outputs, sums, seen.words, seen.words.shape[1], parts, scale, **sizes,
    )  # fmt: skip
    return merged


def part_count(capacity: int, programs: int) -> int:
    """Into how many parts to cut a context of at most `capacity` rows: enough to fill a GPU.

    `programs` run side by side for each part. The count depends on sizes that a CUDA graph fixes.
    """
    useful = triton.cdiv(capacity, SHORTEST_PART)
    return max(1, min(useful, triton.cdiv(ENOUGH_PROGRAMS, programs)))


def column_block(width: int, dtype: torch.dtype) -> int:
    """As many columns at a time as the memory of a multiprocessor holds with room to spare."""
    if dtype.itemsize == 2:
        return MOST_COLUMNS
    return min(MOST_COLUMNS, max(16, 2048 // _padded(width)))


def _widths(width: int, value_width: int, dtype: torch.dtype) -> dict[str, int]:
    """Both kernels' sizes along the heads' dimensions, and how many columns they take at a time."""
    return {
        "width": width,
        "value_width": value_width,
        "column_block": column_block(width, dtype),
        "width_block": _padded(width),
        "value_block": _padded(value_width),
    }


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _placed(rows: Tensor) -> tuple[Tensor, int, int]:
    """Rows with the strides of their heads and their own."""
    assert rows.stride(3) == 1 or rows.shape[3] == 1, "a row's numbers lie together"
    return rows, rows.stride(1), rows.stride(2)


def _kernel(function: Callable[..., Any]) -> Any:
    """Triton's own decorator, on the bare function: a type checker's wrapper cannot be compiled."""
    return triton.jit(unwrap(function))


# In the kernels `head` is a KV head, and a row is one of its query heads at one node, the group
# outside and the node inside. A block that is cut off by the end of a tensor is filled with zeros.


@_kernel
def _rows_of_query(  # noqa: PLR0913 - pointers, strides and sizes
    query: tensor, head_stride: tensor, node_stride: tensor, head: tensor, row: tensor,
    width: tensor, nodes: tensor, group: tensor, width_block: constexpr,
) -> tensor:  # fmt: skip
    dim = tl.arange(0, width_block)[None, :]
    place = (head * group + row // nodes) * head_stride + row % nodes * node_stride
    inside = (row < group * nodes)[:, None] & (dim < width)
    return tl.load(query + place[:, None] + dim, mask=inside, other=0.0)


@_kernel
def _columns_of(  # noqa: PLR0913
    source: tensor, head_stride: tensor, row_stride: tensor, head: tensor, column: tensor,
    end: tensor, width: tensor, width_block: constexpr,
) -> tensor:  # fmt: skip
    dim = tl.arange(0, width_block)[None, :]
    place = head * head_stride + column[:, None] * row_stride + dim
    return tl.load(source + place, mask=(column < end)[:, None] & (dim < width), other=0.0)


@_kernel
def _scores(query: tensor, keys: tensor, scale: tensor) -> tensor:
    return tl.dot(query, tl.trans(keys), input_precision="ieee") * scale


@_kernel
def _attended(
    scores: tensor, values: tensor, highest: tensor, total: tensor, mixed: tensor
) -> tensor:
    """Softmax taken one block of columns further: the highest score, its denominator, the sum."""
    higher = tl.maximum(highest, tl.max(scores, 1))
    kept = tl.exp(highest - higher)
    weights = tl.exp(scores - higher[:, None])
    added = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return higher, total * kept + tl.sum(weights, 1), mixed * kept[:, None] + added


@_kernel
def _context_kernel(  # noqa: PLR0913
    query: tensor, query_head: tensor, query_node: tensor, keys: tensor, key_head: tensor,
    key_row: tensor, values: tensor, value_head: tensor, value_row: tensor, outputs: tensor,
    sums: tensor, length: tensor, scale: tensor, nodes: tensor, group: tensor, width: tensor,
    value_width: tensor, row_block: constexpr, column_block: constexpr, width_block: constexpr,
    value_block: constexpr,
) -> None:  # fmt: skip
    """One part of the context for some rows of a head: its attention and log-sum-exp."""
    part, head = tl.program_id(0), tl.program_id(1)
    row = tl.program_id(2) * row_block + tl.arange(0, row_block)
    asked = _rows_of_query(
        query, query_head, query_node, head, row, width, nodes, group, width_block
    )
    committed = tl.load(length)
    size = tl.cdiv(tl.cdiv(committed, tl.num_programs(0)), column_block) * column_block
    end = tl.minimum((part + 1) * size, committed)
    highest = tl.full([row_block], float("-inf"), tl.float32)
    total = tl.zeros([row_block], tl.float32)
    mixed = tl.zeros([row_block, value_block], tl.float32)
    for start in range(part * size, end, column_block):
        column = start + tl.arange(0, column_block)
        key = _columns_of(keys, key_head, key_row, head, column, end, width, width_block)
        scores = tl.where((column < end)[None, :], _scores(asked, key, scale), float("-inf"))
        value = _columns_of(
            values, value_head, value_row, head, column, end, value_width, value_block
        )
        highest, total, mixed = _attended(scores, value, highest, total, mixed)
    total = tl.where(total > 0, total, 1.0)  # a part may be empty: its log-sum-exp stays -inf
    inside = row < group * nodes
    place = (part * tl.num_programs(1) + head) * group * nodes + row
    tl.store(sums + place, highest + tl.log(total), mask=inside)
    dim = tl.arange(0, value_block)[None, :]
    place = place[:, None] * value_width + dim
    tl.store(outputs + place, mixed / total[:, None], mask=inside[:, None] & (dim < value_width))


@_kernel
def _joined(output: tensor, lse: tensor, highest: tensor, total: tensor, mixed: tensor) -> tensor:
    """What was attended so far, and a part of the context that was attended apart."""
    higher = tl.maximum(highest, lse)
    kept, added = tl.exp(highest - higher), tl.exp(lse - higher)
    return higher, total * kept + added, mixed * kept[:, None] + output * added[:, None]


@_kernel
def _own_kernel(  # noqa: PLR0913
    query: tensor, query_head: tensor, query_node: tensor, keys: tensor, key_head: tensor,
    key_row: tensor, values: tensor, value_head: tensor, value_row: tensor, merged: tensor,
    merged_head: tensor, merged_node: tensor, outputs: tensor, sums: tensor, words: tensor,
    word_count: tensor, parts: tensor, scale: tensor, nodes: tensor, group: tensor,
    width: tensor, value_width: tensor, row_block: constexpr, column_block: constexpr,
    width_block: constexpr, value_block: constexpr,
) -> None:  # fmt: skip
    """The nodes' own rows for some rows of a head, then all parts of the context."""
    head = tl.program_id(0)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    inside = row < group * nodes
    asked = _rows_of_query(
        query, query_head, query_node, head, row, width, nodes, group, width_block
    )
    highest = tl.full([row_block], float("-inf"), tl.float32)
    total = tl.zeros([row_block], tl.float32)
    mixed = tl.zeros([row_block, value_block], tl.float32)
    for start in range(0, nodes, column_block):
        column = start + tl.arange(0, column_block)
        word = tl.load(words + row % nodes * word_count + start // 64, mask=inside, other=0)
        seen = (word[:, None] >> (column % 64)[None, :].to(tl.int64)) & 1
        key = _columns_of(keys, key_head, key_row, head, column, nodes, width, width_block)
        # finite where hidden: a row may see nothing of a block
        scores = tl.where(seen != 0, _scores(asked, key, scale), -1.0e30)
        value = _columns_of(
            values, value_head, value_row, head, column, nodes, value_width, value_block
        )
        highest, total, mixed = _attended(scores, value, highest, total, mixed)
    dim = tl.arange(0, value_block)[None, :]
    stored = inside[:, None] & (dim < value_width)
    for part in range(parts):
        place = (part * tl.num_programs(0) + head) * group * nodes + row
        lse = tl.load(sums + place, mask=inside, other=float("-inf"))
        output = tl.load(outputs + place[:, None] * value_width + dim, mask=stored, other=0.0)
        highest, total, mixed = _joined(output, lse, highest, total, mixed)
    place = (head * group + row // nodes) * merged_head + row % nodes * merged_node
    final = (mixed / total[:, None]).to(merged.dtype.element_ty)
    tl.store(merged + place[:, None] + dim, final, mask=stored)
