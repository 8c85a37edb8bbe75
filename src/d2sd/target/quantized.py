"""A target whose decoder layers multiply in 8-bit integers, each row on its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor, nn

from d2sd.target.taps import decoder_layers

QUANTIZATIONS = ("none", "int8")
"""What the decoder layers' linear maps are turned into."""

LARGEST = 127
"""The largest int8 used: -128 has no counterpart."""
WIDEST = (2**31 - 1) // LARGEST**2
"""How many products of two int8 an int32 can add up."""


class Int8Linear(nn.Module):
    """A linear map whose weights and inputs are rounded to int8, multiplied exactly.

    Weights have one scale per output, inputs one per row. A scale over a whole pass would let a
    node's numbers depend on the other nodes of its tree; so a row gives the same bits whatever
    its companions.
    """

    weight: Int8[Tensor, "outputs inputs"]
    scale: Float32[Tensor, " outputs"]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.in_features > WIDEST:
            raise ValueError(
                f"a linear layer of {linear.in_features} inputs overflows 32 bits in int8, which "
                f"has room for {WIDEST}; leave it as it is with --quantize none"
            )
        weight, scale = rounded(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        # Just this order of products is what inductor replaces by one with packed weights (its
        # fx_passes/quantization.py, smooth_quant_int_mm); `.to` would leave an assertion in it.
        numbers, scale = rounded(x.reshape(-1, x.shape[-1]))
        product = torch._int_mm(numbers, self.weight.t())
        out = torch.ops.aten._to_copy(product, dtype=torch.float32) * scale * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], out.shape[-1])


def rounded(
    rows: Float[Tensor, "rows inputs"],
) -> tuple[Int8[Tensor, "rows inputs"], Float32[Tensor, "rows 1"]]:
    """Every row as whole numbers from -127 to 127, and what to multiply them by.

    A value is off by half a scale at most, and a scale is the row's largest magnitude / 127.
    """
    rows = rows.to(torch.float32)
    scale = rows.abs().amax(-1, keepdim=True) / LARGEST
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros stays one
    return (rows / scale).round().to(torch.int8), scale


def quantize(model: Any) -> None:
    """Turn every linear layer of the decoder layers to int8, in place; `model` is on the CPU.

    Embedding and output head, which drafters share, stay as they are. The model is another one
    then: it is the target, and what is lossless is so with respect to it. Raises ValueError for
    a model without such layers.
    """
    config = model.config.get_text_config(decoder=True)
    layers = decoder_layers(model.base_model, config.num_hidden_layers)
    found = [
        (parent, name, child)
        for parent in layers.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no plain linear layers to turn to int8; use "
            "--quantize none"
        )
    for parent, name, child in found:
        setattr(parent, name, Int8Linear(child))


def has_int8(module: nn.Module) -> bool:
    """Whether linear maps in `module` round their inputs; its attention is to be in float64 then.

    Attention adds in another order in passes of another shape. In float32 that moves a last bit;
    some input lies so near the middle of two whole numbers that it is rounded to the other one,
    and the passes soon differ by as much as int8 differs from float. A last bit of float64 is too
    small to survive the cast that follows.
    """
    return any(isinstance(part, Int8Linear) for part in module.modules())


def check_quantization(name: str, device: torch.device) -> None:
    """Raises ValueError for a name that is none, or where it cannot run."""
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantize {name!r} is unknown; choose {' or '.join(QUANTIZATIONS)}")
    if name != "none" and device.type != "cpu":
        raise ValueError(
            f"quantize {name!r} runs on a CPU only, not on {device.type}; choose --device cpu "
            "or --quantize none"
        )
