"""Answers of a given form: JSON of a schema, or what a regular expression matches.

xgrammar (extra `grammar`) says which tokens may come next; all others are masked on the target's
own row before its draw, so the answer is the one that plain decoding under the same mask would
give.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from d2sd.serve.schema import ResponseFormat
from d2sd.session import Session

MISSING = (
    "response_format needs xgrammar, which is not installed on this server; "
    "pip install 'd2sd[grammar]', or leave response_format out"
)

LOG_MARK = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""What xgrammar puts before its words: the time and a place in its sources."""


class Grammars:
    """Compiles formats for one tokenizer; equal formats are compiled once by xgrammar's cache."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._compiler: Any = None

    def processor(self, form: ResponseFormat, prompt_tokens: int) -> GrammarMask | None:
        """None for plain text.

        Raises ValueError where a form is no grammar or xgrammar is missing.
        """
        if form.type == "text":
            return None
        package = _package()
        if self._compiler is None:
            session = self._session
            info = package.TokenizerInfo.from_huggingface(
                session.tokenizer,
                vocab_size=session.target.vocab_size,
                stop_token_ids=sorted(session.stop_tokens),
            )
            self._compiler = package.GrammarCompiler(info)
        try:
            compiled = self._compiled(form)
        except RuntimeError as error:
            reason = LOG_MARK.sub("", " ".join(str(error).split()))[:300]
            raise ValueError(f"response_format cannot be followed: {reason}") from None
        return GrammarMask(package, compiled, prompt_tokens)

    def _compiled(self, form: ResponseFormat) -> Any:
        if form.type == "regex":
            return self._compiler.compile_regex(form.regex)
        if form.type == "json_schema" and form.json_schema is not None:
            # white space as wished would let a small model write nothing else for ever
            schema = json.dumps(form.json_schema.schema_)
            return self._compiler.compile_json_schema(schema, any_whitespace=False)
        return self._compiler.compile_builtin_json_grammar()


class GrammarMask:
    """A logits processor that leaves the tokens which the form allows next.

    Calls follow the emitted tokens one by one, as verification's walk does, so the matcher only
    ever goes forward.
    """

    def __init__(self, package: Any, compiled: Any, prompt_tokens: int) -> None:
        self._package = package
        self._matcher = package.GrammarMatcher(compiled)
        self._read = prompt_tokens
        self._mask = package.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)

    def __call__(
        self, ids: Int[Tensor, "1 length"], logits: Float[Tensor, "1 vocab"]
    ) -> Float[Tensor, "1 vocab"]:
        for token in ids[0, self._read :].tolist():
            accepted = self._matcher.accept_token(token)
            assert accepted, "the target drew a token that the mask left out"
        self._read = ids.shape[1]
        self._matcher.fill_next_token_bitmask(self._mask)
        masked = logits.float().cpu()
        self._package.apply_token_bitmask_inplace(masked, self._mask)
        return masked.to(logits)


def _package() -> Any:
    try:
        return importlib.import_module("xgrammar")
    except ImportError:
        raise ValueError(MISSING) from None
