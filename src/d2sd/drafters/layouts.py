"""The two layouts of a drafter on disk: DFlash's own, and the one of `speculators` (vLLM).

The body's weights have the same names and bits in both. What differs is config.json, and that
speculators keeps, beside a reduced draft vocabulary, the mask `t2d` and those rows of the target's
output head (its 0.9.0: `models/dflash/config.py`, `models/dflash/core.py`, `model.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.drafters.config import DraftConfig

SPECULATORS_VERSION = "0.9.0"  # whose schema is written
_SAID_ELSEWHERE = ("mask_token_id", "target_layer_ids", "is_causal", "causal", "block_size")
_NO_LAYERS = ("architectures", "auto_map", "dflash_config", "draft_vocab_size", *_SAID_ELSEWHERE)


@dataclass(frozen=True)
class Stored:
    """A drafter as it lies on disk, whatever its layout: `values` are under DFlash's keys."""

    values: dict[str, Any]
    config: DraftConfig
    body: dict[str, Tensor]
    draft_ids: Int[Tensor, " draft_vocab"] | None

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.body.values())).dtype


@dataclass(frozen=True)
class TargetSide:
    """What the speculators layout keeps of the target: its name, and `head`, if it is reduced."""

    name: str | None
    architectures: tuple[str, ...]
    head: Float[Tensor, "draft_vocab hidden"] | None


@dataclass(frozen=True)
class Packed:
    """What a layout's folder holds, and what its readers must be told."""

    values: dict[str, Any]
    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def as_dflash(stored: Stored) -> Packed:
    """DFlash's layout: the body alone; a reduced vocabulary as `d2t`, which only d2sd reads."""
    values = {key: value for key, value in stored.values.items() if key != "auto_map"}
    if stored.draft_ids is None:
        values.pop("draft_vocab_size", None)
        return Packed(values, stored.body)
    note = (
        f"its draft vocabulary of {len(stored.draft_ids)} tokens (d2t) is d2sd's addition to the "
        "DFlash layout; for vLLM export it as speculators"
    )
    return Packed(values, {**stored.body, "d2t": _offsets(stored.draft_ids)}, (note,))


def as_speculators(stored: Stored, target: TargetSide) -> Packed:
    """The layout of speculators 0.9, with the weights its own `save_pretrained` writes.

    What DFlash's config says and speculators' does not, such as fitted temperatures, goes under
    `d2sd_config`. Raises ValueError for a drafter that the layout cannot say.
    """
    inner = stored.values.get("dflash_config") or {}
    ours = {key: value for key, value in inner.items() if key not in _SAID_ELSEWHERE}
    notes = (*_attention_notes(stored.config), *_factor_notes(stored.config))
    if ours:
        notes += (f"{', '.join(ours)} went under d2sd_config, which only d2sd reads",)
    values = _speculators_values(stored, target)
    if ours:
        values["d2sd_config"] = ours
    return Packed(values, {**stored.body, **_vocabulary(stored, target)}, notes)


def _speculators_values(stored: Stored, target: TargetSide) -> dict[str, Any]:
    config = stored.config
    layers = {key: value for key, value in stored.values.items() if key not in _NO_LAYERS}
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": "dflash",
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": config.block_size - 1}
            ],
            "verifier": {"name_or_path": target.name, "architectures": list(target.architectures)},
        },
        "transformer_layer_config": {**layers, "model_type": "qwen3"},
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "aux_hidden_state_layer_ids": [tap + 1 for tap in config.taps],
        "draft_vocab_size": config.draft_vocab_size,
        # vLLM 0.33 takes an explicit false for every layer, the full ones too
        "sliding_window_non_causal": not any(config.causal),
        "sample_from_anchor": False,
        "tie_word_embeddings": False,
        "dtype": str(stored.dtype).removeprefix("torch."),
    }


def _vocabulary(stored: Stored, target: TargetSide) -> dict[str, Tensor]:
    """d2t, t2d and the head's rows of a reduced vocabulary, in the order of target ids."""
    if stored.draft_ids is None:
        return {}
    assert target.head is not None
    ids, order = stored.draft_ids.sort()
    known = torch.zeros(stored.config.vocab_size, dtype=torch.bool)
    known[ids] = True
    head = target.head[order].to(stored.dtype)
    return {"d2t": _offsets(ids), "t2d": known, "lm_head.weight": head}


def _offsets(ids: Tensor) -> Tensor:
    return (ids - torch.arange(len(ids))).to(torch.int64)


def _attention_notes(config: DraftConfig) -> Iterator[str]:
    """Raises ValueError for full-attention layers that are causal: the layout has none."""
    layers = list(zip(config.windows, config.causal, strict=True))
    if any(causal and window is None for window, causal in layers):
        raise ValueError(
            "the drafter's full-attention layers are causal, which the speculators layout cannot "
            "say; keep it in the DFlash layout"
        )
    if any(config.causal) and not all(config.causal):
        yield (
            "it mixes causal sliding layers with bidirectional full ones; vLLM 0.33 makes the "
            "full ones causal too"
        )
    if any(window is not None for window, _ in layers):
        yield "speculators counts a sliding window from the anchor, DFlash from each slot"


def _factor_notes(config: DraftConfig) -> Iterator[str]:
    factors = {
        "input_embedding_scale": config.embedding_scale != 1,
        "output_multiplier": config.output_multiplier != 1,
        "final_logit_softcapping": config.logit_softcap is not None,
    }
    for key, is_set in factors.items():
        if is_set:
            yield f"speculators knows no {key}; only d2sd applies it"
