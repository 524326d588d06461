from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.decimals import round_down, round_up
from margin.domain.risk import assess, liquidation_price
from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from tests.property.strategies import Book, at_prices, books, prices, solvent_books
from tests.property.trigger_indexes import (
    PRICE_MAX,
    excess,
    freezing_the_others,
    furthest_uncrossed,
    rounding_the_wrong_way,
)

UNIT = Decimal("0.00000001")


def last_safe_price(trigger: Trigger) -> Decimal:
    """Price of 8 decimals nearest to the trigger that has not crossed it."""
    if trigger.side is TriggerSide.FLOOR:
        return max(UNIT, round_up(Decimal(math.nextafter(trigger.score, math.inf))))
    return round_down(Decimal(math.nextafter(trigger.score, 0)))


@st.composite
def moves(draw: st.DrawFn, found: dict[str, Trigger]) -> dict[str, Decimal]:
    """Joint prices at or inside the triggers: mostly at the worst corner, where all have gone as far as they may."""
    moved = {}
    for symbol, trigger in found.items():
        edge = last_safe_price(trigger)
        away = draw(st.just(Decimal(0)) | st.just(UNIT) | prices)
        price = edge + away if trigger.side is TriggerSide.FLOOR else edge - away
        moved[symbol] = price if price > 0 and not trigger.is_crossed(price) else edge
    return moved


@settings(deadline=None, max_examples=400)
@given(solvent_books(), st.data())
def test_no_joint_move_within_the_triggers_makes_the_account_liquidatable(book: Book, data: st.DataObject) -> None:
    found = triggers(book.account, book.market)
    moved = data.draw(moves(found))
    assume(all(price > 0 and not found[symbol].is_crossed(price) for symbol, price in moved.items()))
    assert not assess(book.account, at_prices(book.market, moved)).liquidatable


@settings(deadline=None, max_examples=100)
@given(solvent_books(tiers_max=1))
def test_zone_of_one_tier_is_tight_at_its_worst_corner(book: Book) -> None:
    found = triggers(book.account, book.market)
    # One step beyond the double that is nearest to each exact trigger nothing of the slack can be left.
    beyond = {
        symbol: round_down(Decimal(math.nextafter(trigger.score, 0))) - UNIT
        if trigger.side is TriggerSide.FLOOR
        else round_up(Decimal(math.nextafter(trigger.score, math.inf))) + UNIT
        for symbol, trigger in found.items()
    }
    assume(all(price > 0 for price in beyond.values()))
    assert assess(book.account, at_prices(book.market, beyond)).liquidatable


@settings(deadline=None, max_examples=100)
@given(solvent_books(tiers_max=1, positions_max=1))
def test_trigger_of_a_single_position_of_one_tier_is_its_liquidation_price(book: Book) -> None:
    ((symbol, trigger),) = triggers(book.account, book.market).items()
    price = liquidation_price(book.account, symbol, book.market)
    if price is None:
        assert not trigger.is_crossed(UNIT)
        return
    # The exact root lies between the liquidation price and the next price beyond it, which is the first to be caught.
    further = price - UNIT if trigger.side is TriggerSide.FLOOR else price + UNIT
    assert trigger.is_crossed(further)
    lowest, highest = sorted([float(price), float(further)])
    assert math.nextafter(lowest, 0) <= trigger.score <= math.nextafter(highest, math.inf)


@settings(deadline=None, max_examples=100)
@given(books(may_be_stale=True, positions_min=1))
def test_every_position_has_one_trigger_and_those_of_a_doubtful_account_are_always_crossed(book: Book) -> None:
    found = triggers(book.account, book.market)
    assert found.keys() == book.account.positions.keys()
    doubtful = any(book.market.is_stale(symbol) for symbol in found) or assess(book.account, book.market).liquidatable
    for symbol, trigger in found.items():
        long = book.account.positions[symbol].quantity > 0
        assert trigger.side is (TriggerSide.FLOOR if long else TriggerSide.CEILING)
        assert trigger.is_crossed(Decimal(999999999999) if long else UNIT) is doubtful


# --- the test of the index


def corner(held: dict[str, Trigger]) -> dict[str, Decimal]:
    """Where all prices stand at their triggers."""
    return {symbol: Decimal(held[symbol].score) for symbol in held}


def brink(book: Book, held: dict[str, Trigger]) -> dict[str, Decimal]:
    """Prices that cross nothing and hurt the most; where nothing watches a position they are as bad as can be."""
    prices = {}
    for symbol, position in book.account.positions.items():
        side = TriggerSide.FLOOR if position.quantity > 0 else TriggerSide.CEILING
        trigger = held.get(symbol)
        if trigger is not None and trigger.side is side:
            prices[symbol] = furthest_uncrossed(trigger)
        else:
            prices[symbol] = UNIT if side is TriggerSide.FLOOR else PRICE_MAX
    assert not any(symbol in prices and trigger.is_crossed(prices[symbol]) for symbol, trigger in held.items())
    return prices


def assert_found_out(book: Book, held: dict[str, Trigger]) -> None:
    """Show that an index is wrong, by a move that ruins the account unseen, and that this is noticed."""
    assume(excess(book.account, book.market, brink(book, held)) < 0)
    assert not covers(book.account, book.market, held)


@settings(deadline=None, max_examples=150)
@given(books(may_be_stale=True))
def test_triggers_of_any_account_cover_it(book: Book) -> None:
    assert covers(book.account, book.market, triggers(book.account, book.market))


@settings(deadline=None, max_examples=150)
@given(solvent_books(), st.data())
def test_triggers_cover_the_account_wherever_prices_go_that_cross_none(book: Book, data: st.DataObject) -> None:
    held = triggers(book.account, book.market)
    for _ in range(3):
        moved = data.draw(moves(held))
        assume(all(price > 0 and not held[symbol].is_crossed(price) for symbol, price in moved.items()))
        market = at_prices(book.market, moved)
        assert covers(book.account, market, held)
        assert excess(book.account, market, moved) >= 0
    assert excess(book.account, book.market, brink(book, held)) >= 0


@settings(deadline=None, max_examples=150)
@given(solvent_books(), st.data())
def test_trigger_moved_beyond_what_is_sound_is_found_to_the_last_step(book: Book, data: st.DataObject) -> None:
    held = triggers(book.account, book.market)
    reached = [symbol for symbol, trigger in held.items() if trigger.score > 0]
    assume(reached)
    moved = held[data.draw(st.sampled_from(reached))]
    towards = 0.0 if moved.side is TriggerSide.FLOOR else math.inf
    step, tampered = 1, held
    while excess(book.account, book.market, brink(book, tampered)) >= 0:
        assert covers(book.account, book.market, tampered) is (
            excess(book.account, book.market, corner(tampered)) >= 0
        ), step
        further = moved.score + math.copysign(math.ulp(moved.score) * step, towards - moved.score)
        assume(0 < further < math.inf)
        tampered = {**held, moved.symbol: replace(moved, score=further)}
        step *= 2
    assert step > 1
    assert not covers(book.account, book.market, tampered)


@settings(deadline=None, max_examples=100)
@given(solvent_books(), st.data())
def test_missing_trigger_is_found(book: Book, data: st.DataObject) -> None:
    held = triggers(book.account, book.market)
    missing = data.draw(st.sampled_from(sorted(held)))
    assert_found_out(book, {symbol: trigger for symbol, trigger in held.items() if symbol != missing})


@settings(deadline=None, max_examples=100)
@given(solvent_books(), st.data())
def test_trigger_on_the_wrong_side_is_found(book: Book, data: st.DataObject) -> None:
    held = triggers(book.account, book.market)
    symbol = data.draw(st.sampled_from(sorted(held)))
    long = book.account.positions[symbol].quantity > 0
    turned = Trigger(symbol, TriggerSide.CEILING if long else TriggerSide.FLOOR, math.inf if long else -math.inf)
    assert_found_out(book, {**held, symbol: turned})


@settings(deadline=None, max_examples=100)
@given(solvent_books(tiers_max=1))
def test_index_that_freezes_the_other_symbols_is_found(book: Book) -> None:
    assume(len(book.account.positions) > 1)
    assert_found_out(book, freezing_the_others(book.account, book.market))


@settings(deadline=None, max_examples=100)
@given(solvent_books(tiers_max=1))
def test_index_that_rounds_the_wrong_way_is_found(book: Book) -> None:
    held = rounding_the_wrong_way(book.account, book.market)
    assert_found_out(book, held)


@settings(deadline=None, max_examples=100)
@given(books(positions_min=1))
def test_account_with_a_trigger_that_is_always_crossed_is_covered_if_none_is_missing(book: Book) -> None:
    held = {
        symbol: Trigger(symbol, TriggerSide.FLOOR, -math.inf)
        if position.quantity > 0
        else Trigger(symbol, TriggerSide.CEILING, math.inf)
        for symbol, position in book.account.positions.items()
    }
    symbol = next(iter(held))
    always = replace(held[symbol], score=-held[symbol].score)
    assert covers(book.account, book.market, {**held, symbol: always})
    assert not covers(book.account, book.market, {symbol: always}) or len(held) == 1
