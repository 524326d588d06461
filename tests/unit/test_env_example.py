"""The example of the settings file names every setting, with the default that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from margin.config import Settings

# Read by the local runner and the tests alone.
SERVER_BINARIES = {"PG_BIN", "VALKEY_BIN"}
EXAMPLE = Path(__file__).parents[2] / "infra" / "env.example"


def test_example_holds_every_setting_commented_out_with_its_default() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    example = {match[1]: match[2] for line in lines if (match := re.fullmatch(r"#([A-Z_]+)=(.*)", line))}
    set_by_people = {name.upper() for name in Settings.__slots__ if not name.startswith("aws_")}
    assert set(example) == set_by_people | SERVER_BINARIES
    assert Settings.from_environment(example) == Settings()
    assert [line for line in lines if line and not line.startswith("#")] == []
