"""From the options of `d2sd train` to what is trained on. Imported once the command runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers

from d2sd.cli.progress import meter
from d2sd.cli.terminal import note
from d2sd.cli.train import DataOptions, PlaceOptions, RecipeOptions, TrainingOptions
from d2sd.drafters.network import DraftNetwork
from d2sd.models.resolve import resolve
from d2sd.session import ModelChoice, load_tokenizer
from d2sd.target.load import load_model
from d2sd.train.features import FeatureSource, OnlineFeatures
from d2sd.train.mask_token import choose_mask_token
from d2sd.train.material import Material, draft_vocabulary, like_drafter
from d2sd.train.parallel import Processes, local_device, processes_here
from d2sd.train.recipes import RECIPES, Recipe, completed, find_recipe
from d2sd.train.responses import Response, read_responses
from d2sd.train.settings import changed, read_assignments, read_config
from d2sd.train.store import build_store, store_bytes


@dataclass(frozen=True)
class Target:
    """The target on this process's device, and the other processes."""

    name: str
    folder: str
    model: Any
    processes: Processes

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    def tell(self, words: str) -> None:
        """A remark, from the first process alone."""
        if self.processes.is_first:
            note(words)


@dataclass(frozen=True)
class Drafters:
    """Drafters that a training builds on."""

    first: DraftNetwork | None
    start: DraftNetwork | None


@contextmanager
def joined(options: PlaceOptions) -> Iterator[Target]:
    """The loaded target and the processes of this training, until the block ends."""
    device = local_device(ModelChoice(options.model, device=options.device).torch_device())
    processes = processes_here(device)
    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        if not processes.is_first:
            processes.wait()  # the first one may have to fetch the weights
        transformers.utils.logging.disable_progress_bar()
        folder = resolve(options.model, note)
        if processes.is_first:
            processes.wait()
        model = load_model(folder, torch.bfloat16).to(device).eval().requires_grad_(False)
        yield Target(options.model, folder, model, processes)
    finally:
        processes.close()


def time_limit(minutes: float | None, processes: Processes) -> float:
    """Seconds that a training may take. ValueError for several processes: their clocks differ."""
    if minutes is None:
        return float("inf")
    if processes.count > 1:
        raise ValueError("--minutes is for one process; leave it out or start one process")
    return 60 * minutes


def prepared(
    paths: Sequence[Path],
    options: TrainingOptions,
    wanted: RecipeOptions,
    data: DataOptions,
    target: Target,
) -> tuple[Material, Drafters]:
    """Recipe, responses and features, and the drafters to build on. ValueError for any misfit."""
    if data.features not in ("online", "stored"):
        raise ValueError(f"features is {data.features!r}; choose online or stored")
    if data.broken not in ("stop", "skip"):
        raise ValueError(f"broken is {data.broken!r}; choose stop or skip")
    if options.stage == "eagle" and options.start:
        raise ValueError(
            f"an EAGLE-3 head can't begin with the block drafter {options.start!r}; leave --start "
            "out, or give it as --first for its taps and draft vocabulary"
        )
    base = options.first or options.start
    recipe = _recipe(wanted, target.name, base)
    broken = cast(Literal["stop", "skip"], data.broken)
    responses = read_responses(paths, recipe.max_length, broken, target.tell)
    recipe = completed(recipe, target.config, lambda: _mask_token(target, responses))
    draft_ids = draft_vocabulary(recipe, responses, base)
    build = _stored if data.features == "stored" else _online
    source = build(target, responses, recipe, draft_ids, options.work / "store")
    material = Material(recipe, target.model, responses, source)
    first = material.load(options.first) if options.first else None
    start = material.load(options.start) if options.start else None
    return material, Drafters(first, start)


def _recipe(wanted: RecipeOptions, model: str, base: str | None) -> Recipe:
    """The named recipe in the shape of the drafter `base`, then the file, then --set."""
    in_file = read_config(wanted.config) if wanted.config else {}
    named = in_file.pop("recipe", None)
    name = wanted.recipe or named or (model if model in RECIPES else "default")
    recipe = find_recipe(str(name))
    if base is not None:
        recipe = like_drafter(recipe, base)
    return changed(changed(recipe, in_file), read_assignments(wanted.changes))


def _mask_token(target: Target, responses: Sequence[Response]) -> int:
    used = (token for response in responses for token in response.tokens)
    found = choose_mask_token(load_tokenizer(target.folder), target.config.vocab_size, used)
    target.tell(f"mask token {found.id} ({found.reason}); --set mask_token_id=ID takes another")
    return found.id


def _online(
    target: Target, responses: Sequence[Response], recipe: Recipe, draft_ids: list[int], _: Path
) -> FeatureSource:
    return OnlineFeatures(target.model, responses, recipe.taps or (), draft_ids)


def _stored(
    target: Target,
    responses: Sequence[Response],
    recipe: Recipe,
    draft_ids: list[int],
    folder: Path,
) -> FeatureSource:
    """The store, made by the first process while the others wait."""
    taps, tokens = recipe.taps or (), sum(map(len, responses))
    size = store_bytes(tokens, len(taps), target.config.hidden_size)
    target.tell(f"features of {tokens} tokens: {size} bytes ({size / 1e9:.2f} GB) in {folder}")

    def build(progress: Callable[[int, int], None]) -> FeatureSource:
        return build_store(target.model, responses, folder, taps, draft_ids, progress)

    if not target.processes.is_first:
        target.processes.wait()
    with meter("features of the target", target.processes.is_first) as move:
        source = build(move)
    if target.processes.is_first:
        target.processes.wait()
    return source
