"""Shared models: tiny random ones in float64, and the real one where it can be had."""

from __future__ import annotations

import signal
import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from d2sd import precision
from d2sd.models.resolve import ModelUnavailableError, resolve

# a shell that runs us in the background has switched Ctrl-C off; the tests of it need it on
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # wide enough for confident, varied continuations
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES = ("Llama", "Qwen2", "Qwen3", "Mistral")


def tiny_model(architecture: str, **changes):
    """A random float64 model of three small layers with grouped queries, always the same one."""
    extra = {"sliding_window": None} if architecture == "Mistral" else {}
    config = getattr(transformers, f"{architecture}Config")(**{**TINY, **extra, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def no_measured_dtype():
    """The dtype "auto" is float32 in the tests, however fast this machine is in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "bfloat16_gain", lambda threads: 1.0)
        yield


@pytest.fixture(scope="session")
def tiny_models():
    """One tiny model per architecture, by name."""
    return {architecture: tiny_model(architecture) for architecture in ARCHITECTURES}


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request, tiny_models):
    """Each tiny model in turn."""
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def tiny_llama(tiny_models):
    return tiny_models["Llama"]


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the real target, or a skip where it can neither be found nor fetched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the conversion is transformers' and gguf's business
        try:
            return resolve("smollm2-135m")
        except ModelUnavailableError as error:
            pytest.skip(f"needs the SmolLM2 weights: {error}")


def pytest_collection_modifyitems(items):
    """Every test that uses the real target carries the marker `model`."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.model)
