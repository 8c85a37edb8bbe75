"""Answers of a given form, asked for with OpenAI's own client; masks keep them lossless."""

from __future__ import annotations

import json
import re
import sys

import openai
import pytest

from d2sd.session import ModelChoice, Session, open_session
from folders import save_drafter, save_target
from serving import Serving, serving

pytest.importorskip("xgrammar", reason="xgrammar is not installed (extra grammar)")

HELLO = [{"role": "user", "content": "hello there"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    home = tmp_path_factory.mktemp("home")
    drafters = (str(save_drafter(home / "first")), str(save_drafter(home / "second", seed=1)))
    folder = save_target(home / "target", max_position_embeddings=512)
    return open_session(
        ModelChoice(str(folder), *drafters, device="cpu", dtype="float32"), ["dual"]
    )


@pytest.fixture(scope="module")
def server(session: Session):
    with serving(session, "dual") as found:
        yield found


def said(server: Serving, form: dict, **more) -> str:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    values = {"temperature": 0, "max_tokens": 300, **more}
    found = client.chat.completions.create(
        model=server.session.name, messages=HELLO, response_format=form, **values
    )
    assert found.choices[0].finish_reason == "stop"
    return found.choices[0].message.content


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("policy", ["dual", "ngram"])
def test_json_of_a_schema(server, temperature, policy) -> None:
    draws = {"temperature": temperature, "seed": 5}
    text = said(server, AS_JSON, **draws, extra_body={"policy": policy})
    person = json.loads(text)
    assert list(person) == ["name", "age", "kind"]
    assert re.fullmatch("[a-z]{1,8}", person["name"])
    assert 0 <= person["age"] <= 99
    assert person["kind"] in ("cat", "dog")
    # the mask acts on the target's own draw, so drafting changes nothing here either
    assert text == said(server, AS_JSON, **draws, extra_body={"policy": "none"})


def test_text_that_an_expression_matches(server) -> None:
    form = {"type": "regex", "regex": "[0-9]{3}-(yes|no)"}
    assert re.fullmatch(form["regex"], said(server, form, temperature=1, seed=2))


def test_text_is_left_alone(server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    ask = {"model": server.session.name, "messages": HELLO, "temperature": 0, "max_tokens": 9}
    free = client.chat.completions.create(**ask)
    told = client.chat.completions.create(**ask, response_format={"type": "text"})
    assert told.choices[0].message.content == free.choices[0].message.content


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"type": "regex", "regex": "[0-9"}, "cannot be followed: Regex parsing error"),
        ({"type": "json_schema"}, "do not go together"),
        ({"type": "json_object", "regex": "a"}, "do not go together"),
        ({"type": "xml"}, "response_format"),
    ],
)
def test_what_is_no_form_is_said(server, form, words) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        said(server, form)
    assert words in str(caught.value)


def test_a_server_without_xgrammar_says_so(server, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(openai.BadRequestError, match=r"pip install 'd2sd\[grammar\]'"):
        said(server, AS_JSON)
