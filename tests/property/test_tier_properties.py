"""What holds of any table of tiers: its lines meet, margin rises along them, and the liquidation price lies on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.decimals import exact, round_down
from margin.domain.funding import Funding
from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation_price import liquidation_price
from margin.domain.market import Mark
from margin.domain.position import Side
from margin.domain.risk import assess, assess_positions
from tests.property.strategies import (
    NOW_US,
    SYMBOLS,
    Book,
    at_prices,
    books,
    instruments,
    magnitudes,
    markets,
    position_at,
    positions,
    solvent_books,
    units,
)

UNIT = Decimal("0.00000001")
SYMBOL = SYMBOLS[0]
KINDS = ("initial", "maintenance")


@dataclass(frozen=True)
class Table:
    """One of the two margins of an instrument: its rates and amounts, and itself."""

    instrument: Instrument
    kind: str

    @property
    def caps(self) -> list[Fraction]:
        return [Fraction(tier.notional_cap) for tier in self.instrument.tiers if tier.notional_cap is not None]

    @property
    def rates(self) -> list[Fraction]:
        return [Fraction(getattr(tier, f"{self.kind}_rate")) for tier in self.instrument.tiers]

    @property
    def amounts(self) -> list[Fraction]:
        return [Fraction(amount) for amount in getattr(self.instrument, f"{self.kind}_amounts")]

    def line(self, number: int, notional: Fraction) -> Fraction:
        return self.rates[number] * notional - self.amounts[number]

    def tier_number(self, notional: Fraction) -> int:
        """Number of the tier that a notional is in, counted cap by cap."""
        return sum(notional > cap for cap in self.caps)

    def margin(self, notional: Decimal) -> Fraction:
        return Fraction(getattr(self.instrument, f"{self.kind}_margin")(notional))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(instruments(tiers_max=8))
def test_amounts_are_what_venues_define_and_the_lines_of_both_tiers_meet_at_every_cap(
    kind: str, instrument: Instrument
) -> None:
    table = Table(instrument, kind)
    assert table.amounts[0] == 0
    for number, cap in enumerate(table.caps):
        rise = table.rates[number + 1] - table.rates[number]
        assert table.amounts[number + 1] == table.amounts[number] + cap * rise
        assert table.line(number, cap) == table.line(number + 1, cap)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(instruments(tiers_max=8), st.data())
def test_margin_is_the_line_of_its_tier_and_the_highest_of_all_lines(
    kind: str, instrument: Instrument, data: st.DataObject
) -> None:
    table = Table(instrument, kind)
    notional = data.draw(notionals_of(instrument))
    lines = [table.line(number, Fraction(notional)) for number in range(len(instrument.tiers))]
    assert table.margin(notional) == lines[table.tier_number(Fraction(notional))] == max(lines)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(instruments(tiers_max=8), st.data())
def test_slope_between_two_notionals_lies_between_the_rates_of_their_tiers(
    kind: str, instrument: Instrument, data: st.DataObject
) -> None:
    table = Table(instrument, kind)
    lower, upper = sorted(data.draw(st.lists(notionals_of(instrument), min_size=2, max_size=2, unique=True)))
    rise = (table.margin(upper) - table.margin(lower)) / (Fraction(upper) - Fraction(lower))
    lowest, highest = (table.rates[table.tier_number(Fraction(notional))] for notional in (lower, upper))
    assert 0 < lowest <= rise <= highest <= 1


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(instruments(tiers_max=8), st.data())
def test_slope_never_falls_with_the_notional(kind: str, instrument: Instrument, data: st.DataObject) -> None:
    table = Table(instrument, kind)
    notionals = sorted(data.draw(st.lists(notionals_of(instrument), min_size=3, max_size=6, unique=True)))
    slopes = [
        (table.margin(upper) - table.margin(lower)) / (Fraction(upper) - Fraction(lower))
        for lower, upper in pairwise(notionals)
    ]
    assert slopes == sorted(slopes)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_account_with_funding_is_safe_at_the_liquidation_price_and_liquidatable_one_unit_further(
    data: st.DataObject,
) -> None:
    book = data.draw(with_funding(data.draw(st.one_of(solvent_books(), books(positions_min=1)))))
    described = {risk.symbol: risk.liquidation_price for risk in assess_positions(book.account, book.market)}
    for symbol, position in book.account.positions.items():
        price = liquidation_price(book.account, symbol, book.market)
        assert described[symbol] == price
        further = -UNIT if position.quantity > 0 else UNIT
        if price is None:
            # A long that no fall can liquidate, a short that no fall can save.
            assert liquidatable_at(book, symbol, UNIT) is (position.quantity < 0)
            continue
        assert price > 0
        assert not liquidatable_at(book, symbol, price)
        if price + further > 0:
            assert liquidatable_at(book, symbol, price + further)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_account_that_is_to_be_at_maintenance_margin_at_a_price_has_that_liquidation_price(
    data: st.DataObject,
) -> None:
    """The other way round: the price first, in any tier beside the mark's, then the balance that makes it so."""
    side, quantity = data.draw(st.sampled_from(Side)), data.draw(magnitudes(5))
    price, mark_price, entry_price = (data.draw(magnitudes(6)) for _ in range(3))
    rates = data.draw(instruments(SYMBOL, tiers_max=4)).tiers
    instrument = Instrument(
        SYMBOL, between(rates, quantity, data.draw(st.permutations([price, mark_price, entry_price])))
    )
    market = data.draw(markets())
    market = replace(
        market,
        marks={**market.marks, SYMBOL: Mark(mark_price, NOW_US)},
        instruments={**market.instruments, SYMBOL: instrument},
    )
    held = data.draw(st.sets(st.sampled_from(SYMBOLS[1:])))
    account = Account(1, Decimal(0), {symbol: data.draw(positions(symbol)) for symbol in sorted(held)})
    account = account.with_position(SYMBOL, position_at(SYMBOL, side.sign * quantity, entry_price))
    book = data.draw(with_funding(Book(account, market)))
    balanced = with_equity_of_maintenance_margin(book, price)
    assert liquidation_price(balanced.account, SYMBOL, balanced.market) == price
    (described,) = (
        risk for risk in assess_positions(balanced.account, market=balanced.market) if risk.symbol == SYMBOL
    )
    assert described.liquidation_price == price


def liquidatable_at(book: Book, symbol: str, price: Decimal) -> bool:
    return assess(book.account, at_prices(book.market, {symbol: price})).liquidatable


@exact
def with_equity_of_maintenance_margin(book: Book, price: Decimal) -> Book:
    """The book with a balance at which equity equals maintenance margin, exactly, when the symbol is at the price."""
    risk = assess(book.account, at_prices(book.market, {SYMBOL: price}))
    return replace(book, account=book.account.with_balance_change(risk.maintenance_margin - risk.equity))


@exact
def between(tiers: tuple[Tier, ...], quantity: Decimal, prices: list[Decimal]) -> tuple[Tier, ...]:
    """The same rates with caps at and between the notionals of these prices, as many as there are tiers for."""
    first, second, third = (quantity * price for price in prices)
    notionals = {(first + second) / 2, first, second, (second + third) / 2, third}
    caps = sorted({round_down(cap) for cap in notionals if cap >= UNIT})[: len(tiers) - 1]
    return tuple(
        Tier(cap, tier.initial_rate, tier.maintenance_rate)
        for cap, tier in zip([*caps, None], (*tiers[: len(caps)], tiers[-1]), strict=True)
    )


@st.composite
def notionals_of(draw: st.DrawFn, instrument: Instrument) -> Decimal:
    """Any notional, and those at and beside the caps, where an error would show."""
    caps = [tier.notional_cap for tier in instrument.tiers if tier.notional_cap is not None]
    beside = [cap + steps * UNIT for cap in caps for steps in (-1, 0, 1)]
    return draw(st.sampled_from([Decimal(0), *beside]) | magnitudes(12))


@st.composite
def with_funding(draw: st.DrawFn, book: Book) -> Book:
    """The book in a market whose funding indexes have moved, with positions that have paid up to any of them."""
    index = units(-(10**12), 10**12).map(lambda value: value.scaleb(-8))
    funded = {
        symbol: replace(position, entry_funding=draw(units(-(10**15), 10**15).map(lambda value: value.scaleb(-8))))
        for symbol, position in book.account.positions.items()
    }
    market = replace(book.market, funding={symbol: Funding(index=draw(index)) for symbol in SYMBOLS})
    return Book(replace(book.account, positions=funded), market)
