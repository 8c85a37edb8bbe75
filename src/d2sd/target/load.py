"""Which models can be a target, and how one is read from disk without running foreign code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from d2sd.target.cache import foreign_layers

EXACT_ATTENTION = ("eager", "sdpa")


def load_model(path_or_id: str, dtype: torch.dtype) -> Any:
    """The causal LM in a local folder or under a hub id, on the CPU.

    Weights come from safetensors files and the modelling code from transformers: pickled weights
    and code shipped with a model are refused. Raises ValueError, one sentence, for all of it, and
    for architectures that cannot be a target before any weight is read.
    """
    location = _located(path_or_id)
    with _one_sentence(path_or_id):
        described, _ = PretrainedConfig.get_config_dict(location)
    kind = described.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"the target {path_or_id!r} is of type {kind!r}, which is no causal language model of "
            f"transformers {transformers.__version__} (code shipped with a model is never run)"
        )
    with _one_sentence(path_or_id):
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    _refuse(kind, _memory_problem(config))
    with _one_sentence(path_or_id):
        model, report = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            output_loading_info=True,
        )
    _check_complete(path_or_id, report)
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


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    """Turns transformers' errors into the first sentence of them, and its reports into silence."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"the weights of the target {path!r} are incomplete or broken ({error}); take a fresh "
            "copy"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(f"the target {path!r} cannot be loaded: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)


def _check_complete(path: str, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"the target {path!r} lacks {len(missing)} weights, {missing[0]!r} among them; "
            "take a complete copy"
        )
    for key, *shapes in report["mismatched_keys"]:
        stored, expected = (list(shape) for shape in shapes)
        raise ValueError(
            f"the target {path!r} has {key!r} in shape {stored} where its config.json says "
            f"{expected}; take a matching pair"
        )


def check_supported(model: Any) -> None:
    """Raises ValueError, naming the architecture, when tree passes over `model` are not exact."""
    problem = _memory_problem(model.config) or _forward_problem(model) or _setting_problem(model)
    _refuse(type(model).__name__, problem)


def _refuse(architecture: str, problem: str | None) -> None:
    if problem:
        raise ValueError(
            f"{architecture} cannot be a target: {problem}; use a decoder with plain full "
            "attention such as Llama, Qwen2, Qwen3 or Mistral without a window"
        )


def _memory_problem(config: Any) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if not getattr(config, "is_decoder", True):
        return "it is an encoder"
    foreign = foreign_layers(config.get_text_config(decoder=True))
    if foreign:
        return f"it has {' and '.join(foreign)} layers, whose memory cannot keep a tree's path"
    return None


def _forward_problem(model: Any) -> str | None:
    arguments = inspect.signature(model.forward).parameters
    if not {"past_key_values", "position_ids"} <= arguments.keys():
        return "its forward pass takes no key-value cache with explicit positions"
    if not model._supports_attention_backend:
        return "it does not go through transformers' attention interface"
    return None


def _setting_problem(model: Any) -> str | None:
    config = model.config.get_text_config(decoder=True)
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
