"""Every table of measured figures in the docs equals the committed output it was made from."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
PAGES = [ROOT / "README.md", ROOT / "docs/results.md"]
MARK = re.compile(r"<!-- from docs/results/(?P<file>[\w.-]+) -->\n+(?P<table>(?:\|.*\n)+)")


def tables():
    return [
        pytest.param(match["file"], match["table"], id=f"{page.name}:{match['file']}")
        for page in PAGES
        for match in MARK.finditer(page.read_text())
    ]


def cells(row):
    return [cell.strip().strip("`*") for cell in row.strip().strip("|").split("|")]


def printed(key, figures):
    value = figures[key]
    if isinstance(value, bool):
        return "yes" if value else "no"
    digits = {"tokens_per_second": 1, "nodes_per_step": 1}.get(key, 2)
    return f"{value:.{digits}f}"


@pytest.mark.parametrize(("file", "table"), tables())
def test_a_printed_table_is_the_committed_measurement(file, table):
    columns = {
        "acceptance length": "acceptance_length",
        "tokens/s": "tokens_per_second",
        "speed-up": "speedup_over_none",
        "nodes a step": "nodes_per_step",
        "same tokens as none": "identical_to_none",
    }
    measured = json.loads((RESULTS / file).read_text())["policies"]
    header, _, *rows = table.splitlines()
    keys = [columns[name] for name in cells(header)[1:]]
    assert [cells(row)[0] for row in rows] == list(measured)
    for row in rows:
        name, *values = cells(row)
        assert values == [printed(key, measured[name]) for key in keys]


TABLE = re.compile(
    r"<!-- table (?P<name>[\w-]+) of (?P<file>docs/[\w./-]+\.json) -->\n+(?P<table>(?:\|.*\n)+)"
)


def made_tables():
    """Tables that a committed script made, with the page that prints them."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(*match.group("file", "name", "table"), id=f"{page.name}:{match['name']}")
        for page in pages
        for match in TABLE.finditer(page.read_text())
    ]


@pytest.mark.parametrize(("file", "name", "table"), made_tables())
def test_a_printed_table_is_the_one_its_script_made(file, name, table):
    made = json.loads((ROOT / file).read_text())["tables"][name]
    header, _, *rows = table.splitlines()
    assert cells(header) == made["columns"]
    assert [cells(row) for row in rows] == made["rows"]


def test_tables_made_by_scripts_are_found():
    assert len(made_tables()) >= 5


def test_both_pages_print_a_table():
    assert {param.id.split(":")[0] for param in tables()} == {"README.md", "results.md"}
