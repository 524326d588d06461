"""Indexes that are wrong in an easy way, and what shows that they are: an exact look from outside."""

from __future__ import annotations

import dataclasses
import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING

from margin.domain.decimals import EXACT
from margin.domain.risk import assess
from margin.domain.safe_zone import Trigger, TriggerSide, triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from margin.domain.account import Account
    from margin.domain.market import Market

    Index = Callable[[Account, Market], dict[str, Trigger]]

_WIDE = Context(prec=2500)
_SPECK = Decimal("1e-500")
PRICE_MAX = Decimal(10**12)


def excess(account: Account, market: Market, prices: Mapping[str, Decimal]) -> Fraction:
    """H = equity - maintenance margin at some prices, tier by tier, in another arithmetic than the engine's.

    At a price below 0, where a floor can be, the first tier goes on.
    """
    total = Fraction(account.balance)
    for symbol, position in account.positions.items():
        price = Fraction(prices[symbol])
        left, lower = abs(Fraction(position.quantity)) * price, Fraction(0)
        total += Fraction(position.quantity) * price - Fraction(position.entry_cost)
        total += Fraction(position.entry_funding) - Fraction(position.quantity) * Fraction(market.funding_index(symbol))
        if left < 0:
            total -= left * Fraction(market.instrument(symbol).tiers[0].maintenance_rate)
        for tier in market.instrument(symbol).tiers:
            upper = left if tier.notional_cap is None else min(left, Fraction(tier.notional_cap))
            if upper > lower:
                total -= (upper - lower) * Fraction(tier.maintenance_rate)
                lower = upper
    return total


def furthest_uncrossed(trigger: Trigger) -> Decimal:
    """Price next to a trigger that does not cross it: as doubles they compare, so half a step on counts as crossed."""
    if trigger.side is TriggerSide.FLOOR and trigger.score < 0:
        return _SPECK
    beyond = math.nextafter(trigger.score, math.inf if trigger.side is TriggerSide.FLOOR else -math.inf)
    with localcontext(_WIDE):
        middle = (Decimal(trigger.score) + Decimal(beyond)) / 2
        return middle + _SPECK if trigger.side is TriggerSide.FLOOR else middle - _SPECK


def freezing_the_others(account: Account, market: Market) -> dict[str, Trigger]:
    """Triggers of one symbol at a time, as if no other could move: each has the whole slack."""
    alone = {}
    for symbol, position in account.positions.items():
        rest = dataclasses.replace(account, positions={s: p for s, p in account.positions.items() if s != symbol})
        risk = assess(rest, market)
        with localcontext(EXACT):
            balance = risk.equity - risk.maintenance_margin
        alone |= triggers(dataclasses.replace(account, balance=balance, positions={symbol: position}), market)
    return alone


def rounding_the_wrong_way(account: Account, market: Market) -> dict[str, Trigger]:
    """Triggers as doubles rounded towards later."""
    return {symbol: _later(trigger) for symbol, trigger in triggers(account, market).items()}


def _later(trigger: Trigger) -> Trigger:
    towards = -math.inf if trigger.side is TriggerSide.FLOOR else math.inf
    return dataclasses.replace(trigger, score=math.nextafter(trigger.score, towards))
