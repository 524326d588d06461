"""A user's order, the tests it must pass, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, exact, plain, require_amount, round_down, round_up
from margin.domain.ledger import LedgerLine, balanced, fill_lines
from margin.domain.position import Fill, Side, apply_fill
from margin.domain.risk import AccountRisk, assess
from margin.errors import (
    InLiquidationError,
    InsufficientMarginError,
    InvalidRequestError,
    LimitExceededError,
    OutsidePriceBandError,
    StaleMarkPriceError,
)

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = ["Order", "TradeResult", "execute_order", "purely_reduces"]


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
        Charged to the balance, 8 decimals.
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


@exact
def execute_order(account: Account, order: Order, market: Market) -> TradeResult:
    """Test an order against every rule and execute it.

    The margin test takes the state after the trade at mark prices without the trade's own gain, so that nobody trades
    at a better price than the mark to borrow against it: E' = E + min(0, s * x * (mark - price)) - fee must cover
    IM'. An order that only reduces is also accepted when it leaves MM' <= MM and E' / MM' >= E / MM.

    Raises
    ------
    NoMarkPriceError
        When the symbol, or another one that the account holds, has no mark price.
    InvalidRequestError
        When the quantity is no multiple of the lot size and does not close the position whole.
    OutsidePriceBandError
        When the price is too far from the mark.
    StaleMarkPriceError
        When risk would be added while a mark that the account depends on is stale.
    LimitExceededError
        When the position would reach 1e12 units.
    InLiquidationError
        When the account has positions and no equity.
    InsufficientMarginError
        When the margin test fails.
    ValueError
        When the order is another account's.
    """
    if order.account_id != account.account_id:
        raise ValueError("an order is executed on its own account")
    position = account.positions.get(order.symbol)
    reduces = purely_reduces(position, order)
    _check_terms(order, position, market)
    if not reduces:
        _check_freshness(account, order.symbol, market)

    before = assess(account, market)
    if before.equity <= 0 and account.positions:
        raise InLiquidationError(
            f"Equity is {plain(before.equity)}: no trade is accepted until the account is funded or liquidated."
        )
    fee = round_up(market.instrument(order.symbol).taker_fee * order.notional)
    fill = apply_fill(position, order.symbol, order.side, order.quantity, order.price)
    if fill.position is not None and abs(fill.position.quantity) >= ABSOLUTE_VALUE_MAX:
        raise LimitExceededError("A position must stay below 1000000000000 units.")
    after = account.with_balance_change(fill.realised_pnl - fee).with_position(order.symbol, fill.position)
    risk = assess(after, market)

    advantage = order.side.sign * order.quantity * (market.mark_price(order.symbol) - order.price)
    tested_equity = before.equity + min(Decimal(0), advantage) - fee
    if not (
        tested_equity >= risk.initial_margin or (reduces and _relieves(before, tested_equity, risk.maintenance_margin))
    ):
        raise InsufficientMarginError(
            f"Insufficient equity. Required: {plain(risk.initial_margin)}, Available: {plain(tested_equity)}"
        )
    return TradeResult(after, fill, fee, risk, balanced(fill_lines(fill, fee)))


@exact
def purely_reduces(position: Position | None, order: Order) -> bool:
    """Whether an order makes a position smaller, closing it at the most; it never opens one."""
    if position is None:
        return False
    return position.quantity * order.side.sign < 0 and order.quantity <= abs(position.quantity)


def _relieves(before: AccountRisk, tested_equity: Decimal, maintenance_margin: Decimal) -> bool:
    """Compare E' / MM' >= E / MM without dividing, so that closing everything (MM' = 0) needs no case of its own."""
    return (
        maintenance_margin <= before.maintenance_margin
        and tested_equity * before.maintenance_margin >= before.equity * maintenance_margin
    )


def _check_terms(order: Order, position: Position | None, market: Market) -> None:
    instrument = market.instrument(order.symbol)
    # A position older than the present lot size must stay closable.
    closes_whole = purely_reduces(position, order) and position is not None and order.quantity == abs(position.quantity)
    if order.quantity % instrument.lot_size != 0 and not closes_whole:
        raise InvalidRequestError(f"quantity must be a multiple of {plain(instrument.lot_size)}", field="quantity")
    mark_price = market.mark_price(order.symbol)
    width = instrument.price_band * mark_price
    if abs(order.price - mark_price) > width:
        lowest, highest = round_up(mark_price - width), round_down(mark_price + width)
        raise OutsidePriceBandError(
            f"Price {plain(order.price)} is too far from the mark price {plain(mark_price)}; "
            f"allowed is {plain(lowest)} to {plain(highest)}."
        )


def _check_freshness(account: Account, symbol: str, market: Market) -> None:
    for valued in (symbol, *account.positions):
        if market.is_stale(valued):
            raise StaleMarkPriceError(
                f"The mark price of {valued} is stale; only a reduction is accepted until a new one."
            )
