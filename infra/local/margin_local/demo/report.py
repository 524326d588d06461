"""A replay's result as plain text."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_local.demo.checks import Check
    from margin_local.demo.prices import PriceSeries
    from margin_local.demo.replay import Liquidated, ReplayResult

__all__ = ["Summary", "ledger_totals", "render", "table"]

FAILURES_SHOWN_MAX: Final = 10
LEDGER_ACCOUNTS: Final = ("external", "cash", "house_pnl", "fees", "insurance", "funding", "uncovered", "rounding")

_INDENT = "  "
_WIDTH = 110
_TO_THE_CENT = Context(prec=60, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that the report tells.

    Parameters
    ----------
    series : sequence of PriceSeries
    accounts : int
    seed : int
    engine : str
        Which engine took part.
    result : ReplayResult
    ledger : mapping of str to Decimal, or None
        Sum of each ledger account; None when PostgreSQL was not read.
    checks : sequence of Check
    fund : tuple of Decimal
        What the engine's insurance fund has, and what liquidated accounts left unpaid, all accounts together.
    left_out : str
        Why checks were left out; "" when none was.
    """

    series: Sequence[PriceSeries]
    accounts: int
    seed: int
    engine: str
    result: ReplayResult
    ledger: Mapping[str, Decimal] | None
    checks: Sequence[Check]
    fund: tuple[Decimal, Decimal]
    left_out: str = ""


@exact
def ledger_totals(lines: Sequence[tuple[str, Decimal]]) -> dict[str, Decimal]:
    """Sum of every ledger account, those without a line included."""
    totals: dict[str, Decimal] = dict.fromkeys(LEDGER_ACCOUNTS, Decimal(0))
    for ledger_account, amount in lines:
        totals[ledger_account] = totals.get(ledger_account, Decimal(0)) + amount
    return totals


def render(summary: Summary) -> str:
    """Write the whole report."""
    parts = [
        _section("Replay", table(_replay_rows(summary))),
        _section("Trades", table(_trade_rows(summary.result))),
        _section("Liquidations", _liquidations(summary)),
        _section("Ledger", _ledger(summary)),
        _section("Checks", _checks(summary)),
    ]
    return "\n".join(parts)


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), header: bool = False) -> str:
    """Lay rows out in columns; those numbered in ``right`` end in line, and a header is underlined."""
    if not rows:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _section(title: str, body: str) -> str:
    return f"{title}\n{textwrap.indent(body, _INDENT)}\n"


def _replay_rows(summary: Summary) -> list[tuple[str, str]]:
    result, candles = summary.result, summary.series[0].candles
    rows = [(series.symbol, series.source) for series in summary.series]
    done = max(1, result.rows_done)
    until = "stopped before the end, at" if result.interrupted else "to"
    rows.append(
        ("rows", f"{result.rows_done:,} of {len(candles):,}, {candles[0].time} {until} {candles[done - 1].time}")
    )
    rows.append(("order of prices", "open; low, high where a row ends at or above its open, else high, low; close"))
    rows.append(("engine", summary.engine))
    rows.append(("accounts", f"{summary.accounts:,}, seed {summary.seed}"))
    rows.append(("deposits", f"{result.deposits:,} of {_money(result.deposited)}, the first of each account included"))
    rows.append(
        ("mark prices", f"{result.marks_posted:,} posted, {result.at_risk:,} times an account came to evaluation")
    )
    rate = result.marks_posted / result.elapsed_s if result.elapsed_s else 0.0
    rows.append(("time", f"{result.elapsed_s:.1f} s, trades included: {rate:,.0f} mark prices/s"))
    if len(summary.series) > 1:
        rows.append(("symbols", f"{len(summary.series)}, all prices of one moment in one request"))
    if result.marks_s:
        ordered = sorted(result.marks_s)
        median, late = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        rows.append(("answer to a mark", f"{median * 1e3:.1f} ms half of the time, {late * 1e3:.1f} ms at 99 %"))
    return rows


def _trade_rows(result: ReplayResult) -> list[tuple[str, str]]:
    refused = sum(result.trades_refused.values())
    rows = [("sent", f"{result.trades_accepted + refused:,}"), ("accepted", f"{result.trades_accepted:,}")]
    if result.trades_pending:
        rows.append(("accepted, history pending", f"{result.trades_pending:,}"))
    rows.append(("refused", f"{refused:,}"))
    rows += [(f"  {code}", f"{count:,}") for code, count in sorted(result.trades_refused.items())]
    width = max(len(count) for _, count in rows)
    return [(name, count.rjust(width)) for name, count in rows]


@exact
def _liquidations(summary: Summary) -> str:
    everyone = summary.result.liquidated
    if not everyone:
        return "none"
    by_row: dict[int, list[Liquidated]] = defaultdict(list)
    for liquidated in everyone:
        by_row[liquidated.row].append(liquidated)
    columns = ("time", "liquidations", "partial", "long", "short", "mark price", "notional", "shortfall")
    rows: list[tuple[str, ...]] = [columns]
    rows += [_liquidation_row(summary.series[0].candles[row].time, by_row[row]) for row in sorted(by_row)]
    rows.append(_total_row(everyone))
    accounts = len({liquidated.account_id for liquidated in everyone})
    partial = sum(liquidated.partial for liquidated in everyone)
    short = [liquidated.shortfall for liquidated in everyone if liquidated.shortfall]
    totals = table(
        [
            ("liquidations", f"{len(everyone):,} of {accounts:,} accounts in {len(by_row):,} rows"),
            ("partial, whole", f"{partial:,} left something open, {len(everyone) - partial:,} left nothing"),
            ("liquidated notional", _money(sum((one.notional for one in everyone), start=Decimal(0)))),
            ("shortfalls", f"{len(short):,} of {_money(sum(short, start=Decimal(0)))}"),
            (
                "deleveragings",
                f"{summary.result.deleveraged.total():,} of {len(summary.result.deleveraged):,} accounts",
            ),
            ("insurance fund", f"has {_money(summary.fund[0])}, has still to pay {_money(summary.fund[1])}"),
        ]
    )
    return f"{totals}\n\n{table(rows, right=(1, 2, 3, 4, 6, 7), header=True)}"


def _liquidation_row(time: str, liquidated: Sequence[Liquidated]) -> tuple[str, ...]:
    prices: dict[str, list[Decimal]] = defaultdict(list)
    for one in liquidated:
        for symbol, _, price in one.positions:
            prices[symbol].append(price)
    named = len(prices) > 1
    marks = ", ".join(f"{symbol} {_range(seen)}" if named else _range(seen) for symbol, seen in sorted(prices.items()))
    return (time, *_counts(liquidated), marks, *_sums(liquidated))


def _total_row(everyone: Sequence[Liquidated]) -> tuple[str, ...]:
    return ("all", *_counts(everyone), "", *_sums(everyone))


def _counts(liquidated: Sequence[Liquidated]) -> tuple[str, str, str, str]:
    quantities = [quantity for one in liquidated for _, quantity, _ in one.positions]
    longs = sum(quantity > 0 for quantity in quantities)
    partial = sum(one.partial for one in liquidated)
    return f"{len(liquidated):,}", f"{partial:,}", f"{longs:,}", f"{len(quantities) - longs:,}"


def _sums(liquidated: Sequence[Liquidated]) -> tuple[str, str]:
    notional = sum((one.notional for one in liquidated), start=Decimal(0))
    shortfall = sum((one.shortfall for one in liquidated), start=Decimal(0))
    return _money(notional), _money(shortfall) if shortfall else "-"


def _range(prices: Sequence[Decimal]) -> str:
    lowest, highest = min(prices), max(prices)
    return plain(lowest) if lowest == highest else f"{plain(lowest)} to {plain(highest)}"


def _ledger(summary: Summary) -> str:
    if summary.ledger is None:
        return "not read, see the checks"
    rows = [(account, plain(amount)) for account, amount in summary.ledger.items()]
    rows.append(("sum", plain(_sum(summary.ledger))))
    return table(rows, right=(1,))


@exact
def _sum(ledger: Mapping[str, Decimal]) -> Decimal:
    return sum(ledger.values(), start=Decimal(0))


def _checks(summary: Summary) -> str:
    if not summary.checks:
        return textwrap.fill(f"Left out: {summary.left_out}", _WIDTH)
    lines: list[str] = []
    for check in summary.checks:
        lines.append(f"{'pass' if check.passed else 'FAIL'}  {check.title}")
        lines.append(f"      {check.figures}")
        lines += [f"      - {failure}" for failure in check.failures[:FAILURES_SHOWN_MAX]]
        if len(check.failures) > FAILURES_SHOWN_MAX:
            lines.append(f"      - and {len(check.failures) - FAILURES_SHOWN_MAX:,} more")
    failed = sum(not check.passed for check in summary.checks)
    lines.append("")
    lines.append(f"{failed} of {len(summary.checks)} checks FAILED." if failed else "All checks passed.")
    return "\n".join(lines)


def _money(amount: Decimal) -> str:
    """Write an amount to the cent, for reading only."""
    return f"{_TO_THE_CENT.quantize(amount, Decimal('0.01')):,.2f}"
