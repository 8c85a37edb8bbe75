"""What keeps the code small and easy to enter: imports, sizes, the README's map."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
CORE = ["decode", "interfaces", "tree", "verify/match", "sampling", "stages"]
GENERATE = "pip install -e . && d2sd generate "
TEST = "pip install -e '.[test]' && pytest"


def code_lines(text: str) -> int:
    """Lines that hold code: no blanks, no comments, no docstrings."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent and token.string.strip():
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def fenced(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks of one language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for found, text in blocks if found == language]


def test_code_lines_counts_code_only():
    text = '"""Says what."""\n\nx = 1  # why\n# a comment\ny = (\n    2\n)\n'
    assert code_lines(text) == 4


def test_the_six_core_files_are_400_lines_of_code_at_most():
    lines = {name: code_lines((ROOT / f"src/d2sd/{name}.py").read_text()) for name in CORE}
    assert sum(lines.values()) <= 400, lines


def test_no_source_file_is_over_300_lines():
    lines = {path.name: path.read_text().count("\n") for path in (*SOURCES, *SCRIPTS)}
    assert not {name: count for name, count in lines.items() if count > 300}


def test_no_function_is_over_40_lines():
    too_long = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in (*SOURCES, *SCRIPTS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 40
    ]
    assert not too_long


def test_no_file_is_a_drawer_of_odds_and_ends():
    assert not [path for path in SOURCES if path.stem in {"utils", "common", "helpers", "misc"}]


@pytest.mark.skipif(not find_spec("importlinter"), reason="import-linter is not installed")
def test_imports_point_one_way():
    check = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_opens_with_its_two_commands():
    generate, test = fenced(ROOT / "README.md", "sh")[:2]
    assert generate.startswith(GENERATE)
    assert generate.count("\n") == 1
    assert test == f"{TEST}\n"


def test_the_readme_has_one_line_for_every_source_file():
    layout = next(block for block in fenced(ROOT / "README.md", "") if "decode.py" in block)
    named = set(re.findall(r"[\w-]+\.py", layout))
    assert named == {path.name for path in SOURCES if path.name != "__init__.py"}
