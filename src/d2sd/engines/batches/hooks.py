"""Functions of an engine that we subclass or call, looked for before anything is run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hook:
    """A function of an engine, and the parameters that we give it or are given."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()


def missing(hooks: Sequence[Hook]) -> list[str]:
    """What is not there, or is called otherwise, in the engine installed; [] is all well."""
    return [fault for hook in hooks if (fault := _fault(hook))]


def _fault(hook: Hook) -> str | None:
    place = f"{hook.module}.{hook.name}"
    try:
        found: object = importlib.import_module(hook.module)
        for part in hook.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return f"{place} is not there"
    assert callable(found)
    known = inspect.signature(found).parameters
    lacking = [name for name in hook.parameters if name not in known]
    return f"{place} has no parameter {', '.join(lacking)}" if lacking else None
