"""Progress: one line that changes on a terminal, else a line now and then."""

from __future__ import annotations

import io

from margin_local.demo.progress import Progress
from margin_local.demo.replay import ReplayResult

LINE = "row 3 of 9, 6 mark prices/s, 0 trades, 0 liquidations"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tally() -> ReplayResult:
    return ReplayResult(rows_done=3, marks_posted=12, elapsed_s=2.0)


def test_a_file_gets_the_first_tally_and_not_every_other() -> None:
    stream = io.StringIO()
    with Progress(9, stream) as progress:
        progress.show(tally())
        progress.show(tally())
    assert stream.getvalue() == f"{LINE}\n"


def test_a_terminal_gets_one_line_that_is_gone_at_the_end() -> None:
    stream = Terminal()
    with Progress(9, stream) as progress:
        progress.show(tally())
    assert stream.getvalue() == f"\r\x1b[K{LINE}\r\x1b[K"
