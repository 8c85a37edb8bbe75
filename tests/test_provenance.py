"""Where a figure comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from d2sd.provenance import commit


def test_the_commit_is_that_of_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "file.py"
    file.write_text("1")
    assert commit(file) is None  # no repository
    git("init")
    assert commit(file) is None  # a repository that does not know the file
    git("add", "file.py")
    git("commit", "-m", "m")
    assert commit(file) == git("rev-parse", "HEAD")
    file.write_text("2")
    assert commit(file) == git("rev-parse", "HEAD") + "+changes"
