"""The proving ground's target from a file of answers, to a folder any command can use as a model.

`d2sd proving-ground` goes on from here with the same steps a user takes for any target: answers of
the new target, both drafters. See `small_target` for what is trained, and why.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import torch
from transformers import PreTrainedTokenizerFast

from d2sd.train.compiling import choose_compiler
from d2sd.train.small_target import (
    Exchange,
    Packed,
    RowSampler,
    SmallTarget,
    SmallTargetTraining,
    build_model,
    encode,
    pack,
    train_tokenizer,
)

Progress = Callable[[int, int, str], None]
"""Hears (steps done, steps in all, words)."""

HELD_OUT = 48
LOG = "target.jsonl"


def read_exchanges(path: Path) -> list[Exchange]:
    """Prompts and answers as text, of a response file (JSONL, plain or .gz).

    Raises ValueError with file and line where one has no text.
    """
    exchanges = []
    try:
        with _opened(path) as lines:
            for number, line in enumerate(lines, 1):
                exchanges.append(_exchange(line, f"{path}, line {number}"))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if len(exchanges) < 2 * HELD_OUT:
        raise ValueError(f"{path} holds {len(exchanges)} answers; give {2 * HELD_OUT} or more")
    return exchanges


def _opened(path: Path) -> IO[str]:
    return cast(IO[str], gzip.open(path, "rt")) if path.suffix == ".gz" else path.open()


def _exchange(line: str, where: str) -> Exchange:
    try:
        row = json.loads(line)
        return Exchange(str(row["prompt"]), str(row["response"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: no prompt and response as text ({error!r}); give a response file as "
            "d2sd regenerate writes it"
        ) from None


def train_target(
    shape: SmallTarget,
    exchanges: list[Exchange],
    folder: Path,
    progress: Progress = lambda done, total, words: None,
    tell: Callable[[str], None] = lambda words: None,
) -> Path:
    """Train tokenizer and target; returns `folder`, a Hugging Face model in bfloat16.

    A killed run goes on from its last checkpoint when it is started again; a finished one is
    returned as it is. `target.jsonl` beside the weights is the learning curve.
    """
    if (folder / "config.json").is_file():
        return folder
    every = len(exchanges) // HELD_OUT
    training = [exchange for i, exchange in enumerate(exchanges) if i % every]
    tokenizer = train_tokenizer(training, shape.vocab_size)
    documents = encode(tokenizer, training, shape.row)
    unseen = pack(encode(tokenizer, exchanges[::every], shape.row), shape.row)
    rows = RowSampler(pack(documents, shape.row), shape.rows_per_step, shape.seed)
    model = build_model(shape, tokenizer)
    run = SmallTargetTraining(shape, model, rows, choose_compiler(None, model, tell))
    work = folder.with_name(folder.name + ".work")
    run.resume(work)
    while run.step < shape.steps:
        _stretch(run, unseen, work, progress)
    _export(run, tokenizer, work / LOG, folder)
    return folder


def _stretch(run: SmallTargetTraining, unseen: Packed, work: Path, progress: Progress) -> None:
    """Train up to the next checkpoint and log it."""
    steps = run.shape.steps
    until = min(run.step + max(steps // 10, 1), steps)
    run.run(lambda step, loss: progress(step, steps, f"small target, loss {loss:.3f}"), until)
    tokens = run.step * run.shape.rows_per_step * run.shape.row
    line = {"step": run.step, "tokens": tokens, "held_out_loss": run.held_out_loss(unseen)}
    kept = [old for old in _lines(work / LOG) if old["step"] < run.step]
    work.mkdir(parents=True, exist_ok=True)
    (work / LOG).write_text("".join(json.dumps(row) + "\n" for row in [*kept, line]))
    run.save(work)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _export(
    run: SmallTargetTraining, tokenizer: PreTrainedTokenizerFast, log: Path, folder: Path
) -> None:
    """Write the folder whole or not at all."""
    unfinished = folder.with_name(folder.name + ".part")
    unfinished.mkdir(parents=True, exist_ok=True)
    run.model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / LOG).write_text(log.read_text())
    (unfinished / "shape.json").write_text(json.dumps(asdict(run.shape), indent=1) + "\n")
    unfinished.replace(folder)
