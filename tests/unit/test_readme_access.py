"""The README's table of scopes says what was decided, call by call."""

from __future__ import annotations

import re
from pathlib import Path

from tests.access_table import SCOPED, SCOPES, Call, Of

README = Path(__file__).parents[2] / "README.md"
COLUMNS = (Of.ACCOUNT, Of.ALL_ACCOUNTS, Of.MARKET)


def _name(call: Call) -> str:
    return f"{call.method} {call.path}{'?' if call.query else ''}{call.query}"


def test_table_of_scopes_is_that_of_the_engine() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines if re.match(r"\| `[a-z]+(:[a-z]+)?` \|", line)]
    told = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in SCOPES}
    assert set(told) == SCOPES
    for scope, cells in told.items():
        padded = [*cells, "", ""]
        for of, cell in zip(COLUMNS, padded, strict=False):
            named = re.findall(r"`((?:GET|POST|PUT) [^`]+)`", cell)
            decided = {_name(call) for call in SCOPED if scope in call.scopes and call.of is of}
            assert sorted(named) == sorted(decided), (scope, of)
