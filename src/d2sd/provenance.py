"""Where a number comes from: enough to run it again."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch


def provenance(device: torch.device, seed: int) -> dict[str, object]:
    """The command, versions, machine and seed of this run, ready for JSON."""
    packages = ("d2sd", "torch", "transformers")
    return {
        "command": ["d2sd", *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(Path(__file__)),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def device_name(device: torch.device) -> str:
    """The device with the name of its GPU or the machine's kind of processor."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}"


def commit(file: Path) -> str | None:
    """The git commit that `file` belongs to, marked when files changed since; None outside git."""
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    changed = _git(file, "status", "--porcelain", "--untracked-files=no")
    return f"{_git(file, 'rev-parse', 'HEAD')}{'+changes' if changed else ''}"


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
