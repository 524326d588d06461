"""The largest quantity of an order that an account may execute: that much passes, one lot more does not.

The sizes that the rules of the instrument leave are known (see :func:`margin.domain.order_rules.limits_max`), and all
other rules ask only whether the order purely reduces; so there are two ranges of lots, and within each only margin
depends on the quantity x. Both of its tests compare E' with a multiple of a margin:

- E' >= IM', and, for what purely reduces,
- E' >= E / MM * MM', which is E' / MM' >= E / MM. (MM' <= MM holds by itself: margin never falls with notional.)

E' = E + min(0, s * (mark - price)) * x - fee is linear in x but for the rounding of the fee. So is the margin within
each tier, as the notional after the trade is abs(q + s * x) * mark. That makes one line for each tier, solved by
:func:`margin.domain.last_lot.last_lot`; the tiers are taken from the largest x downwards, and the first that has a
solution has the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import DECIMALS, exact
from margin.domain.last_lot import last_lot
from margin.domain.order import execute_order, fee_rate
from margin.domain.order_rules import limits_max, limits_min, reducible
from margin.domain.risk import assess
from margin.errors import NoMarkPriceError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.order import Order

__all__ = ["largest_quantity"]

_UNITS: Final = 10**DECIMALS


@dataclass(frozen=True, slots=True)
class _Margin:
    """What equity after the trade has to cover: ``weight`` times the margin of the symbol and of all others.

    ``lines`` are rate and amount of each tier, ``elsewhere`` is the margin of the other symbols.
    """

    lines: Sequence[tuple[Fraction, Fraction]]
    elsewhere: Fraction
    weight: Fraction


@dataclass(frozen=True, slots=True)
class _Lots:
    """What n lots come to: a position of ``size + step * n`` units, long or short, and what they cost.

    ``gain`` and ``fee`` are for one lot, the fee before it is rounded; amounts are in units of the last decimal.
    """

    size: Fraction
    step: Fraction
    mark_price: Fraction
    caps: Sequence[Fraction]
    equity: Fraction
    gain: Fraction
    fee: Fraction

    def last(self, margin: _Margin, first: int, last: int) -> int | None:
        """Find the largest n from ``first`` to ``last`` with which the margin is covered; None for none."""
        for tier, start in self._tiers(first):
            rate, amount = margin.lines[tier]
            per_unit = margin.weight * rate * self.mark_price * _UNITS
            needed = margin.weight * (margin.elsewhere - amount) * _UNITS + per_unit * self.size
            lots = last_lot(self.equity - needed, self.gain - per_unit * self.step, self.fee, max(start, first), last)
            if lots is not None:
                return lots
            last = min(last, start - 1)
        return None

    def _tiers(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield all tiers, each with the first n that falls into it, from those of the largest n downwards."""
        bounds = [(cap / self.mark_price - self.size) / self.step for cap in self.caps]
        if self.step > 0:
            for tier in range(len(bounds), 0, -1):
                yield tier, math.floor(bounds[tier - 1]) + 1
            yield 0, first
        else:
            for tier, bound in enumerate(bounds):
                yield tier, math.ceil(bound)
            yield len(bounds), first


@exact
def largest_quantity(
    account: Account, order: Order, market: Market, test: Callable[[Order], object] | None = None
) -> Decimal:
    """Find the largest quantity with which an order would be executed, exact; 0 when there is none.

    Parameters
    ----------
    account : Account
    order : Order
        All but its quantity counts: side, price, reduce_only, liquidity.
    market : Market
    test : callable, optional
        Raises RefusedError for an order that is not executed; :func:`margin.domain.order.execute_order` if not given.
        It may refuse more than that does, but not by the quantity, except for whether the order purely reduces.

    Returns
    -------
    Decimal
        Units: a multiple of the lot size, or all of a position that the order closes.
    """
    if test is None:
        test = partial(_execute, account, market)
    try:
        candidates = _candidates(account, order, market)
    except NoMarkPriceError:
        return Decimal(0)
    return next((quantity for quantity in candidates if _passes(replace(order, quantity=quantity), test)), Decimal(0))


def _candidates(account: Account, order: Order, market: Market) -> list[Decimal]:
    """List what sizes and margin let through, largest first, of three kinds.

    The largest quantity that goes beyond the position, the one that closes it, whether or not margin lets it through,
    and the largest that leave some of it, by either test.
    """
    instrument, position = market.instrument(order.symbol), account.positions.get(order.symbol)
    lot_size, whole = instrument.lot_size, reducible(position, order.side)
    least = int(limits_min(instrument) // lot_size)
    held = Decimal(0) if position is None else order.side.sign * position.quantity
    before, mark_price = assess(account, market), market.mark_price(order.symbol)
    notional = abs(held) * mark_price
    initial = _Margin(
        _fractions(instrument.initial_lines),
        elsewhere=Fraction(before.initial_margin - instrument.initial_margin(notional)),
        weight=Fraction(1),
    )
    beyond = _Lots(
        size=Fraction(held),
        step=Fraction(lot_size),
        mark_price=Fraction(mark_price),
        caps=[Fraction(tier.notional_cap) for tier in instrument.tiers if tier.notional_cap is not None],
        equity=Fraction(before.equity) * _UNITS,
        gain=Fraction(min(Decimal(0), order.side.sign * (mark_price - order.price)) * lot_size) * _UNITS,
        fee=Fraction(fee_rate(order, instrument) * order.price * lot_size) * _UNITS,
    )
    most = limits_max(position, order.side, instrument, reduce_only=order.reduce_only)
    lots = beyond.last(initial, max(least, int(whole // lot_size) + 1), int(most // lot_size))
    if whole == 0:
        return _quantities([lots], lot_size)
    relief = _Margin(
        _fractions(instrument.maintenance_lines),
        elsewhere=Fraction(before.maintenance_margin - instrument.maintenance_margin(notional)),
        weight=Fraction(before.equity) / Fraction(before.maintenance_margin),
    )
    within = replace(beyond, size=Fraction(whole), step=-Fraction(lot_size))
    most = limits_max(position, order.side, instrument, reduce_only=True)
    partly = [within.last(margin, least, int(most // lot_size)) for margin in (initial, relief)]
    return [*_quantities([lots], lot_size), whole, *sorted(_quantities(partly, lot_size), reverse=True)]


def _quantities(lots: Iterable[int | None], lot_size: Decimal) -> list[Decimal]:
    return [number * lot_size for number in lots if number is not None]


def _fractions(lines: Iterable[tuple[Decimal, Decimal]]) -> list[tuple[Fraction, Fraction]]:
    return [(Fraction(rate), Fraction(amount)) for rate, amount in lines]


def _execute(account: Account, market: Market, order: Order) -> object:
    return execute_order(account, order, market)


def _passes(order: Order, test: Callable[[Order], object]) -> bool:
    try:
        test(order)
    except RefusedError:
        return False
    return True
