"""Prices at which an account must be looked at; between them it is provably safe under every joint move.

H = E - MM is a sum of one function for each symbol. A move against a position lowers its function by at most its
steepest slope a times the distance, so if the slack H is split among the symbols, no joint move that stays within each
symbol's share w / a can bring H below 0. Shares in proportion to a * p make the allowed relative move the same for all:
H / S, where S is the sum of a * p. Source: safe zones of geometric monitoring (Sharfman, Schuster, Keren, 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import double_down, double_up, exact
from margin.domain.risk import assess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = ["LIQUIDATION_PCT", "Trigger", "TriggerSide", "covers", "triggers"]

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
    """The price of one symbol at which an account must be evaluated, as a double rounded towards earlier.

    A floor of minus infinity is never crossed, one of plus infinity always; a ceiling the other way round.
    """

    symbol: str
    side: TriggerSide
    score: float

    @property
    def is_always_crossed(self) -> bool:
        """Whether any price crosses it."""
        return self.score == (math.inf if self.side is TriggerSide.FLOOR else -math.inf)

    def is_crossed(self, price: Decimal) -> bool:
        """Compare a price as the store does: as doubles, the trigger itself included."""
        return float(price) <= self.score if self.side is TriggerSide.FLOOR else float(price) >= self.score


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
        A floor for each long, minus infinity when it would be 0 or below, which no price reaches; a ceiling for each
        short.
    """
    if not market.are_fresh(account.positions):
        return _always_crossed(account)
    risk = assess(account, market)
    slack = risk.equity * level_pct - risk.maintenance_margin * 100
    if slack < 0:
        return _always_crossed(account)
    exposure = sum(
        (
            _steepest_slope(position, market.instrument(symbol), level_pct) * market.mark_price(symbol)
            for symbol, position in account.positions.items()
        ),
        start=Decimal(0),
    )
    return {
        symbol: _trigger(position, market.mark_price(symbol), slack, exposure)
        for symbol, position in account.positions.items()
    }


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
        Instruments, read at one moment with the triggers; its marks do not matter.
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
            score = held[symbol].score
            if math.isinf(score) and position.quantity < 0:
                return False
            # A floor of minus infinity: the price falls to 0 and no further.
            price = Decimal(0) if math.isinf(score) else Decimal(score)
            slack += _slack_at(position, market.instrument(symbol), price, level_pct)
        return slack >= 0


def _is_guarded(position: Position, trigger: Trigger | None) -> bool:
    """Whether a position has a trigger on the side from which prices hurt it."""
    return trigger is not None and (trigger.side is TriggerSide.FLOOR) is (position.quantity > 0)


def _slack_at(position: Position, instrument: Instrument, price: Decimal, level_pct: Decimal) -> Decimal:
    """Calculate what a position adds to H at a price, exactly, in hundredths: (q * p - c) * level - MM * 100."""
    notional = abs(position.quantity) * price
    margin = max(rate * notional - amount for rate, amount in instrument.maintenance_lines)
    return (position.quantity * price - position.entry_cost) * level_pct - margin * 100


def _steepest_slope(position: Position, instrument: Instrument, level_pct: Decimal) -> Decimal:
    """How much H falls at most for each unit that the price moves against the position, in any tier, in hundredths.

    A falling price frees a long at least the lowest rate of its margin; a rising price costs a short at most the
    highest. With one tier both are the exact slope abs(q - m * abs(q)).
    """
    if position.quantity > 0:
        return position.quantity * (level_pct - instrument.lowest_maintenance_rate * 100)
    return -position.quantity * (level_pct + instrument.steepest_maintenance_rate * 100)


def _trigger(position: Position, mark_price: Decimal, slack: Decimal, exposure: Decimal) -> Trigger:
    if position.quantity < 0:
        ceiling = double_down(mark_price * (exposure + slack), exposure)
        return Trigger(position.symbol, TriggerSide.CEILING, ceiling)
    floor = double_up(mark_price * (exposure - slack), exposure) if slack < exposure else -math.inf
    return Trigger(position.symbol, TriggerSide.FLOOR, floor)


def _always_crossed(account: Account) -> dict[str, Trigger]:
    return {
        symbol: Trigger(symbol, TriggerSide.FLOOR, math.inf)
        if position.quantity > 0
        else Trigger(symbol, TriggerSide.CEILING, -math.inf)
        for symbol, position in account.positions.items()
    }
