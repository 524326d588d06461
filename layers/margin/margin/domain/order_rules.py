"""What an instrument demands of an order, rule by rule; each refusal says what was wrong and what is allowed.

Whether the account can carry the trade is another question, see :func:`margin.domain.order.execute_order`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, exact, multiple_up, plain
from margin.domain.instrument import InstrumentStatus
from margin.domain.position import Side
from margin.errors import (
    InstrumentStatusError,
    LimitExceededError,
    NotReducingError,
    OutsidePriceBandError,
    PositionLimitError,
    PriceOffTickError,
    QuantityOffLotError,
    QuantityTooLargeError,
    QuantityTooSmallError,
    StaleMarkPriceError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from margin.domain.instrument import Instrument
    from margin.domain.market import Market
    from margin.domain.order import Order
    from margin.domain.position import Position

__all__ = [
    "check_band",
    "check_freshness",
    "check_limits",
    "check_lot",
    "check_max_quantity",
    "check_min_quantity",
    "check_order",
    "check_reduce_only",
    "check_status",
    "check_tick",
    "limits_max",
    "limits_min",
    "reducible",
]

_LARGEST: Final = ABSOLUTE_VALUE_MAX - Decimal("1e-8")
"""The largest quantity, price and position that there is."""
_AT_THE_MARK: Final = frozenset({InstrumentStatus.SETTLING, InstrumentStatus.CLOSED})


@exact
def check_order(order: Order, position: Position | None, market: Market) -> None:
    """Hold an order against all rules of its instrument, in the order of the functions below.

    Parameters
    ----------
    order : Order
    position : Position or None
        What the account holds of the order's symbol.
    market : Market

    Raises
    ------
    InstrumentStatusError, NotReducingError, QuantityOffLotError, QuantityTooSmallError, QuantityTooLargeError
    PositionLimitError, LimitExceededError, PriceOffTickError, OutsidePriceBandError
    NoMarkPriceError
        When the symbol has no mark price.
    """
    instrument = market.instrument(order.symbol)
    check_status(order, position, market)
    check_reduce_only(order, position, instrument)
    check_lot(order, position, instrument)
    check_min_quantity(order, position, instrument)
    check_max_quantity(order, position, instrument)
    check_limits(order, position, instrument)
    check_tick(order, market)
    check_band(order, market)


@exact
def check_status(order: Order, position: Position | None, market: Market) -> None:
    """Refuse what the instrument's status forbids.

    Raises
    ------
    InstrumentStatusError
        Reduce-only, settling and closed: unless the order purely reduces. Settling and closed: unless it is at exactly
        the mark price.
    NoMarkPriceError
        When the symbol is settling or closed and has no mark price.
    """
    instrument = market.instrument(order.symbol)
    status = instrument.status
    if status is InstrumentStatus.ACTIVE:
        return
    if order.quantity > reducible(position, order.side):
        if position is None:
            sentence = f"{order.symbol} is {status} and the account has no position in it: no trade is accepted."
        else:
            sentence = f"{order.symbol} is {status}: only {_what_reduces(position, instrument)} is accepted."
        raise InstrumentStatusError(sentence)
    if status in _AT_THE_MARK and order.price != (mark_price := market.mark_price(order.symbol)):
        raise InstrumentStatusError(
            f"{order.symbol} is {status}: trades are accepted at exactly the mark price {plain(mark_price)}."
        )


@exact
def check_reduce_only(order: Order, position: Position | None, instrument: Instrument) -> None:
    """Refuse an order that wants to reduce only and would not.

    Raises
    ------
    NotReducingError
    """
    if not order.reduce_only or order.quantity <= reducible(position, order.side):
        return
    if position is None:
        raise NotReducingError(f"There is no position in {order.symbol} that a reduce_only trade could reduce.")
    allowed = _what_reduces(position, instrument)
    raise NotReducingError(f"The position is {_held(position.quantity)}: with reduce_only {allowed} is allowed.")


@exact
def check_lot(order: Order, position: Position | None, instrument: Instrument) -> None:
    """Refuse a quantity that is no multiple of the lot size and does not close the position whole.

    A position older than the present lot size must stay closable.

    Raises
    ------
    QuantityOffLotError
    """
    lot_size = instrument.lot_size
    if order.quantity % lot_size == 0 or _closes_whole(order, position):
        return
    most, whole = _most(order, position, instrument), reducible(position, order.side)
    nearest = _nearest(order.quantity, lot_size, instrument.min_quantity, most)
    lots = f"nearest allowed: {_listed(nearest)}" if nearest else ""
    is_exception = whole <= most and (whole % lot_size != 0 or whole < instrument.min_quantity)
    allowed = _allowed(lots, whole if is_exception else Decimal(0), order.side)
    raise QuantityOffLotError(
        f"Quantity {plain(order.quantity)} is no multiple of the lot size {plain(lot_size)}; {allowed}."
    )


@exact
def check_min_quantity(order: Order, position: Position | None, instrument: Instrument) -> None:
    """Refuse a quantity below the least of one trade that does not close the position whole.

    Raises
    ------
    QuantityTooSmallError
    """
    if order.quantity >= instrument.min_quantity or _closes_whole(order, position):
        return
    least, whole = limits_min(instrument), reducible(position, order.side)
    lots = f"at least {plain(least)} is allowed" if least <= _most(order, position, instrument) else ""
    allowed = _allowed(lots, whole if whole < least else Decimal(0), order.side)
    raise QuantityTooSmallError(f"Quantity {plain(order.quantity)} is too small: {allowed}.")


@exact
def check_max_quantity(order: Order, position: Position | None, instrument: Instrument) -> None:
    """Refuse a quantity above the most of one trade, whatever it closes: a larger position is closed in parts.

    Raises
    ------
    QuantityTooLargeError
    """
    if instrument.max_quantity is not None and order.quantity > instrument.max_quantity:
        allowed = _at_most(order, position, instrument)
        raise QuantityTooLargeError(f"Quantity {plain(order.quantity)} is too large for one trade: {allowed}.")


@exact
def check_limits(order: Order, position: Position | None, instrument: Instrument) -> None:
    """Refuse a trade after which the position would be too large, unless it purely reduces.

    Raises
    ------
    PositionLimitError
        When it would be above the instrument's limit.
    LimitExceededError
        When it would reach 1e12 units.
    """
    if order.quantity <= reducible(position, order.side):
        return
    after = (Decimal(0) if position is None else position.quantity) + order.side.sign * order.quantity
    limit = instrument.position_limit
    allowed = _at_most(order, position, instrument)
    if limit is not None and abs(after) > limit:
        raise PositionLimitError(
            f"The position would be {_held(after)} and may be at most {plain(limit)} either way: {allowed}."
        )
    if abs(after) >= ABSOLUTE_VALUE_MAX:
        raise LimitExceededError(f"A position must stay below {plain(ABSOLUTE_VALUE_MAX)} units: {allowed}.")


@exact
def check_tick(order: Order, market: Market) -> None:
    """Refuse a price that is no multiple of the tick size.

    While an instrument is settling or closed its trades are at the mark price, on a tick or not. Prices are named as
    allowed only within the band, so far as there is a mark price to tell it by.

    Raises
    ------
    PriceOffTickError
    """
    instrument = market.instrument(order.symbol)
    tick_size = instrument.tick_size
    if order.price % tick_size == 0 or instrument.status in _AT_THE_MARK:
        return
    lowest, highest, allowed = tick_size, _LARGEST, ""
    if order.symbol in market.marks:
        mark_price = market.mark_price(order.symbol)
        lowest, highest = _band_ticks(mark_price, instrument)
        allowed = f", and none is near enough to the mark price {plain(mark_price)}"
    if nearest := _nearest(order.price, tick_size, lowest, highest):
        allowed = f"; nearest allowed: {_listed(nearest)}"
    raise PriceOffTickError(f"Price {plain(order.price)} is no multiple of the tick size {plain(tick_size)}{allowed}.")


@exact
def check_band(order: Order, market: Market) -> None:
    """Refuse a price that is too far from the mark price: abs(price - mark) > band * mark.

    Raises
    ------
    OutsidePriceBandError
    NoMarkPriceError
    """
    instrument = market.instrument(order.symbol)
    mark_price = market.mark_price(order.symbol)
    if abs(order.price - mark_price) <= instrument.price_band * mark_price:
        return
    lowest, highest = _band_ticks(mark_price, instrument)
    allowed = f"allowed is {plain(lowest)} to {plain(highest)}"
    if lowest > highest:
        allowed = f"no multiple of the tick size {plain(instrument.tick_size)} is near enough"
    raise OutsidePriceBandError(
        f"Price {plain(order.price)} is too far from the mark price {plain(mark_price)}; {allowed}."
    )


@exact
def check_freshness(symbols: Iterable[str], market: Market) -> None:
    """Refuse to add risk while the mark price of one of these symbols is stale.

    Raises
    ------
    StaleMarkPriceError
    NoMarkPriceError
    """
    for symbol in symbols:
        if market.is_stale(symbol):
            raise StaleMarkPriceError(f"{market.why_stale(symbol)}; only a reduction is accepted until a new one.")


@exact
def reducible(position: Position | None, side: Side) -> Decimal:
    """Return how many units a trade of a side can take off a position without opening one: 0 or all of it."""
    if position is None or position.quantity * side.sign > 0:
        return Decimal(0)
    return abs(position.quantity)


@exact
def limits_max(position: Position | None, side: Side, instrument: Instrument, *, reduce_only: bool = False) -> Decimal:
    """Return the largest quantity of one trade that the rules of the instrument let through; 0 for none.

    Prices and margin are not looked at. Of what is smaller, just the multiples of the lot size from
    :func:`limits_min` on are let through, and the quantity that closes the position whole.

    Parameters
    ----------
    position : Position or None
        What the account holds of the symbol.
    side : Side
    instrument : Instrument
    reduce_only : bool
        Whether the trade may only reduce, beside what the instrument's status demands.
    """
    whole = reducible(position, side)
    if reduce_only or instrument.status is not InstrumentStatus.ACTIVE:
        room = whole
    else:
        limit = _LARGEST if instrument.position_limit is None else instrument.position_limit
        room = limit - (Decimal(0) if position is None else side.sign * position.quantity)
    # A position that is older than the limit leaves less than no room.
    room = max(room, Decimal(0))
    most = min(room, _LARGEST if instrument.max_quantity is None else instrument.max_quantity)
    in_lots = _multiple_down(most, instrument.lot_size)
    if in_lots < instrument.min_quantity:
        in_lots = Decimal(0)
    return max(in_lots, whole if whole <= most else Decimal(0))


@exact
def limits_min(instrument: Instrument) -> Decimal:
    """Return the smallest quantity of one trade that does not close a position whole, a multiple of the lot size."""
    return multiple_up(instrument.min_quantity, Decimal(1), instrument.lot_size)


def _closes_whole(order: Order, position: Position | None) -> bool:
    return order.quantity == reducible(position, order.side)


def _what_reduces(position: Position, instrument: Instrument) -> str:
    """Name the trades that purely reduce a position."""
    side = Side.SELL if position.quantity > 0 else Side.BUY
    return f"a {side} of at most {plain(limits_max(position, side, instrument, reduce_only=True))}"


def _most(order: Order, position: Position | None, instrument: Instrument) -> Decimal:
    return limits_max(position, order.side, instrument, reduce_only=order.reduce_only)


def _at_most(order: Order, position: Position | None, instrument: Instrument) -> str:
    """Name the largest trade on the side of an order."""
    most = _most(order, position, instrument)
    return f"a {order.side} of at most {plain(most)} is allowed" if most > 0 else f"no {order.side} is allowed"


def _allowed(lots: str, whole: Decimal, side: Side) -> str:
    """Name what a side may trade: the lots, in a phrase that is empty for none, and what closes, 0 for nothing."""
    if whole == 0:
        return lots or f"no {side} is allowed"
    closing = f"{plain(whole)}, which closes the position"
    return f"{lots}, or {closing}" if lots else f"only {closing}, is allowed"


def _held(quantity: Decimal) -> str:
    return f"{plain(abs(quantity))} {'long' if quantity > 0 else 'short'}"


def _nearest(value: Decimal, step: Decimal, least: Decimal, most: Decimal) -> list[Decimal]:
    """Multiples of a step next to a value, of those from ``least`` to ``most``: below it, above it, or none."""
    first, last = multiple_up(least, Decimal(1), step), _multiple_down(most, step)
    below, above = min(_multiple_down(value, step), last), max(multiple_up(value, Decimal(1), step), first)
    return [*([below] if below >= first else []), *([above] if above <= last else [])]


def _band_ticks(mark_price: Decimal, instrument: Instrument) -> tuple[Decimal, Decimal]:
    """Lowest and highest multiple of the tick size within the price band; the lowest is the higher one for none."""
    width, tick_size = instrument.price_band * mark_price, instrument.tick_size
    lowest = max(multiple_up(mark_price - width, Decimal(1), tick_size), tick_size)
    return lowest, _multiple_down(min(mark_price + width, _LARGEST), tick_size)


def _listed(allowed: list[Decimal]) -> str:
    return " and ".join(plain(value) for value in allowed)


def _multiple_down(value: Decimal, step: Decimal) -> Decimal:
    return value - value % step
