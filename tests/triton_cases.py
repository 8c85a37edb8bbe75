"""Runs the cascade kernels by themselves and writes what came out as JSON.

A program of its own, since Triton decides once, when it is imported, whether it interprets:
`python triton_cases.py errors DEVICE` or `python triton_cases.py compile CAPABILITY`.
"""

from __future__ import annotations

import json
import sys
from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cascades import CAPACITY, HEADS, Heads, random_case
from d2sd.target import cascade_triton
from d2sd.target.cascade_triton import Level, Seen, cascade

EVERY = tuple(product((1, 2, 5, 48, 70), (0, 1, 2, 17, 300)))  # nodes, committed rows
SOME = ((1, 300), (2, 1), (5, 0), (5, 511), (70, 17))  # for the interpreter is slow
SHAPES = {**HEADS, "narrow": Heads(2, 1, 8, 8), "wide": Heads(2, 2, 80, 72)}


def errors(device: str) -> dict[str, float]:
    """The largest difference from the definition for each shape and dtype."""
    # the interpreter multiplies bfloat16 bit patterns as if they were integers
    dtypes = ("float32", "float16") if device == "cpu" else ("float32", "float16", "bfloat16")
    found: dict[str, float] = {}
    for name, dtype in product(SHAPES, dtypes):
        sizes = EVERY if (name, dtype) == ("GQA", "float32") else SOME
        found[f"{name} {dtype}"] = max(
            _error(SHAPES[name], *size, getattr(torch, dtype), device) for size in sizes
        )
    return found


def _error(heads: Heads, nodes: int, committed: int, dtype: torch.dtype, device: str) -> float:
    case = random_case(heads, nodes, committed, dtype)
    tensors = (case.query, *case.levels(), case.rows.length, case.rows.words)
    query, keys, values, own_keys, own_values, length, words = (t.to(device) for t in tensors)
    own = Level(own_keys, own_values)
    # the context's level is the whole buffer: what is behind `length` must not be read
    whole = Level(_longer(keys), _longer(values))
    result = cascade(query, whole, own, Seen(length, words), case.scale).cpu().double()
    return (result - case.expected()).abs().nan_to_num(torch.inf).max().item()


def _longer(view: torch.Tensor) -> torch.Tensor:
    """All rows of the buffer that `view` is the beginning of, with NaN behind it."""
    buffer = view.new_full((1, view.shape[1], CAPACITY, view.shape[3]), torch.nan)
    buffer[:, :, : view.shape[2]] = view
    return buffer


def compiled(capability: int) -> dict[str, int]:
    """Bytes of each kernel's machine code, made without a GPU."""
    sizes, dtypes = {}, {"bf16": "bfloat16", "fp32": "float32"}
    for dtype, width in (("bf16", 128), ("fp32", 64)):
        block = cascade_triton.column_block(width, getattr(torch, dtypes[dtype]))
        constants = {"row_block": 64, "column_block": block}
        constants |= {"width_block": width, "value_block": width}
        pointers = dict.fromkeys(("query", "keys", "values", "merged"), dtype)
        pointers |= {"outputs": "fp32", "sums": "fp32", "length": "i32", "words": "i64"}
        for name in ("_context_kernel", "_own_kernel"):
            kernel = getattr(cascade_triton, name)
            types = {n: _type(n, pointers, constants) for n in kernel.arg_names}
            places = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
            source = ASTSource(fn=kernel, signature=types, constexprs=places)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            sizes[f"{name} {dtype}"] = len(made.asm["cubin"])
    return sizes


def _type(name: str, pointers: dict[str, str], constants: dict[str, int]) -> str:
    if name in constants:
        return "constexpr"
    if name in pointers:
        return f"*{pointers[name]}"
    return "fp32" if name == "scale" else "i32"


if __name__ == "__main__":
    task, what = sys.argv[1:]
    result = errors(what) if task == "errors" else compiled(int(what))
    sys.stdout.write(json.dumps(result))
