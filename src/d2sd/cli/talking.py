"""The loop behind `d2sd chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from d2sd.cli.terminal import note, notes, say
from d2sd.generate import Generation, Piece, Request, generate
from d2sd.interfaces import Drafter
from d2sd.sampling import Sampling
from d2sd.session import Message, Session

HELP = "/clear forgets the conversation · /exit or Ctrl-D ends it · Ctrl-C stops an answer"


class Conversation:
    """Messages so far. Target and drafter stay the same, so a turn reads only what is new."""

    def __init__(
        self,
        session: Session,
        drafter: Drafter,
        sampling: Sampling,
        max_new_tokens: int,
        system: str | None,
    ) -> None:
        self._session, self._drafter = session, drafter
        self._request = Request((), sampling, max_new_tokens, session.stop_tokens)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def clear(self) -> None:
        """Forget everything but what the model was told first."""
        self.messages = list(self._system)

    def reply(self, text: str, on_piece: Callable[[Piece], object]) -> Generation:
        """The answer to `text`; a cancelled one is kept as far as it came."""
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        request = replace(self._request, prompt=self._session.chat_prompt(messages))
        answer = generate(
            self._session.target,
            self._drafter,
            request,
            self._session.tokenizer,
            on_piece=on_piece,
        )
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer


def talk(conversation: Conversation) -> None:
    """Read, answer, and so on until /exit or the end of the input."""
    asked_at_terminal = sys.stdin.isatty()
    if asked_at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` line editing and a history
        note(HELP)
    while (text := _line(asked_at_terminal)) is not None:
        if text == "/exit":
            return
        if text == "/clear":
            conversation.clear()
            note("the conversation is forgotten")
        elif text == "/help" or (text.startswith("/") and text[1:].isalpha()):
            note(HELP)
        elif text:
            _answer(conversation, text)


def _line(asked_at_terminal: bool) -> str | None:
    """What the user typed, or None at the end of the input."""
    while True:
        try:
            return input("\n> " if asked_at_terminal else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not asked_at_terminal:
                raise
            note("\n" + HELP)


def _answer(conversation: Conversation, text: str) -> None:
    with interruptible() as interrupted:

        def show(piece: Piece) -> bool:
            say(piece.text)
            return interrupted()

        try:
            answer = conversation.reply(text, show)
        except ValueError as error:  # the conversation has outgrown the model's context
            notes.print(f"{error}, or start anew with /clear", markup=False)
            return
    say("\n")
    note(
        f"{'stopped · ' * (answer.finish_reason == 'cancelled')}{answer.new_tokens} tokens · "
        f"{answer.tokens_per_second:.1f} tokens/s · acceptance length "
        f"{answer.acceptance_length:.2f} · prompt of {answer.prompt_tokens} tokens read in "
        f"{answer.prefill_seconds:.2f} s"
    )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed; a second Ctrl-C ends the program.

    So an answer stops between two steps, where target and drafter agree on what is said.
    """
    pressed: list[int] = []

    def note_it(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
