"""Parity with the PyPI package `dflash`: checkpoints of one load in the other and mean the same."""

import json
import time
import warnings

import pytest
import torch

from conftest import tiny_model
from d2sd.decode import decode
from d2sd.drafters.block import BlockDrafter
from d2sd.drafters.checkpoint import load_network, save_network
from d2sd.drafters.proposer import NetworkProposer
from d2sd.sampling import Sampling
from d2sd.target.hf import HFTarget
from drafters import drafter_json, random_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    package = pytest.importorskip(
        "dflash.model", reason="needs the package dflash 0.1.0: pip install --no-deps dflash==0.1.0"
    )

# no tap on the last layer: `dflash` would read it after the target's final norm, which is not
# the layer's output
TWO_TAPS = {"mask_token_id": 96, "target_layer_ids": [0, 1]}
LAYOUTS = [
    {"dflash_config": TWO_TAPS},
    {"block_size": 8, "dflash_config": {"mask_token_id": 5, "target_layer_ids": [1, 0, 1]}},
    {
        "dflash_config": TWO_TAPS,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    },
]


@pytest.fixture(params=LAYOUTS, ids=["plain", "three taps", "sliding"])
def values(request):
    return drafter_json(**request.param)


def theirs_from(folder):
    return package.DFlashDraftModel.from_pretrained(folder, dtype=torch.float32).eval()


def assert_same_hidden_states(ours, theirs, values):
    """Two passes: features of five tokens, then of three more with the first five cached."""
    config = ours.config
    torch.manual_seed(0)
    features = torch.randn(8, len(config.taps), config.hidden_size)
    embeds = torch.randn(1, config.block_size, config.hidden_size)
    cache = package._make_cache(theirs.config)
    for read, total in [(0, 5), (5, 8)]:
        context = ours.read(features[None, :total], torch.arange(total)[None])
        slots = total + torch.arange(config.block_size)
        got = ours(embeds[None], slots[None, None], context)[0]
        wanted = theirs(
            target_hidden=features[None, read:total].flatten(2),
            noise_embedding=embeds,
            position_ids=torch.arange(read, total + config.block_size)[None],
            past_key_values=cache,
            use_cache=True,
        )
        package._crop_to(cache, total)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_checkpoint_of_ours_loads_there_with_the_same_hidden_states(values, tmp_path):
    ours = random_network(**values)
    save_network(ours, tmp_path, values)
    assert_same_hidden_states(ours, theirs_from(tmp_path), values)


@torch.inference_mode()
def test_a_checkpoint_of_theirs_loads_here_with_the_same_hidden_states(values, tmp_path):
    save_network(random_network(**values), tmp_path / "start", values)
    theirs = theirs_from(tmp_path / "start")
    for parameter in theirs.parameters():
        parameter.mul_(1.1)
    theirs.save_pretrained(tmp_path / "saved")
    # their class writes the newer rope_parameters and a dflash_config: public files look like it
    assert "rope_parameters" in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert_same_hidden_states(load_network(tmp_path / "saved"), theirs, values)


@torch.inference_mode()
def test_both_loops_emit_the_same_greedy_tokens_in_the_same_steps(values, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "_cuda_time", time.perf_counter)
    ours = random_network(**values)
    save_network(ours, tmp_path, values)
    model = tiny_model("Qwen3").float()
    prompt = [5, 17, 3, 60]
    there = package.dflash_generate(
        theirs_from(tmp_path), model, torch.tensor([prompt]), 40, None, return_stats=True
    )
    # their loop samples a first token from the prompt before it drafts; ours drafts from the
    # prompt's last token, so the tokens are the same and the steps are one ahead
    first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    target = HFTarget(model, ours.config.taps)
    drafter = BlockDrafter(NetworkProposer(ours, target.embed, target.head, target.taps))
    tokens, lengths = [first], []
    for step in decode(target, drafter, [*prompt, first], Sampling()):
        tokens += step.emitted
        lengths.append(len(step.emitted))
        if len(tokens) >= 40:
            break
    assert tokens[:40] == there.output_ids[0, len(prompt) :].tolist()
    whole = len(there.acceptance_lengths) - 2  # their last blocks are cut to what is left
    assert lengths[:whole] == there.acceptance_lengths[:whole]
