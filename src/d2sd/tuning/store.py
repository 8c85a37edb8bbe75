"""Cost tables in the user's cache: one file for each thing that costs depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from d2sd.costs import CostTable
from d2sd.drafters.network import DraftNetwork
from d2sd.journal import write_record
from d2sd.models.resolve import cached_folder
from d2sd.networks import Networks
from d2sd.provenance import device_name
from d2sd.target.hf import HFTarget
from d2sd.tuning.measure import Scope

FORMAT = 1
"""Raised when the meaning of a stored figure changes: older files are measured anew."""

Key = Mapping[str, object]
"""All that costs depend on, ready for JSON."""


@dataclass(frozen=True)
class StoredCosts:
    """A table, what was measured for it, and where and when."""

    table: CostTable
    scope: Scope
    run: Mapping[str, object]


def cost_key(config: Any, target: HFTarget, networks: Networks) -> Key:
    """What the costs of a target (with its transformers config) and its drafters depend on.

    Shapes and not weights or names: a model costs the same whatever it was trained on and
    wherever it lies.
    """
    return {
        "format": FORMAT,
        "target": _digest(_shape(config)),
        "attention": config.get_text_config(decoder=True)._attn_implementation,
        "first": _drafter(networks.first, target, networks),
        "second": _drafter(networks.second, target, networks),
        "device": device_name(target.device),
        "processor": processor(),
        "dtype": str(target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "pass": type(target.run).__name__,
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }


def cost_file(key: Key) -> Path:
    """Where the table of `key` lies, if it does: under D2SD_CACHE or the user's cache."""
    return cached_folder("costs") / f"{_digest(key)[:16]}.json"


def stored_costs(key: Key) -> StoredCosts | None:
    """The stored table of `key`; None where there is none, or it is damaged."""
    try:
        values = json.loads(cost_file(key).read_text(encoding="utf-8"))
        if values["key"] != key:
            return None
        scope = Scope(**{name: _tupled(part) for name, part in values["scope"].items()})
        return StoredCosts(CostTable.from_json(values["costs"]), scope, values["run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store_costs(key: Key, stored: StoredCosts) -> Path:
    """Write a table for later sessions, whole or not at all. ValueError where that can't be."""
    file = cost_file(key)
    values = {
        "key": key,
        "scope": asdict(stored.scope),
        "costs": stored.table.to_json(),
        "run": stored.run,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_record(file, values)
    except OSError as error:
        raise ValueError(
            f"{file} can't be written ({error.strerror}); free some space or name another "
            "folder in D2SD_CACHE"
        ) from error
    return file


def _tupled(part: Any) -> Any:
    return tuple(part) if isinstance(part, list) else part


def _shape(config: Any) -> dict[str, object]:
    """A transformers config without the names of files and versions."""
    values: dict[str, object] = config.to_dict()
    return {name: value for name, value in values.items() if name not in _NOT_SHAPE}


_NOT_SHAPE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def _drafter(
    network: DraftNetwork | None, target: HFTarget, networks: Networks
) -> list[str] | None:
    if network is None:
        return None
    parts = {part.name: getattr(network.config, part.name) for part in fields(network.config)}
    del parts["temperatures"]
    digest = _digest({**parts, "network": _shape(network.config.network)})
    return [digest, type(networks.passes.of(network, target)).__name__]


def processor() -> str:
    """The CPU's model, where the system tells it: a cache may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
