"""Many clients at once: none is lost, none gets another's answer, memory stays where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from folders import save_target

SCRIPT = Path(__file__).parents[1] / "docs" / "results" / "serving_load.py"
CLIENTS = 40
LEFT = 4

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def test_every_client_of_a_crowd_gets_its_own_answer(tmp_path) -> None:
    model = save_target(tmp_path / "target", max_position_embeddings=1024)
    out = tmp_path / "load.json"
    sizes = {"clients": CLIENTS, "queue": 12, "rounds": 3, "tokens": 6}
    options = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    options += ["--policy", "ngram", "--model", str(model), "--out", str(out)]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "D2SD_CACHE": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["different_texts"] > CLIENTS // 2  # or a mix-up would not be seen
    for one in found["rounds"]:
        assert one["right"] == CLIENTS
        assert one["whole"] + one["streamed"] + one["left"] == CLIENTS
        assert one["left"] == LEFT
        assert one["refused"] > 0
    last = found["rounds"][-1]
    told = sum(one["refused"] for one in found["rounds"])
    assert last["statuses"]["200"] + last["statuses"].get("499", 0) == CLIENTS * 3
    assert last["statuses"]["429"] == told
    assert last["resident_mb"] < 1.1 * found["rounds"][0]["resident_mb"]
