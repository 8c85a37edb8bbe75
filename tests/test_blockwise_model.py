"""The block-diffusion model: who sees whom, one pass for many, what its cache holds."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import tiny_model
from d2sd.blockwise.checkpoint import load_block_model, save_block_model, shallower
from d2sd.blockwise.masks import additive, row_limits, seen_by, with_lone_masks
from d2sd.blockwise.model import BlockDiffusionLM, BlockSettings

MASK = 5
TEXT = torch.randint(6, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
CONTEXT, BLOCK = TEXT[:11], TEXT[11:17]


@pytest.fixture(params=["Llama", "Qwen3"])
def backbone(request, tiny_models):
    return tiny_models[request.param]


def block_lm(model, shifted=False, view="causal", size=4) -> BlockDiffusionLM:
    return BlockDiffusionLM(model, BlockSettings(MASK, size, shifted), view)


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of two logits, the mask's left out: it is never said."""
    assert (ours[..., MASK] == -torch.inf).all()
    theirs = theirs.index_fill(-1, torch.tensor([MASK]), 0)
    return float((ours.index_fill(-1, torch.tensor([MASK]), 0) - theirs).abs().max())


def drawn(seen: torch.Tensor) -> list[str]:
    return ["".join(" x"[int(cell)] for cell in row).rstrip() for row in seen]


def test_rows_of_a_causal_context_see_what_is_before_them_and_the_block_sees_all():
    assert drawn(seen_by(row_limits(1, 4, 6), 6)) == ["xx", "xxx", "xxxx", "xxxxxx", "xxxxxx"]


def test_rows_of_whole_blocks_see_their_block_to_its_end():
    whole = drawn(seen_by(row_limits(0, 5, 7, grid=2), 7))
    assert whole == ["xx", "xx", "xxxx", "xxxx", "xxxxx", "xxxxxxx", "xxxxxxx"]


def test_the_second_stream_sees_what_is_before_a_token_and_itself():
    first = seen_by(row_limits(1, 4, 4), 4)  # one row is held, three are read; two are verified
    assert drawn(with_lone_masks(first, 2)) == ["xx", "xxx", "xxxx", "xxx x", "xxxx x"]


def test_a_hidden_column_gets_the_least_number():
    mask = additive(torch.tensor([[True, False]]), torch.float64, torch.device("cpu"))
    assert mask.tolist() == [[0, torch.finfo(torch.float64).min]]


@pytest.mark.parametrize("shifted", [False, True])
def test_one_pass_says_what_blocks_of_one_say_after_each_other(backbone, shifted):
    """Against passes of transformers itself, one for each token, without any cache."""
    at_once = block_lm(backbone, shifted).one_by_one(CONTEXT, BLOCK)
    for i, row in enumerate(at_once):
        before = CONTEXT + BLOCK[:i]
        ids = torch.tensor([before if shifted else [*before, MASK]])
        alone = backbone(input_ids=ids).logits[0, -1].detach()
        assert off(row, alone) < 1e-9


@pytest.mark.parametrize("shifted", [False, True])
def test_one_pass_says_what_blocks_of_one_say_over_rows_of_whole_blocks(backbone, shifted):
    context, tokens = TEXT[:8], TEXT[8:12]
    at_once = block_lm(backbone, shifted, "block").one_by_one(context, tokens)
    one = block_lm(backbone, shifted, "block")
    rows = [one.one_by_one([*context, *tokens[:i]], [tokens[i]])[0] for i in range(4)]
    assert off(at_once, torch.stack(rows)) < 1e-9
    causal = block_lm(backbone, shifted).one_by_one(context, tokens)
    assert off(at_once, causal) > 1e-3  # the context is another one


@pytest.mark.parametrize("view", ["causal", "block"])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_cached_pass_equals_a_fresh_one(backbone, shifted, view):
    lm = block_lm(backbone, shifted, view)
    masked = [MASK, TEXT[30], MASK]
    changed = [*TEXT[:6], 90, *TEXT[7:20]]
    for context in (TEXT[:5], TEXT[:8], TEXT[:17], TEXT[:9], changed, TEXT[:20]):
        for ask in (lm.denoise, lm.one_by_one):
            given = masked if ask == lm.denoise else TEXT[20:23]
            fresh = getattr(block_lm(backbone, shifted, view), ask.__name__)(context, given)
            assert off(ask(context, given), fresh) < 1e-9


def test_rows_of_a_block_are_not_taken_for_rows_of_a_context(tiny_llama):
    lm = block_lm(tiny_llama)
    lm.denoise(CONTEXT, [BLOCK[0], MASK, MASK])
    context = [*CONTEXT, BLOCK[0]]
    fresh = block_lm(tiny_llama).denoise(context, [MASK])
    assert off(lm.denoise(context, [MASK]), fresh) < 1e-9


@pytest.mark.parametrize("already", [[], CONTEXT])
def test_an_interrupted_pass_leaves_nothing_wrong_behind(monkeypatch, already):
    model = tiny_model("Llama")
    lm = block_lm(model)
    lm.read(already)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lm.denoise(TEXT[:14], [MASK] * 2)
    fresh = block_lm(model).denoise(TEXT[:14], [MASK] * 2)
    assert off(lm.denoise(TEXT[:14], [MASK] * 2), fresh) < 1e-9


def test_what_was_read_is_not_read_again(tiny_llama):
    lm = block_lm(tiny_llama)
    lm.read(CONTEXT)
    lm.denoise(CONTEXT, [MASK] * 4)
    lm.one_by_one(CONTEXT, BLOCK[:4])
    lm.denoise(CONTEXT + BLOCK[:3], [MASK])
    assert lm.widths == [11, 4, 3 + 4, 1]


def test_a_long_context_is_read_in_chunks(tiny_llama, monkeypatch):
    monkeypatch.setattr("d2sd.blockwise.model.CHUNK", 8)
    lm = block_lm(tiny_llama, view="block")
    far = lm.denoise(TEXT[:38], [MASK] * 2)
    assert lm.widths == [8, 8, 8, 8, 4, 2 + 2]
    monkeypatch.undo()
    at_once = block_lm(tiny_llama, view="block").denoise(TEXT[:38], [MASK] * 2)
    assert off(far, at_once) < 1e-9


def test_a_block_sees_its_later_tokens(tiny_llama):
    lm = block_lm(tiny_llama)
    one, other = (lm.denoise(CONTEXT, [MASK, MASK, token]) for token in (20, 21))
    assert off(one[0], other[0]) > 1e-3


def test_a_layerless_copy_shares_the_ends_and_nothing_else(tiny_llama):
    made = shallower(tiny_llama, 2)
    assert made.get_input_embeddings().weight is tiny_llama.get_input_embeddings().weight
    assert len(made.base_model.layers) == made.config.num_hidden_layers == 2
    theirs = dict(tiny_llama.base_model.layers.named_parameters())
    ours = dict(made.base_model.layers.named_parameters())
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())
    assert not any(weight is theirs[key] for key, weight in ours.items())
    assert len(tiny_llama.base_model.layers) == 3


@pytest.mark.parametrize("share", [False, True])
def test_a_checkpoint_says_the_same_once_loaded(tmp_path, share):
    made = shallower(tiny_model("Llama", tie_word_embeddings=True), 2)
    settings = BlockSettings(MASK, 4, shifted=True)
    save_block_model(made, settings, tmp_path, share_embedding=share)
    size = (tmp_path / "model.safetensors").stat().st_size
    embedding = made.get_input_embeddings().weight
    assert (size < made.num_parameters() * 8) == share
    loaded = load_block_model(str(tmp_path), torch.float64, embedding if share else None)
    assert loaded.settings == settings
    ours = BlockDiffusionLM(loaded.model, loaded.settings).denoise(CONTEXT, [MASK] * 3)
    assert torch.equal(ours, BlockDiffusionLM(made, settings).denoise(CONTEXT, [MASK] * 3))


def test_a_shared_embedding_must_be_given_and_fit(tmp_path):
    made = shallower(tiny_model("Llama", tie_word_embeddings=True), 1)
    save_block_model(made, BlockSettings(MASK, 4), tmp_path, share_embedding=True)
    with pytest.raises(ValueError, match="none is given"):
        load_block_model(str(tmp_path), torch.float64)
    with pytest.raises(ValueError, match=r"\[90, 32\] is given"):
        load_block_model(str(tmp_path), torch.float64, torch.zeros(90, 32))


@pytest.mark.parametrize(
    ("architecture", "public", "expected"),
    [
        ("Qwen3", {"model_type": "sdar", "block_size": 8}, BlockSettings(90, 8)),
        ("Qwen2", {"model_type": "Fast_dLLM_Qwen", "bd_size": 16}, BlockSettings(90, 16, True)),
    ],
)
def test_public_checkpoints_load_as_their_backbone(tmp_path, architecture, public, expected):
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    foreign = {"auto_map": {"AutoConfig": "configuration_x.X"}, "architectures": ["X"]}
    text = json.dumps({**config, **public, **foreign, "mask_token_id": 90})
    (tmp_path / "config.json").write_text(text)
    loaded = load_block_model(str(tmp_path), torch.float64)
    assert type(loaded.model).__name__ == f"{architecture}ForCausalLM"
    assert loaded.settings == expected
    ids = torch.tensor([CONTEXT])
    torch.testing.assert_close(
        loaded.model(ids).logits, model(ids).logits
    )  # not bit by bit: threads sum otherwise


def test_a_causal_model_is_no_block_diffusion_model(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no block-diffusion model"):
        load_block_model(str(tmp_path), torch.float64)
    with pytest.raises(ValueError, match="can't be loaded"):
        load_block_model(str(tmp_path / "nowhere"), torch.float64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [(BlockSettings(97, 4), "mask_token is 97"), (BlockSettings(1, 0), "block_size is 0")],
)
def test_settings_that_cannot_be_are_refused(tiny_llama, settings, words):
    with pytest.raises(ValueError, match=words):
        BlockDiffusionLM(tiny_llama, settings)


def test_a_window_is_refused():
    with pytest.raises(ValueError, match="MistralForCausalLM cannot denoise blocks"):
        block_lm(tiny_model("Mistral", sliding_window=8))


def test_contexts_that_cannot_be_are_refused(tiny_llama):
    with pytest.raises(ValueError, match="the context is empty"):
        block_lm(tiny_llama, shifted=True).denoise([], [MASK])
    with pytest.raises(ValueError, match="have 257 tokens"):
        block_lm(tiny_llama).denoise([7] * 255, [MASK] * 2)
