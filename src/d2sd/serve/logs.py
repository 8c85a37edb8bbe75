"""Logs say what failed and where, never with which values: those are prompts and keys."""

from __future__ import annotations

import logging
import traceback


class ValuesLeftOut(logging.Filter):
    """Of an exception only its type and its stack are printed; its words may quote a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            stack = "".join(traceback.format_tb(error.__traceback__))
            record.exc_text = f"{stack}{type(error).__name__}"
            record.exc_info = None
        return True


def leave_values_out(*loggers: str) -> None:
    """Let the loggers of these names print exceptions so."""
    for name in loggers:
        logging.getLogger(name).addFilter(ValuesLeftOut())
