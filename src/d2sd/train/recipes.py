"""Full training configurations as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from d2sd.train.loop import Schedule


@dataclass(frozen=True)
class Recipe:
    """Shape of the drafters, and how long and on what they learn."""

    taps: tuple[int, ...]
    mask_token_id: int
    block_size: int = 8
    layers: int = 3
    intermediate_size: int = 704
    draft_vocab_size: int = 8192
    weight_decay: float = 4.0
    prefix_decay: float = 0.9
    first: Schedule = field(default_factory=lambda: Schedule(steps=5000))
    second: Schedule = field(default_factory=lambda: Schedule(steps=3000))
    sequences_per_batch: int = 16
    anchors_per_sequence: int = 64
    validation: int = 64
    evaluate_every: int = 500
    seed: int = 0

    def with_steps(self, first: int | None, second: int | None) -> Recipe:
        """The same recipe with other lengths, where they are given."""
        return replace(
            self,
            first=replace(self.first, steps=first or self.first.steps),
            second=replace(self.second, steps=second or self.second.steps),
        )


def smollm2_135m() -> Recipe:
    """The drafters shipped for SmolLM2-135M-Instruct: 7.3 M parameters each, 30 MB together."""
    return Recipe(
        taps=(10, 20, 28),
        mask_token_id=4,
        first=Schedule(6000, matrix_rate=3e-3, vector_rate=2e-3, cooldown=0.33),
        second=Schedule(2000, matrix_rate=3e-3, vector_rate=2e-3, cooldown=0.33),
        sequences_per_batch=6,
        anchors_per_sequence=48,
        validation=48,
    )


def find_recipe(name: str) -> Recipe:
    """A recipe by name. Raises ValueError that lists the names there are."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


RECIPES: dict[str, Callable[[], Recipe]] = {"smollm2-135m": smollm2_135m}


def drafter_config(recipe: Recipe, target: Any) -> dict[str, Any]:
    """config.json of a drafter for a target with this transformers config, in DFlash's keys."""
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": target.num_attention_heads,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": target.hidden_size // target.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": target.rms_norm_eps,
        "rope_parameters": target.rope_parameters,
        "max_position_embeddings": target.max_position_embeddings,
        "max_window_layers": recipe.layers,
        "layer_types": ["full_attention"] * recipe.layers,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": target.vocab_size,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "num_target_layers": target.num_hidden_layers,
        "block_size": recipe.block_size,
        "dflash_config": {
            "mask_token_id": recipe.mask_token_id,
            "target_layer_ids": list(recipe.taps),
        },
        "draft_vocab_size": recipe.draft_vocab_size,
        "dtype": "bfloat16",
    }
