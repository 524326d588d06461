from __future__ import annotations

import math
from decimal import Decimal

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.decimals import round_down, round_up
from margin.domain.risk import assess, liquidation_price
from margin.domain.safe_zone import Trigger, TriggerSide, triggers
from tests.property.strategies import Book, at_prices, books, prices, solvent_books

UNIT = Decimal("0.00000001")


def last_safe_price(trigger: Trigger) -> Decimal:
    """Price of 8 decimals nearest to the trigger that has not crossed it."""
    if trigger.score == -math.inf:
        return UNIT
    if trigger.side is TriggerSide.FLOOR:
        return round_up(Decimal(math.nextafter(trigger.score, math.inf)))
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
    assume(all(math.isfinite(trigger.score) for trigger in found.values()))
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
        assert trigger == Trigger(symbol, TriggerSide.FLOOR, -math.inf)
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
