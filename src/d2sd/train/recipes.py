"""Full training configurations as functions, and what a target adds to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from d2sd.drafters.config import default_taps
from d2sd.train.objectives import parse_objective
from d2sd.train.optimizers import OPTIMIZERS
from d2sd.train.schedule import Schedule


@dataclass(frozen=True)
class Recipe:
    """Shape of the drafters, and how long and on what they learn.

    A setting that is None is chosen for the target by `completed`.
    """

    taps: tuple[int, ...] | None = None
    """Target layers read; None: as many as the drafter's layers, evenly spaced."""
    mask_token_id: int | None = None
    """Stands where a token is to be drafted; None: one that the target never uses."""
    block_size: int = 8
    layers: int | None = 3
    """None: a sixth of the target's, 1 to 5."""
    intermediate_size: int | None = 704
    """Width of the feed-forward layers; None: the target's."""
    draft_vocab_size: int = 8192
    prefix_decay: float = 0.9
    """How the second drafter's visible prefixes thin out with their length."""
    anchor_share: float = 0.5
    """Share of blocks that show the anchor alone, when one network learns both passes."""
    reanchored: bool = False
    """Let visible prefixes end at tokens that were hard to foresee (see `masking.Reanchored`)."""
    first: Schedule = field(default_factory=lambda: Schedule(steps=5000))
    second: Schedule = field(default_factory=lambda: Schedule(steps=3000))
    one: Schedule = field(default_factory=lambda: Schedule(steps=8000))
    eagle: Schedule = field(default_factory=lambda: Schedule(steps=3000))
    """Of the EAGLE-3 head, whose chains are as long as the blocks."""
    sequences_per_batch: int = 16
    """Over all micro-batches and processes."""
    anchors_per_sequence: int = 64
    accumulate: int = 1
    """Micro-batches that a batch is cut into, for memory; the numbers stay the same."""
    ema: float = 0.0
    """Decay of the averaged weights, which are then measured and exported; 0: no average."""
    max_length: int = 512
    """Tokens after which a response is cut, prompt included."""
    validation: int = 64
    """Responses held out."""
    evaluate_every: int = 500
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: three minutes."""
    start: str = "target"
    """First weights: from the target's last layers, or random."""
    compile: bool | None = None
    """None: where a compiler is at hand and the drafter is large enough to gain from it."""
    seed: int = 0

    def with_steps(self, first: int | None, second: int | None) -> Recipe:
        """The same recipe with other lengths, where they are given."""
        return replace(
            self,
            first=replace(self.first, steps=first or self.first.steps),
            second=replace(self.second, steps=second or self.second.steps),
        )


def default() -> Recipe:
    """For any target: blocks of 16 (DFlash), sizes and taps from the target's config.

    First weights and objective are those that learned fastest on the proving ground (decisions 10
    and 11).
    """
    return Recipe(
        block_size=16,
        layers=None,
        intermediate_size=None,
        draft_vocab_size=32_000,
        first=Schedule(5000, objective="dpace"),
        second=Schedule(3000, objective="dpace"),
        one=Schedule(8000, objective="dpace"),
        start="random",
        max_length=2048,
    )


def smollm2_135m() -> Recipe:
    """The drafters shipped for SmolLM2-135M-Instruct: 7.3 M parameters each, 30 MB together."""
    return Recipe(
        taps=(10, 20, 28),
        mask_token_id=4,
        block_size=8,
        layers=3,
        intermediate_size=704,
        draft_vocab_size=8192,
        first=Schedule(6000, matrix_rate=3e-3, vector_rate=2e-3, cooldown=0.33),
        second=Schedule(2000, matrix_rate=3e-3, vector_rate=2e-3, cooldown=0.33),
        one=Schedule(8000, matrix_rate=3e-3, vector_rate=2e-3, cooldown=0.33),
        sequences_per_batch=6,
        anchors_per_sequence=48,
        validation=48,
    )


def smollm2_135m_gpu() -> Recipe:
    """For the same target on a GPU, some hundred million slots a stage: 11.9 M parameters each.

    Weights and momentum in bfloat16 are 48 MB, small enough to be carried from sitting to sitting.
    """
    return Recipe(
        mask_token_id=4,
        block_size=16,
        layers=4,
        intermediate_size=1024,
        draft_vocab_size=16384,
        first=Schedule(5000, 3e-3, 2e-3, warmup=100, cooldown=0.33, objective="dpace"),
        second=Schedule(2500, 3e-3, 2e-3, warmup=100, cooldown=0.33, objective="dpace"),
        one=Schedule(7000, 3e-3, 2e-3, warmup=100, cooldown=0.33, objective="dpace"),
        eagle=Schedule(2500, 3e-3, 2e-3, warmup=100, cooldown=0.33),
        sequences_per_batch=64,
        anchors_per_sequence=64,
        validation=128,
        evaluate_every=250,
        max_length=1024,
    )


def proving_ground() -> Recipe:
    """Drafters for the small target of `d2sd proving-ground`: 1.8 M parameters each."""
    return Recipe(
        taps=(1, 3, 4),
        mask_token_id=3,
        block_size=16,
        layers=2,
        intermediate_size=768,
        draft_vocab_size=4096,
        first=Schedule(5500, 4e-3, 2e-3, cooldown=0.33, objective="soft:tau=7,hard=0.5"),
        second=Schedule(1500, 4e-3, 2e-3, cooldown=0.33, objective="soft:tau=7,hard=0.5"),
        one=Schedule(7000, 4e-3, 2e-3, cooldown=0.33, objective="soft:tau=7,hard=0.5"),
        sequences_per_batch=6,
        anchors_per_sequence=48,
        validation=96,
        evaluate_every=200,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "default": default,
    "smollm2-135m": smollm2_135m,
    "smollm2-135m-gpu": smollm2_135m_gpu,
    "proving-ground": proving_ground,
}


def find_recipe(name: str) -> Recipe:
    """A recipe by name. Raises ValueError that lists the names there are."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def completed(recipe: Recipe, target: Any, mask_token_id: Callable[[], int]) -> Recipe:
    """The recipe with everything that it leaves to the target, whose transformers config is given.

    `mask_token_id` chooses the mask token when the recipe names none. Raises ValueError for a
    drafter with more layers than the target and for taps and sizes that can't be.
    """
    count = target.num_hidden_layers
    layers = min(max(count // 6, 1), 5) if recipe.layers is None else recipe.layers
    token = recipe.mask_token_id
    recipe = replace(
        recipe,
        layers=layers,
        taps=_spaced(count, layers) if recipe.taps is None else recipe.taps,
        mask_token_id=mask_token_id() if token is None else token,
        intermediate_size=recipe.intermediate_size or target.intermediate_size,
        draft_vocab_size=min(recipe.draft_vocab_size, target.vocab_size),
    )
    _check(recipe, target)
    return recipe


def _spaced(num_target_layers: int, count: int) -> tuple[int, ...]:
    """`default_taps`, or the last layers of a target that is too shallow for them."""
    taps = default_taps(num_target_layers, count)
    if len(set(taps)) == count and all(0 <= tap < num_target_layers for tap in taps):
        return taps
    return tuple(range(max(num_target_layers - count, 0), num_target_layers))


def _check(recipe: Recipe, target: Any) -> None:
    """Raises ValueError for the first setting that no training can have."""
    _check_choices(recipe)
    schedules = (recipe.first, recipe.second, recipe.one)
    counts = {
        "steps": min(schedule.steps for schedule in schedules),
        "accumulate": recipe.accumulate,
        "anchors_per_sequence": recipe.anchors_per_sequence,
        "evaluate_every": recipe.evaluate_every,
        "checkpoint_every": 1 if recipe.checkpoint_every is None else recipe.checkpoint_every,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be 1 or more")
    if not 0 <= recipe.ema < 1:
        raise ValueError(f"ema is {recipe.ema}; it must be 0 or more and below 1")
    if recipe.sequences_per_batch < recipe.accumulate:
        raise ValueError(
            f"sequences_per_batch is {recipe.sequences_per_batch}, fewer than the "
            f"{recipe.accumulate} micro-batches of accumulate"
        )
    _check_shape(recipe, target)


def _check_choices(recipe: Recipe) -> None:
    """Raises ValueError for a name that is none of the known ones."""
    for schedule in (recipe.first, recipe.second, recipe.one):
        parse_objective(schedule.objective)
        if schedule.optimizer not in OPTIMIZERS:
            known = " or ".join(OPTIMIZERS)
            raise ValueError(f"optimizer is {schedule.optimizer!r}; choose {known}")
    if recipe.start not in ("target", "random"):
        raise ValueError(f"start is {recipe.start!r}; choose target or random")


def _check_shape(recipe: Recipe, target: Any) -> None:
    """Raises ValueError where the drafter does not fit the target."""
    layers, tokens = target.num_hidden_layers, target.vocab_size
    assert recipe.taps is not None
    assert recipe.mask_token_id is not None
    assert recipe.layers is not None
    if recipe.block_size < 2:
        raise ValueError(f"block_size is {recipe.block_size}; it must be 2 or more")
    if not 1 <= recipe.layers <= layers:
        raise ValueError(
            f"layers is {recipe.layers}; the target has {layers}, choose 1 to {layers}"
        )
    if not recipe.taps or not all(0 <= tap < layers for tap in recipe.taps):
        raise ValueError(f"taps are {list(recipe.taps)}; the target has layers 0 to {layers - 1}")
    if not 0 <= recipe.mask_token_id < tokens:
        raise ValueError(
            f"mask_token_id is {recipe.mask_token_id}; the target embeds tokens 0 to {tokens - 1}"
        )


def drafter_config(recipe: Recipe, target: Any) -> dict[str, Any]:
    """config.json of a drafter for a target with this transformers config, in DFlash's keys."""
    assert recipe.layers is not None
    heads, layers = target.num_attention_heads, recipe.layers
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": target.num_key_value_heads,
        "head_dim": getattr(target, "head_dim", None) or target.hidden_size // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": target.rms_norm_eps,
        "rope_parameters": target.rope_parameters,
        "max_position_embeddings": target.max_position_embeddings,
        "max_window_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": target.vocab_size,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "num_target_layers": target.num_hidden_layers,
        "block_size": recipe.block_size,
        "dflash_config": {
            "mask_token_id": recipe.mask_token_id,
            "target_layer_ids": list(recipe.taps or ()),
        },
        "draft_vocab_size": recipe.draft_vocab_size,
        "dtype": "bfloat16",
    }
