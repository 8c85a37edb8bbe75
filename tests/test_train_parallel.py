"""Two real processes on the CPU make the steps that one makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import tiny_model
from d2sd.cli import run
from d2sd.train.features import KeptFeatures, OnlineFeatures
from d2sd.train.parallel import part
from test_train_loop import EXACT, RESPONSES, trainer_of
from trainings import arguments, evaluations, make_home

TESTS = Path(__file__).parent

STEPS = """
import sys
sys.path.insert(0, {tests!r})
import json
import torch
from d2sd.train.parallel import processes_here
from test_train_parallel import losses
processes = processes_here(torch.device("cpu"))
print(json.dumps(losses(processes)))
processes.close()
"""


def losses(processes=None):
    """Of four steps with batches of five sequences in float32, in micro-batches."""
    model = tiny_model("Llama")
    source = KeptFeatures(OnlineFeatures(model, RESPONSES, (0, 2), range(90)))
    setup = replace(EXACT, accumulate=2)
    setup = replace(setup, processes=processes) if processes else setup
    trainer = trainer_of(model, source, setup)
    reports = [trainer.advance() for _ in range(4)]
    return [(r.loss, r.positions, r.tokens) for r in reports]


def two(command: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in two processes that know of each other, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    return [
        subprocess.CompletedProcess(command, process.returncode, out, err)
        for process, (out, err) in zip(running, said, strict=True)
    ]


def test_two_processes_have_the_losses_of_one():
    wanted = losses()
    for process in two([sys.executable, "-c", STEPS.format(tests=str(TESTS))]):
        assert process.returncode == 0, process.stderr
        for ours, theirs in zip(json.loads(process.stdout), wanted, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
            assert ours[1:] == list(theirs[1:])


def test_the_command_in_two_processes_writes_once_what_one_writes(tmp_path):
    home = make_home(tmp_path / "home")
    more = ("--stage", "first", "--set", "evaluate_every=2", "--set", "sequences_per_batch=5")
    assert run(arguments(home, tmp_path / "one", *more)) == 0
    for process in two(
        [sys.executable, "-m", "d2sd.cli", *arguments(home, tmp_path / "two", *more)]
    ):
        assert process.returncode == 0, process.stderr
    alone, together = (evaluations(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in together] == [2, 4, 6]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
        assert ours["positions"] == theirs["positions"]


@pytest.mark.parametrize(("items", "count"), [(5, 2), (2, 3), (12, 4), (0, 2)])
def test_parts_are_even_and_cover_all_once(items, count):
    parts = [part(range(items), number, count) for number in range(count)]
    assert [i for each in parts for i in each] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
