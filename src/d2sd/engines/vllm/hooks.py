"""What we subclass or call of vLLM; a release that lacks any of it is refused by name."""

from __future__ import annotations

from collections.abc import Sequence

from d2sd.engines.batches.hooks import Hook, missing

RUNNER = "vllm.v1.worker.gpu_model_runner"
CPU_ATTENTION = "vllm.v1.attention.backends.cpu_attn"
FLASH_ATTENTION = "vllm.v1.attention.backends.flash_attn"

FORWARD = ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output")
UPDATE = ("layer", "key", "value", "kv_cache", "slot_mapping")

HOOKS = (
    Hook("vllm.v1.worker.cpu_worker", "CPUWorker.init_device"),
    Hook("vllm.v1.worker.gpu_worker", "Worker.init_device"),
    Hook("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.load_model"),
    Hook(RUNNER, "create_custom_proposer", ("vllm_config",)),
    Hook(RUNNER, "GPUModelRunner._prepare_inputs", ("scheduler_output", "num_scheduled_tokens")),
    Hook(
        RUNNER,
        "GPUModelRunner._update_states_after_model_execute",
        ("output_token_ids", "scheduler_output"),
    ),
    Hook(RUNNER, "GPUModelRunner._get_eagle3_aux_layers_from_config"),
    Hook(
        RUNNER,
        "GPUModelRunner._calc_spec_decode_metadata",
        ("num_draft_tokens", "cu_num_scheduled_tokens"),
    ),
    Hook(RUNNER, "GPUModelRunner.take_draft_token_ids"),
    Hook(
        "vllm.v1.spec_decode.metadata",
        "SpecDecodeMetadata",
        ("draft_token_ids", "num_draft_tokens", "logits_indices"),
    ),
    Hook(RUNNER, "GPUModelRunner._input_fits_in_drafter", ("common_attn_metadata",)),
    Hook(RUNNER, "GPUModelRunner._on_request_state_removed", ("req_id", "req_state")),
    Hook(RUNNER, "GPUModelRunner.initialize_kv_cache", ("kv_cache_config",)),
    Hook(
        RUNNER,
        "GPUModelRunner.propose_draft_token_ids",
        ("scheduler_output", "sampled_token_ids", "aux_hidden_states"),
    ),
    Hook(
        "vllm.v1.sample.rejection_sampler",
        "RejectionSampler.forward",
        ("metadata", "draft_probs", "logits", "sampling_metadata"),
    ),
    Hook("vllm.v1.sample.sampler", "Sampler.forward", ("logits", "sampling_metadata")),
    Hook("vllm.v1.attention.backends.registry", "register_backend", ("backend", "class_path")),
    Hook(CPU_ATTENTION, "CPUAttentionBackend.get_impl_cls"),
    Hook(CPU_ATTENTION, "CPUAttentionBackendImpl.forward", FORWARD),
    Hook(CPU_ATTENTION, "CPUAttentionBackendImpl.do_kv_cache_update", UPDATE),
    Hook(FLASH_ATTENTION, "FlashAttentionBackend.get_impl_cls"),
    Hook(FLASH_ATTENTION, "FlashAttentionImpl.forward", FORWARD),
    Hook(FLASH_ATTENTION, "FlashAttentionImpl.do_kv_cache_update", UPDATE),
    Hook("vllm.distributed.parallel_state", "GroupCoordinator.broadcast_object", ("obj", "src")),
)


def check(hooks: Sequence[Hook] = HOOKS) -> None:
    """Raises RuntimeError that names everything missing."""
    if faults := missing(hooks):
        raise RuntimeError(
            f"this vLLM lacks what d2sd's trees need: {'; '.join(faults)}. Install vLLM 0.32 or "
            "0.33, or run without --worker-cls"
        )
