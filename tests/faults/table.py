"""The tables of `make faults`, in Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.long_looks import LongLook, Seen
    from tests.faults.run import Outcome

_COLUMNS = (
    "fault",
    "times",
    "operations",
    "requests",
    "answered 200",
    "lost",
    "doubled",
    "contradicted",
    "back after, s (median, longest)",
    "slowest answer, s",
)


def render(outcomes: Sequence[Outcome]) -> str:
    """Write one row for each scenario."""
    lines = [_row(_COLUMNS), _row(["---", *["---:"] * (len(_COLUMNS) - 1)])]
    return "\n".join([*lines, *(_row(_cells(outcome)) for outcome in outcomes)]) + "\n"


def render_looks(seen: Sequence[tuple[LongLook, Seen, float]]) -> str:
    """Write one row for each long look: what it counted, how much of it is wrong, and the seconds that it took."""
    lines = [_row(("look", "counted", "wrong", "time, s")), _row(("---", "---", "---:", "---:"))]
    rows = ((look.title, found.figures, str(len(found.wrong)), f"{took_s:.0f}") for look, found, took_s in seen)
    return "\n".join([*lines, *(_row(cells) for cells in rows)]) + "\n"


def _cells(outcome: Outcome) -> list[str]:
    verdict = outcome.verdict
    return [
        outcome.scenario.title,
        *(f"{count:,}" for count in (outcome.faults, outcome.operations, outcome.requests, outcome.done)),
        *(str(len(found)) for found in (verdict.lost, verdict.doubled, verdict.wrong)),
        _times(outcome.recoveries_s),
        f"{outcome.slowest_s:.1f}",
    ]


def _times(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f}, {max(seconds):.2f}" if seconds else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
