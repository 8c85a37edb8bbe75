"""Compiled passes in the user's cache: made once for a model on a machine, used ever after."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2sd.drafters.compiled import CompiledDraftPass, compile_draft, is_compiled
from d2sd.drafters.network import DraftNetwork
from d2sd.drafters.passes import EagerDraftPass
from d2sd.models.resolve import cached_folder
from d2sd.networks import Networks
from d2sd.provenance import device_name
from d2sd.target.compiled import CompiledPass, compile_pass
from d2sd.target.hf import HFTarget
from d2sd.target.taps import decoder_layers
from d2sd.tuning.store import processor

FORMAT = 2
"""Raised when a compiled pass is called otherwise than before: older packages are left alone."""
SAMPLED = 64
"""Numbers of each weight that tell one model from another."""
TARGET = "target.pt2"


@dataclass(frozen=True)
class Compilable:
    """A target, its transformers model and its drafters, whose passes can be compiled."""

    model: Any
    target: HFTarget
    networks: Networks

    @property
    def target_package(self) -> Path:
        """The file of the target's compiled pass, whether it is there or not."""
        layers = ",".join(map(str, self.target.taps))
        folder = package_folder(self.model, self.target.device, taps=layers, reads="embeddings")
        return folder / TARGET

    @property
    def drafters(self) -> Iterator[tuple[DraftNetwork, Path]]:
        """Every network once, with the folder of its compiled passes."""
        both = (self.networks.first, self.networks.second)
        for network in dict.fromkeys(network for network in both if network is not None):
            network.to(device=self.target.device, dtype=self.target.dtype)
            head = fingerprint(self.target.head)
            config = str(network.config)
            yield network, package_folder(network, self.target.device, head=head, config=config)


def package_folder(module: nn.Module, device: torch.device, **more: str) -> Path:
    """Where a module's compiled passes lie: a name of its own for whatever makes them others."""
    key: Mapping[str, object] = {
        "format": FORMAT,
        "weights": fingerprint(module),
        "device": device_name(device),
        "processor": processor(),
        "versions": {package: version(package) for package in ("torch", "transformers")},
        **more,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cached_folder("compiled") / digest[:16]


def compile_all(passes: Compilable, tell: Callable[[str], object]) -> None:
    """Compile what is not compiled yet; `tell` hears what takes long.

    Raises what torch raises where it cannot compile: see `CANNOT_COMPILE`.
    """
    if not passes.target_package.exists():
        tell("compiling the target's pass: a minute or two")
        compile_pass(passes.model, passes.target.taps, passes.target_package)
    for network, folder in passes.drafters:
        if not is_compiled(folder):
            tell("compiling a drafter's passes: half a minute")
            compile_draft(network, passes.target.head, folder)


def use_compiled(passes: Compilable, keep_layers: bool = False) -> bool:
    """Let target and drafters run their compiled passes, where there are some for all of them.

    The model's own decoder layers are dropped then, unless they are to be kept: their weights
    are in the packages. Its embedding stays: the passes of target and drafters share it.
    """
    drafters = list(passes.drafters)
    if not passes.target_package.exists() or not all(is_compiled(path) for _, path in drafters):
        return False
    target, model = passes.target, passes.model
    package = passes.target_package  # found by the weights, so before they go
    if not keep_layers:
        config = model.config.get_text_config(decoder=True)
        decoder_layers(model.base_model, config.num_hidden_layers).to("meta")
        give_back_memory()
    target.run = CompiledPass(package, model)
    for network, folder in drafters:
        eager = EagerDraftPass(network, target.embed, target.head)
        passes.networks.passes.set(network, target, CompiledDraftPass(folder, eager))
    return True


def give_back_memory() -> None:
    """Hand freed memory back to the system where the C library would keep it (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def fingerprint(module: nn.Module) -> str:
    """Tells weights from others: names, shapes and some numbers of each, spread evenly."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.float().numpy().tobytes())
    return digest.hexdigest()
