"""The margin rules a second time, from the rules' text alone: what an event must have done to an account.

Nothing of the engine's domain is used. Every amount of an event's body is derived anew and compared.
"""

from __future__ import annotations

import dataclasses
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXACT = Context(prec=200, traps=[Inexact])
_UNITS = 10**8
_INITIAL_RATE = Decimal("0.2")
_MAINTENANCE_RATE = Decimal("0.1")
_PRICE_BAND = Decimal("0.2")


class WrongError(AssertionError):
    """Something is not as the model says that it must be."""


def require(holds: object, sentence: str) -> None:
    """Say what is wrong, if it is."""
    if not holds:
        raise WrongError(sentence)


def same(name: str, found: object, expected: Decimal | None) -> None:
    """Compare an amount as written with one as derived."""
    number = None if found is None else Decimal(str(found))
    require(number == expected, f"{name} is {found}, and should be {expected}")


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Signed quantity and signed entry cost."""

    quantity: Decimal
    cost: Decimal


@dataclasses.dataclass(slots=True)
class Book:
    """One account, by the events that it has had."""

    balance: Decimal = Decimal(0)
    holdings: dict[str, Holding] = dataclasses.field(default_factory=dict)
    ledger: dict[str, Decimal] = dataclasses.field(default_factory=dict)

    def copy(self) -> Book:
        return Book(self.balance, dict(self.holdings), dict(self.ledger))

    def equity(self, marks: Mapping[str, Decimal]) -> Decimal:
        with localcontext(_EXACT):
            gains = (held.quantity * marks[symbol] - held.cost for symbol, held in self.holdings.items())
            return self.balance + sum(gains, start=Decimal(0))

    def notional(self, marks: Mapping[str, Decimal]) -> Decimal:
        with localcontext(_EXACT):
            return sum((abs(held.quantity) * marks[symbol] for symbol, held in self.holdings.items()), start=Decimal(0))

    def initial_margin(self, marks: Mapping[str, Decimal]) -> Decimal:
        with localcontext(_EXACT):
            return _INITIAL_RATE * self.notional(marks)

    def maintenance_margin(self, marks: Mapping[str, Decimal]) -> Decimal:
        with localcontext(_EXACT):
            return _MAINTENANCE_RATE * self.notional(marks)

    def apply(self, body: Mapping[str, Any]) -> None:
        """Let an event happen, and compare everything that it says of itself.

        Raises
        ------
        WrongError
        """
        with localcontext(_EXACT):
            before = self.copy()
            match body["type"]:
                case "DEPOSIT":
                    self._move(body, Decimal(body["detail"]["amount"]))
                case "WITHDRAWAL":
                    amount = Decimal(body["detail"]["amount"])
                    require(amount <= self.balance, f"{amount} were withdrawn from a balance of {self.balance}")
                    self._move(body, -amount)
                case "TRADE":
                    self._trade(body)
                case "LIQUIDATION":
                    self._liquidate(body)
                case other:
                    raise WrongError(f"an event of type {other}")
            self._compare(body, before)

    def _move(self, body: Mapping[str, Any], change: Decimal) -> None:
        self.balance += change
        self._expect_lines(body, {"cash": change, "external": -change})
        same("balance in the answer", body["result"]["balance"], self.balance)

    def _trade(self, body: Mapping[str, Any]) -> None:
        detail, result = body["detail"], body["result"]
        symbol, price, quantity = detail["symbol"], Decimal(detail["price"]), Decimal(detail["quantity"])
        before = self.copy()
        realised, gain = self.fill(symbol, quantity * _sign(detail["side"]), price)
        self.balance += realised
        self._expect_lines(body, {"cash": realised, "house_pnl": -gain, "rounding": gain - realised})
        expected = {"quantity": quantity, "price": price, "notional": quantity * price}
        for name, amount in {**expected, "realised_pnl": realised, "fee": Decimal(0)}.items():
            same(f"{name} in the record", detail[name], amount)
            same(f"{name} in the answer", result[name], amount)
        same("balance in the answer", result["balance"], self.balance)
        held = self.holdings.get(symbol)
        require((held is None) == (result["position"] is None), f"the answer's position is {result['position']}")
        if held is not None:
            same("quantity of the position in the answer", result["position"]["quantity"], held.quantity)
        mark = Decimal(detail["mark_price"])
        require(abs(price - mark) <= _PRICE_BAND * mark, f"a trade at {price} while the mark was {mark}")
        if set(before.holdings) | set(self.holdings) <= {symbol}:
            self._test_order(before, symbol, mark, result, advantage=quantity * _sign(detail["side"]) * (mark - price))

    def _test_order(
        self, before: Book, symbol: str, mark: Decimal, result: Mapping[str, Any], *, advantage: Decimal
    ) -> None:
        """Test the order as the rules do, where the mark of its own symbol is all that is needed."""
        marks = {symbol: mark}
        same("equity in the answer", result["equity"], self.equity(marks))
        same("initial margin in the answer", result["initial_margin_required"], self.initial_margin(marks))
        same("maintenance margin in the answer", result["maintenance_margin_required"], self.maintenance_margin(marks))
        require(not before.holdings or before.equity(marks) > 0, "a trade of an account without equity")
        tested = before.equity(marks) + min(Decimal(0), advantage)
        if tested >= self.initial_margin(marks):
            return
        shrinks = before.holdings.keys() >= self.holdings.keys() and self._no_larger_than(before)
        relieves = tested * before.maintenance_margin(marks) >= before.equity(marks) * self.maintenance_margin(marks)
        require(shrinks and relieves, f"a trade that needed {self.initial_margin(marks)} and had {tested}")

    def _no_larger_than(self, before: Book) -> bool:
        pairs = ((held.quantity, before.holdings[symbol].quantity) for symbol, held in self.holdings.items())
        return all(now * was > 0 and abs(now) <= abs(was) for now, was in pairs)

    def _liquidate(self, body: Mapping[str, Any]) -> None:
        detail = body["detail"]
        equity, maintenance = Decimal(detail["equity"]), Decimal(detail["maintenance_margin"])
        require(equity < maintenance, f"liquidated with an equity of {equity} over {maintenance}")
        prices = {closed["symbol"]: Decimal(closed["price"]) for closed in detail["positions"]}
        require(prices, "a liquidation that closed nothing")
        if prices.keys() == self.holdings.keys():
            same("equity of the liquidation", equity, self.equity(prices))
            same("maintenance margin of the liquidation", maintenance, self.maintenance_margin(prices))
        lines = {"cash": Decimal(0), "house_pnl": Decimal(0), "rounding": Decimal(0)}
        for closed in detail["positions"]:
            held = self.holdings[closed["symbol"]]
            same("quantity closed", closed["quantity"], held.quantity)
            realised, gain = self.fill(closed["symbol"], -held.quantity, prices[closed["symbol"]])
            same("realised P&L of a closed position", closed["realised_pnl"], realised)
            self.balance += realised
            lines["cash"] += realised
            lines["house_pnl"] -= gain
            lines["rounding"] += gain - realised
        shortfall = Decimal(0) if self.holdings else max(Decimal(0), -self.balance)
        same("shortfall", detail["shortfall"], shortfall)
        self.balance += shortfall
        lines["cash"] += shortfall
        self._expect_lines(body, {**lines, "uncovered": -shortfall})

    def fill(self, symbol: str, traded: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
        """Fill and answer what is realised and what leaves the position."""
        held = self.holdings.pop(symbol, Holding(Decimal(0), Decimal(0)))
        left = held.quantity + traded
        if held.quantity * traded >= 0:
            self.holdings[symbol] = Holding(left, held.cost + traded * price)
            return Decimal(0), Decimal(0)
        if abs(traded) < abs(held.quantity):
            proceeds = -traded * price
            share = Fraction(held.cost) * Fraction(abs(traded)) / Fraction(abs(held.quantity))
            realised = _floor(Fraction(proceeds) - share)
            self.holdings[symbol] = Holding(left, held.cost - (proceeds - realised))
            return realised, realised
        gain = held.quantity * price - held.cost
        if left != 0:
            self.holdings[symbol] = Holding(left, left * price)
        return _floor(Fraction(gain)), gain

    def _expect_lines(self, body: Mapping[str, Any], expected: Mapping[str, Decimal]) -> None:
        found = {name: Decimal(amount) for name, amount in body["ledger"]}
        wanted = {name: amount for name, amount in expected.items() if amount != 0}
        require(found == wanted, f"the ledger has {found}, and should have {wanted}")
        require(sum(found.values(), start=Decimal(0)) == 0, f"the ledger does not sum to zero: {found}")
        for name, amount in found.items():
            self.ledger[name] = self.ledger.get(name, Decimal(0)) + amount

    def _compare(self, body: Mapping[str, Any], before: Book) -> None:
        same("balance in the event", body["balance"], self.balance)
        same("cash of all events", self.ledger.get("cash", Decimal(0)), self.balance)
        changed = {
            symbol
            for symbol in before.holdings.keys() | self.holdings.keys()
            if before.holdings.get(symbol) != self.holdings.get(symbol)
        }
        require(set(body["positions"]) == changed, f"{sorted(body['positions'])} changed, not {sorted(changed)}")
        for symbol, fields in body["positions"].items():
            held = self.holdings.get(symbol)
            require((fields is None) == (held is None), f"{symbol} is {fields}")
            if held is not None:
                same(f"quantity of {symbol}", fields["quantity"], held.quantity)
                same(f"entry cost of {symbol}", fields["entry_cost"], held.cost)


def _sign(side: str) -> Decimal:
    return Decimal(1) if side == "BUY" else Decimal(-1)


def _floor(value: Fraction) -> Decimal:
    """Round towards minus infinity to 8 decimals: what is credited."""
    scaled = value * _UNITS
    return Decimal(scaled.numerator // scaled.denominator).scaleb(-8)
