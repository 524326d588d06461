"""Pause switches: what goes through is what the table of the rules says, and a stricter state lets no more through."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.controls import (
    ENGINE_CONTROL,
    account_control,
    allow_trade,
    allow_withdrawal,
    liquidation_put_off_by,
    symbol_control,
)
from margin.domain.order import Order
from margin.domain.position import Position
from margin.errors import NotActiveError
from tests.property.strategies import SYMBOLS, prices, quantities, sides

if TYPE_CHECKING:
    from collections.abc import Callable

STRICTNESS = ("active", "reduce-only", "paused")


@dataclasses.dataclass(frozen=True)
class Case:
    account: Account
    order: Order
    controls: dict[str, str]

    def lets_through(self) -> tuple[bool, bool, bool]:
        """Whether the trade, a withdrawal and a liquidation go through."""
        return (
            _passes(lambda: allow_trade(self.controls, self.account, self.order)),
            _passes(lambda: allow_withdrawal(self.controls, self.account)),
            liquidation_put_off_by(self.controls, self.account) is None,
        )


def _passes(rule: Callable[[], None]) -> bool:
    try:
        rule()
    except NotActiveError:
        return False
    return True


@st.composite
def cases(draw: st.DrawFn) -> Case:
    held = draw(st.dictionaries(st.sampled_from(SYMBOLS), st.tuples(sides, quantities), max_size=3))
    positions = {symbol: Position(symbol, side.sign * units, Decimal(1)) for symbol, (side, units) in held.items()}
    symbol = draw(st.sampled_from(SYMBOLS))
    as_held = [abs(positions[symbol].quantity)] if symbol in positions else []
    quantity = draw(st.sampled_from([*as_held, *(2 * units for units in as_held)]) if as_held else quantities)
    names = [ENGINE_CONTROL, account_control(1), account_control(2), *map(symbol_control, SYMBOLS)]
    controls = {name: draw(st.sampled_from(STRICTNESS)) for name in names}
    return Case(Account(1, Decimal(1), positions), Order(1, symbol, draw(sides), quantity, draw(prices)), controls)


@given(cases())
def test_what_goes_through_is_what_the_table_says(case: Case) -> None:
    states = case.controls
    engine, own = states[ENGINE_CONTROL], states[account_control(1)]
    held = [states[symbol_control(symbol)] for symbol in case.account.positions]
    of_the_trade = [engine, own, states[symbol_control(case.order.symbol)]]
    position = case.account.positions.get(case.order.symbol)
    after = case.order.side.sign * case.order.quantity + (position.quantity if position else 0)
    # Smaller than before and on the same side of zero.
    reduces = position is not None and abs(after) < abs(position.quantity) and after * position.quantity >= 0
    assert case.lets_through() == (
        "paused" not in of_the_trade and (reduces or "reduce-only" not in of_the_trade),
        "paused" not in [engine, own, *held],
        "paused" not in [engine, *held],
    )


@given(cases(), st.data())
def test_stricter_state_lets_no_more_through(case: Case, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(case.controls)))
    stricter = data.draw(st.sampled_from(STRICTNESS[STRICTNESS.index(case.controls[name]) :]))
    after = dataclasses.replace(case, controls={**case.controls, name: stricter})
    for before_passes, after_passes in zip(case.lets_through(), after.lets_through(), strict=True):
        assert before_passes or not after_passes
