"""What a model card is about: the drafters in a folder, and what is written about their making."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from d2sd.card.curves import Training, read_training
from d2sd.card.findings import EvaluationFile, read_evaluation
from d2sd.drafters.config import DraftConfig

PARTS = ("first", "second", "one")
_NOT_THE_BODY = ("d2t", "t2d", "embed_tokens.", "lm_head.", "verifier_")


@dataclass(frozen=True)
class DrafterFacts:
    """A drafter's config, and what its weights file holds: parameters, type, bytes."""

    config: DraftConfig
    layout: str
    parameters: int
    dtype: str
    size: int


@dataclass(frozen=True)
class Wording:
    """What no file says: the licence, the target's name on the hub, a section by the author."""

    licence: str | None = None
    base_model: str | None = None
    notes: str | None = None


@dataclass(frozen=True)
class Subject:
    """Everything that a card is written from; what is missing was not measured."""

    drafters: Mapping[str, DrafterFacts]
    recipe: Mapping[str, Any] | None
    training: Training | None
    evaluations: tuple[EvaluationFile, ...]
    wording: Wording

    @property
    def target(self) -> str | None:
        """The target's name: the author's word, or else that of the evaluations or the training."""
        records = [evaluation.run for evaluation in self.evaluations]
        if self.training is not None and self.training.provenance is not None:
            records.append(self.training.provenance)
        names = [self.wording.base_model, *(record.get("model") for record in records)]
        return next((plain_name(str(name)) for name in names if name), None)


def plain_name(model: str) -> str:
    """A model's name without the place of its folder on somebody's disk."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def read_subject(folder: Path, evaluations: Sequence[Path], wording: Wording) -> Subject:
    """The drafters of a folder, which holds one or `first`, `second`, `one`, and their files.

    Raises ValueError when there is no drafter or a file is not what it should be.
    """
    parts = {name: folder / name for name in PARTS if (folder / name / "config.json").is_file()}
    if (folder / "config.json").is_file():
        parts = {"": folder}
    if not parts:
        raise ValueError(
            f"{folder} holds no drafter: neither config.json nor one of {', '.join(PARTS)}"
        )
    recipe, training = folder / "recipe.json", folder / "training.jsonl"
    return Subject(
        drafters={name: read_drafter(part) for name, part in parts.items()},
        recipe=_json(recipe) if recipe.is_file() else None,
        training=read_training(training) if training.is_file() else None,
        evaluations=tuple(read_evaluation(path) for path in evaluations),
        wording=wording,
    )


def read_drafter(folder: Path) -> DrafterFacts:
    """Facts of a drafter without reading its weights."""
    values = _json(folder / "config.json")
    file = folder / "model.safetensors"
    try:
        with safe_open(file, "np") as weights:
            names = [name for name in weights.keys() if not name.startswith(_NOT_THE_BODY)]  # noqa: SIM118
            slices = [weights.get_slice(name) for name in names]
            parameters = sum(prod(part.get_shape()) for part in slices)
            dtypes = sorted({part.get_dtype() for part in slices})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} can't be read: {error}") from None
    layout = "speculators" if values.get("speculators_model_type") else "DFlash"
    dtype = ", ".join(_DTYPES.get(each, each) for each in dtypes)
    return DrafterFacts(
        DraftConfig.from_json(values), layout, parameters, dtype, file.stat().st_size
    )


_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no JSON object")
    return values
