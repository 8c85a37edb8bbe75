"""Changing a recipe by name: from the command line, from one YAML file, and comparing recipes."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]

from d2sd.train.recipes import Recipe

LENGTHS = frozenset({"steps", "evaluate_every", "checkpoint_every"})
"""Last words of the settings that may differ when a training goes on."""


def read_config(path: str | Path) -> dict[str, object]:
    """Settings of a YAML file by dotted name: `first: {steps: 2000}` is `first.steps`.

    Raises ValueError when it can't be read or is no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings; write one 'name: value' a line")
    return dotted(values)


def read_assignments(assignments: Sequence[str]) -> dict[str, object]:
    """`name=value` of the command line, with values as YAML reads them."""
    changes: dict[str, object] = {}
    for assignment in assignments:
        name, found, value = assignment.partition("=")
        if not found:
            raise ValueError(
                f"{assignment!r} sets nothing; write NAME=VALUE, as in first.steps=500"
            )
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            changes[name.strip()] = value
    return changes


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, names joined by dots."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(dotted(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with these settings, by dotted name.

    Raises ValueError that names the setting when there is none of that name (with the names there
    are) or the value is of another kind.
    """
    for name, value in changes.items():
        recipe = _with(recipe, name.split("."), value, name)
    return recipe


def names(recipe: Recipe) -> list[str]:
    """Dotted names of all settings."""
    flat = []
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        if is_dataclass(value):
            flat += [f"{part.name}.{inner.name}" for inner in fields(value)]
        else:
            flat.append(part.name)
    return flat


def first_difference(old: Mapping[str, object], new: Mapping[str, object]) -> str | None:
    """A sentence about one setting that a training can't change on its way, if there is any."""
    for name in sorted(old.keys() | new.keys()):
        same = old.get(name) == new.get(name)
        if not same and name.split(".")[-1] not in LENGTHS:
            return f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
    return None


def _with(owner: Any, path: Sequence[str], value: object, name: str) -> Any:
    """`owner`, a dataclass, with the setting at `path` replaced."""
    head, *rest = path
    hints = get_type_hints(type(owner))
    if head not in hints or bool(rest) != is_dataclass(hints[head]):
        return _unknown(name)
    if rest:
        return replace(owner, **{head: _with(getattr(owner, head), rest, value, name)})
    return replace(owner, **{head: _read(value, hints[head], name)})


def _unknown(name: str) -> Any:
    known = ", ".join(names(Recipe()))
    raise ValueError(f"there is no setting {name!r}; the settings are {known}")


def _read(value: object, kind: Any, name: str) -> object:
    """`value` as a field of type `kind` holds it."""
    options = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    if type(None) in options and value in (None, "none"):
        return None
    kind = next(option for option in options if option is not type(None))
    words, reader = _READERS[kind]
    try:
        return reader(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; it must be {words}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)  # YAML reads 1e-3 as text


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _wholes(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return tuple(int(part) for part in value.split(","))
    return tuple(_whole(part) for part in (value if isinstance(value, list | tuple) else [value]))


_READERS: dict[Any, tuple[str, Callable[[Any], object]]] = {
    int: ("a whole number", _whole),
    float: ("a number", _number),
    bool: ("true or false", _truth),
    str: ("text", _text),
    tuple[int, ...]: ("whole numbers such as 2,9,16", _wholes),
}
