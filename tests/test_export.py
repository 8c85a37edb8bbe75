"""Exports: either layout to the other and back, the same drafts from both, whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file

from d2sd.cli import run
from d2sd.drafters import export as module
from d2sd.drafters.checkpoint import load_network, save_network
from d2sd.drafters.export import export
from d2sd.drafters.proposer import NetworkProposer
from d2sd.interfaces import Context
from drafters import drafter_json, random_network
from folders import save_drafter, save_target

IDS = torch.tensor([4, 40, 41, 96])
FITTED = [0.9, 1.1]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target folder that fits the drafters of `drafter_json`; its head is its embedding."""
    changes = {"vocab_size": 97, "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    return str(save_target(tmp_path_factory.mktemp("target"), **changes))


def stored(folder, ids=None, dtype=torch.bfloat16, **changes):
    """A drafter with fitted temperatures in the DFlash layout."""
    extra = {} if ids is None else {"draft_vocab_size": len(ids)}
    inner = {"mask_token_id": 96, "target_layer_ids": [0, 2], "temperatures": FITTED}
    network = random_network(**extra, **changes).to(dtype)
    network.draft_ids = ids
    save_network(network, folder, drafter_json(dflash_config=inner, **extra, **changes))
    return folder


def values_of(folder):
    return json.loads((folder / "config.json").read_text())


def facts(folder):
    """Everything that decoding reads from a config.json, in one comparable form."""
    config = load_network(folder).config
    return {**vars(config), "network": config.network.to_dict()}


def proposal(folder):
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randn(97, 32, generator=generator)
    head = torch.nn.Linear(32, 97, bias=False).requires_grad_(False)
    head.weight.copy_(torch.randn(97, 32, generator=generator))
    features = torch.randn(4, 2, 32, generator=generator)
    proposer = NetworkProposer(load_network(folder), embedding, head, (0, 2))
    return proposer.propose(Context((3, 1, 4, 1, 5), features), [(5,), (5, 9)])


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole vocabulary", "reduced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_gives_the_same_bits_and_the_same_config(tmp_path, target, ids, dtype):
    source = stored(tmp_path / "drafter", ids, dtype)
    export(source, tmp_path / "there", "speculators", target)
    export(tmp_path / "there", tmp_path / "back", "dflash")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name])
    assert values_of(source) == values_of(tmp_path / "back")


@pytest.mark.parametrize("ids", [None, IDS], ids=["whole vocabulary", "reduced"])
def test_both_layouts_are_loaded_and_draft_the_same(tmp_path, target, ids):
    source = stored(tmp_path / "drafter", ids)
    export(source, tmp_path / "there", "speculators", target)
    export(source, tmp_path / "here", "dflash")
    for folder in (tmp_path / "there", tmp_path / "here"):
        assert {k: v for k, v in facts(folder).items() if k != "network"} == {
            k: v for k, v in facts(source).items() if k != "network"
        }
        assert torch.equal(proposal(folder).probs, proposal(source).probs)
        assert torch.equal(proposal(folder).top(2).tokens, proposal(source).top(2).tokens)


def test_the_speculators_folder_says_what_its_readers_ask_for(tmp_path, target):
    export(stored(tmp_path / "drafter", IDS), tmp_path / "there", "speculators", target)
    values = values_of(tmp_path / "there")
    assert values["aux_hidden_state_layer_ids"] == [1, 3]  # the embedding is their layer 0
    assert values["transformer_layer_config"]["model_type"] == "qwen3"
    assert "dflash_config" not in values["transformer_layer_config"]
    assert (values["draft_vocab_size"], values["block_size"]) == (4, 5)
    assert values["speculators_config"]["verifier"] == {
        "name_or_path": target,
        "architectures": ["LlamaForCausalLM"],
    }
    assert values["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 4
    assert values["sliding_window_non_causal"] is True  # vLLM turns false into causal everywhere
    assert values["d2sd_config"] == {"temperatures": FITTED}
    assert values["dtype"] == "bfloat16"


def test_a_reduced_vocabulary_brings_its_mask_and_the_rows_of_the_targets_head(tmp_path, target):
    shuffled = IDS[[2, 0, 3, 1]]  # speculators numbers draft tokens in the order of target ids
    export(stored(tmp_path / "drafter", shuffled), tmp_path / "there", "speculators", target)
    weights = load_file(tmp_path / "there" / "model.safetensors")
    assert weights["t2d"].dtype == torch.bool
    assert weights["t2d"].nonzero().flatten().tolist() == IDS.tolist()
    assert (weights["d2t"] + torch.arange(4)).tolist() == IDS.tolist()
    embedding = load_file(f"{target}/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(weights["lm_head.weight"], embedding[IDS].bfloat16())


def test_a_whole_vocabulary_brings_nothing_of_the_target(tmp_path, target):
    source = stored(tmp_path / "drafter")
    export(source, tmp_path / "there", "speculators", target)
    body = load_file(source / "model.safetensors").keys()
    assert load_file(tmp_path / "there" / "model.safetensors").keys() == body
    assert values_of(tmp_path / "there")["draft_vocab_size"] == 97


def test_a_speculators_folder_is_exported_again_without_its_target(tmp_path, target):
    export(stored(tmp_path / "drafter", IDS), tmp_path / "there", "speculators", target)
    export(tmp_path / "there", tmp_path / "again", "speculators")
    assert values_of(tmp_path / "again") == values_of(tmp_path / "there")
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("there", "again")
    )
    assert all(torch.equal(before[name], after[name]) for name in before.keys() | after.keys())


SLIDING = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}


@pytest.mark.parametrize(
    ("kinds", "is_causal", "note"),
    [
        (["sliding_attention"] * 2, None, "counts a sliding window from the anchor"),
        (["sliding_attention"] * 2, False, "counts a sliding window from the anchor"),
        (["sliding_attention", "full_attention"], None, "makes the full ones causal too"),
        (["sliding_attention", "full_attention"], False, "counts a sliding window"),
    ],
)
def test_windows_and_causality_survive(tmp_path, target, kinds, is_causal, note):
    said = {} if is_causal is None else {"is_causal": is_causal}
    source = stored(tmp_path / "drafter", layer_types=kinds, **SLIDING, **said)
    notes = export(source, tmp_path / "there", "speculators", target)
    before, after = (load_network(f).config for f in (source, tmp_path / "there"))
    assert (after.windows, after.causal) == (before.windows, before.causal)
    assert any(note in line for line in notes)
    export(tmp_path / "there", tmp_path / "back", "dflash")
    assert values_of(tmp_path / "back") == values_of(source)


@pytest.mark.parametrize(
    ("changes", "layout", "complaint"),
    [
        ({"is_causal": True}, "speculators", "full-attention layers are causal"),
        ({}, "gguf", "there is no layout 'gguf'; choose one of dflash, speculators"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(tmp_path, target, changes, layout, complaint):
    source = stored(tmp_path / "drafter", **changes)
    with pytest.raises(ValueError, match=complaint):
        export(source, tmp_path / "there", layout, target)
    assert [path.name for path in tmp_path.iterdir()] == ["drafter"]


def test_the_target_must_be_named_and_must_fit(tmp_path, target):
    source = stored(tmp_path / "drafter", IDS)
    with pytest.raises(ValueError, match="give the target with --model"):
        export(source, tmp_path / "there", "speculators")
    other = save_target(tmp_path / "other")  # of another vocabulary
    with pytest.raises(ValueError, match="the drafter's vocab_size is 97, that of the target"):
        export(source, tmp_path / "there", "speculators", str(other))
    with pytest.raises(ValueError, match="cannot be read"):
        export(source, tmp_path / "there", "speculators", str(tmp_path))


def test_factors_that_speculators_lacks_are_noted(tmp_path, target):
    source = stored(tmp_path / "drafter", output_multiplier=0.5)
    notes = export(source, tmp_path / "there", "speculators", target)
    assert "speculators knows no output_multiplier; only d2sd applies it" in notes
    assert load_network(tmp_path / "there").config.output_multiplier == 0.5


def test_a_pair_is_exported_as_a_pair(tmp_path):
    for seed, name in enumerate(("first", "second")):
        save_drafter(tmp_path / "pair" / name, seed)
    export(tmp_path / "pair", tmp_path / "out", "dflash")
    for name in ("first", "second"):
        before, after = (
            load_file(tmp_path / place / name / "model.safetensors") for place in ("pair", "out")
        )
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert (tmp_path / "out" / name / "provenance.json").is_file()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch, fails_at):
    for seed, name in enumerate(("first", "second")):
        save_drafter(tmp_path / "pair" / name, seed)
    export(tmp_path / "pair", tmp_path / "out", "dflash")
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    calls = 0

    def dies(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise KeyboardInterrupt
        return save(*arguments, **named)

    save = module.save_file
    monkeypatch.setattr(module, "save_file", dies)
    for out in ("out", "new"):
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "pair", tmp_path / out, "dflash")
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pair"]


def test_an_export_killed_between_its_two_renames_is_mended_by_the_next(tmp_path):
    source = save_drafter(tmp_path / "drafter")
    export(source, tmp_path / "out", "dflash")
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(RuntimeError), module.whole_folder(tmp_path / "out"):
        raise RuntimeError
    assert load_network(tmp_path / "out").config.block_size == 5
    export(source, tmp_path / "out", "dflash")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drafter", "out"]


def test_nothing_but_an_export_is_ever_replaced(tmp_path):
    source = save_drafter(tmp_path / "home" / "drafter")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for place, complaint in [
        (tmp_path / "out", "holds thesis.tex, which the export would remove"),
        (tmp_path / "file", "is a file; give a folder"),
        (source, "holds the drafter itself"),
        (tmp_path / "home", "holds the drafter itself"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            export(source, place, "dflash")


def test_the_provenance_of_the_drafter_goes_along(tmp_path):
    source = save_drafter(tmp_path / "drafter")
    (source / "provenance.json").write_text('{"seed": 7}')
    export(source, tmp_path / "out", "dflash")
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["drafter"] == {"seed": 7}
    assert {"command", "commit", "versions"} <= record.keys()


def test_the_command_prints_one_object_and_its_errors_in_one_sentence(tmp_path, target, capsys):
    source, out = str(stored(tmp_path / "drafter", IDS)), str(tmp_path / "out")
    line = ["export", source, "--out", out, "--format", "speculators"]
    assert run(line) == 2
    assert "give the target with --model" in capsys.readouterr().err
    assert run([*line, "--model", target, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["out"], printed["format"]) == (out, "speculators")
    assert "d2sd_config" in printed["notes"][0]
    assert printed["notes"][1].endswith(f"by its place here, {target}")
    assert load_network(out).config.taps == (0, 2)


def test_for_vllm_the_first_drafter_alone_lies_in_the_folder_with_the_command_to_serve_it(
    tmp_path, target
):
    stored(tmp_path / "both" / "first", IDS)
    stored(tmp_path / "both" / "second")
    notes = export(tmp_path / "both", tmp_path / "served", "vllm", target)
    assert values_of(tmp_path / "served")["speculators_model_type"] == "dflash"
    first, served = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "both" / "first", tmp_path / "served")
    )
    assert served.keys() - {"t2d", "lm_head.weight"} == first.keys()  # its vocabulary is reduced
    assert torch.equal(served["fc.weight"], first["fc.weight"])
    assert not (tmp_path / "served" / "second").exists()
    assert any("second drafter is left out" in note for note in notes)
    told = json.loads(notes[-1].partition("--speculative-config ")[2].strip("'"))
    where = str((tmp_path / "served").resolve())
    assert told == {"method": "dflash", "model": where, "num_speculative_tokens": 4}


def test_for_vllm_the_target_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="give the target with --model"):
        export(stored(tmp_path / "drafter", IDS), tmp_path / "served", "vllm")
