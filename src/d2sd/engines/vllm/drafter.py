"""vLLM's custom proposer: loads both networks beside the target and drafts for its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.distributed.parallel_state import get_tp_group

from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.network import DraftNetwork
from d2sd.engines.batches.batch_pass import BatchPass, EagerBatchPass, TargetEnds
from d2sd.engines.batches.packages import compiled_pass
from d2sd.engines.batches.passes import BatchedNetwork
from d2sd.engines.batches.plan import BatchDrafter
from d2sd.engines.batches.settings import Settings


class TreeDrafter:
    """What `speculative_config.model` names; `drafter` is there once the target is loaded.

    vLLM hands its proposers no features, so the runner calls `drafter` and `propose` is never
    reached.
    """

    drafter: BatchDrafter

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config.model_config
        nodes = vllm_config.speculative_config.num_speculative_tokens
        self.settings = Settings.of(vllm_config.additional_config, nodes)
        self._first = load_network(self.settings.first, self._config.dtype)
        same = self.settings.second in (None, self.settings.first)
        self._second = None if same else load_network(str(self.settings.second), self._config.dtype)
        for name, network in self._networks().items():
            _check(name, network, self._config)

    def _networks(self) -> dict[str, DraftNetwork]:
        both = {self.settings.first: self._first, str(self.settings.second): self._second}
        return {name: network for name, network in both.items() if network is not None}

    @property
    def taps(self) -> tuple[int, ...]:
        """The target layers whose outputs both networks read, in ascending order."""
        taps = {tap for network in self._networks().values() for tap in network.config.taps}
        return tuple(sorted(taps))

    def load_model(self, model: Any) -> None:
        """Bind the networks to the loaded target."""
        ends = LoadedEnds(model)
        taps = self.taps
        networks = [
            BatchedNetwork(
                network,
                ends,
                [taps.index(tap) for tap in network.config.taps],
                self._run(network.to(ends.device), ends),
            )
            for network in self._networks().values()
        ]
        for network in networks:
            network.warm_up()
        agree = get_tp_group().broadcast_object  # ranks must run the same passes
        self.drafter = BatchDrafter(self.settings.policy, self.settings.budget, networks, agree)

    def _run(self, network: DraftNetwork, ends: LoadedEnds) -> BatchPass:
        """Compiled where vLLM compiles its model; on a GPU that was never tried."""
        ids = network.draft_ids
        if self._config.enforce_eager or ends.device.type != "cpu" or ids is None:
            return EagerBatchPass(network, ends)
        options = self.settings.policy.options
        slots = int(options.get("block_size", self._first.config.block_size))
        several = network is self._second
        return compiled_pass(network, ends, ends.head(ids), slots, several, _on_one_rank)

    def dummy_run(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to warm up."""

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        raise RuntimeError(
            "d2sd drafts from the target's features, which only its own worker hands over; start "
            "vLLM with --worker-cls d2sd.engines.vllm.worker.CPUTreeWorker"
        )


class LoadedEnds(TargetEnds):
    """Embedding and output head of vLLM's target, also where they are spread over ranks."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._heads: dict[int, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        device: torch.device = self._model.lm_head.weight.device
        return device

    def embed(self, ids: Tensor) -> Tensor:
        return self._model.embed_input_ids(ids)

    def logits(self, hidden: Tensor, draft_ids: Tensor | None) -> Tensor:
        if draft_ids is None:
            return self._model.compute_logits(hidden).float()
        return torch.nn.functional.linear(hidden, self.head(draft_ids)).float()

    def head(self, draft_ids: Tensor) -> Tensor:
        """The head's rows of the draft vocabulary, gathered once."""
        if id(draft_ids) not in self._heads:
            weight: Tensor = self._model.lm_head.weight.data
            if get_tensor_model_parallel_world_size() > 1:
                weight = tensor_model_parallel_all_gather(weight, dim=0)
            self._heads[id(draft_ids)] = weight[draft_ids.to(weight.device)].clone()
        return self._heads[id(draft_ids)]


def _on_one_rank(make: Callable[[], None]) -> None:
    group = get_tp_group()
    try:
        if group.rank_in_group == 0:
            make()
    finally:
        group.barrier()


def _check(name: str, network: DraftNetwork, model: Any) -> None:
    """Raises ValueError for a drafter of another target."""
    ours = (network.config.hidden_size, network.config.vocab_size)
    theirs: Sequence[int] = (model.get_hidden_size(), model.get_vocab_size())
    layers = model.get_total_num_hidden_layers()
    if ours != tuple(theirs) or max(network.config.taps) >= layers - 1:
        raise ValueError(
            f"the drafter {name!r} has hidden size {ours[0]}, {ours[1]} tokens and reads layer "
            f"{max(network.config.taps)}; the target {model.model} has {theirs[0]}, {theirs[1]} "
            f"tokens and gives layers 0 to {layers - 2}; choose the drafter trained for this target"
        )
