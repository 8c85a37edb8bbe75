"""Drafter checkpoints: what is written is read, every layout, every refusal in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from d2sd.drafters.checkpoint import load_network, save_network
from d2sd.drafters.config import DraftConfig, default_taps
from drafters import drafter_json, random_network


@pytest.fixture
def folder(tmp_path):
    save_network(random_network(), tmp_path / "drafter", drafter_json())
    return tmp_path / "drafter"


def rewrite(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def test_what_is_saved_is_loaded(folder):
    loaded, saved = load_network(folder), random_network()
    assert loaded.config.taps == (0, 2)
    assert loaded.draft_ids is None
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_draft_vocabulary_is_kept_as_offsets(tmp_path):
    network = random_network(draft_vocab_size=3)
    network.draft_ids = torch.tensor([4, 40, 96])
    save_network(network, tmp_path, drafter_json(draft_vocab_size=3))
    assert load_file(tmp_path / "model.safetensors")["d2t"].tolist() == [4, 39, 94]
    assert load_network(tmp_path).draft_ids.tolist() == [4, 40, 96]


def test_the_speculators_layout_counts_layers_from_the_embedding(folder):
    layers = {k: v for k, v in drafter_json().items() if k not in ("dflash_config", "block_size")}
    weights = load_file(folder / "model.safetensors")
    extra = {"embed_tokens.weight": torch.zeros(97, 32), "t2d": torch.zeros(97, dtype=torch.bool)}
    save_file({**weights, **extra}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "speculators_model_type": "dflash",
                "architectures": ["DFlashSpeculator"],
                "transformer_layer_config": layers,
                "aux_hidden_state_layer_ids": [1, 3],
                "mask_token_id": 96,
                "block_size": 5,
            }
        )
    )
    loaded = load_network(folder)
    assert (loaded.config.taps, loaded.config.block_size) == ((0, 2), 5)
    assert torch.equal(loaded.fc.weight, random_network().fc.weight)


def test_dflash_config_comes_before_the_top_level_and_both_before_the_defaults():
    inner = {"mask_token_id": 7, "target_layer_ids": [1], "block_size": 9}
    config = DraftConfig.from_json(drafter_json(dflash_config=inner, block_size=4))
    assert (config.block_size, config.mask_token_id, config.taps) == (9, 7, (1,))
    outer = {**drafter_json(num_target_layers=36, mask_token_id=3), "dflash_config": {}}
    del outer["block_size"]
    config = DraftConfig.from_json({**outer, "num_hidden_layers": 5, "layer_types": None})
    assert (config.block_size, config.mask_token_id) == (16, 3)
    assert config.taps == (1, 9, 17, 25, 33)  # as Qwen3-4B's public drafter names them
    assert default_taps(30, 1) == (15,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": ["DFlash2DraftModel"]}, "DFlash 2"),
        ({"architectures": ["Qwen3DSparkModel"]}, "DSpark"),
        ({"speculators_model_type": "eagle3"}, "only 'dflash' is supported"),
        ({"dflash_config": {"target_layer_ids": [0, 2]}}, "names no mask_token_id"),
        ({"dflash_config": {"mask_token_id": 96}, "num_target_layers": None}, "taps are unknown"),
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "lacks the weights"),
        ({"intermediate_size": 40}, r"is \(48, 32\), its config.json asks for \(40, 32\)"),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "no DFlash drafter has"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(folder, changes, complaint):
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=complaint):
        load_network(folder)


def test_truncated_weights_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_network(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model.bin\)"):
        load_network(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ValueError, match="no folder with a drafter's"):
        load_network(name)


def test_a_failed_save_leaves_the_old_weights(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr("d2sd.drafters.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_network(random_network(seed=1), folder, drafter_json())
    assert (folder / "model.safetensors").read_bytes() == before
