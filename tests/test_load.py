"""Which models are refused as targets, by name, and how broken folders are reported."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from conftest import tiny_model
from d2sd.target.hf import HFTarget
from d2sd.target.load import check_supported, load_model

SMALL = {"num_hidden_layers": 2, "vocab_size": 64}
REFUSED = {
    "Mistral": ({"sliding_window": 8}, "sliding-window layers"),
    "Qwen2": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "sliding-window layers",
    ),
    "Gemma2": ({}, "sliding-window layers"),
    "Gemma3Text": ({}, "sliding-window layers"),
    "GptOss": ({}, "sliding-window layers"),
    "Llama4Text": ({}, "sliding-window layers"),
    "Mamba": ({}, "linear-attention layers"),
    "Jamba": ({"num_hidden_layers": 8}, "linear-attention layers"),
    "Qwen3Next": ({"num_hidden_layers": 4}, "linear-attention layers"),
    "Rwkv": ({}, "takes no key-value cache"),
    "Bloom": ({}, "takes no key-value cache with explicit positions"),
    "StableLm": ({}, "does not go through transformers' attention interface"),
    "Bert": ({}, "is an encoder;"),
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_architectures_whose_trees_are_not_exact_are_refused_by_name(architecture):
    changes, reason = REFUSED[architecture]
    config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **changes})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} cannot be .*{reason}"):
        HFTarget(model)


def test_encoder_decoders_are_refused():
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(transformers.T5Config(num_layers=1))
    with pytest.raises(ValueError, match=r"T5\w+ cannot be a target: it is an encoder-decoder"):
        check_supported(model)


def test_longrope_is_refused():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "long_factor": [2.0] * 4,
        "short_factor": [1.0] * 4,
        "original_max_position_embeddings": 64,
    }
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .* longrope"):
        HFTarget(tiny_model("Llama", rope_parameters=rope))


def test_attention_that_ignores_tree_masks_is_refused():
    model = tiny_model("Llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"set to 'flash_attention_2', .* \(use 'sdpa'\)"):
        HFTarget(model)


@pytest.mark.parametrize("architecture", ["Gemma", "GPT2", "Granite", "Olmo2", "Phi"])
def test_other_plain_decoders_are_accepted(architecture):
    with torch.device("meta"):
        config = getattr(transformers, f"{architecture}Config")(**SMALL)
        check_supported(AutoModelForCausalLM.from_config(config))


# --- folders --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path)
    return tmp_path


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_weights(folder, **changes):
    path = folder / "model.safetensors"
    weights = {**load_file(path), **changes}
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def test_a_saved_model_comes_back(folder, tiny_llama):
    target = HFTarget.load(str(folder), dtype=torch.float64, taps=(1,))
    ids = [5, 17, 3]
    context = target.prefill(ids)
    assert target.name == str(folder)
    assert (target.vocab_size, target.hidden_size, target.num_layers) == (97, 32, 3)
    assert (target.dtype, target.device.type) == (torch.float64, "cpu")
    assert torch.equal(target.embed, tiny_llama.get_input_embeddings().weight)
    assert torch.equal(target.head.weight, tiny_llama.lm_head.weight)
    assert context.features.shape == (2, 1, 32)


def test_float32_is_the_default(folder):
    assert HFTarget.load(str(folder)).dtype == torch.float32


KEY = "model.layers.1.mlp.up_proj.weight"


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def only_pickled_weights(folder):
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def pickled_weights_beside_others(folder):
    only_pickled_weights(folder)
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")


def truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def a_weight_missing(folder):
    rewrite_weights(folder, **{KEY: None})


def a_weight_of_another_shape(folder):
    rewrite_weights(folder, **{KEY: torch.zeros(3, 3)})


def foreign_code(folder):
    rewrite_config(folder, model_type="odd", auto_map={"AutoConfig": "x.C"})


def an_encoder_decoder(folder):
    rewrite_config(folder, model_type="t5")


def a_window(folder):
    rewrite_config(folder, model_type="mistral", sliding_window=8)
    truncated_weights(folder)  # refused before they are read


def a_broken_config(folder):
    (folder / "config.json").write_text('{"a":')


def no_config(folder):
    (folder / "config.json").unlink()


BROKEN = [
    (without_weights, "has no weights; d2sd reads safetensors"),
    (only_pickled_weights, "has only pickled weights; d2sd reads safetensors"),
    (pickled_weights_beside_others, "no file named model.safetensors"),
    (truncated_weights, "incomplete or broken .* take a fresh copy"),
    (a_weight_missing, f"lacks 1 weights, '{KEY}'"),
    (a_weight_of_another_shape, rf"'{KEY}' in shape \[3, 3\] .* says \[64, 32\]"),
    (foreign_code, "of type 'odd', which is no causal language model .* never run"),
    (an_encoder_decoder, "of type 't5', which is no causal language model"),
    (a_window, "mistral cannot be a target: it has sliding-window layers"),
    (a_broken_config, "not a valid JSON"),
    (no_config, "has no config.json"),
]


@pytest.mark.parametrize(("broken", "sentence"), BROKEN, ids=[case.__name__ for case, _ in BROKEN])
def test_a_broken_folder_is_one_sentence(folder, broken, sentence):
    broken(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_model(str(folder), torch.float64)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"folder './nowhere' does not exist"):
        HFTarget.load("./nowhere")
