"""vLLM's model runner with trees: laid out before the pass, walked after it, drafted at the end.

Everything goes through methods that vLLM's runner calls on itself and that `hooks.py` checks.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers.attention import Attention
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from d2sd.engines.batches.arrivals import Arrivals
from d2sd.engines.batches.clock import StepClock
from d2sd.engines.batches.placement import Placement, PlainPass, Scheduled, place
from d2sd.engines.batches.plan import Asking
from d2sd.engines.batches.unread import UnreadPasses
from d2sd.engines.vllm.attention import TreePass, begin
from d2sd.engines.vllm.drafter import TreeDrafter
from d2sd.engines.vllm.sampler import TreeSampler
from d2sd.engines.vllm.tree_attention import unfit
from d2sd.tree import TokenTree

log = logging.getLogger(__name__)


class TreeSteps(GPUModelRunner):
    """One step: `_prepare_inputs`, the target's pass, the walk, `_update_states…`, drafting.

    vLLM's runner for CPUs is a subclass of the one for GPUs; this stands between the two.
    """

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        if not isinstance(getattr(self, "drafter", None), TreeDrafter):
            raise ValueError(
                'the worker of d2sd needs its drafter: give --speculative-config \'{"method": '
                '"custom_class", "model": "d2sd.engines.vllm.drafter.TreeDrafter", …}\''
            )
        if get_pp_group().world_size > 1 or self.use_async_scheduling or self.uses_mrope:
            raise ValueError(
                "trees need a text model without pipeline parallelism and async scheduling"
            )
        self.use_aux_hidden_state_outputs = True
        self.rejection_sampler: Any = TreeSampler(getattr(self, "rejection_sampler"))  # noqa: B009
        self._drafted: dict[str, TokenTree] = {}
        self._placement: Placement | PlainPass = Placement([])
        self._unread = UnreadPasses()
        self._tree_pass: TreePass | None = None
        self._clock = StepClock()
        self._arrivals = Arrivals()

    def _get_eagle3_aux_layers_from_config(self) -> tuple[int, ...]:
        return tuple(tap + 1 for tap in self.drafter.taps)  # vLLM names a layer's input

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)
        if len(self.kv_cache_config.kv_cache_groups) != 1:
            raise ValueError("trees need a target whose layers share one kind of KV cache")
        for name, layer in self.compilation_config.static_forward_context.items():
            if not isinstance(layer, Attention):
                raise ValueError(f"trees can't be scored by {name}: it is no plain attention")
            if reason := unfit(layer.impl, layer):
                raise ValueError(f"trees can't be scored by {name}: {reason}")

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._placement = placement = self._placed(scheduler_output)
        self.rejection_sampler.placement = placement
        self._tree_pass = None
        if isinstance(placement, Placement) and placement.forked:
            rows, positions = placement.positions()
            self.positions[rows.to(self.device)] = positions.to(self.device)
            self._tree_pass = TreePass(placement)
        begin(self._tree_pass)
        self._clock.started()
        return prepared

    def _placed(self, scheduler_output: Any) -> Placement | PlainPass:
        batch = self.input_batch
        if scheduler_output.total_num_scheduled_tokens == batch.num_reqs:
            starts = batch.num_computed_tokens_cpu[: batch.num_reqs]
            return PlainPass(batch.req_ids.copy(), starts.tolist())
        return place(self._scheduled(scheduler_output), self._drafted)

    def _scheduled(self, scheduler_output: Any) -> list[Scheduled]:
        drafts = scheduler_output.scheduled_spec_decode_tokens
        starts, batch = self.query_start_loc.np, self.input_batch
        found = []
        for number, request in enumerate(batch.req_ids):
            own = drafts.get(request, [])
            first, end = int(starts[number]), int(starts[number + 1])
            computed = int(batch.num_computed_tokens_cpu[number])
            last = computed + end - first - len(own) - 1
            anchor = int(batch.token_ids_cpu[number, last])
            found.append(Scheduled(request, first, end - first, computed, anchor, own))
        return found

    def _update_states_after_model_execute(
        self, output_token_ids: Tensor, scheduler_output: Any
    ) -> None:
        super()._update_states_after_model_execute(output_token_ids, scheduler_output)
        if self._tree_pass is not None:
            self._tree_pass.compact()
            if log.isEnabledFor(logging.DEBUG):
                placement = self._tree_pass.placement
                for placed, path in zip(placement.trees, placement.paths, strict=True):
                    log.debug("%s accepted %s of %d", placed.request, path, len(placed.tree) - 1)
        self._tree_pass = None
        begin(None)
        self._clock.scored(self._placement, self.drafter.drafter)

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        return common_attn_metadata is not None  # no node is drafted past the model's context

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)
        self._drafted.pop(req_id, None)
        self.drafter.drafter.forget(req_id)

    def propose_draft_token_ids(
        self,
        scheduler_output: Any,
        sampled_token_ids: Any,
        sampling_metadata: Any,
        hidden_states: Tensor,
        sample_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> list[list[int]]:
        assert aux_hidden_states is not None
        drafter, ends = self.drafter.drafter, sampled_token_ids
        self._unread.add(self._placement, torch.stack(aux_hidden_states, 1))
        most = drafter.wanted(sum(map(bool, ends)), self._arrivals.likely(ends))
        if most or self._unread.many:
            drafter.read(self._unread.take(self.requests))
        trees: dict[str, TokenTree] = {}
        if most:
            asking = [self._asking(n, tokens[-1]) for n, tokens in enumerate(ends) if tokens]
            trees = drafter.draft([one for one in asking if one is not None], most)
        self._drafted.update(trees)
        nodes = {name: list(tree.tokens[1:]) for name, tree in trees.items()}
        return [nodes.get(name, []) for name in self.input_batch.req_ids]

    def take_draft_token_ids(self) -> Any:
        """None where nothing was drafted: the scheduler then has nothing to note."""
        drafts = self._draft_token_ids
        nothing = isinstance(drafts, list) and not any(drafts)
        return None if nothing else super().take_draft_token_ids()

    def _calc_spec_decode_metadata(
        self, num_draft_tokens: Any, cu_num_scheduled_tokens: Any
    ) -> SpecDecodeMetadata:
        if num_draft_tokens.any():
            return super()._calc_spec_decode_metadata(num_draft_tokens, cu_num_scheduled_tokens)
        last = torch.from_numpy(cu_num_scheduled_tokens - 1).to(self.device)
        none = last[:0]  # what a plain step shall not be charged for: nothing reads these
        counts = [0] * len(num_draft_tokens)
        return SpecDecodeMetadata(none, counts, none, none, none, none, logits_indices=last)

    def _asking(self, number: int, anchor: int) -> Asking | None:
        """What to draft for a request; None: nothing, where drafts would be judged wrongly."""
        request = self.input_batch.req_ids[number]
        state = self.requests[request]
        settings, tokens = state.sampling_params, state.num_tokens
        if len(state.output_token_ids) < settings.min_tokens or settings.thinking_token_budget:
            return None
        left = self.max_model_len - tokens
        if settings.max_tokens is not None:
            left = min(left, settings.max_tokens - len(state.output_token_ids))
        chain = settings.structured_outputs is not None  # its masks are made for a chain
        return Asking(request, anchor, tokens, left - 1, settings.temperature, chain)


class CPUTreeRunner(TreeSteps, CPUModelRunner):
    """On a CPU."""


class GPUTreeRunner(TreeSteps):
    """On a GPU: never run there."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        if self.compilation_config.cudagraph_mode.has_full_cudagraphs():
            raise ValueError(
                "a whole pass recorded as a CUDA graph can't take on a tree; give "
                '--compilation-config \'{"cudagraph_mode": "PIECEWISE"}\' or --enforce-eager'
            )
