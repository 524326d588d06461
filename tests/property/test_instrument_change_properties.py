"""Whoever is anchored while new rules are staged is safe under the old ones and under the new ones."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.clients.instrument_json import instrument_text, parse_instrument
from margin.domain.decimals import round_down, round_up
from margin.domain.instrument import Instrument, Tier
from margin.domain.risk import is_liquidatable
from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from tests.property.strategies import Book, at_prices, instruments, prices, solvent_books

if TYPE_CHECKING:
    from margin.domain.market import Market

UNIT = Decimal("0.00000001")


@st.composite
def staged_books(draw: st.DrawFn) -> Book:
    """A book of which new rules are staged for some symbols, the same symbol's first version or a later one."""
    book = draw(solvent_books())
    symbols = draw(st.sets(st.sampled_from(sorted(book.account.positions)), min_size=1))
    following = {symbol: replace(draw(instruments(symbol)), version=1) for symbol in sorted(symbols)}
    return Book(book.account, replace(book.market, staged=following))


def old(market: Market) -> Market:
    return replace(market, staged={})


def new(market: Market) -> Market:
    return replace(market, instruments={**market.instruments, **market.staged}, staged={})


@st.composite
def moves(draw: st.DrawFn, found: dict[str, Trigger]) -> dict[str, Decimal]:
    """Joint prices that cross no trigger, mostly at the worst corner."""
    moved = {}
    for symbol, trigger in found.items():
        away = draw(st.just(Decimal(0)) | st.just(UNIT) | prices)
        if trigger.side is TriggerSide.FLOOR:
            moved[symbol] = max(UNIT, round_up(Decimal(math.nextafter(trigger.score, math.inf)))) + away
        else:
            edge = round_down(Decimal(math.nextafter(trigger.score, 0)))
            moved[symbol] = edge - away if edge > away else edge
    return moved


@settings(deadline=None, max_examples=200)
@given(staged_books())
def test_anchor_under_staged_rules_covers_the_old_ones_the_new_ones_and_both(book: Book) -> None:
    found = triggers(book.account, book.market)
    for market in (old(book.market), new(book.market), book.market):
        assert covers(book.account, market, found)


@settings(deadline=None, max_examples=300)
@given(staged_books(), st.data())
def test_no_joint_move_within_the_triggers_makes_the_account_liquidatable_by_either_rules(
    book: Book, data: st.DataObject
) -> None:
    found = triggers(book.account, book.market)
    assume(not any(trigger.is_always_crossed for trigger in found.values()))
    moved = data.draw(moves(found))
    assume(all(price > 0 and not found[symbol].is_crossed(price) for symbol, price in moved.items()))
    for market in (old(book.market), new(book.market)):
        assert not is_liquidatable(book.account, at_prices(market, moved))


@settings(deadline=None, max_examples=200)
@given(solvent_books())
def test_account_that_new_rules_make_liquidatable_is_crossed_at_any_price_before_they_are_in_force(book: Book) -> None:
    # A maintenance margin of nearly the whole notional: few accounts have that much.
    nearly_all = (Tier(None, Decimal(1), Decimal("0.9999")),)
    staged = {symbol: Instrument(symbol, nearly_all, version=1) for symbol in book.account.positions}
    market = replace(book.market, staged=staged)
    assume(is_liquidatable(book.account, new(market)))
    assert all(trigger.is_always_crossed for trigger in triggers(book.account, market).values())


@settings(deadline=None, max_examples=200)
@given(solvent_books(positions_max=1), st.data())
def test_rules_whose_maintenance_lines_are_the_same_leave_triggers_as_they_are(book: Book, data: st.DataObject) -> None:
    (symbol,) = book.account.positions
    before = book.market.instrument(symbol)
    after = replace(
        before,
        tiers=tuple(replace(tier, initial_rate=Decimal(1)) for tier in before.tiers),
        taker_fee=data.draw(st.sampled_from([Decimal("0.001"), Decimal("0.5")])),
        maker_fee=Decimal(0),
        version=before.version + 1,
    )
    assert after.maintenance_lines == before.maintenance_lines
    market = replace(book.market, instruments={**book.market.instruments, symbol: after})
    assert triggers(book.account, market) == triggers(book.account, book.market)


@given(instruments(), instruments())
def test_rules_read_back_from_redis_are_those_that_were_written(in_force: Instrument, staged: Instrument) -> None:
    assert parse_instrument(instrument_text(in_force, staged)) == (in_force, staged)
    assert parse_instrument(instrument_text(in_force)) == (in_force, None)
