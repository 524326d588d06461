"""A position and what a fill does to it.

A position is kept as a signed quantity and a signed entry cost, both exact, never as an average price. What cannot be
booked to a balance in 8 decimals stays in the entry cost while the position is open, so that equity is never rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from margin.domain.decimals import exact, quotient_down, quotient_nearest, round_down

__all__ = ["Fill", "Position", "Side", "apply_fill"]


class Side(StrEnum):
    """Side of a trade as seen by the account."""

    BUY = "BUY"
    SELL = "SELL"

    @property
    def sign(self) -> Decimal:
        """+1 for a buy, -1 for a sell."""
        return Decimal(1) if self is Side.BUY else Decimal(-1)


@dataclass(frozen=True, slots=True)
class Position:
    """An open position of one account in one symbol.

    Parameters
    ----------
    symbol : str
    quantity : Decimal
        Signed and never 0: above for a long, below for a short.
    entry_cost : Decimal
        Signed quote currency: quantity times the average price at which it was entered, exact.

    Raises
    ------
    ValueError
        When the quantity is 0 or a number is not finite.
    """

    symbol: str
    quantity: Decimal
    entry_cost: Decimal

    def __post_init__(self) -> None:
        if not (self.quantity.is_finite() and self.entry_cost.is_finite()):
            raise ValueError("quantity and entry cost of a position are finite")
        if self.quantity.is_zero():
            raise ValueError("a position of quantity 0 does not exist")

    @property
    @exact
    def entry_price(self) -> Decimal:
        """Entry cost for one unit, to the nearest 8th decimal: shown, never calculated with."""
        return quotient_nearest(self.entry_cost, self.quantity)

    @exact
    def notional(self, price: Decimal) -> Decimal:
        """Size in quote currency at a price: abs(q) * p."""
        return abs(self.quantity) * price

    @exact
    def unrealised_pnl(self, price: Decimal) -> Decimal:
        """Profit if closed at a price, before fees: q * p - c."""
        return self.quantity * price - self.entry_cost


@dataclass(frozen=True, slots=True)
class Fill:
    """What one trade leaves of a position and what it realises.

    Parameters
    ----------
    position : Position or None
        After the fill; None when it was closed.
    realised_pnl : Decimal
        What the balance receives: the gain rounded down to 8 decimals, before the fee.
    gain : Decimal
        What left the position. Cash +realised_pnl, house P&L -gain and rounding +(gain - realised_pnl) add up to zero;
        the two are equal unless the position, or the part of it before a flip, was closed whole.
    """

    position: Position | None
    realised_pnl: Decimal
    gain: Decimal


@exact
def apply_fill(position: Position | None, symbol: str, side: Side, quantity: Decimal, price: Decimal) -> Fill:
    """Trade a quantity at a price against a position: increase it, reduce it, close it or flip it.

    A flip closes the whole and opens the rest at the trade's price.

    Parameters
    ----------
    position : Position or None
        Before the fill.
    symbol : str
    side : Side
    quantity, price : Decimal
        Both above 0.

    Raises
    ------
    ValueError
        When quantity or price is not above 0, or the position is one in another symbol.
    """
    if quantity <= 0 or price <= 0:
        raise ValueError("a fill has a quantity and a price above 0")
    if position is not None and position.symbol != symbol:
        raise ValueError("a fill and its position have the same symbol")
    traded = side.sign * quantity
    if position is None:
        return Fill(Position(symbol, traded, traded * price), Decimal(0), Decimal(0))
    if position.quantity * traded > 0:
        increased = Position(symbol, position.quantity + traded, position.entry_cost + traded * price)
        return Fill(increased, Decimal(0), Decimal(0))
    if quantity < abs(position.quantity):
        return _reduce(position, traded, price)
    return _close(position, position.quantity + traded, price)


def _reduce(position: Position, traded: Decimal, price: Decimal) -> Fill:
    """Realise proceeds - c * x / abs(q); what rounding leaves of it stays in the entry cost."""
    size = abs(position.quantity)
    proceeds = -traded * price
    realised_pnl = quotient_down(proceeds * size - position.entry_cost * abs(traded), size)
    entry_cost = position.entry_cost - (proceeds - realised_pnl)
    return Fill(Position(position.symbol, position.quantity + traded, entry_cost), realised_pnl, realised_pnl)


def _close(position: Position, rest: Decimal, price: Decimal) -> Fill:
    """Realise the whole; no entry cost remains to keep the dust, so the gain carries it to the rounding account."""
    gain = position.unrealised_pnl(price)
    opened = None if rest.is_zero() else Position(position.symbol, rest, rest * price)
    return Fill(opened, round_down(gain), gain)
