"""Small random drafter networks for the tests."""

from __future__ import annotations

import torch

from d2sd.drafters.config import DraftConfig
from d2sd.drafters.network import DraftNetwork


def drafter_json(**changes):
    """config.json of a drafter for the tiny targets of conftest (vocabulary 97, hidden 32)."""
    values = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "rope_scaling": None,
        "max_position_embeddings": 256,
        "vocab_size": 97,
        "tie_word_embeddings": False,
        "num_target_layers": 3,
        "block_size": 5,
        "layer_types": ["full_attention", "full_attention"],
        "sliding_window": None,
        "dflash_config": {"mask_token_id": 96, "target_layer_ids": [0, 2]},
        "dtype": "float32",
    }
    return {**values, **changes}


def random_network(seed: int = 0, **changes) -> DraftNetwork:
    """A float32 network with weights wide enough for sharp, varied outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DraftNetwork(DraftConfig.from_json(drafter_json(**changes)))
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval().requires_grad_(False)
