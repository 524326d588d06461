"""A user's order, the tests it must pass, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.decimals import exact, plain, quotient_up, require_amount, round_up
from margin.domain.ledger import LedgerLine, balanced, fill_lines
from margin.domain.order_rules import check_freshness, check_order, reducible
from margin.domain.position import Fill, Side, apply_fill
from margin.domain.risk import AccountRisk, assess
from margin.errors import InLiquidationError, InsufficientMarginError

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = [
    "Liquidity",
    "Order",
    "OrderTrial",
    "TradeResult",
    "execute_order",
    "fee_rate",
    "purely_reduces",
    "trade_fee",
    "try_order",
]


class Liquidity(StrEnum):
    """Who of the two sides of a trade was there first: it decides which fee the account pays."""

    MAKER = "MAKER"
    """Whose order waited in the book."""
    TAKER = "TAKER"
    """Whose order met it."""


@dataclass(frozen=True, slots=True)
class Order:
    """A trade that a user asks for.

    Parameters
    ----------
    account_id : int
    symbol : str
    side : Side
    quantity : Decimal
        Units, above 0, below 1e12, at most 8 decimals.
    price : Decimal
        Quote currency for one unit, within the same limits.
    reduce_only : bool
        Whether it is refused unless it purely reduces a position.
    liquidity : Liquidity
    client_order_id : str or None
        Whatever the caller knows the order by; opaque, recorded and answered, and nothing is decided on it.

    Raises
    ------
    ValueError
        When a limit does not hold.
    """

    account_id: int
    symbol: str
    side: Side
    quantity: Decimal
    price: Decimal
    reduce_only: bool = False
    liquidity: Liquidity = Liquidity.TAKER
    client_order_id: str | None = None

    def __post_init__(self) -> None:
        require_amount("quantity", self.quantity)
        require_amount("price", self.price)

    @property
    @exact
    def notional(self) -> Decimal:
        """Quantity times price, in quote currency."""
        return self.quantity * self.price


@dataclass(frozen=True, slots=True)
class TradeResult:
    """An executed order.

    Parameters
    ----------
    account : Account
        After the trade.
    fill : Fill
    fee : Decimal
        Charged to the balance, 8 decimals; below 0 it is a rebate.
    risk : AccountRisk
        After the trade, at mark prices, the trade's own gain counted.
    ledger_lines : tuple of LedgerLine
        They add up to zero; the line of CASH is the change of the balance.
    """

    account: Account
    fill: Fill
    fee: Decimal
    risk: AccountRisk
    ledger_lines: tuple[LedgerLine, ...]


@dataclass(frozen=True, slots=True)
class OrderTrial:
    """An order that no rule but perhaps that of margin refuses, and what it would come to.

    ``tested_equity`` is E' of the margin test, ``required`` what would be enough for it, rounded up to 8 decimals where
    that is the less which a reduction needs, and ``carried`` whether the test is passed.
    """

    result: TradeResult
    tested_equity: Decimal
    required: Decimal
    carried: bool


@exact
def execute_order(account: Account, order: Order, market: Market) -> TradeResult:
    """Test an order against every rule and execute it.

    Whatever refuses it, the caller learns first what another price, size or balance would not cure:

    1. whether the account may trade the symbol this way at all: the instrument's status, reduce_only;
    2. the quantity: lot, least, most, position limit;
    3. the price: tick, mark price and band;
    4. the account: stale marks where risk is added, liquidation, margin.

    The margin test takes the state after the trade at mark prices without the trade's own gain, so that nobody trades
    at a better price than the mark to borrow against it: E' = E + min(0, s * x * (mark - price)) - fee must cover
    IM'. An order that only reduces is also accepted when it leaves MM' <= MM and E' / MM' >= E / MM.

    Raises
    ------
    InstrumentStatusError
        When the instrument's status forbids the trade.
    NotReducingError
        When it is to reduce only and would not.
    QuantityOffLotError, QuantityTooSmallError
        When the quantity is no multiple of the lot size, or below the least, and does not close the position whole.
    QuantityTooLargeError
        When the quantity is above the most of one trade.
    PositionLimitError, LimitExceededError
        When the position would be above the instrument's limit, or reach 1e12 units, and the order does not reduce.
    PriceOffTickError
        When the price is no multiple of the tick size.
    NoMarkPriceError
        When the symbol, or another one that the account holds, has no mark price.
    OutsidePriceBandError
        When the price is too far from the mark.
    StaleMarkPriceError
        When risk would be added while a mark that the account depends on is stale.
    InLiquidationError
        When the account has positions and no equity.
    InsufficientMarginError
        When the margin test fails; it names the E' that would have passed it.
    ValueError
        When the order is another account's.
    """
    trial = try_order(account, order, market)
    if not trial.carried:
        required, available = plain(trial.required), plain(trial.tested_equity)
        raise InsufficientMarginError(f"Insufficient equity. Required: {required}, Available: {available}")
    return trial.result


@exact
def try_order(account: Account, order: Order, market: Market) -> OrderTrial:
    """Execute an order whether or not the account has the margin for it; see :func:`execute_order`.

    Raises
    ------
    OrderRuleError, LimitExceededError, NoMarkPriceError, OutsidePriceBandError, StaleMarkPriceError, InLiquidationError
    ValueError
        When the order is another account's.
    """
    if order.account_id != account.account_id:
        raise ValueError("an order is executed on its own account")
    position = account.positions.get(order.symbol)
    reduces = purely_reduces(position, order)
    check_order(order, position, market)
    if not reduces:
        check_freshness((order.symbol, *account.positions), market)

    before = assess(account, market)
    if before.equity <= 0 and account.positions:
        raise InLiquidationError(
            f"Equity is {plain(before.equity)}: no trade is accepted until the account is funded or liquidated."
        )
    fee = trade_fee(order, market.instrument(order.symbol))
    index = market.funding_index(order.symbol)
    fill = apply_fill(position, order.symbol, order.side, order.quantity, order.price, funding_index=index)
    after = account.with_balance_change(fill.realised_pnl - fee).with_position(order.symbol, fill.position)
    risk = assess(after, market)

    advantage = order.side.sign * order.quantity * (market.mark_price(order.symbol) - order.price)
    tested_equity = before.equity + min(Decimal(0), advantage) - fee
    carried, required = tested_equity >= risk.initial_margin, risk.initial_margin
    if reduces:
        carried = carried or _relieves(before, tested_equity, risk.maintenance_margin)
        required = min(required, _relief_min(before, risk.maintenance_margin))
    result = TradeResult(after, fill, fee, risk, balanced(fill_lines(fill, fee)))
    return OrderTrial(result, tested_equity, required, carried)


@exact
def purely_reduces(position: Position | None, order: Order) -> bool:
    """Whether an order makes a position smaller, closing it at the most; it never opens one."""
    return order.quantity <= reducible(position, order.side)


@exact
def trade_fee(order: Order, instrument: Instrument) -> Decimal:
    """Fee of a trade, in quote currency: the rate of its liquidity times its notional, rounded up to 8 decimals.

    A rebate is rounded up too, against its receiver.
    """
    return round_up(fee_rate(order, instrument) * order.notional)


def fee_rate(order: Order, instrument: Instrument) -> Decimal:
    """Return the fee for each unit of notional, by the order's liquidity; below 0 for a rebate."""
    return instrument.maker_fee if order.liquidity is Liquidity.MAKER else instrument.taker_fee


def _relieves(before: AccountRisk, tested_equity: Decimal, maintenance_margin: Decimal) -> bool:
    """Compare E' / MM' >= E / MM without dividing, so that closing everything (MM' = 0) needs no case of its own."""
    return (
        maintenance_margin <= before.maintenance_margin
        and tested_equity * before.maintenance_margin >= before.equity * maintenance_margin
    )


def _relief_min(before: AccountRisk, maintenance_margin: Decimal) -> Decimal:
    """Return the least E' of 8 decimals that relieves; a position that is made smaller never needs more margin."""
    return quotient_up(before.equity * maintenance_margin, before.maintenance_margin)
