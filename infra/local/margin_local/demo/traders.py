"""Accounts that trade: what each does next, by chance but the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Context, Decimal
from typing import TYPE_CHECKING, Any, Final

from margin.domain.decimals import plain, round_down
from margin.domain.position import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Deposit", "Order", "Trader", "Traders"]

DEPOSIT_HUNDREDS: Final = (10, 1_000)
LEVERAGE_PCT: Final = (100, 480)

_ACTS_PER_10_000 = 75
_OPENS_TOO_PCT = 75
_BALANCE_MIN = Decimal(100)
_HUNDRED = Decimal(100)
_SKEWED_PCT = 30
_SKEW_BP = 50
_OUTSIDE_BAND_PCT = (25, 60)
_TOO_LARGE_PCT = (600, 1_200)
_ADD_PCT = (10, 60)
_REDUCE_PCT = (20, 80)
_FLIP_PCT = (120, 200)
# Quantities that a person would write: four digits that count.
_FOUR_DIGITS = Context(prec=4, rounding=ROUND_DOWN)


@dataclass(frozen=True, slots=True)
class Deposit:
    """Money to be put into an account."""

    account_id: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """A trade to be sent; ``price`` is text, at the mark with the very digits of the mark."""

    account_id: int
    symbol: str
    side: Side
    quantity: Decimal
    price: str


@dataclass(slots=True)
class Trader:
    """What one account's owner knows: the balance (None: not heard yet) and the open positions."""

    account_id: int
    balance: Decimal | None = None
    positions: dict[str, Decimal] = field(default_factory=dict)


class Traders:
    """All accounts of a replay.

    Parameters
    ----------
    account_ids : sequence of int
    symbols : sequence of str
        What they trade.
    seed : int
        Decides everything that is left to chance; answers of the engine decide the rest.
    """

    def __init__(self, account_ids: Sequence[int], symbols: Sequence[str], seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - a replayable choice, no secret
        self._symbols = tuple(symbols)
        self.by_id = {account_id: Trader(account_id) for account_id in account_ids}
        self._kinds: tuple[tuple[Callable[[Trader, str, Mapping[str, str]], Order | None], int], ...] = (
            (self._add, 32),
            (self._reduce, 28),
            (self._flip, 14),
            (self._close, 10),
            (self._overreach, 10),
            (self._misprice, 6),
        )

    def first_deposits(self) -> list[Deposit]:
        """Deposit into every account, which opens it."""
        return [self._deposit(trader) for trader in self.by_id.values()]

    def first_orders(self, marks: Mapping[str, str]) -> list[list[Order]]:
        """Everybody's first positions, long or short, at 1x to 4.8x of an equal share of the balance for each symbol.

        One list for each symbol, to be sent one after the other: most hold all of them, each at least one.
        """
        chosen = {
            trader.account_id: {self._symbol(), *(one for one in self._symbols if self._of_100(_OPENS_TOO_PCT))}
            for trader in self.by_id.values()
        }
        rounds = []
        for symbol in self._symbols:
            openers = (trader for trader in self.by_id.values() if symbol in chosen[trader.account_id])
            orders = (self._open(trader, symbol, marks) for trader in openers)
            rounds.append([order for order in orders if order is not None])
        return rounds

    def next_actions(self, marks: Mapping[str, str]) -> list[Deposit | Order]:
        """Let some of the accounts act at these marks, once each at most."""
        acting = [trader for trader in self.by_id.values() if self._chance.randrange(10_000) < _ACTS_PER_10_000]
        actions = (self._next(trader, marks) for trader in acting)
        return [action for action in actions if action is not None]

    def learn(self, action: Deposit | Order, body: Mapping[str, Any]) -> None:
        """Take in the answer to an action that was accepted."""
        trader = self.by_id[action.account_id]
        trader.balance = Decimal(body["balance"])
        if isinstance(action, Order):
            position = body["position"]
            trader.positions.pop(action.symbol, None)
            if position is not None:
                trader.positions[action.symbol] = Decimal(position["quantity"])

    def learn_liquidation(self, account_id: int, body: Mapping[str, Any]) -> None:
        """Take in what a liquidation or a deleveraging left; with nothing much it rests until it is funded anew.

        Parameters
        ----------
        account_id : int
        body : mapping
            Balance and positions, as the engine answers them.
        """
        trader = self.by_id[account_id]
        trader.balance = Decimal(body["balance"])
        trader.positions = {held["symbol"]: Decimal(held["quantity"]) for held in body["positions"]}

    def _next(self, trader: Trader, marks: Mapping[str, str]) -> Deposit | Order | None:
        if not trader.positions and (trader.balance is None or trader.balance < _BALANCE_MIN):
            return self._deposit(trader)
        symbol = self._symbol()
        if symbol not in trader.positions:
            return self._open(trader, symbol, marks)
        kinds, weights = zip(*self._kinds, strict=True)
        (kind,) = self._chance.choices(kinds, weights)
        order: Order | None = kind(trader, symbol, marks)
        return order

    def _deposit(self, trader: Trader) -> Deposit:
        return Deposit(trader.account_id, Decimal(self._chance.randint(*DEPOSIT_HUNDREDS) * 100))

    def _open(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        side = self._chance.choice((Side.BUY, Side.SELL))
        return self._of_balance(trader, symbol, side, LEVERAGE_PCT, marks)

    def _add(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        return self._of_position(trader, symbol, _side(trader.positions[symbol]), _ADD_PCT, marks)

    def _reduce(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        return self._of_position(trader, symbol, _side(-trader.positions[symbol]), _REDUCE_PCT, marks)

    def _flip(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        return self._of_position(trader, symbol, _side(-trader.positions[symbol]), _FLIP_PCT, marks)

    def _close(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        held = trader.positions[symbol]
        return Order(trader.account_id, symbol, _side(-held), abs(held), self._price(marks[symbol]))

    def _overreach(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        """Ask for more than the balance carries: to be refused."""
        return self._of_balance(trader, symbol, _side(trader.positions[symbol]), _TOO_LARGE_PCT, marks)

    def _misprice(self, trader: Trader, symbol: str, marks: Mapping[str, str]) -> Order | None:
        """Ask for a price outside the default band: to be refused."""
        away = self._chance.choice((1, -1)) * self._chance.randint(*_OUTSIDE_BAND_PCT)
        price = round_down(Decimal(marks[symbol]) * (100 + away) / _HUNDRED)
        held = trader.positions[symbol]
        return Order(trader.account_id, symbol, _side(held), abs(held), plain(price)) if price > 0 else None

    def _of_balance(
        self, trader: Trader, symbol: str, side: Side, pct: tuple[int, int], marks: Mapping[str, str]
    ) -> Order | None:
        notional = (trader.balance or _BALANCE_MIN) * self._chance.randint(*pct) / _HUNDRED / len(self._symbols)
        return self._order(trader, symbol, side, _FOUR_DIGITS.divide(notional, Decimal(marks[symbol])), marks)

    def _of_position(
        self, trader: Trader, symbol: str, side: Side, pct: tuple[int, int], marks: Mapping[str, str]
    ) -> Order | None:
        quantity = _FOUR_DIGITS.multiply(abs(trader.positions[symbol]), self._chance.randint(*pct) / _HUNDRED)
        return self._order(trader, symbol, side, quantity, marks)

    def _order(
        self, trader: Trader, symbol: str, side: Side, quantity: Decimal, marks: Mapping[str, str]
    ) -> Order | None:
        price = self._price(marks[symbol])
        quantity = round_down(quantity)
        return Order(trader.account_id, symbol, side, quantity, price) if quantity > 0 else None

    def _price(self, mark: str) -> str:
        """At the mark, sometimes a little beside it."""
        if not self._of_100(_SKEWED_PCT):
            return mark
        beside = round_down(Decimal(mark) * (10_000 + self._chance.randint(-_SKEW_BP, _SKEW_BP)) / 10_000)
        return plain(beside) if beside > 0 else mark

    def _of_100(self, percent: int) -> bool:
        return self._chance.randrange(100) < percent

    def _symbol(self) -> str:
        return self._chance.choice(self._symbols)


def _side(quantity: Decimal) -> Side:
    return Side.BUY if quantity > 0 else Side.SELL
