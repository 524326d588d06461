from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.account import Account, calculate_equity
from margin.domain.decimals import exact
from margin.domain.risk import PositionRisk, assess, assess_positions
from tests.property.strategies import Book, books, instruments, magnitudes

if TYPE_CHECKING:
    from margin.domain.instrument import Instrument


def margin_by_brackets(instrument: Instrument, notional: Decimal, rate_name: str) -> Fraction:
    """The same margin added up bracket by bracket, without amounts."""
    total, floor = Fraction(0), Fraction(0)
    for tier in instrument.tiers:
        top = Fraction(notional) if tier.notional_cap is None else min(Fraction(notional), Fraction(tier.notional_cap))
        total += max(Fraction(0), top - floor) * Fraction(getattr(tier, rate_name))
        floor = max(floor, top)
    return total


@settings(deadline=None)
@given(instruments(), magnitudes(12))
def test_margin_equals_the_sum_over_brackets(instrument: Instrument, notional: Decimal) -> None:
    assert instrument.initial_margin(notional) == margin_by_brackets(instrument, notional, "initial_rate")
    assert instrument.maintenance_margin(notional) == margin_by_brackets(instrument, notional, "maintenance_rate")


@settings(deadline=None)
@given(instruments(), magnitudes(12), st.integers(0, 3), st.sampled_from([-1, 0, 1]))
def test_margin_is_monotone_and_continuous_in_notional(
    instrument: Instrument, notional: Decimal, cap_number: int, steps: int
) -> None:
    caps = [tier.notional_cap for tier in instrument.tiers if tier.notional_cap is not None]
    step = Decimal("1e-8")
    # Beside a random notional, the neighbours of a cap, where an error would show.
    near = caps[cap_number % len(caps)] + steps * step if caps else notional
    for lower in (notional, near):
        for margin in (instrument.initial_margin, instrument.maintenance_margin):
            assert 0 < margin(lower + step) - margin(lower) <= step


@settings(deadline=None)
@given(instruments(), magnitudes(12))
def test_initial_margin_exceeds_maintenance_margin(instrument: Instrument, notional: Decimal) -> None:
    assert notional >= instrument.initial_margin(notional) > instrument.maintenance_margin(notional) > 0


@settings(deadline=None, max_examples=60)
@given(books(), st.randoms(use_true_random=False))
def test_order_of_positions_does_not_matter(book: Book, random: st.random.Random) -> None:
    shuffled = list(book.account.positions.items())
    random.shuffle(shuffled)
    other = Account(book.account.account_id, book.account.balance, dict(shuffled))
    assert assess(other, book.market) == assess(book.account, book.market)
    assert assess_positions(other, book.market) == assess_positions(book.account, book.market)


@exact
def _values(parts: list[PositionRisk]) -> list[Decimal]:
    return [part.unrealised_pnl + part.pending_funding for part in parts]


@settings(deadline=None, max_examples=60)
@given(books())
def test_equity_and_margin_by_parts_equal_those_of_the_whole(book: Book) -> None:
    risk, parts = assess(book.account, book.market), assess_positions(book.account, book.market)
    assert calculate_equity(book.account.balance, _values(parts)) == risk.equity
    assert sum(Fraction(part.maintenance_margin) for part in parts) == Fraction(risk.maintenance_margin)
    total = Fraction(book.account.balance)
    for symbol, position in book.account.positions.items():
        total += Fraction(position.quantity) * Fraction(book.market.mark_price(symbol)) - Fraction(position.entry_cost)
        index = Fraction(book.market.funding_index(symbol))
        total += Fraction(position.entry_funding) - Fraction(position.quantity) * index
    assert risk.equity == total
