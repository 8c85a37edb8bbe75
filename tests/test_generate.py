"""Stop rules, text and statistics on top of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.drafters.none import NoDrafter
from d2sd.generate import Request, generate, stream
from d2sd.interfaces import Context
from d2sd.sampling import Sampling
from d2sd.stages import Stages
from d2sd.text import TextStream, may_begin, plain_text
from fakes import MarkovTarget, ScriptedDrafter, random_table
from folders import byte_tokenizer, word_tokenizer

BYTES = byte_tokenizer()
WORDS = word_tokenizer()


class Letters:
    """Token i is the letter i: a is 0, b is 1, and so on."""

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        return "".join(chr(ord("a") + token) for token in token_ids)


def circle(size: int) -> MarkovTarget:
    """A target that counts: after token t comes (t + 1) mod size, with certainty."""
    table = torch.full((size, size), 1e-9, dtype=torch.float64)
    for token in range(size):
        table[token, (token + 1) % size] = 1.0
    return MarkovTarget(table)


def knows_all(target: MarkovTarget, length: int) -> ScriptedDrafter:
    """Drafts what the target will say, `length` tokens of it."""

    def script(context: Context) -> list[Sequence[int]]:
        return [target.greedy(context.tokens, length)]

    return ScriptedDrafter(script)


def streamed(tokenizer, tokens: Sequence[int], stop_strings: Sequence[str] = ()) -> list[str]:
    text = TextStream(tokenizer, stop_strings)
    return [*(text.add(token) for token in tokens), text.finish()]


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=60))
def test_streamed_bytes_equal_the_full_decode(tokens: list[int]) -> None:
    assert "".join(streamed(BYTES, tokens)) == plain_text(BYTES, tokens)


def bytes_of(character: str) -> list[int]:
    """The byte tokens of a character in the word tokenizer."""
    return WORDS.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in character.encode()])


@given(st.lists(st.integers(258, 265).map(lambda t: [t]) | st.characters().map(bytes_of)))
def test_streamed_words_equal_the_full_decode(parts: list[list[int]]) -> None:
    tokens = [token for part in parts for token in part]
    pieces = streamed(WORDS, tokens)
    assert "".join(pieces) == plain_text(WORDS, tokens)
    assert pieces[-1] == "" or pieces[-1].endswith("\ufffd")


@given(st.text(max_size=40))
def test_only_complete_characters_are_streamed(text: str) -> None:
    tokens = BYTES(text, add_special_tokens=False)["input_ids"]
    pieces = streamed(BYTES, tokens)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_split_character_waits_for_its_last_byte() -> None:
    tokens = BYTES("€é", add_special_tokens=False)["input_ids"]
    assert streamed(BYTES, tokens) == ["", "", "€", "", "é", ""]


def test_an_unfinished_character_shows_only_at_the_end() -> None:
    tokens = BYTES("a€", add_special_tokens=False)["input_ids"][:-1]
    assert streamed(BYTES, tokens) == ["a", "", "", "\ufffd"]


def test_the_first_word_loses_its_space_and_no_other_does() -> None:
    the, cat = WORDS.convert_tokens_to_ids(["▁the", "▁cat"])
    assert streamed(WORDS, [the] + [cat] * 40) == ["the"] + [" cat"] * 40 + [""]


@given(
    st.text("ab<", max_size=30),
    st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    """Against a slow reference: read letter by letter until some stop string is complete."""
    tokens = [ord(letter) - ord("a") for letter in text]
    expected = text
    for end in range(1, len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    pieces = streamed(Letters(), tokens, stops)
    assert "".join(pieces) == expected
    assert all(expected.startswith("".join(pieces[:n])) for n in range(len(pieces)))


def test_text_that_may_begin_a_stop_string_is_held_back_and_freed() -> None:
    tokens = [ord(letter) - ord("a") for letter in "abcabd"]
    assert streamed(Letters(), tokens, ["abd"]) == ["", "", "abc", "", "", "", ""]
    assert streamed(Letters(), tokens, ["abdx"]) == ["", "", "abc", "", "", "", "abd"]


def test_may_begin_finds_the_longest_overlap() -> None:
    assert may_begin("xaba", ["abac", "a"]) == 3
    assert may_begin("xyz", ["abc"]) == 0
    assert may_begin("abc", ["abc"]) == 0  # a whole stop string is not a beginning of one


@pytest.mark.parametrize("length", [0, 1, 2, 5, 9])
def test_a_stop_token_inside_an_accepted_run_ends_the_answer(length: int) -> None:
    target = circle(8)
    request = Request(prompt=(0,), stop_tokens=frozenset({4}))
    answer = generate(target, knows_all(target, length), request, Letters())
    assert answer.token_ids == (1, 2, 3, 4)
    assert answer.text == "bcd"  # the stop token is no text
    assert answer.finish_reason == "stop"
    assert answer.steps == -(-4 // (length + 1))


@pytest.mark.parametrize("length", [0, 1, 2, 5, 9])
def test_a_stop_string_across_steps_ends_the_answer(length: int) -> None:
    target = circle(8)
    request = Request(prompt=(0,), stop_strings=("def",))
    pieces: list[str] = []
    answer = generate(
        target,
        knows_all(target, length),
        request,
        Letters(),
        on_piece=lambda p: pieces.append(p.text),
    )
    assert answer.token_ids == (1, 2, 3, 4, 5)  # up to the token that completes it
    assert answer.text == "".join(pieces) == "bc"
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("length", [0, 1, 3, 9])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_new_tokens_is_kept_exactly(length: int, limit: int) -> None:
    target = circle(8)
    request = Request(prompt=(0,), max_new_tokens=limit)
    answer = generate(target, knows_all(target, length), request, Letters())
    assert answer.token_ids == target.greedy((0,), limit)
    assert answer.finish_reason == "length"
    assert answer.text == Letters().decode(
        list(answer.token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_a_stop_at_the_last_allowed_token_is_a_stop() -> None:
    request = Request(prompt=(0,), max_new_tokens=4, stop_tokens=frozenset({4}))
    assert generate(circle(8), NoDrafter(), request, Letters()).finish_reason == "stop"


def test_no_node_is_scored_beyond_the_context() -> None:
    target = circle(8)
    target.context_limit = 10
    request = Request(prompt=(0, 1, 2), max_new_tokens=100)
    pieces = list(stream(target, knows_all(target, 5), request, Letters()))
    assert sum(len(piece.tokens) for piece in pieces) == 7
    assert pieces[-1].finish_reason == "length"
    committed = 3
    for piece in pieces:
        assert committed + max(piece.step.tree.depths) < 10
        committed += len(piece.tokens)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    target = circle(8)
    target.context_limit = 3
    with pytest.raises(ValueError, match=r"prompt has 3 tokens .* context holds 3.* shorten"):
        generate(target, NoDrafter(), Request(prompt=(0, 1, 2)), Letters())


def test_the_same_answer_whatever_the_tree() -> None:
    target = MarkovTarget(random_table(6, seed=1))
    scripts = [
        lambda c: [],
        lambda c: [[0, 1, 2], [3, 4, 5]],
        lambda c: [target.greedy(c.tokens, 4)],
    ]
    answers = []
    for script in scripts:
        request = Request(
            prompt=(0,),
            sampling=Sampling(temperature=1.0, rng=torch.Generator().manual_seed(5)),
            max_new_tokens=40,
            stop_strings=("fad", "cb"),
        )
        answers.append(generate(target, ScriptedDrafter(script), request, Letters()))
    assert len({(a.token_ids, a.text, a.finish_reason) for a in answers}) == 1
    assert len({a.steps for a in answers}) > 1  # the trees did differ in what they gained


def test_statistics_count_steps_nodes_and_stages() -> None:
    target = circle(8)
    drafter = ScriptedDrafter(lambda c: [target.greedy(c.tokens, 2), [7, 7, 7]])
    stages = Stages()
    request = Request(prompt=(0, 1), max_new_tokens=9)
    answer = generate(target, drafter, request, Letters(), stages)
    assert (answer.new_tokens, answer.steps, answer.prompt_tokens) == (9, 3, 2)
    assert answer.acceptance_length == 3.0
    # the last step has room for two drafted tokens and the bonus: the third 7 is left out
    assert answer.nodes == sum((5, 5, 4))
    assert answer.nodes_per_step == pytest.approx(14 / 3)
    assert answer.seconds > 0
    assert answer.tokens_per_second == pytest.approx(9 / answer.seconds)
    assert set(stages.seconds) == {"prefill", "draft", "score", "verify", "commit"}


def test_an_answer_can_be_cancelled() -> None:
    target = circle(8)
    request = Request(prompt=(0,), max_new_tokens=50)
    answer = generate(target, NoDrafter(), request, Letters(), on_piece=lambda p: p.tokens == (3,))
    assert answer.finish_reason == "cancelled"
    assert answer.token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
        ({"stop_strings": ("",)}, "a stop string is empty"),
    ],
)
def test_bad_limits_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Request(prompt=(0,), **changes)


def test_stop_rules_do_not_depend_on_where_steps_end() -> None:
    """Every cut of one answer into steps gives the same pieces of text in the end."""
    target = circle(20)
    texts = set()
    for length in range(8):
        request = Request(prompt=(0,), max_new_tokens=30, stop_strings=("mno", "zz"))
        pieces = list(stream(target, knows_all(target, length), request, Letters()))
        assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        joined = ["".join(p.text for p in pieces[:n]) for n in range(len(pieces) + 1)]
        assert all(right.startswith(left) for left, right in pairwise(joined))
        texts.add(joined[-1])
    assert texts == {"bcdefghijkl"}
