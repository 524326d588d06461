"""Closing as much of an account as it takes, once its equity fell below its maintenance margin.

The least is closed that restores the account: for x of notional closed, equity falls by f * x (f: the fee rate) and the
target falls by t * x (t: the target rate at the margin), so x = (T - E) / (t - f), solved per tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact, multiple_up, quotient_down, quotient_up, round_down, round_up
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.position import Position, Side, apply_fill
from margin.domain.risk import assess, favourable_price, liquidation_assessment

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.instrument import Instrument
    from margin.domain.market import Market
    from margin.domain.risk import AccountRisk

__all__ = [
    "EQUITY_BELOW_MAINTENANCE",
    "ClosedPosition",
    "LiquidationPolicy",
    "LiquidationResult",
    "fee_room",
    "liquidate",
    "liquidation_fee",
    "quantity_to_close",
]

EQUITY_BELOW_MAINTENANCE: Final = "EQUITY_BELOW_MAINTENANCE"

_DUST: Final = Decimal("1e-8")


@dataclass(frozen=True, slots=True)
class LiquidationPolicy:
    """How far a liquidation goes.

    Parameters
    ----------
    buffer : Decimal
        Share of the maintenance margin that equity is to have above it afterwards, 0 <= buffer: the target requirement
        is T = (1 + buffer) * MM.
    remaining_notional_min : Decimal
        A position is closed whole rather than left with less notional than this, in quote currency.

    Raises
    ------
    ValueError
        When one of them is negative or no number.
    """

    buffer: Decimal = Decimal("0.1")
    remaining_notional_min: Decimal = Decimal(10)

    def __post_init__(self) -> None:
        if not (self.buffer.is_finite() and self.remaining_notional_min.is_finite()):
            raise ValueError("a liquidation policy is made of finite numbers")
        if self.buffer < 0 or self.remaining_notional_min < 0:
            raise ValueError("buffer and least remaining notional are never negative")


@dataclass(frozen=True, slots=True)
class ClosedPosition:
    """What a liquidation closed of one position.

    Parameters
    ----------
    symbol : str
    quantity, remaining : Decimal
        Signed units closed and left open.
    entry_price : Decimal
        To the nearest 8th decimal.
    price : Decimal
        What it was closed at: the mark.
    bankruptcy_price : Decimal or None
        Price p * (1 -/+ E / N) at which closing everything would leave the account nothing, in 8 decimals, rounded in
        its favour; None where that is not above 0.
    realised_pnl, fee : Decimal
        In 8 decimals. The fee went to the insurance fund.
    """

    symbol: str
    quantity: Decimal
    remaining: Decimal
    entry_price: Decimal
    price: Decimal
    bankruptcy_price: Decimal | None
    realised_pnl: Decimal
    fee: Decimal


@dataclass(frozen=True, slots=True)
class LiquidationResult:
    """A liquidation.

    Parameters
    ----------
    account : Account
        After it.
    before, after : AccountRisk
        As :func:`margin.domain.risk.liquidation_assessment` values the account.
    reason : str
        A constant that programs may branch on.
    closed : tuple of ClosedPosition
        In the order in which they were closed: those with the largest maintenance margin first.
    fee : Decimal
        What the insurance fund received.
    shortfall : Decimal
        What the account could not pay, 0 or above; it is booked to the ledger account UNCOVERED.
    ledger_lines : tuple of LedgerLine
        They add up to zero; the line of CASH is the change of the balance.
    """

    account: Account
    before: AccountRisk
    after: AccountRisk
    reason: str
    closed: tuple[ClosedPosition, ...]
    fee: Decimal
    shortfall: Decimal
    ledger_lines: tuple[LedgerLine, ...]


@exact
def liquidate(account: Account, market: Market, policy: LiquidationPolicy) -> LiquidationResult | None:
    """Close the least that restores equity to the target, at the marks, the position with the largest margin first.

    The funding of the account is settled before, see :func:`margin.domain.funding.settle_funding`.

    Only positions whose mark is fresh are closed. Each is closed by just so much as the target still needs, rounded up
    to the lot, or whole when that is not enough or leaves less than is allowed to be left. When nothing is left open
    and the balance is below 0, it is brought to 0: negative equity is the shortfall, and dust comes back from where
    it went, so that no shortfall is larger than what closing at the bankruptcy prices would have spared.

    The fee is at most the instrument's cap on what is closed, and at most what the account has above bankruptcy.

    Returns
    -------
    LiquidationResult or None
        None when the account is not liquidatable, or all that it holds is stale, so that nothing can be closed.

    Raises
    ------
    NoMarkPriceError
        When a position's symbol has no mark price.
    """
    before = liquidation_assessment(account, market)
    fresh = [position for position in account.positions.values() if not market.is_stale(position.symbol)]
    if not before.liquidatable or (account.positions and not fresh):
        return None
    fresh.sort(key=lambda position: (-_maintenance_margin(position, market), position.symbol))
    held = account.positions.values()
    notional = sum((one.notional(favourable_price(one, market)) for one in held), start=Decimal(0))
    after = account
    # Kept up to date position by position: assessing the account anew each time would take the square of their number.
    equity, margin = before.equity, before.maintenance_margin
    equity_at_marks = at_marks = assess(account, market).equity
    closed: list[ClosedPosition] = []
    lines: list[LedgerLine] = []
    for position in fresh:
        deficit = (1 + policy.buffer) * margin - equity
        if deficit <= 0:
            break
        price = market.mark_price(position.symbol)
        instrument = market.instrument(position.symbol)
        room = fee_room(at_marks, len(after.positions))
        quantity = quantity_to_close(position, price, instrument, deficit, policy, fee_max=room)
        fill = apply_fill(
            position,
            position.symbol,
            _closing_side(position),
            quantity,
            price,
            funding_index=market.funding_index(position.symbol),
        )
        after = after.with_position(position.symbol, fill.position).with_balance_change(fill.realised_pnl)
        dust = fill.gain - fill.realised_pnl
        fee = liquidation_fee(instrument, quantity * price, at_marks - dust, len(after.positions))
        after = after.with_balance_change(-fee)
        equity, at_marks = equity - dust - fee, at_marks - dust - fee
        margin -= _maintenance_margin(position, market)
        if fill.position is not None:
            margin += _maintenance_margin(fill.position, market)
        remaining = Decimal(0) if fill.position is None else fill.position.quantity
        closed.append(
            ClosedPosition(
                symbol=position.symbol,
                quantity=position.quantity - remaining,
                remaining=remaining,
                entry_price=position.entry_price,
                price=price,
                bankruptcy_price=_bankruptcy_price(position, price, before.equity, notional),
                realised_pnl=fill.realised_pnl,
                fee=fee,
            )
        )
        lines += [*fill_lines(fill), LedgerLine(LedgerAccount.CASH, -fee), LedgerLine(LedgerAccount.INSURANCE, fee)]
    debt = Decimal(0) if after.positions else max(Decimal(0), -after.balance)
    # What is missing beyond negative equity is the dust of what was closed: it is taken back from where it went.
    shortfall = min(debt, round_up(max(Decimal(0), -equity_at_marks)))
    lines += [
        LedgerLine(LedgerAccount.CASH, debt),
        LedgerLine(LedgerAccount.UNCOVERED, -shortfall),
        LedgerLine(LedgerAccount.ROUNDING, shortfall - debt),
    ]
    after = after.with_balance_change(debt)
    return LiquidationResult(
        account=after,
        before=before,
        after=liquidation_assessment(after, market),
        reason=EQUITY_BELOW_MAINTENANCE,
        closed=tuple(closed),
        fee=sum((one.fee for one in closed), start=Decimal(0)),
        shortfall=shortfall,
        ledger_lines=balanced(lines),
    )


@exact
def liquidation_fee(instrument: Instrument, notional: Decimal, equity: Decimal, positions: int) -> Decimal:
    """Fee for closing so much notional: the instrument's cap, or what the account then has above bankruptcy.

    Parameters
    ----------
    instrument : Instrument
    notional, equity : Decimal
        What was closed, and the account's equity after it at the marks, before the fee; quote currency.
    positions : int
        How many are still open.
    """
    return round_down(min(instrument.liquidation_fee_cap * notional, fee_room(equity, positions)))


@exact
def fee_room(equity: Decimal, positions: int) -> Decimal:
    """Return the most that a fee can be: what an account has above bankruptcy at the marks, in quote currency.

    What is still open may lose its dust when it is closed in its turn.
    """
    return max(Decimal(0), equity - positions * _DUST)


@exact
def quantity_to_close(
    position: Position,
    price: Decimal,
    instrument: Instrument,
    deficit: Decimal,
    policy: LiquidationPolicy,
    *,
    fee_max: Decimal,
) -> Decimal:
    """Solve for the fewest units that bring the target down to equity, or answer all where that is not enough.

    Maintenance margin is the largest of the tiers' lines, so the target is met where it is met under every line, and
    the answer is the largest root. No slope is 0 or less: an instrument's fee is below each of its maintenance rates.
    The fee is the smaller one of its cap and ``fee_max``, so under each line the smaller root of the two is enough.

    Parameters
    ----------
    position : Position
    price : Decimal
        What it is closed at: the mark.
    instrument : Instrument
        Of the position's symbol.
    deficit : Decimal
        By how much the account's equity is below its target, in quote currency.
    policy : LiquidationPolicy
    fee_max : Decimal
        What the fee is at most, see :func:`fee_room`.
    """
    size = abs(position.quantity)
    notional = position.notional(price)
    maintenance_margin = instrument.maintenance_margin(notional)
    quantity = Decimal(0)
    for rate, amount in instrument.maintenance_lines:
        below_margin = maintenance_margin - (rate * notional - amount)
        missing = deficit - (1 + policy.buffer) * below_margin
        relief = (1 + policy.buffer) * rate
        at_the_cap = multiple_up(missing, (relief - instrument.liquidation_fee_cap) * price, instrument.lot_size)
        at_the_most = multiple_up(missing + fee_max, relief * price, instrument.lot_size)
        quantity = max(quantity, min(at_the_cap, at_the_most))
    left = size - quantity
    least_left = max(instrument.lot_size, instrument.min_quantity)
    return size if left < least_left or left * price < policy.remaining_notional_min else quantity


def _bankruptcy_price(position: Position, price: Decimal, equity: Decimal, notional: Decimal) -> Decimal | None:
    """Share equity among the positions in proportion to their notional: p * (1 - E / N) for a long, + for a short."""
    if position.quantity > 0:
        bankrupt_at = quotient_up(price * (notional - equity), notional)
    else:
        bankrupt_at = quotient_down(price * (notional + equity), notional)
    return bankrupt_at if bankrupt_at > 0 else None


def _maintenance_margin(position: Position, market: Market) -> Decimal:
    notional = position.notional(market.mark_price(position.symbol))
    return market.instrument(position.symbol).maintenance_margin(notional)


def _closing_side(position: Position) -> Side:
    return Side.SELL if position.quantity > 0 else Side.BUY
