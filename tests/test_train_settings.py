"""Recipes: by name, changed by name, completed by a target, compared."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from answers import random_responses
from d2sd.drafters.config import DraftConfig
from d2sd.train.mask_token import choose_mask_token
from d2sd.train.masking import AnchorOnly, Mixture, Reanchored, TruncatedGeometric
from d2sd.train.recipes import (
    RECIPES,
    Recipe,
    completed,
    default,
    drafter_config,
    find_recipe,
    smollm2_135m,
)
from d2sd.train.record import check_same, describe, write_record
from d2sd.train.settings import changed, dotted, names, read_assignments, read_config
from d2sd.train.stage import find_stages
from folders import byte_tokenizer, tiny_llama


def test_an_unknown_recipe_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="no recipe 'x'; choose one of default, smollm2-135m"):
        find_recipe("x")


def test_the_recipe_of_the_shipped_drafters_keeps_its_meaning():
    recipe = smollm2_135m()
    assert (recipe.block_size, recipe.layers, recipe.intermediate_size) == (8, 3, 704)
    assert (recipe.taps, recipe.mask_token_id, recipe.draft_vocab_size) == ((10, 20, 28), 4, 8192)
    assert (recipe.first.steps, recipe.first.matrix_rate, recipe.first.cooldown) == (
        6000, 3e-3, 0.33,
    )  # fmt: skip
    assert recipe.first.objective == "soft:tau=4,hard=0.5"
    assert (recipe.second.steps, recipe.prefix_decay) == (2000, 0.9)
    assert (recipe.sequences_per_batch, recipe.anchors_per_sequence) == (6, 48)
    assert (recipe.ema, recipe.accumulate, recipe.max_length, recipe.validation) == (0, 1, 512, 48)


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("first.steps=2000", "first.steps", 2000),
        ("first.matrix_rate=1e-3", "first.matrix_rate", 0.001),
        ("first.matrix_rate=1", "first.matrix_rate", 1.0),
        ("ema=0.999", "ema", 0.999),
        ("taps=2,9,16", "taps", (2, 9, 16)),
        ("taps=[2, 9]", "taps", (2, 9)),
        ("taps=5", "taps", (5,)),
        ("taps=none", "taps", None),
        ("compile=false", "compile", False),
        ("checkpoint_every=null", "checkpoint_every", None),
        ("one.objective=decayed:tau=4", "one.objective", "decayed:tau=4"),
    ],
)
def test_a_setting_is_changed_by_its_name(assignment, name, value):
    flat = dotted_recipe(changed(smollm2_135m(), read_assignments([assignment])))
    before = dotted_recipe(smollm2_135m())
    assert flat.pop(name) == value
    assert type(dotted_recipe(changed(Recipe(), read_assignments([assignment])))[name]) is type(
        value
    )
    before.pop(name)
    assert flat == before


def dotted_recipe(recipe):
    return {
        name: getattr(getattr(recipe, name.split(".")[0]), name.split(".")[-1])
        if "." in name
        else getattr(recipe, name)
        for name in names(recipe)
    }


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("first.steps=many", "first.steps is 'many'; it must be a whole number"),
        ("first.steps=2.5", "first.steps is 2.5; it must be a whole number"),
        ("first.steps=true", "first.steps is True; it must be a whole number"),
        ("ema=yes", "ema is True; it must be a number"),
        ("compile=1", "compile is 1; it must be true or false"),
        ("taps=a,b", "taps is 'a,b'; it must be whole numbers such as 2,9,16"),
        ("first.objective=3", "first.objective is 3; it must be text"),
        ("lairs=3", "no setting 'lairs'; the settings are taps, mask_token_id, block_size"),
        ("first.lairs=3", r"no setting 'first\.lairs'"),
        ("first=3", "no setting 'first'"),
        ("layers.steps=3", r"no setting 'layers\.steps'"),
        ("first.steps", "'first.steps' sets nothing; write NAME=VALUE"),
    ],
)
def test_what_can_not_be_set_is_said(assignment, complaint):
    with pytest.raises(ValueError, match=complaint):
        changed(Recipe(), read_assignments([assignment]))


def test_a_file_sets_nested_and_dotted_names(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("layers: 2\nfirst: {steps: 7, matrix_rate: 1e-3}\nsecond.steps: 8\n")
    recipe = changed(Recipe(), read_config(path))
    assert (recipe.layers, recipe.first.steps, recipe.second.steps) == (2, 7, 8)
    assert recipe.first.matrix_rate == 0.001


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("- 1\n", "holds no settings"), ("a: [1\n", "is not YAML"), (None, "can't be read")],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text, complaint):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_config(path)


def test_the_default_recipe_fits_any_target(tiny):
    recipe = completed(default(), tiny.config, lambda: 90)
    assert (recipe.layers, recipe.intermediate_size, recipe.block_size) == (1, 64, 16)
    assert recipe.mask_token_id == 90
    assert recipe.draft_vocab_size == 97
    config = DraftConfig.from_json(drafter_config(recipe, tiny.config))
    assert config.network.head_dim == 8
    deep = SimpleNamespace(**{**tiny.config.to_dict(), "num_hidden_layers": 36})
    assert completed(default(), deep, lambda: 90).taps == (1, 9, 17, 25, 33)


def test_taps_of_a_shallow_target_are_its_last_layers(tiny_llama):
    recipe = completed(replace(default(), layers=3), tiny_llama.config, lambda: 90)
    assert recipe.taps == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layers": 4}, "layers is 4; the target has 3, choose 1 to 3"),
        ({"taps": "0,3"}, r"taps are \[0, 3\]; the target has layers 0 to 2"),
        ({"mask_token_id": 97}, "mask_token_id is 97; the target embeds tokens 0 to 96"),
        ({"block_size": 1}, "block_size is 1"),
        ({"one.steps": 0}, "steps is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": 17}, "fewer than the 17 micro-batches"),
        ({"ema": 1.0}, r"ema is 1\.0"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"second.objective": "best"}, "unknown objective 'best'"),
    ],
)
def test_settings_that_can_not_be_are_refused_before_anything_runs(tiny_llama, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        completed(changed(default(), changes), tiny_llama.config, lambda: 90)


class Vocabulary(SimpleNamespace):
    """A tokenizer as far as the mask token is concerned."""

    def __init__(self, added, size, mask):
        super().__init__(
            added_tokens_decoder=dict(enumerate(added)),
            mask_token_id=mask,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
            chat_template="<start>{{ message }}",
            size=size,
        )

    def __len__(self):
        return self.size


@pytest.mark.parametrize(
    ("tokenizer", "used", "wanted"),
    [
        (Vocabulary(["<s>", "</s>", "<mask>", "<extra_0>"], 100, 40), [50], 40),  # its own
        (Vocabulary(["<s>", "</s>", "<extra_0>", "<|mask|>"], 100, None), [50], 3),
        (Vocabulary(["<s>", "</s>", "<|mask|>", "<tool>"], 100, None), [2], 3),  # read in a text
        (Vocabulary(["<s>", "</s>", "<tool>", "<|reserved_5|>"], 90, None), [50], 3),
        (Vocabulary(["<s>", "</s>", "<tool>"], 90, None), [50], 90),  # past the tokenizer's end
        (Vocabulary(["<s>", "</s>", "<start>", "<tool>"], 100, None), [50], 3),  # the template's
        (Vocabulary(["<s>", "</s>", "<used>", "<tool>"], 100, None), [2], 3),
    ],
)
def test_the_mask_token_is_one_that_no_text_holds(tokenizer, used, wanted):
    assert choose_mask_token(tokenizer, 100, used).id == wanted


def test_a_tokenizer_without_a_token_to_spare_says_so():
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match="name one that its texts never hold, with --set mask_tok"):
        choose_mask_token(tokenizer, len(tokenizer), [0])
    assert choose_mask_token(tokenizer, len(tokenizer), [1, 2]).id == 0  # <|endoftext|>


def test_what_each_stage_sees():
    recipe = Recipe(prefix_decay=0.8, anchor_share=0.25, seed=5)
    first, second = find_stages("both", recipe)
    (one,) = find_stages("one", recipe)
    assert [stage.name for stage in (first, second, one)] == ["first", "second", "one"]
    assert first.prefix == AnchorOnly()
    assert second.prefix == TruncatedGeometric(0.8)
    assert one.prefix == Mixture(0.25, 0.8)
    assert first.seed != second.seed
    (hard,) = find_stages("second", replace(recipe, reanchored=True))
    assert hard.prefix == Reanchored(0.8)
    with pytest.raises(ValueError, match="no stage 'third'; choose one of first, second, both, on"):
        find_stages("third", recipe)


def test_a_folder_is_one_training_but_its_lengths_may_change(tmp_path):
    responses = random_responses(6)
    check_same(tmp_path, describe(Recipe(), responses))
    write_record(tmp_path, describe(Recipe(), responses))
    longer = changed(Recipe(), {"first.steps": 9, "evaluate_every": 2, "checkpoint_every": 5})
    check_same(tmp_path, describe(longer, responses))
    for recipe, sentence in (
        (replace(Recipe(), taps=(1, 2)), r"taps was None and is now \[1, 2\]"),
        (changed(Recipe(), {"one.clip": 2.0}), r"one\.clip was 1\.0 and is now 2\.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_same(tmp_path, describe(recipe, responses))
    with pytest.raises(ValueError, match=r"responses\.sha256 was"):
        check_same(tmp_path, describe(Recipe(), random_responses(6, seed=1)))


def test_every_recipe_can_be_completed_for_a_real_shape():
    config = tiny_llama(num_hidden_layers=30, vocab_size=49152, hidden_size=48).config
    for make in RECIPES.values():
        assert completed(make(), config, lambda: 5).taps
    assert dotted({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
