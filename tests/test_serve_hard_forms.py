"""Forms that nobody can follow in time, or at all, cost their own request and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest

from d2sd.serve.grammar import DEEPEST, MOST_TEXT
from d2sd.serve.masker import Masker
from d2sd.serve.service import Limits
from d2sd.session import ModelChoice, open_session
from folders import VOCAB, byte_tokenizer, save_target
from serve_process import Heard, ask
from serving import Serving, serving

xgrammar = pytest.importorskip("xgrammar", reason="xgrammar is not installed (extra grammar)")

MANY = {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}}
HARD = "schema", json.dumps(MANY)
"""Keeps xgrammar 0.2.8 busy for minutes: any of 1500 properties may be left out."""
LETTERS = "regex", "[ab]*c"


@pytest.fixture(scope="module")
def masker() -> Iterator[Masker]:
    info = xgrammar.TokenizerInfo.from_huggingface(
        byte_tokenizer(), vocab_size=VOCAB, stop_token_ids=[2]
    )
    vocabulary = {"encoded_vocab": info.decoded_vocab, "vocab_size": VOCAB, "stop_token_ids": [2]}
    found = Masker(lambda: vocabulary, seconds=1.0)
    found.start()
    yield found
    found.close()


def allowed(masker: Masker, key: int, text: str) -> str:
    """The characters that may follow `text` in the answer `key` of the form LETTERS."""
    tokens = byte_tokenizer()(text)["input_ids"]
    words = masker.allowed(key, LETTERS, tokens).tolist()
    numbers = [n for n in range(VOCAB) if words[n // 32] >> (n % 32) & 1]
    return "".join(sorted(byte_tokenizer().decode(numbers, skip_special_tokens=True)))


def test_a_form_that_takes_too_long_is_given_up(masker) -> None:
    assert allowed(masker, 1, "ab") == "abc"
    start = time.monotonic()
    with pytest.raises(ValueError, match="takes too long to follow; simplify it"):
        masker.allowed(2, HARD, [])
    assert time.monotonic() - start < 4
    assert allowed(masker, 1, "abab") == "abc"  # in a new process, from its beginning
    assert allowed(masker, 1, "ababc") == ""


def test_a_process_that_ends_in_between_changes_no_answer(masker) -> None:
    assert allowed(masker, 3, "a") == "abc"
    masker.close()
    assert allowed(masker, 3, "ac") == ""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Serving]:
    folder = save_target(tmp_path_factory.mktemp("home") / "target")
    session = open_session(ModelChoice(str(folder), device="cpu", dtype="float32"), ["none"])
    with serving(session, "none", Limits(max_tokens=16)) as found:
        yield found


def asked(server: Serving, form: dict[str, object], **changes: object) -> Heard:
    values = {"model": server.session.name, "response_format": form, **changes}
    values["messages"] = [{"role": "user", "content": "hello"}]
    return ask(server.url, values, Heard())


def schema(value: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        value = {"type": "array", "items": value}
    return value


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (schema(nested(DEEPEST)), "levels deep"),
        (schema({"enum": ["v" * MOST_TEXT]}), "is the most"),
        (schema({"const": "\ud800"}), "cannot be followed"),
        (schema({"type": "nonsense"}), "cannot be followed"),
        (schema({"properties": 5}), "cannot be followed"),
        (schema({"type": "integer", "minimum": float("nan")}), "cannot be followed"),
        (schema({"type": "integer", "maximum": 10**400}), "cannot be followed"),
        (schema({"$ref": "#"}), "allows no token"),
        ({"type": "regex", "regex": r"[^\x00-\U0010ffff]"}, "allows no token"),
        ({"type": "regex", "regex": "(?=a)b"}, "cannot be followed"),
        ({"type": "regex", "regex": "[z-a]"}, "cannot be followed"),
        ({"type": "regex", "regex": "(" * 1500}, "cannot be followed"),
        ({"type": "regex", "regex": "a\0"}, "cannot be followed"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_forms_that_cannot_be_are_refused(server, form, words, temperature) -> None:
    found = asked(server, form, temperature=temperature)
    assert found.status == 400
    assert words in found.error["message"]


@pytest.mark.parametrize("expression", ["(a{1000}){1000}", "((a|b|[a-z]*)*){1,500}", "(.*.*)*b"])
def test_forms_that_repeat_themselves_are_answered(server, expression) -> None:
    found = asked(server, {"type": "regex", "regex": expression})
    assert found.status == 200


def test_a_stream_of_a_form_without_tokens_ends_with_an_error(server) -> None:
    found = asked(server, schema({"$ref": "#"}), stream=True)
    assert found.status == 200
    assert "allows no token" in found.error["message"]
    assert httpx.get(f"{server.url}/health").status_code == 200
