"""The report: every figure of the tally is in it, and its last line says whether everything passed."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from margin_local.demo.checks import Check
from margin_local.demo.prices import made_series
from margin_local.demo.replay import Liquidated, ReplayResult
from margin_local.demo.report import Summary, ledger_totals, render, table

BTC = "BTC-PERP"
PASSED = Check("The ledger sums to zero", "12 lines", ())
FAILED = Check("Redis equals PostgreSQL", "3 accounts", tuple(f"account {number} differs" for number in range(12)))


def liquidated(number: int, row: int, quantity: str, price: str, shortfall: str = "0", *, partial: bool) -> Liquidated:
    closed = ((BTC, Decimal(quantity), Decimal(price)),)
    return Liquidated(number, 1000 + number, row, closed, Decimal(shortfall), partial)


def summary(*checks: Check, ledger: bool = True, **changed: object) -> Summary:
    result = ReplayResult(
        rows_done=5,
        deposits=2,
        deposited=Decimal(3000),
        trades_accepted=1200,
        trades_refused=Counter(INSUFFICIENT_MARGIN=7, OUTSIDE_PRICE_BAND=11),
        marks_posted=20,
        marks_s=[0.001, 0.002, 0.004],
        at_risk=3,
        liquidated=[
            liquidated(1, 3, "2", "100.5", "12.345", partial=False),
            liquidated(2, 3, "-1", "90", partial=True),
            liquidated(3, 4, "1", "80", partial=True),
        ],
        deleveraged=Counter({1001: 2, 1002: 1}),
        elapsed_s=2.0,
    )
    for name, value in changed.items():
        setattr(result, name, value)
    return Summary(
        series=[made_series(7, 5)],
        accounts=2,
        seed=7,
        engine="its own",
        result=result,
        ledger=ledger_totals([("cash", Decimal("2987.655")), ("uncovered", Decimal("12.345"))]) if ledger else None,
        checks=checks,
        fund=(Decimal("3.5"), Decimal("12.345")),
        left_out="" if ledger else "the stores are not known.",
    )


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_report_tells_every_figure() -> None:
    lines = squeezed(render(summary(PASSED)))
    assert "rows 5 of 5, 2024-01-01T00:00:00Z to 2024-01-01T04:00:00Z" in lines
    assert "mark prices 20 posted, 3 times an account came to evaluation" in lines
    assert "time 2.0 s, trades included: 10 mark prices/s" in lines
    assert "sent 1,218" in lines
    assert "accepted 1,200" in lines
    assert "INSUFFICIENT_MARGIN 7" in lines
    assert "OUTSIDE_PRICE_BAND 11" in lines
    assert "liquidated notional 371.00" in lines
    assert "shortfalls 1 of 12.34" in lines
    assert "deleveragings 3 of 2 accounts" in lines
    assert "insurance fund has 3.50, has still to pay 12.34" in lines
    assert "partial, whole 2 left something open, 1 left nothing" in lines
    assert "2024-01-01T03:00:00Z 2 1 1 1 90 to 100.5 291.00 12.34" in lines
    assert "2024-01-01T04:00:00Z 1 1 1 0 80 80.00 -" in lines
    assert "insurance 0" in lines
    assert "uncovered 12.345" in lines
    assert "sum 3000" in lines
    assert lines[-1] == "All checks passed."


def test_a_failed_check_is_told_with_its_failures_up_to_a_limit() -> None:
    lines = squeezed(render(summary(PASSED, FAILED)))
    assert "FAIL Redis equals PostgreSQL" in lines
    assert "- account 9 differs" in lines
    assert "- account 10 differs" not in lines
    assert "- and 2 more" in lines
    assert lines[-1] == "1 of 2 checks FAILED."


def test_checks_that_were_left_out_are_not_called_passed() -> None:
    text = render(summary(ledger=False))
    assert "Left out: the stores are not known." in text
    assert "passed" not in text


def test_a_replay_that_was_stopped_says_how_far_it_came() -> None:
    lines = squeezed(render(summary(PASSED, rows_done=2, interrupted=True, liquidated=[])))
    assert "rows 2 of 5, 2024-01-01T00:00:00Z stopped before the end, at 2024-01-01T01:00:00Z" in lines
    assert lines[lines.index("Liquidations") + 1] == "none"


def test_a_table_has_columns_in_line() -> None:
    text = table([("name", "n"), ("a", "1,000"), ("longer", "2")], right=(1,), header=True)
    assert text.splitlines() == ["name        n", "------  -----", "a       1,000", "longer      2"]
    assert table([]) == ""
