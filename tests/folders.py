"""Small model folders as a user would have them: weights, tokenizer, chat template, prompts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2sd.drafters.checkpoint import save_network
from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 3 + 256 + 4  # special tokens, bytes, four merges


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, a few pairs are merged: any text splits inside its characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "t")]
    names = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    bpe = models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def word_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's manner: ▁ for spaces, the first one dropped, unknown bytes as <0xE2>."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "▁the", "▁cat", "s", "a", "t", "▁s", "."]
    bpe = models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def tiny_llama(**changes) -> LlamaForCausalLM:
    """A random float32 Llama that speaks the byte tokenizer; always the same one."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def save_target(folder: Path, **changes) -> Path:
    """A model folder in the Hugging Face layout, tokenizer included."""
    tiny_llama(**changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_prompts(path: Path, *turns: list[str]) -> Path:
    """A JSONL file of prompts, one per list of turns."""
    lines = [json.dumps({"id": f"p{i}", "turns": t}) for i, t in enumerate(turns)]
    path.write_text("\n".join(lines) + "\n")
    return path


DRAFT_CONFIG = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "block_size": 5,
    "num_target_layers": 4,
    "dflash_config": {"mask_token_id": 0, "target_layer_ids": [1, 3]},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}


def save_drafter(folder: Path, seed: int = 0, **changes) -> Path:
    """A random drafter for `save_target`'s model, in the DFlash layout."""
    config = {**DRAFT_CONFIG, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DraftNetwork(DraftConfig.from_json(config))
        for weight in network.parameters():
            weight.data += 0.2 * torch.randn_like(weight)  # varied guesses, so trees do fork
    save_network(network, folder, config)
    return folder
