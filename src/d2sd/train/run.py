"""The one run that makes both drafters: features, first, second, calibration, export."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from d2sd.drafters.checkpoint import save_network
from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork
from d2sd.train.attention import use_fast_attention
from d2sd.train.batches import BlockRecipe, BlockSampler
from d2sd.train.evaluate import Acceptance, Evaluator
from d2sd.train.features import FeatureSource
from d2sd.train.loop import Compiler, StepReport, Trainer
from d2sd.train.masking import AnchorOnly, TruncatedGeometric, VisiblePrefix
from d2sd.train.recipes import Recipe, drafter_config
from d2sd.train.responses import frequent_tokens, read_responses, split
from d2sd.train.start import fold_scale, start_from_target
from d2sd.train.store import build_store

Listener = Callable[[str, StepReport], None]
"""Hears (stage, report) after each training step."""

VISIBLE: dict[str, Callable[[Recipe], VisiblePrefix]] = {
    "first": lambda recipe: AnchorOnly(),
    "second": lambda recipe: TruncatedGeometric(recipe.prefix_decay),
}


class DrafterTraining:
    """Both drafters of a target from one file of its responses.

    Everything lives under `folder`; a run that was killed goes on where its last checkpoint
    stands when it is started again with the same arguments.
    """

    def __init__(
        self,
        recipe: Recipe,
        target: Any,
        responses: Path,
        folder: Path,
        compiler: Compiler = torch.compile,
    ) -> None:
        self.recipe, self.target, self.folder = recipe, target, folder
        self._compiler = compiler
        self.responses = read_responses(responses)
        self.training, self.held_out = split(self.responses, recipe.validation)
        self._embedding = target.get_input_embeddings().weight.detach()

    def store(self, progress: Callable[[int, int], None]) -> FeatureSource:
        """The stored features, made as far as they aren't there."""
        answers = [self.responses[i] for i in self.training]
        ids = frequent_tokens(answers, self.recipe.draft_vocab_size)
        return build_store(
            self.target, self.responses, self.folder / "store", self.recipe.taps, ids, progress
        )

    def train_first(self, store: FeatureSource, hear: Listener) -> DraftNetwork:
        """The drafter that sees the anchor alone, started from the target's last layers."""
        network = self._fresh(store)
        start_from_target(network, self.target, store.scale)
        return self._train("first", network, store, hear)

    def train_second(
        self, store: FeatureSource, first: DraftNetwork, hear: Listener
    ) -> DraftNetwork:
        """The variable-prefix drafter, started from the first one's weights."""
        network = self._fresh(store)
        network.load_state_dict(first.state_dict())
        return self._train("second", network, store, hear, first)

    def export(self, store: FeatureSource, networks: dict[str, DraftNetwork], out: Path) -> None:
        """Write `out/first` and `out/second`, ready to decode with."""
        evaluator = self._evaluator(store)
        for stage, network in networks.items():
            working = _working(network)
            temperatures = evaluator.temperatures(working, VISIBLE[stage](self.recipe))
            config = self._config(store)
            config["dflash_config"]["temperatures"] = [round(t, 3) for t in temperatures]
            fold_scale(network, store.scale)
            save_network(_working(network), out / stage, config)

    def _fresh(self, store: FeatureSource) -> DraftNetwork:
        torch.manual_seed(self.recipe.seed)
        network = DraftNetwork(DraftConfig.from_json(self._config(store)))
        network.draft_ids = torch.tensor(store.index.draft_ids)
        return network

    def _config(self, store: FeatureSource) -> dict[str, Any]:
        recipe = replace(self.recipe, draft_vocab_size=len(store.index.draft_ids))
        return drafter_config(recipe, self.target.config)

    def _head(self, store: FeatureSource) -> torch.Tensor:
        head = self.target.get_output_embeddings().weight.detach()
        return head[torch.tensor(store.index.draft_ids)].bfloat16()

    def _evaluator(self, store: FeatureSource) -> Evaluator:
        return Evaluator(store, self.held_out, self._embedding.bfloat16(), self._head(store))

    def _train(
        self,
        stage: str,
        network: DraftNetwork,
        store: FeatureSource,
        hear: Listener,
        first: DraftNetwork | None = None,
    ) -> DraftNetwork:
        """Train `network` to the end of its schedule; `first` is what a second one works with."""
        trainer = self._trainer(stage, network, store)
        trainer.resume(self.folder / stage)
        evaluator = self._evaluator(store)
        while not trainer.finished:
            start = time.perf_counter()
            trainer.run(lambda p: hear(stage, p), trainer.step + self.recipe.evaluate_every)
            seconds = time.perf_counter() - start
            trainer.save(self.folder / stage)
            self._log(stage, trainer, self._measured(evaluator, network, first), seconds)
        return network

    def _measured(
        self, evaluator: Evaluator, network: DraftNetwork, first: DraftNetwork | None
    ) -> Acceptance:
        if first is None:
            return evaluator.acceptance(_working(network))
        return evaluator.acceptance(_working(first), _working(network))

    def _trainer(self, stage: str, network: DraftNetwork, store: FeatureSource) -> Trainer:
        recipe = self.recipe
        blocks = BlockRecipe(
            recipe.block_size, recipe.mask_token_id, VISIBLE[stage](recipe), recipe.weight_decay
        )
        sampler = BlockSampler(
            store,
            self.training,
            blocks,
            recipe.sequences_per_batch,
            recipe.anchors_per_sequence,
            seed=recipe.seed + (stage == "second"),
        )
        schedule = {"first": recipe.first, "second": recipe.second}[stage]
        return Trainer(
            network, self._embedding, self._head(store), sampler, schedule, self._compiler
        )

    def _log(self, stage: str, trainer: Trainer, found: Acceptance, seconds: float) -> None:
        """One line of the learning curve; `seconds` since the last one, evaluation left out."""
        line = {
            "stage": stage,
            "step": trainer.step,
            "positions": trainer.positions,
            "seconds": round(seconds, 1),
            **asdict(found),
        }
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _working(network: DraftNetwork) -> DraftNetwork:
    """A bfloat16 copy for inference, as it will be shipped."""
    working = copy.deepcopy(network).bfloat16().eval().requires_grad_(False)
    use_fast_attention(working)
    return working
