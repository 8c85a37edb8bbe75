"""What drafters are made from: a recipe, the target, its responses and their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork
from d2sd.train.batches import BlockRecipe, BlockSampler
from d2sd.train.evaluate import Evaluator
from d2sd.train.features import FeatureSource, KeptFeatures
from d2sd.train.loop import TargetEnds
from d2sd.train.recipes import Recipe, drafter_config
from d2sd.train.responses import Response, frequent_tokens, split
from d2sd.train.stage import Stage
from d2sd.train.start import start_from_target, unfold_scale


def draft_vocabulary(
    recipe: Recipe, responses: Sequence[Response], like: str | Path | None = None
) -> list[int]:
    """The tokens drafters can propose: those of the drafter in `like`, or what answers use most.

    Held-out answers don't count.
    """
    if like is not None:
        network = load_network(like)
        ids = network.draft_ids
        return list(range(network.config.vocab_size)) if ids is None else ids.tolist()
    training, _ = split(responses, recipe.validation)
    return frequent_tokens([responses[i] for i in training], recipe.draft_vocab_size)


def like_drafter(recipe: Recipe, folder: str | Path) -> Recipe:
    """The recipe for drafters of the shape of the one in `folder`."""
    config = load_network(folder).config
    return replace(
        recipe,
        taps=config.taps,
        mask_token_id=config.mask_token_id,
        block_size=config.block_size,
        layers=config.network.num_hidden_layers,
        intermediate_size=config.network.intermediate_size,
        draft_vocab_size=config.draft_vocab_size,
    )


@dataclass(frozen=True)
class Material:
    """A complete recipe, a transformers causal LM, its responses, and the features of them."""

    recipe: Recipe
    target: Any
    responses: Sequence[Response]
    source: FeatureSource

    @cached_property
    def parts(self) -> tuple[list[int], list[int]]:
        """Numbers of the responses to learn from, and of those held out."""
        return split(self.responses, self.recipe.validation)

    @property
    def device(self) -> torch.device:
        return torch.device(self.target.device)

    @cached_property
    def ends(self) -> TargetEnds:
        """In bfloat16."""
        head = self.target.get_output_embeddings().weight.detach()
        rows = torch.tensor(self.source.index.draft_ids, device=head.device)
        embedding = self.target.get_input_embeddings().weight.detach()
        return TargetEnds(embedding.bfloat16(), head[rows].bfloat16())

    @cached_property
    def evaluator(self) -> Evaluator:
        # on a CPU a pass of the target is slow, and memory is there
        source = KeptFeatures(self.source) if self.device.type == "cpu" else self.source
        return Evaluator(source, self.parts[1], self.ends.embedding, self.ends.head)

    def sampler(self, stage: Stage) -> BlockSampler:
        """The stage's training batches."""
        recipe = self.recipe
        assert recipe.mask_token_id is not None
        blocks = BlockRecipe(recipe.block_size, recipe.mask_token_id, stage.prefix)
        return BlockSampler(
            self.source,
            self.parts[0],
            blocks,
            recipe.sequences_per_batch,
            recipe.anchors_per_sequence,
            stage.seed,
        )

    def config(self) -> dict[str, Any]:
        """config.json of the drafters."""
        size = len(self.source.index.draft_ids)
        target = self.target.config.get_text_config(decoder=True)
        return drafter_config(replace(self.recipe, draft_vocab_size=size), target)

    def fresh(self) -> DraftNetwork:
        """A network with its first weights, as the recipe says; always the same one."""
        torch.manual_seed(self.recipe.seed)
        network = DraftNetwork(DraftConfig.from_json(self.config()))
        if self.recipe.start == "target":
            start_from_target(network, self.target, self.source.scale.cpu())
        network.draft_ids = torch.tensor(self.source.index.draft_ids)
        return network.to(self.device)

    def load(self, folder: str | Path) -> DraftNetwork:
        """An exported drafter as training sees drafters: it reads scaled features.

        Raises ValueError when it reads or drafts otherwise than the recipe says.
        """
        network = load_network(folder)
        theirs = network.config
        for name, value in (
            ("taps", theirs.taps),
            ("block_size", theirs.block_size),
            ("mask_token_id", theirs.mask_token_id),
            ("draft_vocab_size", theirs.draft_vocab_size),
        ):
            ours = getattr(DraftConfig.from_json(self.config()), name)
            if value != ours:
                raise ValueError(
                    f"the drafter {folder} has {name} {value}, the recipe has {ours}; choose the "
                    "drafter's"
                )
        unfold_scale(network, self.source.scale.cpu())
        return network.to(self.device)

    def copy_of(self, network: DraftNetwork) -> DraftNetwork:
        """A fresh network with the weights of `network`. ValueError when shapes differ."""
        ours = self.fresh()
        shapes = [
            {name: weight.shape for name, weight in each.state_dict().items()}
            for each in (ours, network)
        ]
        if shapes[0] != shapes[1]:
            net = network.config.network
            raise ValueError(
                f"a drafter of {net.num_hidden_layers} layers of width {net.intermediate_size} is "
                f"no start for one of {self.recipe.layers} of {self.recipe.intermediate_size}; set "
                "layers and intermediate_size to its own"
            )
        ours.load_state_dict(network.state_dict())
        return ours
