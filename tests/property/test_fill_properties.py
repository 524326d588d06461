from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain.decimals import exact
from margin.domain.position import Fill, Position, Side, apply_fill
from tests.property.strategies import positions, prices, quantities, sides

SYMBOL = "BTC-PERP"
UNIT = Decimal("0.00000001")


@dataclass(frozen=True)
class Books:
    """What a sequence of fills has done so far, in quote currency."""

    position: Position | None
    cash: Decimal = Decimal(0)
    rounding: Decimal = Decimal(0)

    @exact
    def after(self, fill: Fill) -> Books:
        dust = fill.gain - fill.realised_pnl
        return Books(fill.position, self.cash + fill.realised_pnl, self.rounding + dust)

    @exact
    def equity(self, price: Decimal) -> Decimal:
        return self.cash + (Decimal(0) if self.position is None else self.position.value(price, Decimal(0)))


def traded(held: Position | None, side: Side, sizes: list[Decimal], price: Decimal) -> Books:
    books = Books(held)
    for size in sizes:
        books = books.after(apply_fill(books.position, SYMBOL, side, size, price, funding_index=Decimal(0)))
    return books


@st.composite
def split_trades(draw: st.DrawFn) -> tuple[Position | None, Side, list[Decimal], Decimal]:
    """A trade in parts; often one that ends near the end of the position."""
    held = draw(st.none() | positions(SYMBOL))
    parts = draw(st.lists(quantities, min_size=1, max_size=4))
    if held is not None and draw(st.booleans()):
        remaining = abs(held.quantity) - sum(parts)
        parts += [remaining] if remaining > 0 else []
    return held, draw(sides), parts, draw(prices)


@settings(deadline=None, max_examples=300)
@given(split_trades(), prices)
def test_trade_in_parts_equals_the_whole_in_quantity_equity_and_rounding(
    trade: tuple[Position | None, Side, list[Decimal], Decimal], mark_price: Decimal
) -> None:
    held, side, parts, price = trade
    whole, split = traded(held, side, [sum(parts, Decimal(0))], price), traded(held, side, parts, price)
    assert split.equity(mark_price) == whole.equity(mark_price)
    assert split.rounding == whole.rounding
    if whole.position is None or held is None or held.quantity * whole.position.quantity < 0:
        # Nothing of the old position is left to keep dust: all is equal, to the last digit.
        assert split == whole
    else:
        assert split.position is not None
        assert split.position.quantity == whole.position.quantity
        # Each part may book up to one unit less; it stays in the entry cost.
        assert abs(split.cash - whole.cash) <= UNIT * len(parts)


@settings(deadline=None)
@given(positions(SYMBOL), quantities, prices)
def test_flip_equals_close_plus_open(held: Position, beyond: Decimal, price: Decimal) -> None:
    side = Side.SELL if held.quantity > 0 else Side.BUY
    close = apply_fill(held, SYMBOL, side, abs(held.quantity), price, funding_index=Decimal(0))
    opened = apply_fill(None, SYMBOL, side, beyond, price, funding_index=Decimal(0))
    flip = apply_fill(held, SYMBOL, side, abs(held.quantity) + beyond, price, funding_index=Decimal(0))
    assert close.position is None
    assert flip == Fill(opened.position, close.realised_pnl, close.gain)


@settings(deadline=None)
@given(positions(SYMBOL), sides, quantities, prices)
def test_fill_at_the_mark_changes_equity_only_by_dust_below_one_unit(
    held: Position, side: Side, quantity: Decimal, price: Decimal
) -> None:
    before, after = Books(held), traded(held, side, [quantity], price)
    assert Decimal(0) <= after.rounding < UNIT
    assert before.equity(price) == after.equity(price) + after.rounding
    assert after.cash == after.cash.quantize(UNIT)
    if after.position is not None and held.quantity * after.position.quantity > 0:
        assert after.rounding == 0


@settings(deadline=None)
@given(positions(SYMBOL), st.integers(1, 99), prices)
def test_reduction_keeps_the_entry_price_but_for_dust(held: Position, percent: int, price: Decimal) -> None:
    size = (abs(held.quantity) * percent / 100).quantize(UNIT)
    if not 0 < size < abs(held.quantity):
        return
    reduced = apply_fill(
        held, SYMBOL, Side.SELL if held.quantity > 0 else Side.BUY, size, price, funding_index=Decimal(0)
    ).position
    assert reduced is not None
    # c' differs from its share of c by less than one unit of cash.
    kept = Fraction(held.entry_cost) * Fraction(reduced.quantity) / Fraction(held.quantity)
    assert abs(Fraction(reduced.entry_cost) - kept) < Fraction(UNIT)
