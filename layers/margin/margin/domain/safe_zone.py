"""Prices at which an account must be looked at; between them it is provably safe under every joint move.

H = E - MM is a sum of one function for each symbol. A move against a position lowers its function by at most its
steepest slope a times the distance, so if the slack H is split among the symbols, no joint move that stays within each
symbol's share w / a can bring H below 0. Shares in proportion to a * p make the allowed relative move the same for all:
H / S, where S is the sum of a * p. Source: safe zones of geometric monitoring (Sharfman, Schuster, Keren, 2006).

Two things move H beside prices. Funding moves all triggers of a symbol at once, by its shift (`margin.domain.funding`),
so a trigger is kept as its price minus the shift. And while new rules of a symbol are staged, MM is the larger one of
those in force and those staged, so that no rules ever come into force that the triggers do not guard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import double_down, double_up, exact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = ["LIQUIDATION_PCT", "Trigger", "TriggerSide", "covers", "crosses", "triggers"]

LIQUIDATION_PCT: Final = Decimal(100)
"""Utilisation beyond which an account is liquidated."""

# Whatever double stands in the index: the widest sum is of 309 digits before the point and 1,074 after it, times an
# amount and a rate.
_CORNER: Final = Context(prec=2000, traps=[Inexact, InvalidOperation])


class TriggerSide(StrEnum):
    """Whether a price crosses the trigger from above (FLOOR, of a long) or from below (CEILING, of a short)."""

    FLOOR = "floor"
    CEILING = "ceiling"


@dataclass(frozen=True, slots=True)
class Trigger:
    """The price of one symbol, minus its shift, at which an account must be evaluated; rounded towards earlier.

    A floor of plus infinity is always crossed, a ceiling of minus infinity likewise. Where no price above 0 can hurt,
    the floor is one below 0: funding can make it matter.
    """

    symbol: str
    side: TriggerSide
    score: float

    @property
    def is_always_crossed(self) -> bool:
        """Whether any price crosses it."""
        return self.score == (math.inf if self.side is TriggerSide.FLOOR else -math.inf)

    @property
    def is_never_crossed(self) -> bool:
        """Whether no price crosses it, wherever funding moves it: one of an early release, which knew no funding."""
        return self.score == (-math.inf if self.side is TriggerSide.FLOOR else math.inf)

    def is_crossed(self, level: Decimal) -> bool:
        """Compare a price, less its shift, as the store does: as doubles, the trigger itself included."""
        return float(level) <= self.score if self.side is TriggerSide.FLOOR else float(level) >= self.score


@exact
def crosses(trigger: Trigger, market: Market, *, level_pct: Decimal = LIQUIDATION_PCT) -> bool:
    """Tell whether the mark in force crosses a trigger of one index."""
    shift = _shift(market, trigger.symbol, trigger.side, level_pct)
    return trigger.is_crossed(market.mark_price(trigger.symbol) - shift)


@exact
def triggers(account: Account, market: Market, *, level_pct: Decimal = LIQUIDATION_PCT) -> dict[str, Trigger]:
    """One trigger for every open position, by symbol.

    While no price has crossed its trigger, maintenance margin is at most ``level_pct`` of equity: at 100 the account is
    not liquidatable, and with one tier the trigger of a single position is its liquidation price. For another level H
    is E * level - MM, the same sum with a factor before E. When the account is beyond the level already, or a mark is
    missing or stale, so that nothing can be promised, all its triggers count as crossed at any price.

    Parameters
    ----------
    account : Account
    market : Market
    level_pct : Decimal
        Above every maintenance rate of the account's symbols, in %, and at most 100.

    Returns
    -------
    dict of str to Trigger
        A floor for each long, a ceiling for each short.
    """
    if not market.are_fresh(account.positions):
        return _always_crossed(account)
    held = account.positions.values()
    present = {position.symbol: market.mark_price(position.symbol) for position in held}
    slack = sum(
        (_slack_at(position, market, present[position.symbol], level_pct) for position in held),
        start=account.balance * level_pct,
    )
    if slack < 0:
        return _always_crossed(account)
    exposure = sum(
        (_steepest_slope(position, market, level_pct) * present[position.symbol] for position in held),
        start=Decimal(0),
    )
    return {
        position.symbol: _trigger(position, market, present[position.symbol] * slack, exposure, level_pct)
        for position in held
    }


@exact
def covers(
    account: Account, market: Market, held: Mapping[str, Trigger], *, level_pct: Decimal = LIQUIDATION_PCT
) -> bool:
    """Tell whether the index cannot miss an account that has these triggers: what it is for, tested after the fact.

    Either there is nothing to liquidate, or one of them is always crossed, so that every scan evaluates the account; or
    every joint move up to the triggers leaves it with the maintenance margin that it needs. H falls with every move
    against a position, so it is lowest where all prices are at their triggers: one exact calculation there says it of
    all moves, whatever the marks are now.

    Parameters
    ----------
    account : Account
    market : Market
        Instruments and funding, read at one moment with the triggers; its marks do not matter.
    held : mapping of str to Trigger
        Triggers of the account as the index has them, by symbol.
    level_pct : Decimal
        What they are to guard, as for :func:`triggers`.
    """
    if not all(_is_guarded(position, held.get(symbol)) for symbol, position in account.positions.items()):
        return False
    if not account.positions or any(held[symbol].is_always_crossed for symbol in account.positions):
        return True
    with localcontext(_CORNER):
        slack = account.balance * level_pct
        for symbol, position in account.positions.items():
            trigger = held[symbol]
            if trigger.is_never_crossed:
                # The price falls to 0 and no further; what funding does is beyond such a trigger.
                if position.quantity < 0 or market.funding_of(symbol).n:
                    return False
                price = Decimal(0)
            else:
                price = Decimal(trigger.score) + _shift(market, symbol, trigger.side, level_pct)
            slack += _slack_at(position, market, price, level_pct)
        return slack >= 0


def _is_guarded(position: Position, trigger: Trigger | None) -> bool:
    """Whether a position has a trigger on the side from which prices hurt it."""
    return trigger is not None and (trigger.side is TriggerSide.FLOOR) is (position.quantity > 0)


def _slack_at(position: Position, market: Market, price: Decimal, level_pct: Decimal) -> Decimal:
    """Calculate what a position adds to H at a price, exactly, in hundredths: its value * level - MM * 100.

    Below a price of 0, where a floor can be, the line of the first tier goes on, so that slopes stay what they are.
    """
    quantity = position.quantity
    margin = _guarded_margin(position, market, abs(quantity) * price)
    # Not `Position.value`, which is exact in fewer digits than the double of any size has.
    funding = position.entry_funding - quantity * market.funding_index(position.symbol)
    return (quantity * price - position.entry_cost + funding) * level_pct - margin * 100


def _guarded_margin(position: Position, market: Market, notional: Decimal) -> Decimal:
    return max(rate * notional - amount for rate, amount in market.guarded_lines(position.symbol))


def _steepest_slope(position: Position, market: Market, level_pct: Decimal) -> Decimal:
    """How much H falls at most for each unit that the price moves against the position, in any tier, in hundredths.

    A falling price frees a long at least the lowest rate of its margin; a rising price costs a short at most the
    highest. With one tier both are the exact slope abs(q - m * abs(q)).
    """
    rates = [rate * 100 for rate, _ in market.guarded_lines(position.symbol)]
    if position.quantity > 0:
        return position.quantity * (level_pct - min(rates))
    return -position.quantity * (level_pct + max(rates))


def _trigger(position: Position, market: Market, distance: Decimal, exposure: Decimal, level_pct: Decimal) -> Trigger:
    """Place a trigger at a distance from the mark, of which the exposure is the denominator."""
    symbol, price = position.symbol, market.mark_price(position.symbol)
    if position.quantity < 0:
        start = price - _shift(market, symbol, TriggerSide.CEILING, level_pct)
        return Trigger(symbol, TriggerSide.CEILING, double_down(start * exposure + distance, exposure))
    start = price - _shift(market, symbol, TriggerSide.FLOOR, level_pct)
    return Trigger(symbol, TriggerSide.FLOOR, double_up(start * exposure - distance, exposure))


def _shift(market: Market, symbol: str, side: TriggerSide, level_pct: Decimal) -> Decimal:
    funding = market.funding_of(symbol)
    shift = funding.liquidation if level_pct == LIQUIDATION_PCT else funding.warning
    return shift.floor if side is TriggerSide.FLOOR else shift.ceiling


def _always_crossed(account: Account) -> dict[str, Trigger]:
    return {
        symbol: Trigger(symbol, TriggerSide.FLOOR, math.inf)
        if position.quantity > 0
        else Trigger(symbol, TriggerSide.CEILING, -math.inf)
        for symbol, position in account.positions.items()
    }
