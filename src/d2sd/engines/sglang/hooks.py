"""What we subclass or call of SGLang; a release that lacks any of it is refused by name."""

from __future__ import annotations

from d2sd.engines.batches.hooks import Hook, missing

INFO = "sglang.srt.speculative.spec_info"
REGISTRY = "sglang.srt.speculative.spec_registry"
WORKER = "sglang.srt.speculative.ngram_worker"

REGISTRATION = (
    Hook(INFO, "SpeculativeAlgorithm.register", ("name", "supports_overlap", "spec_class")),
    Hook(REGISTRY, "CustomSpecAlgo.is_ngram"),
    Hook(REGISTRY, "CustomSpecAlgo.has_draft_kv"),
    Hook(REGISTRY, "CustomSpecAlgo.handle_server_args", ("server_args",)),
)
"""Looked at when the plug-in is loaded, which is too early for SGLang's workers."""

RUNNING = (
    Hook(WORKER, "NGRAMWorker.__init__", ("server_args", "gpu_id", "nccl_port", "target_worker")),
    Hook(WORKER, "NGRAMWorker._prepare_draft_tokens", ("batch",)),
    Hook(WORKER, "NGRAMWorker._update_ngram_corpus", ("batch",)),
    Hook(
        WORKER,
        "NGRAMWorker.forward_batch_generation",
        ("batch", "on_publish", "pp_proxy_tensors"),
    ),
    Hook(WORKER, "NGRAMWorker.clear_cache_pool"),
    Hook("sglang.srt.speculative.ngram_info", "NgramVerifyInput.__init__", ("custom_mask",)),
    Hook(
        "sglang.srt.managers.tp_worker",
        "TpModelWorker.forward_batch_generation",
        ("batch", "is_verify", "capture_hidden_mode"),
    ),
    Hook("sglang.srt.managers.overlap_utils", "FutureMap.__init__", ("device", "spec_algo")),
    Hook("sglang.srt.model_executor.forward_batch_info", "CaptureHiddenMode.is_full"),
    Hook(
        "sglang.srt.distributed.parallel_state",
        "GroupCoordinator.broadcast_object",
        ("obj", "src"),
    ),
    Hook("sglang.srt.distributed", "tensor_model_parallel_all_gather", ("input_", "dim")),
    Hook("sglang.srt.runtime_context", "get_parallel"),
)
"""Looked at when SGLang asks for the worker."""


def check(hooks: tuple[Hook, ...] = RUNNING) -> None:
    """Raises RuntimeError that names everything missing."""
    if faults := missing(hooks):
        raise RuntimeError(
            f"this SGLang lacks what d2sd's trees need: {'; '.join(faults)}. Install SGLang "
            "0.5.23, or run without --speculative-algorithm D2SD"
        )
