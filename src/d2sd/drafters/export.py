"""A drafter written for other engines, as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file

from d2sd.drafters.checkpoint import WEIGHTS, find_drafter, load_network, read_weights
from d2sd.drafters.config import from_speculators
from d2sd.drafters.layouts import Packed, Stored, TargetSide, as_dflash, as_speculators
from d2sd.provenance import provenance

LAYOUTS = ("dflash", "speculators", "vllm")
RECORD = "provenance.json"
PARTS = ("first", "second", "one")


def export(
    source: str | Path, out: Path, layout: str, target: str | None = None
) -> tuple[str, ...]:
    """Write the drafter `source` into the folder `out` in `layout`; gives notes for the user.

    `source` may also be the folder of a whole training, which holds `first` and `second` or `one`;
    so will `out`. `out` appears, or is replaced, as a whole: an export that dies half-way leaves
    what was there. `target`, a folder or a hub id, is what the speculators layout names as its
    verifier. The layout "vllm" is one drafter, the first, as vLLM's own method "dflash" reads it.
    Raises ValueError.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    folders = _drafters_in(source)
    notes: list[str] = []
    if layout == "vllm":
        if len(folders) > 1:
            notes.append("vLLM itself drafts with one network: the second drafter is left out")
        folders = {"": next(iter(folders.values()))}
    packed = {part: _packed(folder, layout, target) for part, folder in folders.items()}
    _check_free(out, folders)
    with whole_folder(out) as unfinished:
        for part, folder in folders.items():
            _write(packed[part], unfinished / part, folder)
    notes += [note for part in packed.values() for note in part.notes]
    if layout != "dflash" and target and Path(target).is_dir():
        notes.append(f"its config.json names the target by its place here, {target}")
    if layout == "vllm":
        notes.append(f"vllm serve TARGET --speculative-config '{_served(out, packed[''].values)}'")
    return tuple(dict.fromkeys(notes))


def read_stored(folder: Path) -> Stored:
    """A drafter of either layout. Raises ValueError where it can't be decoded with."""
    network = load_network(folder)
    values = json.loads((folder / "config.json").read_text())
    if values.get("speculators_model_type"):
        values = from_speculators(values)
    weights = read_weights(folder)
    body = {name: weights[name] for name in network.state_dict()}
    return Stored(values, network.config, body, network.draft_ids)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name when the block ends well.

    The folder that stood there goes only once the new one is complete. Between the two renames it
    is called `.OUT.old`; should we die there, the next call puts it back first.
    """
    unfinished, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if out.exists():
        out.rename(old)
    unfinished.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _drafters_in(source: str | Path) -> dict[str, Path]:
    """A drafter's folder by its name in the export: '' for a single one."""
    folder = Path(source)
    parts = {name: folder / name for name in PARTS if (folder / name / "config.json").is_file()}
    if parts and not (folder / "config.json").is_file():
        return parts
    return {"": find_drafter(source)}


def _packed(folder: Path, layout: str, target: str | None) -> Packed:
    stored = read_stored(folder)
    if layout == "dflash":
        return as_dflash(stored)
    return as_speculators(stored, _target_side(stored, folder, target))


def _served(folder: Path, values: dict[str, Any]) -> str:
    """What `--speculative-config` of vLLM takes for the exported drafter."""
    tokens = values["block_size"] - 1
    return json.dumps(
        {"method": "dflash", "model": str(folder.resolve()), "num_speculative_tokens": tokens}
    )


def _check_free(out: Path, folders: dict[str, Path]) -> None:
    """Raises ValueError when `out` holds something that is no export of ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the export")
    place = out.resolve()
    for folder in folders.values():
        if place in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"{out} holds the drafter itself; export it to another folder")
    ours = {*PARTS, "config.json", WEIGHTS, RECORD}
    foreign = sorted(set(os.listdir(out)) - ours) if out.exists() else []
    if foreign:
        raise ValueError(
            f"{out} holds {foreign[0]}, which the export would remove; choose another folder"
        )


def _write(packed: Packed, folder: Path, source: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in packed.weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner can read
    (folder / "config.json").write_text(json.dumps(packed.values, indent=2) + "\n")
    record = provenance(torch.device("cpu"), seed=0)
    if (source / RECORD).is_file():
        record["drafter"] = json.loads((source / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _target_side(stored: Stored, folder: Path, target: str | None) -> TargetSide:
    """From the target, or else from the speculators folder that is exported once more."""
    if target is None:
        return _kept_target_side(stored, folder)
    described = json.loads(_target_file(target, "config.json").read_text())
    _check_fit(stored, described.get("text_config") or described, target)
    head = None if stored.draft_ids is None else _head(target)[stored.draft_ids]
    return TargetSide(target, tuple(described.get("architectures") or ()), head)


def _kept_target_side(stored: Stored, folder: Path) -> TargetSide:
    values = json.loads((folder / "config.json").read_text())
    kept = (values.get("speculators_config") or {}).get("verifier")
    head = read_weights(folder).get("lm_head.weight")
    if kept is None or (stored.draft_ids is not None and head is None):
        raise ValueError(
            "the speculators layout names its target and, for a reduced draft vocabulary, keeps "
            "part of its output head; give the target with --model"
        )
    return TargetSide(kept.get("name_or_path"), tuple(kept.get("architectures") or ()), head)


def _check_fit(stored: Stored, text: dict[str, Any], target: str) -> None:
    for key in ("hidden_size", "vocab_size"):
        ours = getattr(stored.config, key)
        if text.get(key) != ours:
            raise ValueError(
                f"the drafter's {key} is {ours}, that of the target {target} is {text.get(key)}; "
                "give the target it was trained for"
            )


def _head(target: str) -> Tensor:
    """The target's output head [vocab, hidden], which may be its embedding; only that is read."""
    try:
        index = json.loads(_target_file(target, WEIGHTS + ".index.json").read_text())
        files: dict[str, str] = index["weight_map"]
    except ValueError:
        with safe_open(_target_file(target, WEIGHTS), framework="pt") as file:
            files = dict.fromkeys(file.keys(), WEIGHTS)
    for ending in ("lm_head.weight", "embed_tokens.weight"):
        for name in sorted(files, key=len):
            if name.endswith(ending):
                with safe_open(_target_file(target, files[name]), framework="pt") as file:
                    return file.get_tensor(name)
    raise ValueError(f"the target {target} has neither lm_head.weight nor embed_tokens.weight")


def _target_file(target: str, name: str) -> Path:
    """One file of a folder or of a hub id, fetched where it must be."""
    try:
        found = cached_file(target, name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the target {target} cannot be read: {reason}") from None
    if found is None:  # what transformers says of a config.json that is not there
        raise ValueError(f"the target {target} cannot be read: it has no {name}")
    return Path(str(found))
