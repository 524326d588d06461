"""The margin rules a second time, from the rules' text alone: what an event must have done to an account.

Nothing of the engine's domain is used. Every amount of an event's body is derived anew and compared.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
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
_LOT = Decimal("0.00000001")
_BUFFER = Decimal("0.1")
_REMAINING_NOTIONAL_MIN = Decimal(10)
_WARNING_PCT = Decimal(80)


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
    """Signed quantity, signed entry cost, and signed funding that it was entered at or has settled up to."""

    quantity: Decimal
    cost: Decimal
    funding: Decimal = Decimal(0)

    def pending(self, index: Decimal) -> Decimal:
        return self.funding - self.quantity * index


@dataclasses.dataclass(frozen=True, slots=True)
class SeenMark:
    """A mark price as it was in force, and when it was set; 0 for one that was lost and put back, and counts as stale.

    ``observed_us`` is when its sender saw it, None where nobody knows.
    """

    price: Decimal
    stamp_us: int
    observed_us: int | None

    def worth(self, quantity: Decimal) -> Decimal:
        """Price that a liquidation values a position at: a stale one moved by the price band in its favour."""
        if self.stamp_us:
            return self.price
        return self.price * (1 + _PRICE_BAND if quantity > 0 else 1 - _PRICE_BAND)

    def age_s(self, at_us: int) -> Decimal:
        since_us = self.stamp_us if self.observed_us is None else min(self.stamp_us, self.observed_us)
        return Decimal(at_us - since_us).scaleb(-6)


@dataclasses.dataclass(slots=True)
class Book:
    """One account, by the events that it has had, and a count of what these were like.

    ``indexes`` are the funding indexes of the moment that it is looked at, of the symbols that ever paid any.
    """

    balance: Decimal = Decimal(0)
    holdings: dict[str, Holding] = dataclasses.field(default_factory=dict)
    ledger: dict[str, Decimal] = dataclasses.field(default_factory=dict)
    tally: Counter[str] = dataclasses.field(default_factory=Counter)
    indexes: Mapping[str, Decimal] = dataclasses.field(default_factory=dict)
    settled: Decimal = Decimal(0)

    def copy(self) -> Book:
        return Book(self.balance, dict(self.holdings), dict(self.ledger), Counter(), self.indexes)

    def equity(self, marks: Mapping[str, Decimal]) -> Decimal:
        with localcontext(_EXACT):
            gains = (
                held.quantity * marks[symbol] - held.cost + held.pending(self._index(symbol))
                for symbol, held in self.holdings.items()
            )
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

    def _index(self, symbol: str) -> Decimal:
        return self.indexes.get(symbol, Decimal(0))

    def settle(self) -> list[dict[str, str]]:
        """Move what is pending to the balance, in whole units, rounded against the account; the payments."""
        payments = []
        with localcontext(_EXACT):
            for symbol, held in sorted(self.holdings.items()):
                index = self._index(symbol)
                amount = _floor(Fraction(held.pending(index)))
                if amount == 0:
                    continue
                self.balance += amount
                self.holdings[symbol] = dataclasses.replace(held, funding=held.funding - amount)
                amounts = {"quantity": held.quantity, "index": index, "amount": amount}
                payments.append({"symbol": symbol, **{name: _text(number) for name, number in amounts.items()}})
        return payments

    def apply(self, body: Mapping[str, Any], marks: Mapping[str, SeenMark], indexes: Mapping[str, Decimal]) -> None:
        """Let an event happen, and compare everything that it says of itself.

        Parameters
        ----------
        body : mapping
        marks, indexes : mapping of str to SeenMark, mapping of str to Decimal
            Marks and funding indexes that were in force when it was decided.

        Raises
        ------
        WrongError
        """
        with localcontext(_EXACT):
            before = self.copy()
            self.indexes = indexes
            payments = self.settle()
            self.settled = self.balance - before.balance
            require(body["funding"] == payments, f"{body['funding']} was settled, and should be {payments}")
            self.tally["funding received"] += self.settled > 0
            self.tally["funding paid"] += self.settled < 0
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
                    self._liquidate(body, marks)
                case "CONTRIBUTION":
                    amount = Decimal(body["detail"]["amount"])
                    require(amount <= self.balance, f"{amount} were contributed from a balance of {self.balance}")
                    self._move(body, -amount, other="insurance")
                case "SETTLEMENT":
                    amount = Decimal(body["detail"]["amount"])
                    require(amount > 0, f"a settlement of {amount}")
                    self._expect_lines(body, {"insurance": -amount, "uncovered": amount})
                case "DELEVERAGING":
                    self._deleverage(body)
                case "MARGIN_WARNING":
                    self._warn(body, marks)
                case other:
                    raise WrongError(f"an event of type {other}")
            self._compare(body, before)

    def _move(self, body: Mapping[str, Any], change: Decimal, *, other: str = "external") -> None:
        self.balance += change
        self._expect_lines(body, {"cash": change, other: -change})
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

    def _liquidate(self, body: Mapping[str, Any], marks: Mapping[str, SeenMark]) -> None:
        """Work out what a liquidation at these marks has to be, do that, and compare the whole record with it."""
        missing = sorted(self.holdings.keys() - marks.keys())
        require(not missing, f"liquidated without a mark of {missing}")
        expected: dict[str, object] = {"rules": 2, "inputs": self._decided_on(marks, body["at_us"])}
        worth = {symbol: marks[symbol].worth(held.quantity) for symbol, held in self.holdings.items()}
        equity, margin = self.equity(worth), self.maintenance_margin(worth)
        require(equity < margin, f"liquidated with an equity of {equity} over {margin}")
        fresh = [symbol for symbol in self.holdings if marks[symbol].stamp_us]
        # All have one rate, so the largest margin is that of the largest notional.
        fresh.sort(key=lambda symbol: (-abs(self.holdings[symbol].quantity) * worth[symbol], symbol))
        share = Fraction(equity) / Fraction(self.notional(worth))
        lines = {"cash": Decimal(0), "house_pnl": Decimal(0), "rounding": Decimal(0)}
        positions = []
        for symbol in fresh:
            lacking = (1 + _BUFFER) * self.maintenance_margin(worth) - self.equity(worth)
            if lacking > 0:
                positions.append(self._close(symbol, marks[symbol], body["at_us"], lacking, share, lines))
        require(positions, "a liquidation that closed nothing")
        debt = Decimal(0) if self.holdings else max(Decimal(0), -self.balance)
        # Whatever is missing beyond equity is dust, and comes back from where it went.
        shortfall = min(debt, _ceiling(Fraction(max(Decimal(0), -equity))))
        self.balance += debt
        lines["cash"] += debt
        lines["rounding"] -= debt - shortfall
        answered = {
            "equity": equity,
            "maintenance_margin": margin,
            "equity_after": self.equity(worth),
            "maintenance_margin_after": self.maintenance_margin(worth),
            "reason": "EQUITY_BELOW_MAINTENANCE",
            "fee": Decimal(0),
            "shortfall": shortfall,
            "positions": positions,
        }
        _compare_all("liquidation", body["detail"], {**answered, **expected})
        _compare_all("answer", body["result"], {"account_id": body["account_id"], **answered})
        self._expect_lines(body, {**lines, "uncovered": -shortfall})
        self._count(positions, shortfall, stale=len(fresh) < len(worth))

    def _close(
        self,
        symbol: str,
        mark: SeenMark,
        at_us: int,
        lacking: Decimal,
        share: Fraction,
        lines: dict[str, Decimal],
    ) -> dict[str, object]:
        """Close as few lots as make up for what is lacking, each of which frees so much of the target, or all."""
        held, price = self.holdings[symbol], mark.price
        size = abs(held.quantity)
        freed_by_lot = Fraction((1 + _BUFFER) * _MAINTENANCE_RATE * price * _LOT)
        quantity = min(size, -(-Fraction(lacking) // freed_by_lot) * _LOT)
        if size - quantity < _LOT or (size - quantity) * price < _REMAINING_NOTIONAL_MIN:
            quantity = size
        closed = quantity if held.quantity > 0 else -quantity
        realised, gain = self.fill(symbol, -closed, price)
        self.balance += realised
        lines["cash"] += realised
        lines["house_pnl"] -= gain
        lines["rounding"] += gain - realised
        away = Fraction(price) * share
        bankrupt = _ceiling(Fraction(price) - away) if held.quantity > 0 else _floor(Fraction(price) + away)
        return {
            "symbol": symbol,
            "quantity": closed,
            "remaining": held.quantity - closed,
            "entry_price": Decimal(round(Fraction(held.cost) / Fraction(held.quantity) * _UNITS)).scaleb(-8),
            "price": price,
            "mark_age_s": mark.age_s(at_us),
            "bankruptcy_price": bankrupt if bankrupt > 0 else None,
            "realised_pnl": realised,
            "fee": Decimal(0),
        }

    def _decided_on(self, marks: Mapping[str, SeenMark], at_us: int) -> dict[str, object]:
        """Say what a liquidation was decided on: this account, these marks, and the rules of symbols without any."""
        return {
            "balance": self.balance,
            "positions": {
                symbol: {"quantity": held.quantity, "entry_cost": held.cost}
                | ({"entry_funding": held.funding} if held.funding else {})
                for symbol, held in self.holdings.items()
            },
            "marks": {symbol: dataclasses.asdict(marks[symbol]) for symbol in self.holdings},
            "instruments": {symbol: _terms(symbol) for symbol in self.holdings},
            "funding_indexes": {symbol: self.indexes[symbol] for symbol in self.holdings if symbol in self.indexes},
            "now_us": at_us,
            "buffer": _BUFFER,
            "remaining_notional_min": _REMAINING_NOTIONAL_MIN,
        }

    def _count(self, closed: list[dict[str, object]], shortfall: Decimal, *, stale: bool) -> None:
        self.tally["partial" if self.holdings else "whole"] += 1
        self.tally["shortfall"] += shortfall > 0
        self.tally["whole, and paid"] += not self.holdings and not shortfall
        self.tally["whole, then part of the next"] += len(closed) > 1 and closed[-1]["remaining"] != 0
        self.tally["with a stale mark"] += stale

    def _warn(self, body: Mapping[str, Any], marks: Mapping[str, SeenMark]) -> None:
        """Nothing changes; the account has reached the level. Marks may have gone on to where it is liquidated next."""
        prices = {symbol: marks[symbol].price for symbol in self.holdings}
        stale = [symbol for symbol in self.holdings if not marks[symbol].stamp_us]
        require(not stale, f"a warning at stale marks of {stale}")
        equity, margin = self.equity(prices), self.maintenance_margin(prices)
        require(equity * _WARNING_PCT < margin * 100, f"a warning at an equity of {equity} over {margin}")
        require(equity >= margin, f"a warning instead of a liquidation at an equity of {equity} under {margin}")
        share = Fraction(margin) / Fraction(equity) if equity > 0 else None
        told = {
            "equity": equity,
            "maintenance_margin": margin,
            "margin_utilisation_pct": None if share is None else Decimal(round(share * 10_000)).scaleb(-2),
            "warning_pct": _WARNING_PCT,
            "marks": prices,
        }
        _compare_all("warning", body["detail"], told)
        _compare_all("answer", body["result"], {"account_id": body["account_id"], **told})
        self._expect_lines(body, {})
        self.tally["warned"] += 1

    def _deleverage(self, body: Mapping[str, Any]) -> None:
        """Close some of a position at another's bankruptcy price; the fund receives what the house does not keep."""
        detail = body["detail"]
        (closed,) = detail["positions"]
        symbol, price, quantity = closed["symbol"], Decimal(closed["price"]), Decimal(closed["quantity"])
        held, received = self.holdings[symbol].quantity, Decimal(detail["received"])
        require(quantity * held > 0 and abs(quantity) <= abs(held), f"{quantity} of {held} {symbol} were deleveraged")
        same("what a deleveraging left", closed["remaining"], held - quantity)
        liquidated_at = Decimal(detail["liquidation_price"])
        bankrupt_at = Decimal(closed["bankruptcy_price"])
        gap = (bankrupt_at - liquidated_at) * (-1 if quantity > 0 else 1)
        require(gap > 0, f"deleveraged against a bankruptcy price of {bankrupt_at}, liquidated at {liquidated_at}")
        worst = (min if quantity > 0 else max)(bankrupt_at, Decimal(detail["mark_price"]))
        same("price of a deleveraging", price, worst)
        realised, gain = self.fill(symbol, -quantity, price)
        same("realised P&L of a deleveraging", closed["realised_pnl"], realised)
        self.balance += realised
        house = -gain - abs(quantity) * gap
        rounding = gain - realised + abs(quantity) * gap - received
        lines = {"cash": realised, "house_pnl": house, "rounding": rounding, "insurance": received}
        self._expect_lines(body, lines)

    def fill(self, symbol: str, traded: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
        """Fill and answer what is realised and what leaves the position."""
        held = self.holdings.pop(symbol, Holding(Decimal(0), Decimal(0)))
        left, index = held.quantity + traded, self._index(symbol)
        funding = held.funding + traded * index
        if held.quantity * traded >= 0:
            self.holdings[symbol] = Holding(left, held.cost + traded * price, funding)
            return Decimal(0), Decimal(0)
        if abs(traded) < abs(held.quantity):
            proceeds = -traded * price
            share = Fraction(held.cost) * Fraction(abs(traded)) / Fraction(abs(held.quantity))
            realised = _floor(Fraction(proceeds) - share)
            self.holdings[symbol] = Holding(left, held.cost - (proceeds - realised), funding)
            return realised, realised
        gain = held.quantity * price - held.cost + held.pending(index)
        if left != 0:
            self.holdings[symbol] = Holding(left, left * price, left * index)
        return _floor(Fraction(gain)), gain

    def _expect_lines(self, body: Mapping[str, Any], expected: Mapping[str, Decimal]) -> None:
        found = {name: Decimal(amount) for name, amount in body["ledger"]}
        funded = {"cash": expected.get("cash", Decimal(0)) + self.settled, "funding": -self.settled}
        wanted = {name: amount for name, amount in {**expected, **funded}.items() if amount != 0}
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
                same(f"entry funding of {symbol}", fields.get("entry_funding", "0"), held.funding)


def _sign(side: str) -> Decimal:
    return Decimal(1) if side == "BUY" else Decimal(-1)


def _floor(value: Fraction) -> Decimal:
    """Round towards minus infinity to 8 decimals: what is credited."""
    return Decimal(value * _UNITS // 1).scaleb(-8)


def _text(amount: Decimal) -> str:
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ceiling(value: Fraction) -> Decimal:
    return -_floor(-value)


def _terms(symbol: str) -> dict[str, object]:
    """Return the rules of a symbol that was never configured, as they stand in records."""
    tier = {"notional_cap": None, "initial_rate": _INITIAL_RATE, "maintenance_rate": _MAINTENANCE_RATE}
    return {
        "symbol": symbol,
        "tiers": [tier],
        "taker_fee": Decimal(0),
        "maker_fee": Decimal(0),
        "price_band": _PRICE_BAND,
        "tick_size": _LOT,
        "lot_size": _LOT,
        "min_quantity": _LOT,
        "max_quantity": None,
        "position_limit": None,
        "liquidation_fee_cap": Decimal(0),
        "mark_max_age_s": None,
        "mark_jump_max": None,
        "funding_rate_cap": Decimal(1),
        "status": "active",
        "version": 0,
    }


def _compare_all(name: str, found: Any, expected: object) -> None:
    """Compare a record with what it should be, figure by figure, to the last field; amounts stand in it as texts."""
    if isinstance(expected, Decimal):
        require(isinstance(found, str), f"{name} is {found!r}, which is no amount")
        same(name, found, expected)
    elif isinstance(expected, dict):
        require(found.keys() == expected.keys(), f"{name} has {sorted(found)}, and should have {sorted(expected)}")
        for key, value in expected.items():
            _compare_all(f"{name}.{key}", found[key], value)
    elif isinstance(expected, list):
        require(len(found) == len(expected), f"{name} has {len(found)} entries, and should have {len(expected)}")
        for place, value in enumerate(expected):
            _compare_all(f"{name}[{place}]", found[place], value)
    else:
        require(found == expected, f"{name} is {found!r}, and should be {expected!r}")
