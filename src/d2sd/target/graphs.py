"""A target's pass in buffers that never move, replayed as a CUDA graph: for GPUs.

A pass of a small model is hundreds of short kernels, and starting them takes longer than running
them. A graph starts all at once, but always reads and writes the same memory: so the inputs of
each size have their own buffers, the context is read in the cache where it lies, and its length is
a number in the GPU's memory.

On a CPU the same pass runs without a graph, for tests. Never run on a GPU so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from d2sd.target.cache import CacheLayout, TreeCache
from d2sd.target.cascade import TreeRows, one_level, triton_is_here, two_level
from d2sd.target.compiled import PaddedNodes, bucket
from d2sd.target.passes import EagerPass, PassOutput, TargetPass, attending
from d2sd.target.split import SplitCache, SplitRows
from d2sd.target.taps import decoder_layers, tapped
from d2sd.tree import TokenTree

IN_PLACE = "d2sd_in_place"

LARGEST = 256
"""Nodes of the largest pass that is worth a graph; a larger one keeps a GPU busy by itself."""

WARM_UPS = 2  # Triton compiles, and libraries allocate, before a graph is recorded


class StaticOutput(NamedTuple):
    """What a pass leaves in its buffers; the next pass of any size overwrites it."""

    logits: Float[Tensor, "nodes vocab"]
    features: Float[Tensor, "nodes taps hidden"]
    own_keys: Float[Tensor, "layers kv_heads nodes key_dim"]
    own_values: Float[Tensor, "layers kv_heads nodes value_dim"]


def attend_in_place(
    module: nn.Module,
    query: Float[Tensor, "1 heads nodes dim"],
    key: SplitRows,
    value: SplitRows,
    attention_mask: object,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Float[Tensor, "1 nodes heads value_dim"], None]:
    """What transformers calls for attention: the context is the whole buffer up to a length."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows, length = given["tree_rows"], given["length"]
    if query.device.type == "cuda":
        from d2sd.target import cascade_triton as gpu

        context = gpu.Level(key.context, value.context)
        own = gpu.Level(key.own, value.own)
        out = gpu.cascade(query, context, own, gpu.Seen(length, rows.words), scale)
    else:
        out = _on_cpu(query, key, value, rows, length, scale)
    return out.transpose(1, 2), None


def _on_cpu(
    query: Tensor, key: SplitRows, value: SplitRows, rows: TreeRows, length: Tensor, scale: float
) -> Tensor:
    committed = int(length)
    if committed == 0:
        return one_level(query, key.own, value.own, rows, scale)
    context = key.context[:, :, :committed], value.context[:, :, :committed]
    return two_level(query, *context, key.own, value.own, rows.mask, scale)


AttentionInterface.register(IN_PLACE, attend_in_place)


class GraphedPass(TargetPass):
    """Passes over trees as CUDA graphs, one for each size that passes are padded to.

    A graph is recorded when its size first comes up and again when the cache has moved, which it
    does when it grows. Passes without logits, those of a prompt, and very large ones are eager.
    Raises ValueError for a model on a GPU that graphs cannot serve.
    """

    def __init__(self, model: Any, taps: Sequence[int]) -> None:
        self._check(model)
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        layers = decoder_layers(model.base_model, self._config.num_hidden_layers)
        self._tapped = [layers[tap] for tap in taps]
        self._eager = EagerPass(model, taps)
        self._layout = CacheLayout.of(self._config, model.dtype, model.device)
        self._group = self._config.num_attention_heads // self._layout.kv_heads
        self._length = torch.zeros((), dtype=torch.int32, device=model.device)
        self._inputs: dict[int, PaddedNodes] = {}
        self._recordings: dict[int, Callable[[], StaticOutput]] = {}
        self._buffers: tuple[int, ...] = ()

    @staticmethod
    def _check(model: Any) -> None:
        if model.device.type != "cuda":
            return
        if model.dtype == torch.float64 or not triton_is_here():
            raise ValueError(
                f"CUDA graphs of a pass need Triton and at most float32, not {model.dtype}; "
                "install triton, choose bfloat16 or decode without graphs"
            )

    @torch.inference_mode()
    def __call__(self, tree: TokenTree, cache: TreeCache, with_logits: bool = True) -> PassOutput:
        nodes = len(tree)
        size = bucket(nodes)
        if not with_logits or size > LARGEST:
            return self._eager(tree, cache, with_logits)
        keys, values = cache.allocated(self._layout, cache.length + size)
        self._follow(keys, values)
        if size not in self._inputs:
            self._inputs[size] = PaddedNodes(size, self._layout)
        self._inputs[size].fill(tree, cache.length)
        self._length.fill_(cache.length)
        if size not in self._recordings:
            compute = partial(self._compute, self._inputs[size], keys, values)
            self._recordings[size] = recorded(compute, self._layout.device)
        output = self._recordings[size]()
        cache.write(output.own_keys[:, :, :nodes], output.own_values[:, :, :nodes])
        # copies, since the buffers belong to the next pass
        return PassOutput(output.logits[:nodes].clone(), output.features[:nodes].clone())

    def _follow(self, keys: Tensor, values: Tensor) -> None:
        """Forget the recordings of buffers that are no longer the cache's."""
        buffers = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        if buffers != self._buffers:
            self._recordings.clear()
            self._buffers = buffers

    def _compute(self, padded: PaddedNodes, keys: Tensor, values: Tensor) -> StaticOutput:
        """The pass, from buffers only: what is a Python number here is fixed in a graph."""
        cache = SplitCache(keys, values)
        with tapped(self._tapped) as outputs, attending(self._config, IN_PLACE):
            output = self._model(
                input_ids=padded.ids,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                past_key_values=cache,
                use_cache=True,
                tree_rows=TreeRows(padded.mask, 0, self._group),
                length=self._length,
            )
        features = [outputs[layer][0] for layer in self._tapped]
        nothing = keys.new_empty(padded.ids.shape[1], 0, self._config.hidden_size)
        return StaticOutput(
            output.logits[0],
            torch.stack(features, 1) if features else nothing,
            torch.stack(cache.own_keys),
            torch.stack(cache.own_values),
        )


def recorded(
    compute: Callable[[], StaticOutput], device: torch.device
) -> Callable[[], StaticOutput]:
    """`compute` as one CUDA graph that leaves its results in the same tensors every time.

    On a CPU it is `compute` itself.
    """
    if device.type != "cuda":
        return compute
    for _ in range(WARM_UPS):
        compute()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()

    def replay() -> StaticOutput:
        graph.replay()
        return output

    return replay
