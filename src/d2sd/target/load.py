"""Which models can be a target, and how one is read from disk without running foreign code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from d2sd.target.cache import foreign_layers

EXACT_ATTENTION = ("eager", "sdpa")


def load_model(path_or_id: str, dtype: torch.dtype) -> Any:
    """The causal LM in a local folder or under a hub id, on the CPU.

    Weights come from safetensors files and the modelling code from transformers: pickled weights
    and code shipped with a model are refused. Raises ValueError, one sentence, for all of it.
    """
    location = _located(path_or_id)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the target {path_or_id!r} cannot be loaded: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"the target {path_or_id!r} lacks {len(missing)} weights, {missing[0]!r} among them; "
            "take a complete copy"
        )
    return model


def _located(path: str) -> str:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")):
            raise ValueError(f"the target folder {path!r} does not exist; give a folder or hub id")
        return path
    if not (folder / "config.json").is_file():
        raise ValueError(f"the target folder {path!r} has no config.json; it is not a model")
    if not any(folder.glob("*.safetensors")):
        pickled = "only pickled weights" if any(folder.glob("*.bin")) else "no weights"
        raise ValueError(
            f"the target folder {path!r} has {pickled}; d2sd reads safetensors files only"
        )
    return str(folder)


def check_supported(model: Any) -> None:
    """Raises ValueError, naming the architecture, when tree passes over `model` are not exact."""
    problem = _problem(model)
    if problem:
        raise ValueError(
            f"{type(model).__name__} cannot be a target: {problem}; use a decoder with plain full "
            "attention such as Llama, Qwen2, Qwen3 or Mistral without a window"
        )


def _problem(model: Any) -> str | None:
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    foreign = foreign_layers(config)
    if foreign:
        return f"it has {' and '.join(foreign)} layers, whose memory cannot keep a tree's path"
    arguments = inspect.signature(model.forward).parameters
    if not {"past_key_values", "position_ids"} <= arguments.keys():
        return "its forward pass takes no key-value cache with explicit positions"
    if not model._supports_attention_backend:
        return "it does not go through transformers' attention interface"
    return _setting_problem(model, config)


def _setting_problem(model: Any, config: Any) -> str | None:
    attention = config._attn_implementation
    if attention not in EXACT_ATTENTION:
        return f"its attention is set to {attention!r}, which ignores tree masks (use 'sdpa')"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        return "its longrope positions depend on the length of a pass"
    if getattr(config, "max_position_embeddings", None) is None:
        return "its config names no max_position_embeddings"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "its weights are spread over several devices"
    return None
