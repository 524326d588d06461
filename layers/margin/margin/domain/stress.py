"""What liquidations would come to if prices moved: over all accounts, at each of some sets of moved marks.

Nothing is estimated: an account is closed at a moved market by just what :func:`margin.domain.liquidation.liquidate`
closes there; a property test holds the two against each other. What makes that affordable is that most accounts can be
dismissed at once. H = E - MM is a sum of one function for each symbol, each of which falls with every move against the
position, so an account that holds where all its prices are the worst of any shock holds in every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from margin.domain.decimals import exact, round_down, round_up
from margin.domain.liquidation import fee_room, liquidation_fee, quantity_to_close
from margin.domain.market import Mark
from margin.domain.risk import favourable_price

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from margin.domain.account import Account
    from margin.domain.liquidation import LiquidationPolicy
    from margin.domain.market import Market
    from margin.domain.position import Position

__all__ = ["MOVE_MAX", "MOVE_MIN", "StressOutcome", "StressTest", "moved_market"]

MOVE_MIN: Final = Decimal("-0.99")
MOVE_MAX: Final = Decimal(10)

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class StressOutcome:
    """What liquidating everybody who is to be liquidated at one market comes to; amounts exact, in quote currency.

    Parameters
    ----------
    accounts : int
        How many accounts are liquidated, in part or whole.
    notional : Decimal
        What is closed of their positions, at the marks.
    shortfall : Decimal
        What they cannot pay, 0 or above.
    fees : Decimal
        What the insurance fund receives.
    """

    accounts: int = 0
    notional: Decimal = _ZERO
    shortfall: Decimal = _ZERO
    fees: Decimal = _ZERO

    @exact
    def missing(self, fund_balance: Decimal) -> Decimal:
        """Compute what an insurance fund that receives the fees lacks to pay the shortfall; 0 when it suffices."""
        return max(_ZERO, self.shortfall - self.fees - fund_balance)


class _Closing(NamedTuple):
    notional: Decimal
    shortfall: Decimal
    fees: Decimal


@exact
def moved_market(market: Market, moves: Mapping[str, Decimal]) -> Market:
    """Return the market as it would be if the moved marks were set at this moment, all others as they are.

    Parameters
    ----------
    market : Market
    moves : mapping of str to Decimal
        By symbol the share of its mark by which the price moves, from `MOVE_MIN` to `MOVE_MAX`, 8 decimals at most:
        -0.3 is a fall by 30 %. A moved mark is fresh, however old it was and whatever waits to be confirmed beside it,
        and rounded up to 8 decimals, as marks have.

    Raises
    ------
    NoMarkPriceError
        When a symbol has no mark price to move.
    ValueError
        When a move is not within the limits.
    """
    if not all(MOVE_MIN <= move <= MOVE_MAX and move == round_down(move) for move in moves.values()):
        raise ValueError("moves are shares from -0.99 to 10 with at most 8 decimals")
    marks = {
        symbol: Mark(round_up(market.mark_price(symbol) * (1 + move)), market.now_us) for symbol, move in moves.items()
    }
    waiting = {symbol: price for symbol, price in market.waiting.items() if symbol not in moves}
    return replace(market, marks={**market.marks, **marks}, waiting=waiting)


class StressTest:
    """Adds up, account by account, what liquidations would come to at each of some shocks.

    A shock is taken by itself, from the market as it is; closing does not move the marks further.

    Parameters
    ----------
    market : Market
        What prices move from.
    shocks : sequence of mappings
        For each its moves by symbol, as :func:`moved_market` takes them.
    policy : LiquidationPolicy
        How far a liquidation goes.

    Raises
    ------
    NoMarkPriceError
        When a symbol has no mark price to move.
    ValueError
        When a move is not within the limits.
    """

    def __init__(self, market: Market, shocks: Sequence[Mapping[str, Decimal]], policy: LiquidationPolicy) -> None:
        self._market = market
        self._moved = [moved_market(market, moves) for moves in shocks]
        self._prices = [
            {symbol: moved.mark_price(symbol) for symbol in moves}
            for moves, moved in zip(shocks, self._moved, strict=True)
        ]
        self._policy = policy
        self._outcomes = [StressOutcome() for _ in shocks]
        self._worst: dict[tuple[str, bool], Decimal] = {}
        self._lines: dict[str, tuple[tuple[Decimal, Decimal], ...]] = {}

    @property
    def outcomes(self) -> tuple[StressOutcome, ...]:
        """What the accounts that were added come to, shock by shock."""
        return tuple(self._outcomes)

    @property
    def prices(self) -> tuple[Mapping[str, Decimal], ...]:
        """Mark prices after each shock, of the symbols that it moves."""
        return tuple(self._prices)

    @exact
    def add(self, account: Account) -> None:
        """Add one account.

        Raises
        ------
        NoMarkPriceError
            When a position's symbol has no mark price.
        """
        held = account.positions.values()
        worst = sum((self._slack(one, self._worst_price(one)) for one in held), start=account.balance)
        if worst >= 0:
            return
        present = {one.symbol: favourable_price(one, self._market) for one in held}
        slacks = {one.symbol: self._slack(one, present[one.symbol]) for one in held}
        slack_now = sum(slacks.values(), start=account.balance)
        stale = {symbol for symbol in present if self._market.is_stale(symbol)}
        unmoved: _Closing | None = None
        is_unmoved_known = False
        for number, moved in enumerate(self._prices):
            touched = [one for one in held if one.symbol in moved]
            slack = slack_now
            for one in touched:
                slack += self._slack(one, moved[one.symbol]) - slacks[one.symbol]
            if slack >= 0:
                continue
            if touched:
                prices = {**present, **{one.symbol: moved[one.symbol] for one in touched}}
                closing = self._closing(account, prices, stale - moved.keys())
            else:
                # The same at every shock that does not concern the account.
                if not is_unmoved_known:
                    unmoved, is_unmoved_known = self._closing(account, present, stale), True
                closing = unmoved
            if closing is not None:
                self._count(number, closing)

    def _closing(self, account: Account, prices: Mapping[str, Decimal], stale: AbstractSet[str]) -> _Closing | None:
        """Close an account whose equity is below its margin as `liquidate` does, in sums alone, a fifth of the work.

        None where all that it holds is stale. Closing a part of a position changes no equity, closing the whole loses
        what is rounded off. Without equity nothing but closing the whole account is enough.
        """
        held = account.positions
        margins = {symbol: self._margin(symbol, abs(one.quantity) * prices[symbol]) for symbol, one in held.items()}
        margin = sum(margins.values(), start=_ZERO)
        gains = {symbol: self._value(one, one.quantity * prices[symbol]) for symbol, one in held.items()}
        equity = sum(gains.values(), start=account.balance)
        shortfall = round_up(max(_ZERO, -equity))
        # What speaks for the account about stale marks is nothing that a fee can be taken from.
        doubts = (held[symbol].quantity * (prices[symbol] - self._market.mark_price(symbol)) for symbol in stale)
        doubt = sum(doubts, start=_ZERO)
        notional = fees = _ZERO
        left = len(held)
        fresh = sorted(held.keys() - stale, key=lambda symbol: (-margins[symbol], symbol))
        for symbol in fresh:
            deficit = (1 + self._policy.buffer) * margin - equity
            if deficit <= 0:
                break
            position, price, instrument = held[symbol], prices[symbol], self._market.instrument(symbol)
            quantity = size = abs(position.quantity)
            if equity > 0:
                room = fee_room(equity - doubt, left)
                quantity = quantity_to_close(position, price, instrument, deficit, self._policy, fee_max=room)
            margin -= margins[symbol]
            if quantity < size:
                margin += self._margin(symbol, (size - quantity) * price)
            else:
                equity -= gains[symbol] - round_down(gains[symbol])
                left -= 1
            closed = quantity * price
            fee = liquidation_fee(instrument, closed, equity - doubt, left)
            equity -= fee
            notional += closed
            fees += fee
        return _Closing(notional, _ZERO if left else shortfall, fees) if fresh else None

    def _slack(self, position: Position, price: Decimal) -> Decimal:
        """Calculate what a position adds to H at a price: q * p - c, its pending funding, less its margin."""
        signed_notional = position.quantity * price
        return self._value(position, signed_notional) - self._margin(position.symbol, abs(signed_notional))

    def _value(self, position: Position, signed_notional: Decimal) -> Decimal:
        """Calculate what a position adds to equity; where nothing was ever paid, one product less of a hot loop."""
        value = signed_notional - position.entry_cost + position.entry_funding
        index = self._market.funding_index(position.symbol)
        return value - position.quantity * index if index else value

    def _margin(self, symbol: str, notional: Decimal) -> Decimal:
        """Maintenance margin of a notional: the largest of the tiers' lines."""
        lines = self._lines.get(symbol)
        if lines is None:
            lines = self._lines[symbol] = self._market.instrument(symbol).maintenance_lines
        if len(lines) == 1:
            return lines[0][0] * notional
        return max(rate * notional - amount for rate, amount in lines)

    def _worst_price(self, position: Position) -> Decimal:
        """Price of all shocks that hurts a position most, its present one included where a shock does not move it."""
        key = (position.symbol, position.quantity > 0)
        worst = self._worst.get(key)
        if worst is None:
            present = favourable_price(position, self._market)
            prices = (moved.get(position.symbol, present) for moved in self._prices)
            worst = self._worst[key] = min(prices) if position.quantity > 0 else max(prices)
        return worst

    def _count(self, number: int, closing: _Closing) -> None:
        before = self._outcomes[number]
        self._outcomes[number] = StressOutcome(
            accounts=before.accounts + 1,
            notional=before.notional + closing.notional,
            shortfall=before.shortfall + closing.shortfall,
            fees=before.fees + closing.fees,
        )
