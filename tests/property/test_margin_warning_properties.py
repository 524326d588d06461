"""Warnings are found by the index: whoever was not warned and is not crossed is at or below the level."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.margin_warning import MarginWarnings
from margin.domain.risk import assess
from margin.domain.safe_zone import covers
from tests.property.strategies import Book, at_prices, books, solvent_books
from tests.property.test_safe_zone_properties import moves

levels = st.sampled_from([Decimal(80), Decimal("99.5"), Decimal(55), Decimal(100)])


def _is_beyond(book: Book, level_pct: Decimal) -> bool:
    risk = assess(book.account, book.market)
    return Fraction(risk.maintenance_margin) * 100 > Fraction(risk.equity) * Fraction(level_pct)


@settings(deadline=None, max_examples=300)
@given(solvent_books(), levels, st.data())
def test_no_joint_move_within_the_triggers_takes_an_account_beyond_the_level(
    book: Book, level_pct: Decimal, data: st.DataObject
) -> None:
    warnings = MarginWarnings(level_pct)
    assume(not warnings.is_due(book.account, book.market))
    found, warned = warnings.triggers(book.account, book.market, warned=False)
    assert not warned
    assert warnings.watches(book.account, book.market, found, warned=False)
    assume(found)
    assert covers(book.account, book.market, found, level_pct=level_pct)
    moved = data.draw(moves(found))
    assume(all(price > 0 and not found[symbol].is_crossed(price) for symbol, price in moved.items()))
    assert not _is_beyond(Book(book.account, at_prices(book.market, moved)), level_pct)


@settings(deadline=None, max_examples=300)
@given(books(may_be_stale=True, positions_min=1), levels, st.booleans())
def test_account_that_was_not_warned_is_always_crossed_exactly_when_it_is_beyond_the_level(
    book: Book, level_pct: Decimal, warned: bool
) -> None:
    warnings = MarginWarnings(level_pct)
    found, stays = warnings.triggers(book.account, book.market, warned=warned)
    crossed = any(trigger.is_always_crossed for trigger in found.values())
    doubtful = any(book.market.is_stale(symbol) for symbol in book.account.positions)
    due = warnings.is_due(book.account, book.market)
    assert due <= _is_beyond(book, level_pct)
    assert not (due and doubtful)
    assert stays <= warned
    if stays:
        assert not found
        assert doubtful or not warnings.is_relieved(book.account, book.market)
    elif found:
        assert crossed is (doubtful or _is_beyond(book, level_pct))
    # An index of another level, or of nothing, is noticed wherever it could miss a warning.
    if found and not crossed:
        assert not warnings.watches(book.account, book.market, {}, warned=False)


@settings(deadline=None, max_examples=200)
@given(books(positions_min=1), levels)
def test_account_that_is_relieved_is_below_the_level(book: Book, level_pct: Decimal) -> None:
    if MarginWarnings(level_pct).is_relieved(book.account, book.market):
        assert not MarginWarnings(level_pct).is_due(book.account, book.market)
