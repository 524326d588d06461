from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from margin.domain.account import Account
from margin.domain.cash import deposit, withdraw
from margin.domain.decimals import ABSOLUTE_VALUE_MAX
from margin.domain.ledger import LedgerAccount, LedgerLine
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.market import Mark, Market
from margin.domain.order import Liquidity, Order, execute_order
from margin.domain.position import Side
from margin.domain.risk import assess
from margin.errors import RefusedError
from tests.property.strategies import NOW_US, SYMBOLS, at_prices, instruments, magnitudes, sides, units

HELD = SYMBOLS[:2]
factors = units(95 * 10**6, 105 * 10**6)
UNIT, PRICE_MAX = Decimal("0.00000001"), Decimal(1000000)


class AccountLife(RuleBasedStateMachine):
    """Any sequence of deposits, withdrawals, trades, price moves and liquidations of one account."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account(1, Decimal(0), {})
        self.market = Market({symbol: Mark(Decimal(100), NOW_US) for symbol in HELD}, {}, NOW_US)
        self.ledger: defaultdict[LedgerAccount, Fraction] = defaultdict(Fraction)

    def booked(self, account: Account, lines: tuple[LedgerLine, ...]) -> None:
        self.account = account
        assert sum(Fraction(line.amount) for line in lines) == 0
        for line in lines:
            self.ledger[line.ledger_account] += Fraction(line.amount)

    @rule(symbol=st.sampled_from(HELD), data=st.data())
    def configure(self, symbol: str, data: st.DataObject) -> None:
        configured = {**self.market.instruments, symbol: data.draw(instruments(symbol))}
        self.market = Market(self.market.marks, configured, NOW_US)

    @rule(symbol=st.sampled_from(HELD), percent=st.integers(-60, 80))
    def move(self, symbol: str, percent: int) -> None:
        self.shift(symbol, percent)

    def shift(self, symbol: str, percent: int) -> None:
        price = (self.market.mark_price(symbol) * (100 + percent) / 100).quantize(UNIT)
        self.market = at_prices(self.market, {symbol: min(max(price, UNIT), PRICE_MAX)})

    @initialize(amount=units(10**8, 10**14))
    def open(self, amount: Decimal) -> None:
        self.pay_in(amount)

    @rule(amount=magnitudes(4))
    def pay_in(self, amount: Decimal) -> None:
        result = deposit(self.account, amount, self.market)
        self.booked(result.account, result.ledger_lines)

    @rule(amount=magnitudes(5))
    def pay_out(self, amount: Decimal) -> None:
        try:
            result = withdraw(self.account, amount, self.market)
        except RefusedError:
            return
        assert result.account.balance >= 0
        assert result.risk is not None
        assert result.risk.equity >= result.risk.initial_margin
        self.booked(result.account, result.ledger_lines)

    @rule(
        symbol=st.sampled_from(HELD),
        side=sides,
        leverage=st.integers(1, 120),
        factor=factors,
        liquidity=st.sampled_from(Liquidity),
    )
    def trade(self, symbol: str, side: Side, leverage: int, factor: Decimal, liquidity: Liquidity) -> None:
        """Trade up to twelve times the equity: the smaller ones pass the margin test."""
        notional = max(assess(self.account, self.market).equity, Decimal(1)) * leverage / 10
        self.order(symbol, side, (notional / self.market.mark_price(symbol)).quantize(UNIT), factor, liquidity)

    @precondition(lambda self: self.account.positions)
    @rule(
        data=st.data(),
        share=st.sampled_from(["0.3", "0.5", "1", "1", "1.2"]),
        factor=factors,
        liquidity=st.sampled_from(Liquidity),
    )
    def trade_against_a_position(self, data: st.DataObject, share: str, factor: Decimal, liquidity: Liquidity) -> None:
        symbol = data.draw(st.sampled_from(sorted(self.account.positions)))
        quantity = self.account.positions[symbol].quantity
        side = Side.SELL if quantity > 0 else Side.BUY
        self.order(symbol, side, (abs(quantity) * Decimal(share)).quantize(UNIT), factor, liquidity)

    def order(self, symbol: str, side: Side, quantity: Decimal, factor: Decimal, liquidity: Liquidity) -> None:
        lot_size = self.market.instrument(symbol).lot_size
        if (held := self.account.positions.get(symbol)) is None or quantity != abs(held.quantity):
            quantity -= quantity % lot_size
        if not 0 < quantity < ABSOLUTE_VALUE_MAX:
            return
        price = max((self.market.mark_price(symbol) * factor).quantize(UNIT), UNIT)
        before = assess(self.account, self.market)
        try:
            order = Order(1, symbol, side, quantity, price, liquidity=liquidity)
            result = execute_order(self.account, order, self.market)
        except RefusedError:
            return
        self.booked(result.account, result.ledger_lines)
        assert result.risk == assess(result.account, self.market)
        if not before.liquidatable:
            # A closed position may leave dust below one unit behind in favour of the house.
            assert Fraction(result.risk.equity) + Fraction(UNIT) > result.risk.maintenance_margin

    @rule()
    def evaluate(self) -> None:
        self.liquidate_if_due()

    def liquidate_if_due(self) -> None:
        result = liquidate(self.account, self.market, LiquidationPolicy())
        assert (result is not None) is assess(self.account, self.market).liquidatable
        if result is not None:
            self.booked(result.account, result.ledger_lines)

    @precondition(lambda self: self.account.positions)
    @rule(data=st.data(), percent=st.integers(5, 60))
    def turn_against_a_position(self, data: st.DataObject, percent: int) -> None:
        symbol = data.draw(st.sampled_from(sorted(self.account.positions)))
        self.shift(symbol, -percent if self.account.positions[symbol].quantity > 0 else percent)
        self.liquidate_if_due()

    @invariant()
    def ledger_adds_up_to_zero_and_cash_is_the_balance(self) -> None:
        assert sum(self.ledger.values()) == 0
        assert self.ledger[LedgerAccount.CASH] == self.account.balance

    @invariant()
    def account_without_positions_has_no_debt(self) -> None:
        assert self.account.positions or self.account.balance >= 0


TestAnySequenceConservesMoney = AccountLife.TestCase
TestAnySequenceConservesMoney.settings = settings(
    deadline=None, max_examples=200, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
