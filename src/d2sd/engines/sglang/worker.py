"""The worker that SGLang makes for D2SD: its own n-gram worker with another draft."""

from __future__ import annotations

import os
from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_gather
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.ngram_worker import NGRAMWorker

from d2sd.engines.batches.plan import BatchDrafter
from d2sd.engines.sglang.ends import LoadedEnds
from d2sd.engines.sglang.features import FeatureTap
from d2sd.engines.sglang.layout import lay_out
from d2sd.engines.sglang.loading import Facts, load
from d2sd.engines.sglang.settings import settings_of
from d2sd.engines.sglang.steps import Steps


class TreeWorker(NGRAMWorker):
    """Drafts where the n-gram worker looks up; SGLang verifies, draws and moves as it does there.

    The n-gram corpus that the parent makes stays empty.
    """

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        tap = FeatureTap(target_worker, CaptureHiddenMode.FULL)
        super().__init__(server_args, gpu_id, nccl_port, tap)
        self._tap = tap
        if self.enable_overlap:
            raise ValueError("d2sd needs SGLang's --disable-overlap-schedule")
        config, model = self.model_runner.model_config, self.model_runner.model
        group = get_parallel().tp_group
        gather = tensor_model_parallel_all_gather if group.world_size > 1 else None
        facts = Facts(
            str(server_args.model_path),
            config.hidden_size,
            config.vocab_size,
            config.num_hidden_layers,
            config.dtype,
            torch.device(self.device, gpu_id),
        )
        settings = settings_of(os.environ, self.draft_token_num)
        loaded = load(settings, facts, LoadedEnds(model, facts.vocabulary, gather))
        model.set_dflash_layers_to_capture(list(loaded.taps))
        agree = group.broadcast_object  # ranks must run the same passes
        drafter = BatchDrafter(settings.policy, settings.budget, loaded.networks, agree)
        self._steps = Steps(drafter, self.draft_token_num, config.context_len, len(loaded.taps))

    def _prepare_draft_tokens(self, batch: Any) -> Any:
        trees = self._steps.draft(batch.reqs, batch.seq_lens_cpu.tolist())
        laid = lay_out(trees, self.draft_token_num)
        return laid.tokens, laid.mask

    def _update_ngram_corpus(self, batch: Any) -> None:
        """Nothing is looked up."""

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, pp_proxy_tensors: Any = None
    ) -> Any:
        decoding = batch.forward_mode.is_decode()  # the parent changes it on the way
        reading = batch.forward_mode.is_extend()
        result = super().forward_batch_generation(batch, on_publish, pp_proxy_tensors)
        features = self._tap.take()
        if decoding and features is not None:
            tokens = result.next_token_ids.view(len(batch.reqs), -1).tolist()
            counts = result.accept_lens.tolist()
            emitted = [row[:count] for row, count in zip(tokens, counts, strict=True)]
            self._steps.committed(emitted, features)
        elif reading and features is not None:
            self._steps.prefilled(batch.reqs, batch.prefix_lens, batch.extend_lens, features)
        return result
