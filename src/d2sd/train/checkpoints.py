"""A training's whole state in one safetensors file: weights, optimizers, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Optimizers = Sequence[torch.optim.Optimizer]


def write_checkpoint(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizers: Optimizers,
    facts: Mapping[str, str],
) -> None:
    """Write everything that going on needs; a kill at any moment leaves the old file whole.

    `networks` by name; `facts` are short strings kept in the file's metadata.
    """
    state = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                state[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    # a clone of each: safetensors refuses tied weights, and state dicts hold them twice
    save_file(
        {k: v.detach().clone().contiguous() for k, v in state.items()}, unfinished, dict(facts)
    )
    unfinished.replace(path)


def read_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Optimizers
) -> dict[str, str] | None:
    """Fill networks and optimizers in place and return the facts; None when there is no file."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        facts = dict(file.metadata() or {})
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    for name, network in networks.items():
        network.load_state_dict(_below(state, f"{name}."))
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        whole["state"] = _nested(_below(state, f"optimizer.{number}."))
        optimizer.load_state_dict(whole)
    return facts


def lighten(source: Path, goal: Path) -> None:
    """A copy of a checkpoint in half the bytes: matrices and their momentum in bfloat16.

    A training goes on from it as from the whole one, but for that rounding.
    """
    with safe_open(source, "pt") as file:
        facts = dict(file.metadata() or {})
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    light = {
        key: value.bfloat16() if value.ndim > 1 and value.dtype == torch.float32 else value
        for key, value in state.items()
    }
    save_file(light, goal, facts)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _nested(state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    nested: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, key = name.split(".")
        nested.setdefault(int(index), {})[key] = value
    return nested
