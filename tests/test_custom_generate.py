"""`custom_generate`: transformers' own generate is the oracle."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from conftest import tiny_model
from d2sd.drafters.none import NoDrafter
from d2sd.hf import custom_generate
from d2sd.networks import load_drafter
from fakes import ScriptedDrafter
from folders import VOCAB, save_drafter, tiny_llama

PROMPTS = ([5], [7, 7, 7], [3, 14, 15, 9, 2, 6])


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def model(request):
    return tiny_model(request.param)


def rough_drafter() -> ScriptedDrafter:
    """Two branches: what came after the anchor before, and nonsense."""
    return ScriptedDrafter(lambda c: [c.tokens[:4], [(c.anchor * 5 + i) % 97 for i in range(3)]])


class Oracle:
    """Builds a drafter that knows the plain answer for a while, then errs, then knows again."""

    taps = (0, 2)

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer

    def __call__(self, target) -> ScriptedDrafter:
        assert target.taps == self.taps

        def script(context):
            at = len(context.tokens)
            assert context.features.shape[1] == len(self.taps)
            right = self.answer[at : at + 5]
            return [right, [*right[:2], 0, 1]] if at % 3 else [[96, 96]]

        return ScriptedDrafter(script)


def plain(model, prompt, **settings):
    return model.generate(torch.tensor([prompt]), **settings)


def ours(model, prompt, drafter, **settings):
    generate = settings.pop("custom_generate", custom_generate)
    ids = torch.tensor([prompt])
    return model.generate(ids, custom_generate=generate, drafter=drafter, **settings)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_generate(model, prompt) -> None:
    expected = plain(model, prompt, max_new_tokens=25, do_sample=False)
    for drafter in (None, NoDrafter(), rough_drafter(), Oracle(expected[0].tolist())):
        got = ours(model, prompt, drafter, max_new_tokens=25, do_sample=False)
        assert got.tolist() == expected.tolist()
    again = plain(model, prompt, max_new_tokens=25, do_sample=False)
    assert again.tolist() == expected.tolist()  # the model is left as it was


def test_an_oracle_needs_fewer_passes(model) -> None:
    expected = plain(model, [5], max_new_tokens=25, do_sample=False)[0].tolist()
    passes = []
    with_hook = model.register_forward_hook(lambda *_: passes.append(1))
    ours(model, [5], Oracle(expected), max_new_tokens=25, do_sample=False)
    with_hook.remove()
    assert 5 <= len(passes) <= 18


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sampled_tokens_are_those_of_generate(model, prompt) -> None:
    settings = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "max_new_tokens": 25,
    }
    torch.manual_seed(11)
    expected = plain(model, prompt, **settings)
    for drafter in (NoDrafter(), rough_drafter(), Oracle(expected[0].tolist())):
        torch.manual_seed(11)
        assert ours(model, prompt, drafter, **settings).tolist() == expected.tolist()
    torch.manual_seed(12)
    assert plain(model, prompt, **settings).tolist() != expected.tolist()  # seeds do matter


def test_end_of_sequence_inside_an_accepted_run(model) -> None:
    free = plain(model, [5], max_new_tokens=25, do_sample=False)[0].tolist()
    eos = free[9]
    settings = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": [eos, 95]}
    expected = plain(model, [5], pad_token_id=0, **settings)
    got = ours(model, [5], Oracle(free), pad_token_id=0, **settings)
    assert got.tolist() == expected.tolist()
    assert got[0, -1] == eos
    assert got.shape[1] <= 10


def test_own_processors_and_criteria_are_respected(model) -> None:
    class OnlyEven(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, 1::2] = -torch.inf  # in place, as some processors do
            return scores

    class AfterTwelve(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= 12])

    settings = {
        "max_new_tokens": 40,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([OnlyEven()]),
        "stopping_criteria": StoppingCriteriaList([AfterTwelve()]),
    }
    expected = plain(model, [4, 8], **settings)
    got = ours(model, [4, 8], Oracle(expected[0].tolist()), **settings)
    assert got.tolist() == expected.tolist()
    assert got.shape[1] == 12
    assert not any(token % 2 for token in got[0, 2:].tolist())


def test_a_bound_streamer_sees_every_token_once(model) -> None:
    class Collector:
        def __init__(self) -> None:
            self.tokens, self.ended = [], False

        def put(self, value) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Collector()
    got = ours(
        model,
        [5],
        rough_drafter(),
        custom_generate=partial(custom_generate, streamer=streamer),
        max_new_tokens=9,
        do_sample=False,
    )
    assert streamer.tokens == got[0, 1:].tolist()
    assert streamer.ended


def test_a_dict_is_returned_where_one_is_asked_for(model) -> None:
    settings = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
    expected = plain(model, [5], **settings)
    assert ours(model, [5], None, **settings).sequences.tolist() == expected.sequences.tolist()


def test_it_stops_where_the_context_is_full() -> None:
    model = tiny_model("Llama", max_position_embeddings=16)
    got = ours(model, [5], rough_drafter(), max_new_tokens=40, do_sample=False)
    assert got.shape[1] == 16


@pytest.mark.parametrize(
    ("ids", "settings", "words"),
    [
        ([[1, 2], [3, 4]], {}, "given 2 rows"),
        ([[1, 2]], {"num_return_sequences": 2, "do_sample": True}, "given 2 rows"),
        ([[1, 2]], {"attention_mask": torch.tensor([[0, 1]])}, "leave the padding out"),
        (
            [[1, 2]],
            {"output_scores": True, "return_dict_in_generate": True},
            "leave out output_scores",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(model, ids, settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        model.generate(
            torch.tensor(ids), custom_generate=custom_generate, max_new_tokens=4, **settings
        )


def test_a_filled_cache_is_refused(model) -> None:
    cache = model(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled already"):
        ours(model, [1, 2, 3], None, past_key_values=cache, max_new_tokens=4)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Two drafters on disk and the float32 and bfloat16 models they are made for."""
    home = tmp_path_factory.mktemp("home")
    return str(save_drafter(home / "first", seed=1)), str(save_drafter(home / "second", seed=2))


@pytest.mark.parametrize("policy", ["block", "best-first:budget=9", "dual:branches=2", "merged"])
def test_loaded_drafters_give_the_tokens_of_generate(shipped, policy) -> None:
    model = tiny_llama(eos_token_id=None)
    expected = plain(model, [70, 71], max_new_tokens=20, do_sample=False)
    drafter = load_drafter(policy, *shipped)
    got = ours(model, [70, 71], drafter, max_new_tokens=20, do_sample=False)
    assert got.tolist() == expected.tolist()


def test_a_loaded_drafter_takes_the_dtype_of_the_model(shipped) -> None:
    model = tiny_llama(eos_token_id=None).bfloat16()
    got = ours(model, [70, 71], load_drafter("dual", *shipped), max_new_tokens=8, do_sample=False)
    assert got.shape == (1, 10)


def test_a_loaded_drafter_hears_the_temperature_of_the_draws(shipped) -> None:
    heard = []

    class Listening:
        taps = ()

        def at(self, temperature):
            heard.append(temperature)
            return lambda target: rough_drafter()

        def __call__(self, target):
            raise AssertionError

    settings = {"max_new_tokens": 3, "do_sample": True}
    for extra in ({"do_sample": False}, {}, {"temperature": 0.7}):
        ours(tiny_llama(), [70, 71], Listening(), **{**settings, **extra})
    assert heard == [0.0, 1.0, 0.7]
    assert load_drafter("dual", *shipped).at(0.7).temperature == 0.7


def test_a_drafter_for_another_model_is_refused(shipped) -> None:
    model = tiny_model("Llama", num_hidden_layers=4)
    words = rf"the first drafter '.*first' knows {VOCAB} tokens, the target \w+ knows 97"
    with pytest.raises(ValueError, match=words):
        ours(model, [5], load_drafter("dual", *shipped), max_new_tokens=8)


def test_a_policy_that_goes_by_costs_is_refused() -> None:
    with pytest.raises(ValueError, match="choose merged"):
        load_drafter("planned")
