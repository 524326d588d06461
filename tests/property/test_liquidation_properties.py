"""What holds of every liquidation, whatever the account, its tiers, lots and fees, and marks that may be stale."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.event import canonical
from margin.domain.funding import settle_funding
from margin.domain.ledger import LedgerAccount, balanced, ledger_amounts
from margin.domain.liquidation import LiquidationPolicy, LiquidationResult, liquidate
from margin.domain.liquidation_record import liquidation_record, verify_liquidation
from margin.domain.position import Side, apply_fill
from margin.domain.risk import assess, liquidation_assessment
from tests.property.strategies import Book, books, failing_books, liquidation_policies, policies_without_least
from tests.property.trigger_indexes import excess

UNIT = Fraction(1, 10**8)


def _stale(book: Book) -> set[str]:
    return {symbol for symbol in book.account.positions if book.market.is_stale(symbol)}


def _missing(result_or_book: LiquidationResult | Book, book: Book, policy: LiquidationPolicy) -> Fraction:
    """How much equity is below the target, in another arithmetic; 0 or below where it is reached."""
    risk = liquidation_assessment(result_or_book.account, book.market)
    return (1 + Fraction(policy.buffer)) * Fraction(risk.maintenance_margin) - Fraction(risk.equity)


@settings(deadline=None, max_examples=200)
@given(books(may_be_stale=True), liquidation_policies())
def test_liquidation_conserves_money_and_never_leaves_a_debt_behind(book: Book, policy: LiquidationPolicy) -> None:
    result = liquidate(book.account, book.market, policy)
    stale = _stale(book)
    nothing_fresh = bool(book.account.positions) and stale == book.account.positions.keys()
    assert (result is None) is (nothing_fresh or not liquidation_assessment(book.account, book.market).liquidatable)
    if result is None:
        return
    lines = {line.ledger_account: Fraction(line.amount) for line in result.ledger_lines}
    assert sum(lines.values()) == 0
    cash = lines.get(LedgerAccount.CASH, Fraction(0))
    assert cash == Fraction(result.account.balance) - Fraction(book.account.balance)
    assert lines.get(LedgerAccount.UNCOVERED, Fraction(0)) == -Fraction(result.shortfall)
    assert lines.get(LedgerAccount.INSURANCE, Fraction(0)) == Fraction(result.fee)
    assert result.shortfall >= 0
    if result.account.positions:
        assert result.shortfall == 0
    else:
        assert result.account.balance >= 0
        assert result.shortfall == 0 or result.account.balance == 0
    # Closing at the marks moves equity only by the fee, what is forgiven, and dust below one unit for each position.
    dust = (
        Fraction(assess(book.account, book.market).equity)
        + Fraction(result.shortfall)
        - Fraction(result.fee)
        - Fraction(assess(result.account, book.market).equity)
    )
    assert dust == lines.get(LedgerAccount.ROUNDING, Fraction(0))
    assert 0 <= dust <= Fraction(len(result.closed), 10**8)


@settings(deadline=None, max_examples=200)
@given(failing_books(may_be_stale=True), liquidation_policies())
def test_liquidation_reaches_its_target_or_closes_all_that_is_fresh(book: Book, policy: LiquidationPolicy) -> None:
    result = liquidate(book.account, book.market, policy)
    assume(result is not None)
    assert result is not None
    fresh_left = result.account.positions.keys() - _stale(book)
    assert _missing(result, book, policy) <= 0 or not fresh_left
    # So it ends: the account is healthy, or nothing is left that could be closed.
    assert liquidate(result.account, book.market, policy) is None or not result.account.positions


@settings(deadline=None, max_examples=200)
@given(failing_books(may_be_stale=True), liquidation_policies())
def test_liquidation_never_lowers_the_excess_of_equity_over_maintenance_margin(
    book: Book, policy: LiquidationPolicy
) -> None:
    result = liquidate(book.account, book.market, policy)
    assume(result is not None)
    assert result is not None
    dust = sum(
        (Fraction(line.amount) for line in result.ledger_lines if line.ledger_account is LedgerAccount.ROUNDING),
        start=Fraction(0),
    )
    before = Fraction(result.before.equity) - Fraction(result.before.maintenance_margin)
    after = Fraction(result.after.equity) - Fraction(result.after.maintenance_margin)
    assert after + dust >= before
    if not _stale(book):
        marks = {symbol: mark.price for symbol, mark in book.market.marks.items()}
        assert after == excess(result.account, book.market, marks)


@settings(deadline=None, max_examples=200)
@given(failing_books(may_be_stale=True), policies_without_least())
def test_no_more_is_closed_than_the_target_needs(book: Book, policy: LiquidationPolicy) -> None:
    """All positions but the last are closed whole; the last with one lot less, and its fee, would miss the target."""
    lots = {
        symbol: replace(book.market.instrument(symbol), min_quantity=Decimal("1e-8")) for symbol in book.market.marks
    }
    market = replace(book.market, instruments=lots)
    result = liquidate(book.account, market, policy)
    assume(result is not None and result.closed)
    assert result is not None
    assert all(closed.remaining == 0 for closed in result.closed[:-1])
    last = result.closed[-1]
    instrument = market.instrument(last.symbol)
    if last.remaining == 0 or abs(last.quantity) == instrument.lot_size:
        return
    position = result.account.positions[last.symbol]
    reopened = apply_fill(
        position,
        last.symbol,
        _opening(last.quantity),
        instrument.lot_size,
        last.price,
        funding_index=market.funding_index(last.symbol),
    )
    with_one_lot_more = result.account.with_position(last.symbol, reopened.position)
    one_lot_less = (abs(Fraction(last.quantity)) - Fraction(instrument.lot_size)) * Fraction(last.price)
    # Where the account cannot bear the cap, the fee is the same for one lot less, or nearly so.
    fee_saved = Fraction(last.fee) - min(Fraction(instrument.liquidation_fee_cap) * one_lot_less, Fraction(last.fee))
    missing = _missing(replace(book, account=with_one_lot_more), replace(book, market=market), policy)
    # A fee is rounded down, so the target may be passed by less than a unit for each position.
    assert missing > fee_saved - len(result.closed) * UNIT


@settings(deadline=None, max_examples=200)
@given(failing_books(may_be_stale=True), liquidation_policies())
def test_what_remains_is_never_too_small(book: Book, policy: LiquidationPolicy) -> None:
    result = liquidate(book.account, book.market, policy)
    assume(result is not None)
    assert result is not None
    for closed in result.closed:
        before = book.account.positions[closed.symbol].quantity
        assert closed.quantity + closed.remaining == before
        assert closed.quantity * before > 0
        assert closed.remaining * before >= 0
        if closed.remaining:
            instrument = book.market.instrument(closed.symbol)
            assert abs(closed.remaining) >= max(instrument.lot_size, instrument.min_quantity)
            assert abs(closed.remaining) * closed.price >= policy.remaining_notional_min
            assert closed.quantity % instrument.lot_size == 0


@settings(deadline=None, max_examples=200)
@given(failing_books(), liquidation_policies())
def test_fee_is_at_most_its_cap_and_never_makes_a_debt(book: Book, policy: LiquidationPolicy) -> None:
    result = liquidate(book.account, book.market, policy)
    assume(result is not None)
    assert result is not None
    assert result.fee <= max(Decimal(0), assess(book.account, book.market).equity)
    assert result.fee == 0 or result.shortfall == 0
    for closed in result.closed:
        cap = Fraction(book.market.instrument(closed.symbol).liquidation_fee_cap)
        assert 0 <= Fraction(closed.fee) <= cap * abs(Fraction(closed.quantity)) * Fraction(closed.price)


@settings(deadline=None, max_examples=200)
@given(failing_books(), liquidation_policies())
def test_closing_everything_at_the_bankruptcy_prices_leaves_nothing_and_no_debt(
    book: Book, policy: LiquidationPolicy
) -> None:
    result = liquidate(book.account, book.market, policy)
    assume(result is not None and len(result.closed) == len(book.account.positions))
    assert result is not None
    assume(all(closed.bankruptcy_price is not None for closed in result.closed))
    left = Fraction(book.account.balance)
    for closed in result.closed:
        position = book.account.positions[closed.symbol]
        assert closed.bankruptcy_price is not None
        left += Fraction(position.quantity) * Fraction(closed.bankruptcy_price) - Fraction(position.entry_cost)
        left += Fraction(position.pending_funding(book.market.funding_index(closed.symbol)))
    units = sum(abs(Fraction(position.quantity)) for position in book.account.positions.values())
    assert 0 <= left <= units * UNIT


@settings(deadline=None, max_examples=200)
@given(failing_books(may_be_stale=True), liquidation_policies(), st.data())
def test_recorded_liquidation_verifies_and_one_with_another_figure_does_not(
    book: Book, policy: LiquidationPolicy, data: st.DataObject
) -> None:
    settlement = settle_funding(book.account, book.market)
    result = liquidate(settlement.account, book.market, policy)
    assume(result is not None and result.closed)
    assert result is not None
    record = json.loads(canonical(liquidation_record(settlement.account, book.market, policy, result)))
    lines = balanced((*settlement.ledger_lines, *result.ledger_lines))
    assert verify_liquidation(record, book.account, result.account, ledger_amounts(lines)) == []
    # A term that a later version adds is no difference.
    for terms in record["inputs"]["instruments"].values():
        terms["of_a_later_version"] = "1"
    assert verify_liquidation(record, book.account) == []
    tampered = json.loads(json.dumps(record))
    closed = tampered["positions"][0]
    names = ("quantity", "price", "realised_pnl", "remaining", "fee")
    name = data.draw(st.sampled_from(names))
    closed[name] = str(Decimal(closed[name]) + 1)
    assert verify_liquidation(tampered, book.account) != []
    assert verify_liquidation(record, book.account.with_balance_change(Decimal(1))) != []


def _opening(closed: Decimal) -> Side:
    return Side.BUY if closed > 0 else Side.SELL
