"""How far a replay is: one line that changes on a terminal, else a line now and then."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from margin_local.demo.replay import ReplayResult

__all__ = ["Progress"]

_TERMINAL_EVERY_S = 0.1
_LINES_EVERY_S = 10.0
_ERASE_LINE = "\r\x1b[K"


class Progress:
    """Shows the tally of a replay while it grows.

    Parameters
    ----------
    rows : int
        How many there are to replay.
    stream : TextIO, optional
        Where to show it; the standard error when none is given.
    """

    def __init__(self, rows: int, stream: TextIO | None = None) -> None:
        self._rows = rows
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every_s = _TERMINAL_EVERY_S if self._terminal else _LINES_EVERY_S
        self._shown_s = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()

    def show(self, result: ReplayResult) -> None:
        """Show the tally if it is time to."""
        now_s = time.monotonic()
        if now_s - self._shown_s < self._every_s:
            return
        self._shown_s = now_s
        rate = result.marks_posted / result.elapsed_s if result.elapsed_s else 0.0
        trades = result.trades_accepted + result.trades_refused.total()
        line = (
            f"row {result.rows_done:,} of {self._rows:,}, {rate:,.0f} mark prices/s, "
            f"{trades:,} trades, {len(result.liquidated):,} liquidations"
        )
        self._stream.write(f"{_ERASE_LINE}{line}" if self._terminal else f"{line}\n")
        self._stream.flush()
