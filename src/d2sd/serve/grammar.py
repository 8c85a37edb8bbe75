"""Answers of a given form: JSON of a schema, or what a regular expression matches.

xgrammar (extra `grammar`) says which tokens may come next; all others are masked on the target's
own row before its draw, so the answer is the one that plain decoding under the same mask would
give.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.serve.allowed import Form
from d2sd.serve.masker import Masker
from d2sd.serve.schema import ResponseFormat
from d2sd.session import Session

MISSING = (
    "response_format needs xgrammar, which is not installed on this server; "
    "pip install 'd2sd[grammar]', or leave response_format out"
)

LOG_MARK = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""What xgrammar puts before its words: the time and a place in its sources."""
MOST_TEXT, DEEPEST = 32_768, 64
"""Characters and levels of a schema: within them xgrammar reads any in a second or two."""


class Grammars:
    """Forms for one tokenizer. They are read here, and followed by a process of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._keys = itertools.count()
        self._masker = Masker(self._vocabulary)

    def processor(self, form: ResponseFormat, prompt_tokens: int) -> GrammarMask | None:
        """None for plain text.

        Raises ValueError where a form is no grammar or xgrammar is missing.
        """
        if form.type == "text":
            return None
        package = _package()
        read = _read(form)
        try:
            _check(package, *read)
        except RuntimeError as error:
            reason = LOG_MARK.sub("", " ".join(str(error).split()))[:300]
            raise ValueError(f"response_format cannot be followed: {reason}") from None
        self._masker.start()
        return GrammarMask(self._masker, next(self._keys), read, prompt_tokens)

    def close(self) -> None:
        self._masker.close()

    def _vocabulary(self) -> dict[str, Any]:
        info = _package().TokenizerInfo.from_huggingface(
            self._session.tokenizer,
            vocab_size=self._session.target.vocab_size,
            stop_token_ids=sorted(self._session.stop_tokens),
        )
        return {
            "encoded_vocab": info.decoded_vocab,
            "vocab_size": info.vocab_size,
            "stop_token_ids": info.stop_token_ids,
            "add_prefix_space": info.add_prefix_space,
        }


@dataclass(frozen=True)
class GrammarMask:
    """A logits processor that leaves the tokens which the form allows next.

    Calls follow the emitted tokens one by one, as verification's walk does, so the matcher only
    ever goes forward. `key` is this answer's own.
    """

    masker: Masker
    key: int
    form: Form
    prompt_tokens: int

    def __call__(
        self, ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
    ) -> Float[Tensor, "1 vocab"]:
        words = self.masker.allowed(self.key, self.form, ids[0, self.prompt_tokens :].tolist())
        bits = (words[:, None] >> torch.arange(32)).bitwise_and(1).flatten()[: logits.shape[1]]
        return logits.masked_fill(bits[None].to(logits.device) == 0, -torch.inf)


def _read(form: ResponseFormat) -> Form:
    if form.type == "regex":
        return "regex", form.regex or ""
    if form.json_schema is None:
        return "json", ""
    schema = form.json_schema.schema_
    if _depth(schema) > DEEPEST:
        raise ValueError(f"the schema is more than {DEEPEST} levels deep; make it flatter")
    text = json.dumps(schema)
    if len(text) > MOST_TEXT:
        raise ValueError(f"the schema has {len(text)} characters; {MOST_TEXT} is the most")
    return "schema", text


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted level by level: recursion would be cut short."""
    levels, here = 0, [value]
    while here := [one for one in here if isinstance(one, dict | list)]:
        levels += 1
        here = [below for one in here for below in (one.values() if isinstance(one, dict) else one)]
    return levels


def _check(package: Any, kind: str, text: str) -> None:
    """xgrammar's RuntimeError where the text is no regular expression or schema."""
    if kind == "regex":
        package.Grammar.from_regex(text)
    elif kind == "schema":
        package.Grammar.from_json_schema(text, any_whitespace=False)


def _package() -> Any:
    try:
        return importlib.import_module("xgrammar")
    except ImportError:
        raise ValueError(MISSING) from None
