"""Margin of positions and accounts at mark prices."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.account import calculate_equity
from margin.domain.decimals import exact, quotient_nearest
from margin.domain.instrument import Instrument, default_instrument
from margin.domain.liquidation_price import liquidation_price, solve_liquidation_price

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = [
    "AccountRisk",
    "PositionRisk",
    "assess",
    "assess_positions",
    "calculate_initial_margin_required",
    "calculate_maintenance_margin_required",
    "favourable_price",
    "is_liquidatable",
    "liquidation_assessment",
    "liquidation_price",
]

_UTILISATION_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class PositionRisk:
    """One open position at its mark price; all amounts exact, in quote currency, but the two prices shown.

    ``entry_price`` is rounded to the nearest 8th decimal, ``liquidation_price`` is None where no price above 0
    liquidates (see :func:`margin.domain.liquidation_price.liquidation_price`).
    """

    symbol: str
    quantity: Decimal
    entry_price: Decimal
    mark_price: Decimal
    notional: Decimal
    unrealised_pnl: Decimal
    pending_funding: Decimal
    maintenance_margin: Decimal
    liquidation_price: Decimal | None


@dataclass(frozen=True, slots=True)
class AccountRisk:
    """Equity and margin of a whole account, exact, in quote currency."""

    equity: Decimal
    initial_margin: Decimal
    maintenance_margin: Decimal

    @property
    @exact
    def utilisation_pct(self) -> Decimal | None:
        """MM / E * 100 to two decimals, ties to even: 0 without maintenance margin, None when no equity covers it."""
        if self.maintenance_margin == 0:
            return Decimal(0)
        if self.equity <= 0:
            return None
        return quotient_nearest(self.maintenance_margin * 100, self.equity, _UTILISATION_DECIMALS)

    @property
    def liquidatable(self) -> bool:
        """Whether equity is strictly below maintenance margin."""
        return self.equity < self.maintenance_margin

    @exact
    def withdrawable(self, balance: Decimal) -> Decimal:
        """Compute what may leave the account: max(0, min(B, E - IM)), exact, so possibly finer than 8 decimals."""
        return max(Decimal(0), min(balance, self.equity - self.initial_margin))


@exact
def calculate_initial_margin_required(
    quantity: Decimal, price: Decimal, instrument: Instrument | None = None
) -> Decimal:
    """Compute the initial margin of a position of this size, by the default rules when no instrument is given.

    Parameters
    ----------
    quantity : Decimal
        Units, signed or not.
    price : Decimal
        Quote currency for one unit.
    instrument : Instrument, optional

    Examples
    --------
    >>> calculate_initial_margin_required(Decimal("1"), Decimal("50000")) == Decimal("10000")
    True
    """
    return (instrument or default_instrument("DEFAULT")).initial_margin(abs(quantity) * price)


@exact
def calculate_maintenance_margin_required(
    quantity: Decimal, price: Decimal, instrument: Instrument | None = None
) -> Decimal:
    """Compute the maintenance margin of a position; parameters as :func:`calculate_initial_margin_required`."""
    return (instrument or default_instrument("DEFAULT")).maintenance_margin(abs(quantity) * price)


@exact
def assess(account: Account, market: Market) -> AccountRisk:
    """Equity, initial and maintenance margin of an account at mark prices, however old those are.

    Pending funding is part of equity, exactly as it stands.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price: it is never left out of the sums.
    """
    return _assess_at(account, market, lambda position: market.mark_price(position.symbol))


@exact
def assess_positions(account: Account, market: Market) -> list[PositionRisk]:
    """Every open position at its mark price, sorted by symbol.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    """
    risk = assess(account, market)
    slack = risk.equity - risk.maintenance_margin
    return [_position_risk(account.positions[symbol], market, slack) for symbol in sorted(account.positions)]


@exact
def liquidation_assessment(account: Account, market: Market) -> AccountRisk:
    """Assess as :func:`assess`, giving the account the benefit of the doubt about stale marks.

    A position whose mark is stale is valued at that mark moved by the price band in the account's favour: up for a
    long, down for a short; at a price that waits to be confirmed where that is better still. Nobody is liquidated only
    because a price stopped moving, or because one half of a hedge is believed before the other.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    """
    return _assess_at(account, market, lambda position: favourable_price(position, market))


@exact
def is_liquidatable(account: Account, market: Market) -> bool:
    """Tell whether the engine liquidates an account at these marks: whether it is to be, and something can be closed.

    It is to be where equity is below maintenance margin with the benefit of the doubt about stale marks, see
    :func:`liquidation_assessment`; only positions whose mark is fresh can be closed. Pause switches are not looked at.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    """
    is_below = liquidation_assessment(account, market).liquidatable
    return is_below and not all(market.is_stale(symbol) for symbol in account.positions)


@exact
def favourable_price(position: Position, market: Market) -> Decimal:
    """Price of a position in :func:`liquidation_assessment`: its mark, moved in its favour where that is stale.

    It moves by the price band, and as far as a price that waits to be confirmed where that is further.

    Raises
    ------
    NoMarkPriceError
        When the position's symbol has no mark price.
    """
    mark_price = market.mark_price(position.symbol)
    if not market.is_stale(position.symbol):
        return mark_price
    band = market.instrument(position.symbol).price_band
    waiting = market.waiting.get(position.symbol, mark_price)
    if position.quantity > 0:
        return max(mark_price * (1 + band), waiting)
    return min(mark_price * (1 - band), waiting)


def _assess_at(account: Account, market: Market, price_of: Callable[[Position], Decimal]) -> AccountRisk:
    values: list[Decimal] = []
    initial_margin = maintenance_margin = Decimal(0)
    for position in account.positions.values():
        price = price_of(position)
        notional = position.notional(price)
        instrument = market.instrument(position.symbol)
        values.append(position.value(price, market.funding_index(position.symbol)))
        initial_margin += instrument.initial_margin(notional)
        maintenance_margin += instrument.maintenance_margin(notional)
    return AccountRisk(calculate_equity(account.balance, values), initial_margin, maintenance_margin)


def _position_risk(position: Position, market: Market, slack: Decimal) -> PositionRisk:
    mark_price = market.mark_price(position.symbol)
    instrument = market.instrument(position.symbol)
    notional = position.notional(mark_price)
    unrealised_pnl = position.unrealised_pnl(mark_price)
    pending_funding = position.pending_funding(market.funding_index(position.symbol))
    maintenance_margin = instrument.maintenance_margin(notional)
    return PositionRisk(
        symbol=position.symbol,
        quantity=position.quantity,
        entry_price=position.entry_price,
        mark_price=mark_price,
        notional=notional,
        unrealised_pnl=unrealised_pnl,
        pending_funding=pending_funding,
        maintenance_margin=maintenance_margin,
        liquidation_price=solve_liquidation_price(position, instrument, slack - unrealised_pnl + maintenance_margin),
    )
