"""The loop behind `d2sd chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from d2sd.cli.terminal import note, notes, say
from d2sd.generate import Generation, Request, generate
from d2sd.interfaces import Drafter
from d2sd.sampling import Sampling
from d2sd.session import Message, Session

HELP = "/clear forgets the conversation · /exit or Ctrl-D ends it · Ctrl-C stops an answer"


Show = Callable[[str], object]
"""Is given an answer's text piece by piece; True from it ends the answer there."""


class Conversation(ABC):
    """Messages so far, and whoever answers them."""

    def __init__(self, system: str | None) -> None:
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def clear(self) -> None:
        """Forget everything but what the model was told first."""
        self.messages = list(self._system)

    @abstractmethod
    def turn(self, text: str, show: Show) -> str:
        """Answer `text`; gives the figures of the answer in a line.

        The answer is kept in `messages`, a cancelled one as far as it came. Raises ValueError
        when there is none; then `messages` is what it was.
        """

    def _asked(self, text: str) -> list[Message]:
        return [*self.messages, {"role": "user", "content": text}]

    def _keep(self, asked: list[Message], answer: str) -> None:
        self.messages = [*asked, {"role": "assistant", "content": answer}]


class LocalConversation(Conversation):
    """With a model in this process: target and drafter stay, so a turn reads only what is new."""

    def __init__(
        self,
        session: Session,
        drafter: Drafter,
        sampling: Sampling,
        max_new_tokens: int,
        system: str | None,
    ) -> None:
        super().__init__(system)
        self._session, self._drafter = session, drafter
        self._request = Request((), sampling, max_new_tokens, session.stop_tokens)

    def turn(self, text: str, show: Show) -> str:
        answer = self.reply(text, show)
        return (
            f"{'stopped · ' * (answer.finish_reason == 'cancelled')}{answer.new_tokens} tokens · "
            f"{answer.tokens_per_second:.1f} tokens/s · acceptance length "
            f"{answer.acceptance_length:.2f} · prompt of {answer.prompt_tokens} tokens read in "
            f"{answer.prefill_seconds:.2f} s"
        )

    def reply(self, text: str, show: Show) -> Generation:
        """The answer to `text`."""
        asked = self._asked(text)
        request = replace(self._request, prompt=self._session.chat_prompt(asked))
        answer = generate(
            self._session.target,
            self._drafter,
            request,
            self._session.tokenizer,
            on_piece=lambda piece: show(piece.text),
        )
        self._keep(asked, answer.text)
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

        def show(piece: str) -> bool:
            say(piece)
            return interrupted()

        try:
            figures = conversation.turn(text, show)
        except ValueError as error:  # such as a conversation that has outgrown the context
            notes.print(f"{error}, or start anew with /clear", markup=False)
            return
    say("\n")
    note(figures)


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
