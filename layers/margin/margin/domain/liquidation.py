"""Closing an account whose equity fell below its maintenance margin."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.position import Position, Side, apply_fill
from margin.domain.risk import liquidation_assessment

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.market import Market

__all__ = ["EQUITY_BELOW_MAINTENANCE", "ClosedPosition", "LiquidationResult", "liquidate"]

EQUITY_BELOW_MAINTENANCE: Final = "EQUITY_BELOW_MAINTENANCE"


@dataclass(frozen=True, slots=True)
class ClosedPosition:
    """A position that a liquidation closed: its signed quantity, the price it was closed at and what that realised."""

    symbol: str
    quantity: Decimal
    entry_price: Decimal
    price: Decimal
    realised_pnl: Decimal


@dataclass(frozen=True, slots=True)
class LiquidationResult:
    """A liquidation.

    Parameters
    ----------
    account : Account
        After it.
    equity, maintenance_margin : Decimal
        Before it, as :func:`margin.domain.risk.liquidation_assessment` values them: equity is the lower.
    reason : str
        A constant that programs may branch on.
    closed : tuple of ClosedPosition
        Sorted by symbol.
    shortfall : Decimal
        What the account could not pay, 0 or above; it is booked to the ledger account UNCOVERED.
    ledger_lines : tuple of LedgerLine
        They add up to zero; the line of CASH is the change of the balance.
    """

    account: Account
    equity: Decimal
    maintenance_margin: Decimal
    reason: str
    closed: tuple[ClosedPosition, ...]
    shortfall: Decimal
    ledger_lines: tuple[LedgerLine, ...]


@exact
def liquidate(account: Account, market: Market) -> LiquidationResult | None:
    """Close every position whose mark is fresh, whole and at its mark, without a fee.

    When nothing is left open and the balance is below 0, it is brought to 0 and the difference is the shortfall.

    Returns
    -------
    LiquidationResult or None
        None when the account is not liquidatable, or all that it holds is stale, so that nothing can be closed.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    """
    before = liquidation_assessment(account, market)
    fresh = [symbol for symbol in sorted(account.positions) if not market.is_stale(symbol)]
    if not before.liquidatable or (account.positions and not fresh):
        return None
    after = account
    closed: list[ClosedPosition] = []
    lines: list[LedgerLine] = []
    for symbol in fresh:
        position = account.positions[symbol]
        price = market.mark_price(symbol)
        fill = apply_fill(position, symbol, _closing_side(position), abs(position.quantity), price)
        after = after.with_position(symbol, None).with_balance_change(fill.realised_pnl)
        closed.append(ClosedPosition(symbol, position.quantity, position.entry_price, price, fill.realised_pnl))
        lines.extend(fill_lines(fill))
    shortfall = Decimal(0) if after.positions else max(Decimal(0), -after.balance)
    lines.append(LedgerLine(LedgerAccount.CASH, shortfall))
    lines.append(LedgerLine(LedgerAccount.UNCOVERED, -shortfall))
    return LiquidationResult(
        account=after.with_balance_change(shortfall),
        equity=before.equity,
        maintenance_margin=before.maintenance_margin,
        reason=EQUITY_BELOW_MAINTENANCE,
        closed=tuple(closed),
        shortfall=shortfall,
        ledger_lines=balanced(lines),
    )


def _closing_side(position: Position) -> Side:
    return Side.SELL if position.quantity > 0 else Side.BUY
