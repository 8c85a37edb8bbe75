"""Compiling the passes of a session for `d2sd tune`, and what is said where that can't be done."""

from __future__ import annotations

import torch

from d2sd.cli.terminal import note
from d2sd.session import Session
from d2sd.tuning.packages import compile_all, use_compiled
from d2sd.tuning.refusals import CANNOT_COMPILE


def compile_session(session: Session) -> None:
    """Compile what is not compiled yet, and let the session use it.

    Where torch can't, the eager passes stay: they say the same, and one note says why.
    """
    if session.is_compiled:
        return
    try:
        compile_all(session.compilable, note)
    except CANNOT_COMPILE as error:
        reason = str(error).strip().split("\n")[0]
        note(
            f"torch {torch.__version__} can't compile these passes here ({reason}): eager ones run"
        )
    else:
        use_compiled(session.compilable)
