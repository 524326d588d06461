from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, exact, multiple_up, plain, quotient_up, round_down, round_up
from margin.domain.instrument import InstrumentStatus, Tier
from margin.domain.largest_order import largest_quantity
from margin.domain.last_lot import last_lot
from margin.domain.order import Liquidity, Order, execute_order, try_order
from margin.domain.order_rules import limits_min, reducible
from margin.domain.risk import assess
from margin.errors import InsufficientMarginError, RefusedError
from tests.property.strategies import (
    SYMBOLS,
    Book,
    books,
    instruments,
    magnitudes,
    markets,
    position_at,
    prices,
    sides,
    solvent_books,
)

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.market import Market

UNIT = Decimal("1e-8")
LOTS_MAX = 12
SYMBOL = "BTC-PERP"


@dataclass(frozen=True)
class Ask:
    """An account, and an order of which only the quantity is open."""

    book: Book
    order: Order

    @property
    def instrument(self) -> Instrument:
        return self.book.market.instrument(self.order.symbol)

    @property
    def whole(self) -> Decimal:
        return reducible(self.book.account.positions.get(self.order.symbol), self.order.side)

    @property
    def largest(self) -> Decimal:
        return largest_quantity(self.book.account, self.order, self.book.market)

    def passes(self, quantity: Decimal) -> bool:
        try:
            execute_order(self.book.account, replace(self.order, quantity=quantity), self.book.market)
        except RefusedError:
            return False
        return True


@st.composite
def terms(draw: st.DrawFn, symbol: str) -> Instrument:
    """An instrument with every limit of size that there is, often none."""
    instrument = draw(instruments(symbol))
    least = max(instrument.lot_size, instrument.min_quantity)
    limits = st.none() | magnitudes(6).map(lambda extra: least + extra)
    return replace(
        instrument,
        tick_size=draw(st.sampled_from([UNIT, Decimal("0.01")])),
        max_quantity=draw(limits),
        position_limit=draw(limits),
        status=draw(st.sampled_from([InstrumentStatus.ACTIVE] * 5 + list(InstrumentStatus))),
    )


@exact
def price_near(mark_price: Decimal, instrument: Instrument, share: Decimal) -> Decimal:
    """Price on a tick, so far from the mark as a share of the band; just outside it for a share above 1."""
    if instrument.status in {InstrumentStatus.SETTLING, InstrumentStatus.CLOSED}:
        return mark_price
    price = mark_price * (1 + share * instrument.price_band)
    tick = instrument.tick_size
    return min(max(multiple_up(price, Decimal(1), tick), tick), ABSOLUTE_VALUE_MAX - tick)


def shares() -> st.SearchStrategy[Decimal]:
    return st.integers(-101, 101).map(lambda hundredths: Decimal(hundredths).scaleb(-2)) | st.just(Decimal(0))


@st.composite
def orders(draw: st.DrawFn, symbol: str, mark_price: Decimal, instrument: Instrument) -> Order:
    return Order(
        1,
        symbol,
        draw(sides),
        Decimal(1),
        price_near(mark_price, instrument, draw(shares())),
        reduce_only=draw(st.sampled_from([False, False, True])),
        liquidity=draw(st.sampled_from(Liquidity)),
    )


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    book = draw(solvent_books() | books(may_be_stale=True))
    symbol = draw(st.sampled_from(sorted(book.account.positions) or SYMBOLS) | st.sampled_from(SYMBOLS))
    instrument = draw(terms(symbol))
    market = replace(book.market, instruments={**book.market.instruments, symbol: instrument})
    order = draw(orders(symbol, market.mark_price(symbol), instrument))
    return Ask(Book(book.account, market), order)


@exact
def brought_to_the_edge(
    account: Account, order: Order, market: Market, missing: Decimal, *, relieving: bool
) -> Account:
    """Change the balance so that this order passes a margin test just so, or with so much missing."""
    account = account.with_balance_change(ABSOLUTE_VALUE_MAX)
    try:
        trial = try_order(account, order, market)
    except RefusedError:
        return account
    before, after = assess(account, market), trial.result.risk
    freed = before.maintenance_margin - after.maintenance_margin
    if relieving and freed > 0:
        cost = before.equity - trial.tested_equity
        equity = quotient_up(cost * before.maintenance_margin, freed)
        return account.with_balance_change(round_down(equity - before.equity - missing))
    return account.with_balance_change(round_up(after.initial_margin - trial.tested_equity) - missing)


@st.composite
@exact
def tiers_of_lots(draw: st.DrawFn, lot_size: Decimal, mark_price: Decimal) -> tuple[Tier, ...]:
    """Tiers that end within a few lots, and rise steeply, so that one lot tells them apart."""
    lots = draw(st.lists(st.integers(1, 2 * LOTS_MAX), max_size=4, unique=True).map(sorted))
    caps = sorted({round_up(lot_size * mark_price * number / 2) for number in lots})
    rates = draw(st.lists(st.integers(1, 49), min_size=len(caps) + 1, max_size=len(caps) + 1).map(sorted))
    return tuple(
        Tier(cap, Decimal(2 * rate).scaleb(-2), Decimal(rate).scaleb(-2))
        for cap, rate in zip([*caps, None], rates, strict=True)
    )


@st.composite
def edges(draw: st.DrawFn) -> Ask:
    """Few enough lots to try every one, some of them refused: whole ones or parts, small ones or large."""
    lot_size = draw(st.sampled_from([UNIT, Decimal("0.001"), Decimal(1)]))
    taker_fee = draw(st.sampled_from([Decimal(0), UNIT, Decimal("0.0005"), Decimal("0.3")]))
    maker_fee = draw(st.sampled_from([-taker_fee, -taker_fee / 4, Decimal(0), taker_fee]))
    mark_price = draw(prices)
    instrument = replace(
        draw(instruments(SYMBOL)),
        tiers=draw(tiers_of_lots(lot_size, mark_price)),
        liquidation_fee_cap=Decimal(0),
        taker_fee=taker_fee,
        maker_fee=maker_fee.quantize(UNIT),
        lot_size=lot_size,
        min_quantity=lot_size * draw(st.integers(1, 3)),
        max_quantity=lot_size * LOTS_MAX,
    )
    market = draw(markets())
    marks = {**market.marks, SYMBOL: replace(market.marks[SYMBOL], price=mark_price)}
    market = replace(market, marks=marks, instruments={**market.instruments, SYMBOL: instrument})
    account = draw(books()).account
    if draw(st.integers(0, 3)):
        parts = draw(st.integers(1, 3 * LOTS_MAX))
        quantity = draw(sides).sign * max(UNIT, (lot_size * parts / 2).quantize(UNIT))
        account = account.with_position(SYMBOL, position_at(SYMBOL, quantity, draw(prices)))
    else:
        account = account.with_position(SYMBOL, None)
    order = replace(draw(orders(SYMBOL, mark_price, instrument)), reduce_only=False)
    edge = replace(order, quantity=lot_size * draw(st.integers(1, LOTS_MAX)))
    by_units = st.integers(-2, 2).map(lambda units: units * UNIT)
    by_parts = st.integers(0, 9).map(lambda tenths: round_down(lot_size * mark_price * tenths / 10))
    missing, relieving = draw(by_units | by_parts), draw(st.booleans())
    account = brought_to_the_edge(account, edge, market, missing, relieving=relieving)
    return Ask(Book(account, market), order)


@settings(deadline=None, max_examples=150)
@given(asks(), st.data())
def test_largest_quantity_passes_and_nothing_above_it_does(ask: Ask, data: st.DataObject) -> None:
    largest, lot_size = ask.largest, ask.instrument.lot_size
    if largest > 0:
        assert ask.passes(largest)
    above = (largest // lot_size + 1) * lot_size
    probes = [above, limits_min(ask.instrument), ask.whole]
    probes += [above + lot_size * data.draw(st.integers(1, 10**13)) for _ in range(4)]
    probes += [above + lot_size * lots for lots in (1, 2, 3, 10, 1000)]
    for probe in probes:
        if largest < probe < ABSOLUTE_VALUE_MAX:
            assert not ask.passes(probe)


@settings(deadline=None, max_examples=300)
@given(edges())
def test_largest_quantity_is_the_largest_of_all_that_pass(ask: Ask) -> None:
    lots = [ask.instrument.lot_size * number for number in range(1, LOTS_MAX + 2)]
    tried = [quantity for quantity in [*lots, ask.whole] if quantity > 0 and ask.passes(quantity)]
    assert ask.largest == max(tried, default=Decimal(0))


@settings(deadline=None, max_examples=200)
@given(edges(), st.integers(1, LOTS_MAX), shares())
def test_required_equity_of_a_refusal_is_what_would_have_been_enough(ask: Ask, lots: int, share: Decimal) -> None:
    account, market, instrument = ask.book.account, ask.book.market, ask.instrument
    order = replace(ask.order, quantity=instrument.lot_size * lots)
    try:
        trial = try_order(account, order, market)
    except RefusedError:
        return
    before, after = assess(account, market), trial.result.risk
    enough = Fraction(after.initial_margin)
    if reduces := order.quantity <= ask.whole:
        relief = Fraction(before.equity) * Fraction(after.maintenance_margin) / Fraction(before.maintenance_margin)
        enough = min(enough, relief)
    event(f"{'reduces' if reduces else 'adds'}: {'carried' if trial.carried else 'refused'}")
    event(f"enough is {'the relief' if enough < after.initial_margin else 'initial margin'}")
    assert 0 <= Fraction(trial.required) - enough < UNIT
    if not trial.carried:
        with pytest.raises(InsufficientMarginError) as refusal:
            execute_order(account, order, market)
        sentence = f"Insufficient equity. Required: {plain(trial.required)}, Available: {plain(trial.tested_equity)}"
        assert refusal.value.detail == sentence
    # Another price changes what is available, and not what is required.
    other = replace(order, price=price_near(market.mark_price(SYMBOL), instrument, share))
    trials = [trial]
    with contextlib.suppress(RefusedError):
        trials.append(try_order(account, other, market))
    for tried in trials:
        assert tried.required == trial.required
        assert tried.carried is (tried.tested_equity >= enough)
        assert tried.carried or tried.tested_equity < trial.required


fractions = st.builds(
    Fraction,
    st.integers(-300, 300),
    st.sampled_from([1, 3, 7, 10, 100, 997, 10_000]),
)


@settings(deadline=None, max_examples=200)
@given(fractions, fractions, st.just(Fraction(0)) | fractions, st.integers(0, 50), st.integers(-2, 200))
def test_last_lot_is_the_last_of_a_saw(
    at_hand: Fraction, gain: Fraction, beside: Fraction, first: int, count: int
) -> None:
    # A charge that is nearly the gain makes the line flat, and the saw long.
    charge = gain - beside / 1000
    passing = [n for n in range(first, first + count) if math.ceil(charge * n) <= at_hand + gain * n]
    assert last_lot(at_hand, gain, charge, first, first + count - 1) == max(passing, default=None)


def test_a_flat_saw_over_more_lots_than_could_be_tried() -> None:
    # ceil(n / 3) <= n / 3 exactly at the multiples of 3.
    third = Fraction(1, 3)
    assert last_lot(Fraction(0), third, third, 1, 10**20 + 1) == 10**20 - 1
    assert last_lot(Fraction(0), third, third, 10**20, 10**20 + 1) is None
