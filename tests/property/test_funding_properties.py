"""What holds of funding: it creates no money, rounds for nobody but the house, and no triggers miss what it does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.cash import deposit
from margin.domain.decimals import exact, round_down, round_up
from margin.domain.event import canonical
from margin.domain.funding import NO_FUNDING, Funding, funding_rise, settle_funding
from margin.domain.instrument import Instrument, Tier
from margin.domain.ledger import LedgerAccount, LedgerLine, ledger_amounts
from margin.domain.liquidation import liquidate
from margin.domain.liquidation_record import liquidation_record, verify_liquidation
from margin.domain.margin_warning import MarginWarnings
from margin.domain.market import Mark, Market
from margin.domain.order import Order, execute_order
from margin.domain.position import Position, Side, apply_fill
from margin.domain.risk import assess, liquidation_price
from margin.domain.safe_zone import TriggerSide, covers, crosses, triggers
from margin.errors import RefusedError
from tests.property.strategies import (
    NOW_US,
    SYMBOLS,
    Book,
    at_prices,
    instruments,
    liquidation_policies,
    prices,
    quantities,
    sides,
    solvent_books,
    tier_tables,
    units,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin.domain.liquidation import LiquidationPolicy

UNIT = Decimal("0.00000001")
WARNING_PCT = Decimal(80)

rates = units(-(10**8), 10**8) | units(-(10**5), 10**5)


@exact
def pay(market: Market, symbol: str, rate: Decimal, warning_pct: Decimal = WARNING_PCT) -> Market:
    """Return the market after a payment, as the service makes it."""
    rise = funding_rise(rate, market.mark_price(symbol))
    paid = market.funding_of(symbol).after(rise, market.guarded_lines(symbol), warning_pct)
    return replace(market, funding={**market.funding, symbol: paid})


# --- money


HELD = SYMBOLS[:2]


Step = tuple[str, str, Decimal, Decimal, Side]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kind = draw(st.sampled_from(["pay", "pay", "pay", "settle", "trade", "trade", "close", "move", "deposit"]))
    return kind, draw(st.sampled_from(HELD)), draw(rates), draw(quantities), draw(sides)


class Books:
    """Accounts whose every event is settled first, as the journal does, and the sums of the ledger over all of them."""

    def __init__(self, accounts: int) -> None:
        self.accounts = [Account(number, Decimal(10**20), {}) for number in range(1, accounts + 1)]
        self.market = Market({symbol: Mark(Decimal("100.00000001"), NOW_US) for symbol in HELD}, {}, NOW_US)
        self.ledger: dict[LedgerAccount, Fraction] = dict.fromkeys(LedgerAccount, Fraction(0))
        self.received = Fraction(0)
        self.owed_exactly = [dict.fromkeys(HELD, Fraction(0)) for _ in self.accounts]
        self.settled = [dict.fromkeys(HELD, Fraction(0)) for _ in self.accounts]

    def book(self, lines: Sequence[LedgerLine]) -> None:
        assert sum(Fraction(line.amount) for line in lines) == 0
        for line in lines:
            self.ledger[line.ledger_account] += Fraction(line.amount)

    def pay(self, symbol: str, rate: Decimal) -> None:
        rise = Fraction(rate) * Fraction(self.market.mark_price(symbol))
        self.market = pay(self.market, symbol, rate)
        for place, account in enumerate(self.accounts):
            if symbol in account.positions:
                self.owed_exactly[place][symbol] -= Fraction(account.positions[symbol].quantity) * rise

    def settle(self, place: int) -> None:
        before = self.accounts[place]
        equity = assess(before, self.market).equity
        settlement = settle_funding(before, self.market)
        assert assess(settlement.account, self.market).equity == equity
        self.book(settlement.ledger_lines)
        amounts = [payment.amount for payment in settlement.payments]
        assert settlement.account.balance - before.balance == sum(amounts, Decimal(0))
        for payment in settlement.payments:
            assert payment.amount == round_down(payment.amount)
            self.settled[place][payment.symbol] += Fraction(payment.amount)
            self.received += Fraction(payment.amount)
        self.accounts[place] = settlement.account
        for symbol, position in settlement.account.positions.items():
            dust = Fraction(position.pending_funding(self.market.funding_index(symbol)))
            assert 0 <= dust < Fraction(UNIT)
            assert self.settled[place][symbol] + dust == self.owed_exactly[place][symbol]

    def trade(self, place: int, symbol: str, side: Side, quantity: Decimal) -> None:
        self.settle(place)
        order = Order(place + 1, symbol, side, quantity, self.market.mark_price(symbol))
        try:
            done = execute_order(self.accounts[place], order, self.market)
        except RefusedError:
            return
        self.book(done.ledger_lines)
        held = self.accounts[place].positions.get(symbol)
        self.accounts[place] = done.account
        if held is not None and held.quantity * side.sign < 0 and quantity >= abs(held.quantity):
            # What was closed whole took less than a unit of what was owed with it, for the house.
            dust = self.owed_exactly[place][symbol] - self.settled[place][symbol]
            assert 0 <= dust < Fraction(UNIT)
            self.owed_exactly[place][symbol] = self.settled[place][symbol]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2), steps()), max_size=25))
def test_funding_conserves_money_and_never_pays_for_dust(
    walk: list[tuple[int, tuple[str, str, Decimal, Decimal, Side]]],
) -> None:
    books = Books(3)
    for place, (kind, symbol, rate, quantity, side) in walk:
        held = books.accounts[place].positions.get(symbol)
        if kind == "pay":
            books.pay(symbol, rate)
        elif kind == "settle":
            books.settle(place)
        elif kind == "trade":
            books.trade(place, symbol, side, quantity)
        elif kind == "close" and held is not None:
            books.trade(place, symbol, Side.SELL if held.quantity > 0 else Side.BUY, abs(held.quantity))
        elif kind == "move":
            books.market = at_prices(books.market, {symbol: quantity})
        else:
            books.settle(place)
            paid = deposit(books.accounts[place], quantity, books.market)
            books.book(paid.ledger_lines)
            books.accounts[place] = paid.account
    for place in range(3):
        books.settle(place)
    assert sum(books.ledger.values()) == 0
    assert books.ledger[LedgerAccount.FUNDING] == -books.received


@settings(deadline=None, max_examples=200)
@given(quantities, st.lists(rates, min_size=1, max_size=8), prices, st.lists(st.booleans(), min_size=8, max_size=8))
def test_whatever_settles_in_between_longs_pay_what_shorts_receive_to_less_than_a_unit_each_time(
    size: Decimal, paid: list[Decimal], price: Decimal, settles: list[bool]
) -> None:
    market = Market({"BTC-PERP": Mark(price, NOW_US)}, {}, NOW_US)
    sides_of = {1: size, 2: -size}
    parties = {
        number: Account(number, Decimal(0), {"BTC-PERP": Position("BTC-PERP", quantity, quantity * price)})
        for number, quantity in sides_of.items()
    }
    settlements = 0
    for rate, settle in zip(paid, settles, strict=False):
        market = pay(market, "BTC-PERP", rate)
        if settle:
            parties = {number: settle_funding(account, market).account for number, account in parties.items()}
            settlements += 1
    exact_total = Fraction(market.funding_index("BTC-PERP")) * Fraction(size)
    ended = {number: settle_funding(account, market).account.balance for number, account in parties.items()}
    for number, balance in ended.items():
        owed = -exact_total if number == 1 else exact_total
        assert 0 <= owed - Fraction(balance) < Fraction(UNIT)
    assert -2 * Fraction(UNIT) < sum(map(Fraction, ended.values())) <= 0


@settings(deadline=None, max_examples=200)
@given(solvent_books(), st.data())
def test_fill_changes_nothing_of_what_is_owed(book: Book, data: st.DataObject) -> None:
    symbol = data.draw(st.sampled_from(sorted(book.account.positions)))
    market = pay(book.market, symbol, data.draw(rates))
    held, index = book.account.positions[symbol], market.funding_index(symbol)
    quantity, side = data.draw(quantities), data.draw(sides)
    fill = apply_fill(held, symbol, side, quantity, market.mark_price(symbol), funding_index=index)
    assume(fill.position is not None)
    assert fill.position is not None
    flipped = fill.position.quantity * held.quantity < 0
    assert fill.position.pending_funding(index) == (0 if flipped else held.pending_funding(index))


# --- the index of triggers


@exact
def guarded_margin(account: Account, market: Market) -> Decimal:
    """Maintenance margin by the rules in force or those that are staged, whichever is more for each position."""
    total = Decimal(0)
    for symbol, position in account.positions.items():
        notional = position.notional(market.mark_price(symbol))
        rules = [market.instrument(symbol), *([market.staged[symbol]] if symbol in market.staged else [])]
        total += max(instrument.maintenance_margin(notional) for instrument in rules)
    return total


def _edge(symbol: str, market: Market, score: float, side: TriggerSide, level_pct: Decimal) -> Decimal:
    """Price of 8 decimals that is near a trigger and has not crossed it."""
    funding = market.funding_of(symbol)
    shift = funding.liquidation if level_pct == 100 else funding.warning
    moved = shift.floor if side is TriggerSide.FLOOR else shift.ceiling
    with_shift = exact(lambda: Decimal(score) + moved)()
    away = max(UNIT, round_up(abs(Decimal(score)) * Decimal(2) ** -52))
    if side is TriggerSide.FLOOR:
        return exact(lambda: max(UNIT, round_up(with_shift) + away))()
    return exact(lambda: round_down(with_shift) - away)()


def _moved_to_the_brink(
    data: st.DataObject, book: Book, market: Market, level_pct: Decimal
) -> tuple[dict[str, Decimal], Market]:
    found = triggers(book.account, book.market, level_pct=level_pct)
    moved = {}
    for symbol, trigger in found.items():
        assume(math.isfinite(trigger.score))
        edge = _edge(symbol, market, trigger.score, trigger.side, level_pct)
        away = data.draw(st.just(Decimal(0)) | prices)
        price = exact(lambda: edge + away if trigger.side is TriggerSide.FLOOR else edge - away)()  # noqa: B023
        moved[symbol] = price if price > 0 else edge
    assume(all(price > 0 for price in moved.values()))
    return moved, at_prices(market, moved)


def _walk(data: st.DataObject, book: Book) -> Market:
    """Pay several times, at prices that move in between."""
    market = book.market
    for _ in range(data.draw(st.integers(1, 5))):
        symbol = data.draw(st.sampled_from(SYMBOLS))
        market = pay(market, symbol, data.draw(rates))
        if data.draw(st.booleans()):
            market = at_prices(market, {data.draw(st.sampled_from(SYMBOLS)): data.draw(prices)})
    return market


@st.composite
def staged_books(draw: st.DrawFn) -> Book:
    """A solvent account, some of whose symbols are about to have other rules."""
    book = draw(solvent_books())
    staged = {
        symbol: replace(draw(instruments(symbol)), version=9)
        for symbol in draw(st.sets(st.sampled_from(SYMBOLS), max_size=2))
    }
    market = replace(book.market, staged=staged)
    missing = guarded_margin(book.account, market) - assess(book.account, market).equity
    return Book(book.account.with_balance_change(max(Decimal(0), round_up(missing))), market)


@settings(deadline=None, max_examples=400)
@given(staged_books(), st.data())
def test_whoever_is_not_crossed_after_any_payments_is_not_liquidatable(book: Book, data: st.DataObject) -> None:
    found = triggers(book.account, book.market)
    market = _walk(data, book)
    _, market = _moved_to_the_brink(data, book, market, Decimal(100))
    assume(not any(crosses(trigger, market) for trigger in found.values()))
    assert not assess(book.account, market).liquidatable
    assert assess(book.account, market).equity >= guarded_margin(book.account, market)
    assert covers(book.account, market, found)


@settings(deadline=None, max_examples=300)
@given(staged_books(), st.data())
def test_whoever_is_not_crossed_after_any_payments_is_below_the_level_of_the_warning(
    book: Book, data: st.DataObject
) -> None:
    warnings = MarginWarnings(WARNING_PCT)
    found, _ = warnings.triggers(book.account, book.market, warned=False)
    assume(found)
    assume(not any(trigger.is_always_crossed for trigger in found.values()))
    market = _walk(data, book)
    _, market = _moved_to_the_brink(data, book, market, WARNING_PCT)
    assume(not any(crosses(trigger, market, level_pct=WARNING_PCT) for trigger in found.values()))
    assert not warnings.is_due(book.account, market)


@settings(deadline=None, max_examples=200)
@given(solvent_books(), st.data())
def test_way_to_an_index_does_not_matter(book: Book, data: st.DataObject) -> None:
    """One that was behind and is brought up in one step guards as well as one that saw every payment."""
    found = triggers(book.account, book.market)
    market = _walk(data, book)
    lines = {symbol: market.guarded_lines(symbol) for symbol in market.funding}
    at_once = {
        symbol: book.market.funding_of(symbol).moved_to(paid.n, paid.index, lines[symbol], WARNING_PCT)
        for symbol, paid in market.funding.items()
    }
    assert [(one.n, one.index) for one in at_once.values()] == [(one.n, one.index) for one in market.funding.values()]
    caught_up = replace(market, funding=at_once)
    _, caught_up = _moved_to_the_brink(data, book, caught_up, Decimal(100))
    assume(not any(crosses(trigger, caught_up) for trigger in found.values()))
    assert not assess(book.account, caught_up).liquidatable


@settings(deadline=None, max_examples=200)
@given(solvent_books(tiers_max=1, positions_max=1), st.lists(rates, min_size=1, max_size=5))
def test_trigger_of_a_single_position_of_one_tier_stays_its_liquidation_price(book: Book, paid: list[Decimal]) -> None:
    ((symbol, trigger),) = triggers(book.account, book.market).items()
    market = book.market
    for rate in paid:
        market = pay(market, symbol, rate)
    price = liquidation_price(book.account, symbol, market)
    assume(price is not None)
    assert price is not None
    # Nothing is lost but the roundings: of the shift, of the double, and of the price itself.
    shifts = market.funding_of(symbol).liquidation
    magnitude = abs(Fraction(trigger.score)) + abs(Fraction(shifts.floor)) + abs(Fraction(shifts.ceiling))
    near = Decimal(round(magnitude * Fraction(1, 2**50) * 10**8) + 2).scaleb(-8)
    long = trigger.side is TriggerSide.FLOOR
    crossed_at, safe_at = (price - near, price + near) if long else (price + near, price - near)
    if crossed_at > 0:
        assert crosses(trigger, at_prices(market, {symbol: crossed_at}))
    if safe_at > 0:
        assert not crosses(trigger, at_prices(market, {symbol: safe_at}))


# --- what moves triggers


@settings(deadline=None, max_examples=300)
@given(tier_tables(), units(-(10**16), 10**16), st.sampled_from([Decimal(100), WARNING_PCT]))
def test_shift_makes_up_for_a_payment_under_every_rate_and_never_by_less(
    tiers: tuple[Tier, ...], rise: Decimal, level_pct: Decimal
) -> None:
    lines = Instrument("S", tiers).maintenance_lines
    shift = NO_FUNDING.liquidation.after(rise, lines, level_pct)
    rates_pct = [Fraction(rate) * 100 for rate, _ in lines]
    level = Fraction(level_pct) if level_pct > max(rates_pct) else Fraction(100)
    floor, ceiling, paid = Fraction(shift.floor), Fraction(shift.ceiling), Fraction(rise) * level
    for rate in rates_pct:
        assert floor * (level - rate) >= paid
        assert ceiling * (level + rate) <= paid
    if len(lines) == 1:
        assert floor * (level - rates_pct[0]) - paid < Fraction(1, 10**17)
        assert paid - ceiling * (level + rates_pct[0]) < Fraction(1, 10**17)


def _short_shifts_forgotten(paid: Funding, _before: Funding) -> Funding:
    return replace(paid, liquidation=replace(paid.liquidation, ceiling=Decimal(0)))


def _long_shifts_forgotten(paid: Funding, _before: Funding) -> Funding:
    return replace(paid, liquidation=replace(paid.liquidation, floor=Decimal(0)))


@exact
def _by_the_lowest_rate(paid: Funding, before: Funding) -> Funding:
    rise = paid.index - before.index
    return replace(paid, liquidation=before.liquidation.after(rise, _TIERED.maintenance_lines[:1], Decimal(100)))


@exact
def _by_the_highest_rate(paid: Funding, before: Funding) -> Funding:
    rise = paid.index - before.index
    return replace(paid, liquidation=before.liquidation.after(rise, _TIERED.maintenance_lines[1:], Decimal(100)))


_TIERED = Instrument(
    "S",
    (
        Tier(Decimal(1000), Decimal("0.1"), Decimal("0.01")),
        Tier(None, Decimal("0.6"), Decimal("0.5")),
    ),
)


@pytest.mark.parametrize(
    ("wrong", "side", "rate", "size"),
    [
        (_short_shifts_forgotten, Side.SELL, "-0.05", 1),
        (_long_shifts_forgotten, Side.BUY, "0.05", 1),
        # A payer in the tier of 50 % gets back half of what a move of the price costs him.
        (_by_the_lowest_rate, Side.BUY, "0.05", 100),
        # A receiver may go on by less, the steeper his margin is.
        (_by_the_lowest_rate, Side.SELL, "0.05", 100),
        (_by_the_highest_rate, Side.BUY, "-0.05", 1),
        (_by_the_highest_rate, Side.SELL, "-0.05", 1),
    ],
)
def test_index_whose_shifts_are_wrong_misses_somebody(
    wrong: Callable[[Funding, Funding], Funding], side: Side, rate: str, size: int
) -> None:
    market = Market({"S": Mark(Decimal(100), NOW_US)}, {"S": _TIERED}, NOW_US)
    quantity = side.sign * size
    account = Account(1, Decimal(0), {"S": Position("S", quantity, quantity * 100)})
    needed = assess(account, market).maintenance_margin + Decimal("0.01") * size
    account = account.with_balance_change(needed)
    ((_, trigger),) = triggers(account, market).items()
    paid = pay(market, "S", Decimal(rate))
    missing = replace(paid, funding={"S": wrong(paid.funding["S"], market.funding_of("S"))})
    missed = 0
    for hundredths in range(1, 25000):
        moved = {"S": Mark(Decimal(hundredths).scaleb(-2), NOW_US)}
        true, false = replace(paid, marks=moved), replace(missing, marks=moved)
        if assess(account, true).liquidatable:
            assert crosses(trigger, true)
            missed += not crosses(trigger, false)
    assert missed


# --- liquidations


@st.composite
def indebted(draw: st.DrawFn) -> Book:
    """An account that payments, and they alone, have made liquidatable, and that has not settled them."""
    book = draw(solvent_books())
    market = book.market
    for symbol, position in book.account.positions.items():
        rate = abs(draw(rates)) * (1 if position.quantity > 0 else -1)
        market = pay(market, symbol, rate)
    return Book(book.account, market)


@settings(deadline=None, max_examples=200)
@given(indebted(), liquidation_policies(), st.data())
def test_liquidation_with_funding_pending_is_recorded_so_that_it_can_be_recomputed(
    book: Book, policy: LiquidationPolicy, data: st.DataObject
) -> None:
    assume(assess(book.account, book.market).liquidatable)
    settlement = settle_funding(book.account, book.market)
    before = settlement.account
    result = liquidate(before, book.market, policy)
    assume(result is not None)
    assert result is not None
    lines = ledger_amounts(result.ledger_lines)
    record = json.loads(canonical(liquidation_record(before, book.market, policy, result)))
    assert verify_liquidation(record, before, result.account, lines) == []
    # The funding index is one of the inputs: with another nothing comes out as recorded.
    indexes = record["inputs"]["funding_indexes"]
    moved = [symbol for symbol in indexes if symbol in before.positions]
    assume(moved)
    symbol = data.draw(st.sampled_from(moved))
    other = str(Decimal(indexes[symbol]) + 1000)
    tampered = {**record, "inputs": {**record["inputs"], "funding_indexes": {**indexes, symbol: other}}}
    assert verify_liquidation(tampered, before, result.account, lines) != []


@settings(deadline=None, max_examples=200)
@given(indebted(), liquidation_policies())
def test_settling_first_makes_nobody_liquidatable_and_saves_nobody(book: Book, policy: LiquidationPolicy) -> None:
    before = settle_funding(book.account, book.market).account
    assert assess(before, book.market).liquidatable is assess(book.account, book.market).liquidatable
    result = liquidate(before, book.market, policy)
    assert (result is not None) is assess(book.account, book.market).liquidatable
    if result is not None:
        assert sum(Fraction(line.amount) for line in result.ledger_lines) == 0
