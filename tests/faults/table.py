"""The table of `make faults`, in Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

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
