"""One layer's attention of a tree over a long context, by several ways. Prints one JSON object.

python docs/results/attention.py > docs/results/attention.json

The shape is SmolLM2-135M's: 9 query heads, 3 KV heads of 64 dimensions. The ways are

- dense: KV heads repeated for every query head and a mask over all columns, as transformers does;
- one level: the same mask, one call, grouped heads folded into rows;
- two levels: cascade attention, by `two_level` on a CPU and by Triton on a GPU;
- copies: the context copied for each of 5 branches, which then are a batch of causal rows. They
  get a fifth of the nodes each, though real branches repeat what a tree has once.

Masks are made once per step and are not timed. The ways take turns, so that a disturbed moment
hits all of them; every entry is the median of its calls in milliseconds.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from d2sd.provenance import provenance
from d2sd.target import cascade
from d2sd.target.cascade import TreeRows, branch_mask, one_level, tree_attention, two_level
from d2sd.target.masks import tree_mask
from d2sd.tree import TokenTree

LAYERS, HEADS, KV_HEADS, WIDTH = 30, 9, 3, 64
GROUP, SCALE, BRANCHES = HEADS // KV_HEADS, WIDTH**-0.5, 5
WAYS = ("dense", "one level", "two levels", "copies")


def random_tree(nodes, draws):
    parents = [int(torch.randint(node, (), generator=draws)) for node in range(1, nodes)]
    return TokenTree((0,) * nodes, (-1, *parents), ("",) * nodes)


class Layer:
    """Inputs of one layer, in views of a larger buffer as a target's cache gives them."""

    def __init__(self, nodes, context, dtype, device):
        draws = torch.Generator().manual_seed(context)
        buffer = torch.randn(2, 1, KV_HEADS, 2 * (context + nodes), WIDTH, generator=draws)
        buffer = buffer.to(dtype).to(device)
        query = torch.randn(1, nodes, HEADS, WIDTH, generator=draws).to(dtype).to(device)
        self.query = query.transpose(1, 2)
        self.keys, self.values = buffer[:, :, :, : context + nodes]
        self.context = context
        tree = random_tree(nodes, draws)
        self.rows = TreeRows(tree_mask(tree, 0, dtype, device), context, GROUP)
        self.mask = tree_mask(tree, context, dtype, device)
        self.length = -(-nodes // BRANCHES)
        own = branch_mask([self.length], dtype, device)
        self.branches = TreeRows(own, context, GROUP).dense

    def dense(self):
        keys, values = (
            rows[:, :, None].expand(-1, -1, GROUP, -1, -1).reshape(1, HEADS, -1, WIDTH)
            for rows in (self.keys, self.values)
        )
        return scaled_dot_product_attention(
            self.query, keys, values, attn_mask=self.mask, scale=SCALE
        )

    def one_level(self):
        return one_level(self.query, self.keys, self.values, self.rows, SCALE)

    def two_levels(self):
        if self.query.device.type == "cuda":
            return tree_attention(self.query, self.keys, self.values, self.rows, SCALE)
        split = self.context
        context = self.keys[:, :, :split], self.values[:, :, :split]
        own = self.keys[:, :, split:], self.values[:, :, split:]
        return two_level(self.query, *context, *own, self.rows.mask, SCALE)

    def copies(self):
        end = self.context + self.length
        keys, values = (
            rows[:, :, :end].expand(BRANCHES, -1, -1, -1).contiguous()
            for rows in (self.keys, self.values)
        )
        query = self.query[:, :, : self.length].expand(BRANCHES, -1, -1, -1)
        folded = query.reshape(BRANCHES, KV_HEADS, GROUP * self.length, WIDTH)
        return scaled_dot_product_attention(
            folded, keys, values, attn_mask=self.branches, scale=SCALE
        )

    def check(self):
        """The first three ways give the same numbers."""
        tolerance = 2e-2 if self.query.dtype == torch.bfloat16 else 1e-5
        for way in (self.one_level, self.two_levels):
            torch.testing.assert_close(way(), self.dense(), atol=tolerance, rtol=0)


def timed(way, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def measured(layer, repeats, device):
    """Milliseconds of every way: median and quartiles."""
    layer.check()
    ways = {name: getattr(layer, name.replace(" ", "_")) for name in WAYS}
    times = {name: [] for name in WAYS}
    for repeat in range(repeats + 3):
        for name, way in ways.items():
            elapsed = timed(way, device)
            if repeat >= 3:  # the first calls set buffers up
                times[name].append(elapsed)
    return {name: statistics.quantiles(taken, n=4) for name, taken in times.items()}


def row(options, dtype, context, quartiles):
    copied = BRANCHES * (context + -(-options.nodes // BRANCHES)) * 2 * KV_HEADS * WIDTH
    medians = {name: middle for name, (_, middle, _) in quartiles.items()}
    best = min(medians["one level"], medians["two levels"])
    large = context * options.nodes >= cascade.CASCADE_FROM
    chosen = "two levels" if large or options.device.type == "cuda" else "one level"
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "milliseconds": {name: [round(q, 4) for q in of] for name, of in quartiles.items()},
        "chosen": chosen,
        "chosen_over_best": medians[chosen] / best,
        "copies_over_chosen": medians["copies"] / medians[chosen],
        "dense_over_chosen": medians["dense"] / medians[chosen],
        "bytes_copied_a_layer": copied * dtype.itemsize,
        "bytes_copied_a_step": copied * dtype.itemsize * LAYERS,
    }


def table(rows):
    columns = ["dtype", "context", *WAYS, "chosen", "copies / chosen", "MB copied a step"]
    lines = [
        [
            entry["dtype"],
            str(entry["context"]),
            *(f"{entry['milliseconds'][way][1]:.2f}" for way in WAYS),
            entry["chosen"],
            f"{entry['copies_over_chosen']:.1f}",
            f"{entry['bytes_copied_a_step'] / 1e6:.0f}",
        ]
        for entry in rows
    ]
    return {"columns": columns, "rows": lines}


def options_of(arguments):
    parser = argparse.ArgumentParser(description="Attention of a tree over a long context.")
    contexts = [256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--contexts", type=int, nargs="+", default=contexts)
    parser.add_argument("--nodes", type=int, default=48)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return parser.parse_args(arguments)


@torch.inference_mode()
def main():
    options = options_of(sys.argv[1:])
    rows = []
    for name in options.dtypes:
        dtype = getattr(torch, name)
        for context in options.contexts:
            layer = Layer(options.nodes, context, dtype, options.device)
            quartiles = measured(layer, options.repeats, options.device)
            rows.append(row(options, dtype, context, quartiles))
    run = provenance(options.device, seed=0)
    run["command"] = ["python", "docs/results/attention.py", *sys.argv[1:]]
    result = {
        "shape": {"heads": HEADS, "kv_heads": KV_HEADS, "width": WIDTH, "layers": LAYERS},
        "nodes": options.nodes,
        "branches": BRANCHES,
        "repeats": options.repeats,
        "cascade_from": cascade.CASCADE_FROM,
        "rows": rows,
        "tables": {"attention": table(rows)},
        "run": run,
    }
    sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
