"""Exit codes: 0 only when every check was made and passed."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin_local.demo.__main__ import Exit, exit_code, main
from margin_local.demo.checks import Check
from margin_local.demo.prices import made_series
from margin_local.demo.replay import ReplayResult
from margin_local.demo.report import Summary

if TYPE_CHECKING:
    from pathlib import Path

PASSED, FAILED = Check("", "", ()), Check("", "", ("differs",))


@pytest.mark.parametrize(
    ("checks", "interrupted", "expected"),
    [
        ([PASSED, PASSED], False, Exit.PASSED),
        ([PASSED, FAILED], False, Exit.FAILED),
        ([], False, Exit.NOT_CHECKED),
        ([PASSED], True, Exit.INTERRUPTED),
        ([FAILED], True, Exit.FAILED),
    ],
)
def test_the_exit_code_tells_how_it_ended(checks: list[Check], *, interrupted: bool, expected: Exit) -> None:
    result = ReplayResult(interrupted=interrupted)
    summary = Summary(
        series=[made_series(7, 1)],
        accounts=1,
        seed=7,
        engine="",
        result=result,
        ledger=None,
        checks=checks,
        fund=(Decimal(0), Decimal(0)),
    )
    assert exit_code(summary) == expected


def test_a_missing_file_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.csv"
    assert main(["--prices", str(missing)]) == Exit.BAD_INPUT
    assert capsys.readouterr().err == f"demo: {missing}: cannot be read (No such file or directory)\n"


@pytest.mark.parametrize("arguments", [["--accounts", "0"], ["--rows", "x"], ["--seed", "x"]])
def test_a_bad_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == Exit.BAD_INPUT
    assert arguments[0] in capsys.readouterr().err
