"""The price of one symbol, all others at their marks, at which an account is about to be liquidated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.decimals import exact, quotient_down, quotient_up

if TYPE_CHECKING:
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = ["liquidation_price", "solve_liquidation_price"]


@exact
def liquidation_price(account: Account, symbol: str, market: Market) -> Decimal | None:
    """Last price of 8 decimals of a symbol at which the account is not liquidatable.

    Returns
    -------
    Decimal or None
        The smallest such price for a long, the largest for a short; None when there is none above 0 (a long that no
        fall can liquidate, a short that no fall can save) or no position in the symbol.

    Raises
    ------
    NoMarkPriceError
        When another symbol of the account has no mark price.
    """
    position = account.positions.get(symbol)
    if position is None:
        return None
    slack_elsewhere = account.balance
    for other in account.positions.values():
        if other.symbol != symbol:
            price = market.mark_price(other.symbol)
            maintenance_margin = market.instrument(other.symbol).maintenance_margin(other.notional(price))
            slack_elsewhere += other.value(price, market.funding_index(other.symbol)) - maintenance_margin
    slack_elsewhere += position.pending_funding(market.funding_index(symbol))
    return solve_liquidation_price(position, market.instrument(symbol), slack_elsewhere)


@exact
def solve_liquidation_price(position: Position, instrument: Instrument, slack_elsewhere: Decimal) -> Decimal | None:
    """Solve E(p) = MM(p) for one position.

    Because rates rise with the tiers, maintenance margin is the largest of the tiers' lines ``rate * n - amount``. So
    the account is safe where it is safe under every line, and the answer is the strictest root, without cases.

    Parameters
    ----------
    position : Position
    instrument : Instrument
        Of the position's symbol.
    slack_elsewhere : Decimal
        Balance, pending funding of all positions, and unrealised P&L minus maintenance margin of all others; quote
        currency.

    Returns
    -------
    Decimal or None
        As :func:`liquidation_price`.
    """
    size = abs(position.quantity)
    fixed = slack_elsewhere - position.entry_cost
    lines = instrument.maintenance_lines
    if position.quantity > 0:
        price = max(quotient_up(-(fixed + amount), size * (1 - rate)) for rate, amount in lines)
    else:
        price = min(quotient_down(fixed + amount, size * (1 + rate)) for rate, amount in lines)
    return price if price > 0 else None
