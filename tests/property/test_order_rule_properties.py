"""Order rules against a second reading of them, and the money that trades and their fees move."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.decimals import exact, multiple_up
from margin.domain.instrument import Instrument, InstrumentStatus
from margin.domain.ledger import LedgerAccount
from margin.domain.market import Mark, Market
from margin.domain.order import Liquidity, Order, execute_order
from margin.domain.order_rules import check_order, limits_max
from margin.domain.position import Position, Side
from margin.domain.risk import assess
from margin.errors import (
    InLiquidationError,
    InsufficientMarginError,
    LimitExceededError,
    RefusedError,
    StaleMarkPriceError,
)
from tests.property.strategies import NOW_US, sides

if TYPE_CHECKING:
    from collections.abc import Iterator

BTC = "BTC-PERP"
UNIT = Decimal("1e-8")
sizes = st.sampled_from(["0.00000001", "0.03", "0.25", "0.7", "1", "2"]).map(Decimal)
small = st.integers(1, 1200).map(lambda count: Decimal(count) / 100)


@st.composite
def instruments(draw: st.DrawFn) -> Instrument:
    """Rules with sizes that do not fit each other, so that the smallest allowed quantity is seldom the minimum."""
    lot_size, min_quantity = draw(sizes), draw(sizes)
    most = multiple_up(min_quantity, Decimal(1), lot_size)
    limits = st.none() | st.integers(0, 800).map(lambda count: most + Decimal(count) / 100)
    taker_fee = draw(st.sampled_from(["0", "0.0005", "0.00000001", "0.9"]).map(Decimal))
    maker_fee = draw(st.sampled_from([Decimal(0), -taker_fee, taker_fee, Decimal("0.0002")]))
    return Instrument(
        BTC,
        taker_fee=taker_fee,
        maker_fee=max(maker_fee, -taker_fee),
        price_band=draw(st.sampled_from(["0.01", "0.2", "1"]).map(Decimal)),
        tick_size=draw(sizes),
        lot_size=lot_size,
        min_quantity=min_quantity,
        max_quantity=draw(limits),
        position_limit=draw(limits),
        status=draw(st.sampled_from([InstrumentStatus.ACTIVE] * 9 + list(InstrumentStatus))),
    )


@st.composite
def cases(draw: st.DrawFn, balance: int = 10**9) -> tuple[Account, Order, Market]:
    """An order near what its rules allow, of an account that can pay for it."""
    rules = draw(instruments())
    held = draw(st.none() | st.tuples(sides, small | sizes))
    position = None if held is None else Position(BTC, held[0].sign * held[1], held[0].sign * held[1] * 10)
    mark = draw(small)
    near = [rules.lot_size * draw(st.integers(1, 12)), rules.lot_size, rules.min_quantity, draw(small)]
    near += [size for size in (rules.max_quantity, rules.position_limit) if size is not None]
    near += [abs(position.quantity)] * 3 if position is not None else []
    if rules.position_limit is not None:
        near += [rules.position_limit + UNIT, rules.position_limit + (abs(held[1]) if held else rules.lot_size)]
    price = draw(st.sampled_from([mark, mark // rules.tick_size * rules.tick_size or mark, draw(small)]))
    order = Order(
        1,
        BTC,
        draw(sides),
        draw(st.sampled_from(near)),
        price,
        reduce_only=draw(st.sampled_from([False, False, False, True])),
        liquidity=draw(st.sampled_from(Liquidity)),
    )
    positions = {} if position is None else {BTC: position}
    return Account(1, Decimal(balance), positions), order, Market({BTC: Mark(mark, NOW_US)}, {BTC: rules}, NOW_US)


def is_multiple(value: Decimal, step: Decimal) -> bool:
    return (Fraction(value) / Fraction(step)).denominator == 1


def let_through(before: Decimal, order: Order, rules: Instrument, mark: Decimal) -> bool:
    """Whether the rules of the instrument let an order through: the sentences of the documentation, one by one."""
    after = before + (order.quantity if order.side is Side.BUY else -order.quantity)
    # Nearer to nothing, and not past it.
    reduces = abs(after) < abs(before) and after * before >= 0
    settling = rules.status in {InstrumentStatus.SETTLING, InstrumentStatus.CLOSED}
    demands = (
        rules.status is InstrumentStatus.ACTIVE or reduces,
        not settling or order.price == mark,
        not order.reduce_only or reduces,
        is_multiple(order.quantity, rules.lot_size) or after == 0,
        order.quantity >= rules.min_quantity or after == 0,
        rules.max_quantity is None or order.quantity <= rules.max_quantity,
        reduces or rules.position_limit is None or abs(after) <= rules.position_limit,
        settling or is_multiple(order.price, rules.tick_size),
        abs(Fraction(order.price) - Fraction(mark)) <= Fraction(rules.price_band) * Fraction(mark),
    )
    return all(demands)


def held_by(account: Account) -> Decimal:
    return account.positions[BTC].quantity if BTC in account.positions else Decimal(0)


def outcome(account: Account, order: Order, market: Market) -> RefusedError | None:
    try:
        execute_order(account, order, market)
    except RefusedError as refusal:
        return refusal
    return None


@settings(deadline=None, max_examples=400)
@given(cases())
def test_rules_let_through_just_what_the_documentation_says(case: tuple[Account, Order, Market]) -> None:
    account, order, market = case
    refusal = outcome(account, order, market)
    event("accepted" if refusal is None else refusal.code)
    expected = let_through(held_by(account), order, market.instrument(BTC), market.mark_price(BTC))
    assert (refusal is None) is expected, refusal


def quantities_of(rules: Instrument, held: Decimal) -> Iterator[Decimal]:
    """Every quantity that could be allowed in these tests: lots up to beyond every limit, and the whole position."""
    yield abs(held)
    beyond = max(abs(held) * 2, Decimal(20)) + 40
    count = min(int(beyond / rules.lot_size), 3000)
    yield from (rules.lot_size * number for number in range(1, count + 1))


@settings(deadline=None, max_examples=150)
@given(cases(), sides, st.booleans())
def test_largest_quantity_passes_and_no_larger_one_does(
    case: tuple[Account, Order, Market], side: Side, only: bool
) -> None:
    account, _, market = case
    rules, mark = market.instrument(BTC), market.mark_price(BTC)
    assume(rules.lot_size > Decimal("0.01"))
    # So that only the quantity is in question.
    rules = replace(rules, tick_size=UNIT, position_limit=rules.position_limit or Decimal(15))
    held = held_by(account)
    most = limits_max(account.positions.get(BTC), side, rules, reduce_only=only)
    orders = (
        Order(1, BTC, side, quantity, mark, reduce_only=only) for quantity in quantities_of(rules, held) if quantity
    )
    allowed = [order.quantity for order in orders if let_through(held, order, rules, mark)]
    assert most == max(allowed, default=0)


def broken_rule(account: Account, order: Order, market: Market) -> RefusedError | None:
    """What the rules of the instrument refuse an order with, whatever money there is."""
    try:
        check_order(order, account.positions.get(BTC), market)
    except RefusedError as refusal:
        return refusal
    return None


def is_about_price(refusal: RefusedError) -> bool:
    return refusal.code in {"PRICE_OFF_TICK", "OUTSIDE_PRICE_BAND"} or "exactly the mark price" in refusal.detail


def named_by(refusal: RefusedError, order: Order) -> list[Order]:
    """Orders that a refusal names instead: every number after its last colon or semicolon is one."""
    tail = re.split(r"[:;] ", refusal.detail)[-1]
    values = [] if "near enough" in tail else [Decimal(number) for number in re.findall(r"\d+(?:\.\d+)?", tail)]
    if is_about_price(refusal):
        return [replace(order, price=value) for value in values]
    side = re.search(r"\ba (BUY|SELL)\b", tail)
    asked = replace(order, side=Side(side[1])) if side else order
    return [replace(asked, quantity=value) for value in values]


@settings(deadline=None, max_examples=400)
@given(cases())
def test_what_a_refusal_names_as_allowed_is_allowed(case: tuple[Account, Order, Market]) -> None:
    """A caller who sends again what the sentence names is not refused for the size, or for the price, again."""
    account, order, market = case
    refusal = broken_rule(account, order, market)
    if refusal is None:
        return
    instead = named_by(refusal, order)
    event(f"{refusal.code} names {len(instead)}")
    for again in instead:
        follow_up = broken_rule(account, again, market)
        # What it names instead of a quantity may still be refused for its price, and the other way round.
        assert follow_up is None or is_about_price(follow_up) is not is_about_price(refusal), (refusal, follow_up)


@settings(deadline=None, max_examples=300)
@given(cases())
def test_refusal_that_names_nothing_or_one_quantity_alone_leaves_nothing_out(
    case: tuple[Account, Order, Market],
) -> None:
    account, order, market = case
    refusal = broken_rule(account, order, market)
    if refusal is None:
        return
    rules, mark, held = market.instrument(BTC), market.mark_price(BTC), held_by(account)
    instead = named_by(refusal, order)
    if is_about_price(refusal):
        lowest, highest = (Fraction(mark) * (1 + sign * Fraction(rules.price_band)) for sign in (-1, 1))
        ticks = floor(highest / Fraction(rules.tick_size))
        assert instead or ticks == 0 or ticks * Fraction(rules.tick_size) < lowest
    elif not instead or "which closes the position, is allowed" in refusal.detail:
        event(f"{refusal.code}: {'one alone' if instead else 'none'}")
        assume(rules.lot_size > Decimal("0.01"))
        # So that only the quantity is in question.
        rules = replace(rules, tick_size=UNIT)
        asked = (replace(order, quantity=size, price=mark) for size in quantities_of(rules, held) if size)
        allowed = {again.quantity for again in asked if let_through(held, again, rules, mark)}
        assert allowed == {again.quantity for again in instead}


# --- money ---


@st.composite
def trades(draw: st.DrawFn) -> tuple[Account, Order, Market]:
    """Trades of any size that mostly pass, with odd digits; balances from too small to ample."""
    taker_fee = Decimal(draw(st.integers(0, 10**6))).scaleb(-8)
    maker_fee = Decimal(draw(st.integers(-int(taker_fee.scaleb(8)), 10**6))).scaleb(-8)
    rules = Instrument(BTC, taker_fee=taker_fee, maker_fee=maker_fee, price_band=Decimal(1))
    units = st.integers(1, 10**13).map(lambda count: Decimal(count).scaleb(-8))
    held = draw(st.none() | st.tuples(sides, units, units))
    positions = {} if held is None else {BTC: position_of(*held)}
    quantity = draw(units if held is None else st.sampled_from([held[1], draw(units)]))
    mark = draw(units)
    price = draw(st.sampled_from([mark, max((mark * draw(st.integers(90, 110)) / 100).quantize(UNIT), UNIT)]))
    order = Order(1, BTC, draw(sides), quantity, price, liquidity=draw(st.sampled_from(Liquidity)))
    balance = Decimal(draw(st.integers(0, 10**19))).scaleb(-8)
    return Account(1, balance, positions), order, Market({BTC: Mark(mark, NOW_US)}, {BTC: rules}, NOW_US)


@exact
def position_of(side: Side, quantity: Decimal, price: Decimal) -> Position:
    return Position(BTC, side.sign * quantity, side.sign * quantity * price)


@settings(deadline=None, max_examples=200)
@given(trades())
def test_fees_conserve_money_and_round_in_favour_of_the_house(trade: tuple[Account, Order, Market]) -> None:
    account, order, market = trade
    try:
        result = execute_order(account, order, market)
    except (InsufficientMarginError, InLiquidationError, LimitExceededError, StaleMarkPriceError):
        event("refused")
        return
    rules = market.instrument(BTC)
    rate = rules.maker_fee if order.liquidity is Liquidity.MAKER else rules.taker_fee
    due = Fraction(rate) * Fraction(order.quantity) * Fraction(order.price)
    event(f"fee {'above' if result.fee > 0 else 'below' if result.fee < 0 else 'is'} 0")
    assert result.fee == result.fee.quantize(UNIT, rounding=ROUND_FLOOR)
    assert 0 <= Fraction(result.fee) - due < Fraction(UNIT)
    # A rebate never comes to more than the least unit of what is due allows.
    assert -floor(-due / Fraction(UNIT)) == Fraction(result.fee) / Fraction(UNIT)

    lines = {line.ledger_account: Fraction(line.amount) for line in result.ledger_lines}
    assert sum(lines.values()) == 0
    assert lines.get(LedgerAccount.FEES, Fraction(0)) == Fraction(result.fee)
    change = Fraction(result.account.balance) - Fraction(account.balance)
    assert lines.get(LedgerAccount.CASH, Fraction(0)) == change
    assert change == Fraction(result.fill.realised_pnl) - Fraction(result.fee)
    assert result.risk == assess(result.account, market)


@settings(deadline=None, max_examples=200)
@given(trades())
def test_margin_test_counts_the_fee_to_the_last_digit(trade: tuple[Account, Order, Market]) -> None:
    """E' = E + min(0, s * x * (mark - price)) - fee, and what increases a position is accepted where E' >= IM'."""
    account, order, market = trade
    sign, mark = (1 if order.side is Side.BUY else -1), Fraction(market.mark_price(BTC))
    held = account.positions.get(BTC)
    before = Fraction(0) if held is None else Fraction(held.quantity)
    after = before + sign * Fraction(order.quantity)
    assume(abs(after) > abs(before))
    cost = Fraction(0) if held is None else Fraction(held.entry_cost)
    equity = Fraction(account.balance) + before * mark - cost
    assume(equity > 0 or held is None)
    rules = market.instrument(BTC)
    rate = Fraction(rules.maker_fee if order.liquidity is Liquidity.MAKER else rules.taker_fee)
    fee = -floor(-rate * Fraction(order.quantity) * Fraction(order.price) * 10**8) / Fraction(10**8)
    tested = equity + min(Fraction(0), sign * Fraction(order.quantity) * (mark - Fraction(order.price))) - fee
    refusal = outcome(account, order, market)
    event("accepted" if refusal is None else refusal.code)
    assert (refusal is None) is (tested >= abs(after) * mark / 5)
