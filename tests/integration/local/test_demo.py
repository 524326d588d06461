"""The demo end to end: its own engine, made prices with a crash, and everything verified afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 60
CRASH = Path(__file__).parents[2] / "data/btc-usd-2020-03.csv"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Yield an empty directory for temporary files, in which nothing may be left; PostgreSQL's user can enter it."""
    with tempfile.TemporaryDirectory(prefix="margin-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        assert list(directory.iterdir()) == []


def demo(temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    # Settings of another engine, and a store that does not exist: the demo's own engine must not take them over.
    environment = {**os.environ, "TMPDIR": str(temporary), "REDIS_HOST": "192.0.2.1", "PORT": "1", "PARTITIONS": "7"}
    return subprocess.Popen(
        [sys.executable, "-m", "margin_local.demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=temporary,
    )


def test_a_crash_is_replayed_and_everything_verified(temporary: Path) -> None:
    with demo(temporary, "--rows", "60", "--accounts", "12") as process:
        report, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors + report
    assert re.search(r"^  liquidations +[1-9]\d* of [1-9]\d* accounts", report, re.MULTILINE), report
    assert re.search(r"^  partial, whole +[1-9]\d* left something open, \d+ left nothing", report, re.MULTILINE), report
    assert re.search(r"^  rows +60 of 60,", report, re.MULTILINE), report
    assert report.count("\n  pass  ") == 7
    assert report.endswith("  All checks passed.\n")


def test_two_symbols_of_one_market_crash_together(temporary: Path, tmp_path: Path) -> None:
    """Bitcoin in March 2020, and the same returns from another price: a hedged account would be ruined in between."""
    header, *rows = CRASH.read_text(encoding="utf-8").splitlines()
    btc = [row.split(",") for row in rows if "2020-03-12T06" <= row < "2020-03-13T06"]
    eth = [[time, *(str(Decimal(price) / 40) for price in prices)] for time, *prices in btc]
    arguments = []
    for symbol, lines in (("BTC-PERP", btc), ("ETH-PERP", eth)):
        path = tmp_path / f"{symbol}.csv"
        path.write_text("\n".join([header, *(",".join(line) for line in lines)]), encoding="utf-8")
        arguments += ["--prices", f"{symbol}={path}"]
    with demo(temporary, *arguments, "--accounts", "40") as process:
        report, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors + report
    assert re.search(r"^  symbols +2, all prices of one moment in one request$", report, re.MULTILINE), report
    assert re.search(r"^  mark prices +192 posted, [1-9]", report, re.MULTILINE), report
    assert re.search(r"^  partial, whole +[1-9]\d* left something open, [1-9]\d* left nothing", report, re.MULTILINE), (
        report
    )
    assert re.search(r"^  shortfalls +[1-9]\d* of ", report, re.MULTILINE), report
    assert re.search(r"^  deleveragings +[1-9]\d* of [1-9]", report, re.MULTILINE), report
    assert re.search(
        r"^ +[1-9]\d* settlements from the insurance fund, [1-9]\d* deleveragings", report, re.MULTILINE
    ), report
    assert report.endswith("  All checks passed.\n")


def test_a_stop_ends_the_replay_between_two_marks_and_reports(temporary: Path) -> None:
    with demo(temporary, "--rows", "5000", "--accounts", "4") as process:
        assert process.stderr is not None
        # The first line of progress: the replay is under way.
        assert re.match(r"row \d", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        report, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, errors + report
    assert "stopped before the end" in report
    assert report.endswith("  All checks passed.\n")


def test_bad_prices_are_refused_before_anything_is_started(temporary: Path, tmp_path: Path) -> None:
    prices = tmp_path / "bad.csv"
    prices.write_text("time,open,high,low,close\nnoon,1,2,x,1\n", encoding="utf-8")
    with demo(temporary, "--prices", str(prices)) as process:
        report, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, report) == (2, "")
    assert errors == f"demo: {prices}, line 2: low is not a price: 'x'\n"
