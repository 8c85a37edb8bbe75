"""Where features come from: the outputs of some decoder layers of a transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


def decoder_layers(body: nn.Module, count: int) -> nn.ModuleList:
    """The list of decoder layers, whatever the architecture calls it."""
    return next(
        module
        for module in body.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )


@contextmanager
def tapped(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collects the output of each layer in the passes made inside the `with` block.

    Hooks, because transformers' `output_hidden_states` gives the last layer after the final norm.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
