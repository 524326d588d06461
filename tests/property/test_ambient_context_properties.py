from __future__ import annotations

import decimal
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from margin.domain import decimals
from margin.domain.account import calculate_equity
from margin.domain.cash import deposit, withdraw
from margin.domain.instrument import Instrument
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.liquidation_price import liquidation_price, solve_liquidation_price
from margin.domain.order import Order, execute_order, purely_reduces, trade_fee
from margin.domain.order_rules import limits_max, limits_min
from margin.domain.position import Fill, apply_fill
from margin.domain.risk import (
    assess,
    assess_positions,
    calculate_initial_margin_required,
    calculate_maintenance_margin_required,
    liquidation_assessment,
)
from margin.domain.safe_zone import covers, triggers
from margin.errors import MarginError
from tests.property.strategies import Book, Side, books, prices, quantities, sides, solvent_books

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE, SMALL, SMALL_GAIN = (
    Decimal("123456789012.12345678"),
    Decimal("-987654321.000000019"),
    Decimal("-987654321.00000001"),
)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (MarginError, ValueError) as refused:
        return type(refused), str(refused)


def calculations(book: Book, side: Side, quantity: Decimal, price: Decimal) -> list[Callable[[], Any]]:
    """Every public calculation of the domain, each called from outside and not only through another."""
    account, market = book.account, book.market
    symbol, position = next(iter(account.positions.items()))
    instrument, risk = market.instrument(symbol), assess(account, market)
    closed = Fill(None, SMALL, SMALL_GAIN)
    order = Order(1, symbol, side, quantity, price)
    beyond = decimal.Context(prec=50).add(position.quantity.copy_abs(), Decimal("0.00000001"))
    return [
        lambda: [function(SMALL) for function in (decimals.round_down, decimals.round_up)],
        lambda: [
            function(LARGE, SMALL)
            for function in (
                decimals.quotient_down,
                decimals.quotient_up,
                decimals.quotient_nearest,
                decimals.double_up,
                decimals.double_down,
            )
        ],
        lambda: decimals.plain(LARGE),
        lambda: decimals.require_amount("quantity", LARGE),
        lambda: Instrument(symbol, instrument.tiers).initial_amounts,
        lambda: Instrument(symbol, instrument.tiers).maintenance_amounts,
        lambda: [instrument.initial_margin(LARGE), instrument.maintenance_margin(LARGE)],
        lambda: position.entry_price,
        lambda: [position.notional(LARGE), position.unrealised_pnl(LARGE)],
        lambda: apply_fill(position, symbol, side, quantity, price, funding_index=LARGE),
        lambda: calculate_equity(account.balance, (LARGE + LARGE for _ in range(2))),
        lambda: account.with_balance_change(LARGE),
        lambda: balanced([LedgerLine(LedgerAccount.CASH, LARGE), LedgerLine(LedgerAccount.CASH, LARGE.copy_negate())]),
        lambda: balanced([LedgerLine(LedgerAccount.CASH, LARGE), LedgerLine(LedgerAccount.FEES, LARGE.copy_negate())]),
        lambda: fill_lines(closed, LARGE),
        lambda: [calculate_initial_margin_required(LARGE, price), calculate_maintenance_margin_required(LARGE, price)],
        lambda: [risk.utilisation_pct, risk.liquidatable, risk.withdrawable(account.balance)],
        lambda: [assess(account, market), liquidation_assessment(account, market), assess_positions(account, market)],
        lambda: [liquidation_price(account, held, market) for held in account.positions],
        lambda: solve_liquidation_price(position, instrument, LARGE),
        lambda: order.notional,
        lambda: [purely_reduces(position, Order(1, symbol, closing, beyond, price)) for closing in Side],
        lambda: execute_order(account, order, market),
        lambda: [limits_max(position, closing, instrument) for closing in Side],
        lambda: [limits_min(instrument), trade_fee(order, instrument)],
        lambda: deposit(account, LARGE, market),
        lambda: withdraw(account, quantity, market),
        lambda: liquidate(account, market, LiquidationPolicy()),
        lambda: triggers(account, market),
        lambda: covers(account, market, triggers(account, market)),
    ]


@settings(deadline=None, max_examples=40)
@given(st.one_of(solvent_books(), books(positions_min=1, may_be_stale=True)), sides, quantities, prices)
def test_results_do_not_depend_on_the_callers_decimal_context(
    book: Book, side: Side, quantity: Decimal, price: Decimal
) -> None:
    with decimal.localcontext(decimal.Context(prec=90)):
        expected = [outcome(call) for call in calculations(book, side, quantity, price)]
    with decimal.localcontext(decimal.Context(prec=5, rounding=decimal.ROUND_UP)):
        found = [outcome(call) for call in calculations(book, side, quantity, price)]
    assert found == expected
