"""Compiling the training step, where that can be done and pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Compiler = Callable[..., Callable[..., Any]]
"""`torch.compile`, or anything that returns an equal function."""

WORTHWHILE = 1_000_000
"""Weights from which on compiling, about a minute, is earned back."""


def choose_compiler(
    wanted: bool | None, network: nn.Module, tell: Callable[[str], None]
) -> Compiler:
    """`torch.compile` if it is wanted, or by itself for a network that is large enough.

    Where torch finds no working compiler, `tell` hears it and the step goes uncompiled, with equal
    numbers up to rounding.
    """
    size = sum(weight.numel() for weight in network.parameters())
    if wanted is False or (wanted is None and size < WORTHWHILE):
        return uncompiled
    problem = _problem(next(network.parameters()).device)
    if problem:
        tell(f"training goes on uncompiled and slower: {problem}")
        return uncompiled
    return torch.compile


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is."""
    return function


def _problem(device: torch.device) -> str | None:
    """Why nothing can be compiled here, found by compiling something small."""
    try:
        torch.compile(lambda x: x.sin() + x.cos())(torch.ones(64, device=device))
    except (RuntimeError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
