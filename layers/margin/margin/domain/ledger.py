"""Double entry: every change of a balance is a set of lines that add up to exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.decimals import exact, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.domain.position import Fill

__all__ = ["LedgerAccount", "LedgerImbalanceError", "LedgerLine", "balanced", "fill_lines", "ledger_amounts"]


class LedgerAccount(StrEnum):
    """Where money is. All but CASH, which is the account's balance, belong to the house or the world outside."""

    CASH = "cash"
    HOUSE_PNL = "house_pnl"
    FEES = "fees"
    INSURANCE = "insurance"
    FUNDING = "funding"
    EXTERNAL = "external"
    ROUNDING = "rounding"
    UNCOVERED = "uncovered"


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """An amount of quote currency that a ledger account receives (above 0) or gives (below 0), exact."""

    ledger_account: LedgerAccount
    amount: Decimal


class LedgerImbalanceError(AssertionError):
    """Lines of one event do not add up to zero: a defect of the engine, never a caller's mistake."""


@exact
def balanced(lines: Sequence[LedgerLine]) -> tuple[LedgerLine, ...]:
    """Merge lines of the same ledger account, drop those of zero, in the order of first appearance.

    Raises
    ------
    LedgerImbalanceError
        When the sum is not exactly zero.
    """
    totals: dict[LedgerAccount, Decimal] = {}
    for line in lines:
        totals[line.ledger_account] = totals.get(line.ledger_account, Decimal(0)) + line.amount
    imbalance = sum(totals.values(), start=Decimal(0))
    if imbalance != 0:
        raise LedgerImbalanceError(f"ledger lines add up to {plain(imbalance)}, not to 0")
    return tuple(LedgerLine(ledger_account, amount) for ledger_account, amount in totals.items() if amount != 0)


def ledger_amounts(lines: Sequence[LedgerLine]) -> list[tuple[str, Decimal]]:
    """Lines as pairs of a ledger account's name and an amount, as they are recorded."""
    return [(str(line.ledger_account), line.amount) for line in lines]


@exact
def fill_lines(fill: Fill, fee: Decimal = Decimal(0)) -> tuple[LedgerLine, ...]:
    """Lines of one fill and its fee, not yet merged: the house is the other side of every gain."""
    return (
        LedgerLine(LedgerAccount.CASH, fill.realised_pnl - fee),
        LedgerLine(LedgerAccount.HOUSE_PNL, -fill.gain),
        LedgerLine(LedgerAccount.FEES, fee),
        LedgerLine(LedgerAccount.ROUNDING, fill.gain - fill.realised_pnl),
    )
