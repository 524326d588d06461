"""A position and what a fill does to it.

A position is kept as a signed quantity and a signed entry cost, both exact, never as an average price. What cannot be
booked to a balance in 8 decimals stays in the entry cost while the position is open, so that equity is never rounded.

Funding is kept in the same way. The funding index F of a symbol says what one unit has paid so far; with the entry
funding g a position still owes q * F - g. A fill at the index F adds its quantity times F to g, as it adds its quantity
times its price to the entry cost, so a fill changes nothing of what is owed.
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
    entry_funding : Decimal
        Signed quote currency: quantity times the average funding index up to which it has paid, exact.

    Raises
    ------
    ValueError
        When the quantity is 0 or a number is not finite.
    """

    symbol: str
    quantity: Decimal
    entry_cost: Decimal
    entry_funding: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        if not (self.quantity.is_finite() and self.entry_cost.is_finite() and self.entry_funding.is_finite()):
            raise ValueError("quantity, entry cost and entry funding of a position are finite")
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
        """Profit if closed at a price, before fees and funding: q * p - c."""
        return self.quantity * price - self.entry_cost

    @exact
    def pending_funding(self, funding_index: Decimal) -> Decimal:
        """Funding that the position is still to receive (above 0) or to pay, exact: g - q * F."""
        return self.entry_funding - self.quantity * funding_index

    @exact
    def value(self, price: Decimal, funding_index: Decimal) -> Decimal:
        """Calculate what the position adds to equity: its unrealised profit and its pending funding."""
        return self.unrealised_pnl(price) + self.pending_funding(funding_index)


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
        What left the position, the rest of its funding with it where it was closed whole. Cash +realised_pnl, house
        P&L -gain and rounding +(gain - realised_pnl) add up to zero; the two are equal unless the position, or the
        part of it before a flip, was closed whole.
    """

    position: Position | None
    realised_pnl: Decimal
    gain: Decimal


@exact
def apply_fill(
    position: Position | None, symbol: str, side: Side, quantity: Decimal, price: Decimal, *, funding_index: Decimal
) -> Fill:
    """Trade a quantity at a price against a position: increase it, reduce it, close it or flip it.

    A flip closes the whole and opens the rest at the trade's price. Pending funding is not touched, but of a position
    that is closed whole it is realised: after :func:`margin.domain.funding.settle_funding` less than 0.00000001.

    Parameters
    ----------
    position : Position or None
        Before the fill.
    symbol : str
    side : Side
    quantity, price : Decimal
        Both above 0.
    funding_index : Decimal
        That of the symbol at this moment.

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
        return Fill(Position(symbol, traded, traded * price, traded * funding_index), Decimal(0), Decimal(0))
    entry_funding = position.entry_funding + traded * funding_index
    if position.quantity * traded > 0:
        entry_cost = position.entry_cost + traded * price
        return Fill(Position(symbol, position.quantity + traded, entry_cost, entry_funding), Decimal(0), Decimal(0))
    if quantity < abs(position.quantity):
        return _reduce(position, traded, price, entry_funding)
    return _close(position, position.quantity + traded, price, funding_index)


def _reduce(position: Position, traded: Decimal, price: Decimal, entry_funding: Decimal) -> Fill:
    """Realise proceeds - c * x / abs(q); what rounding leaves of it stays in the entry cost."""
    size = abs(position.quantity)
    proceeds = -traded * price
    realised_pnl = quotient_down(proceeds * size - position.entry_cost * abs(traded), size)
    entry_cost = position.entry_cost - (proceeds - realised_pnl)
    reduced = Position(position.symbol, position.quantity + traded, entry_cost, entry_funding)
    return Fill(reduced, realised_pnl, realised_pnl)


def _close(position: Position, rest: Decimal, price: Decimal, funding_index: Decimal) -> Fill:
    """Realise the whole; no entry cost remains to keep the dust, so the gain carries it to the rounding account."""
    gain = position.value(price, funding_index)
    opened = None if rest.is_zero() else Position(position.symbol, rest, rest * price, rest * funding_index)
    return Fill(opened, round_down(gain), gain)
