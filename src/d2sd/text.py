"""Text of a growing token sequence: complete characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

INCOMPLETE = "\ufffd"
"""What tokenizers print for the bytes of a character that is not all there yet."""

WINDOW = 16
"""The window of `TextStream` tries to move on every so many tokens; the text is the same."""


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers tokenizer that turns tokens into text."""

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str: ...


def plain_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of `tokens`, special tokens left out, nothing tidied up."""
    return tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


class TextStream:
    """Gives out text as tokens come in; everything given out together equals the full decode.

    (One exception: some tokenizers print a whole run of bytes as � when its last one is wrong;
    characters of the run that were complete have been given out by then.)
    A character whose bytes are split over tokens is held back until it is complete. So is text
    that may be the beginning of a stop string; once a whole stop string is there, `stopped` is
    True and nothing of it, nor anything after it, has been or will be given out. Tokens come in
    one by one, so the text never depends on where a step ended.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._window: list[int] = []  # tokens that are decoded together
        self._known = 0  # characters of the window's text that were taken before
        self._held = ""  # complete text that may begin a stop string

    def add(self, token: int) -> str:
        """The text that `token` makes certain; often empty."""
        self._window.append(token)
        text = plain_text(self._tokenizer, self._window)
        complete = text.rstrip(INCOMPLETE)
        fresh = complete[self._known :]
        self._known = max(self._known, len(complete))
        if len(self._window) % WINDOW == 0 and len(complete) == len(text):
            self._move_window()
        return self._past_stop_strings(fresh)

    def finish(self) -> str:
        """What was held back and turned out to be text; an incomplete character prints as �."""
        if self.stopped:
            return ""
        rest = plain_text(self._tokenizer, self._window)[self._known :]
        text = self._past_stop_strings(rest) + self._held
        self._held = ""
        return text

    def _move_window(self) -> None:
        """Keep the last token that printed, and what follows, as context for the next one.

        Tokenizers of the SentencePiece family drop the space in front of the first word they
        decode, so a window must not begin at a word whose space is wanted.
        """
        for start in range(len(self._window) - 1, 0, -1):
            text = plain_text(self._tokenizer, self._window[start:])
            if text and INCOMPLETE not in text:
                self._window, self._known = self._window[start:], len(text)
                return

    def _past_stop_strings(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [at for at in map(text.find, self._stop_strings) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        certain = len(text) - may_begin(text, self._stop_strings)
        self._held = text[certain:]
        return text[:certain]


def may_begin(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of one of the stop strings."""
    longest = max((len(stop) for stop in stop_strings), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_strings):
            return length
    return 0
