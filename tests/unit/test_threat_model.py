"""The threat model names a test for each line, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "infra" / "decisions" / "0016-threat-model.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[list[str]]:
    """The cells of each line of each table, but for headings."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] not in {"attack", "---"}]


def test_each_line_names_an_attack_what_stops_it_and_a_test() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3, row
        assert all(row)
        assert TEST.findall(row[2]), f"no test shows it: {row[0]}"
        assert TEST.sub("", row[2]).strip(" ,") == "", f"not a test: {row[2]}"


def test_the_tests_that_it_names_are_there() -> None:
    missing = []
    for path, name in TEST.findall(PAGE.read_text(encoding="utf-8")):
        file = ROOT / path
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not re.search(rf"^(?:async )?def {name}\(" if name else r"^(?:async )?def test_", source, re.MULTILINE):
            missing.append(f"{path}::{name}")
    assert missing == []
