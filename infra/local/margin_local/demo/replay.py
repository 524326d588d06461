"""Posts every price of a series as a mark price, in order, and lets accounts trade between the marks."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from margin.domain.decimals import plain
from margin_local.demo.engine_process import EngineError
from margin_local.demo.mark_path import PostedMark
from margin_local.demo.traders import Deposit, Order, Traders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin_local.demo.engine_client import Answer, EngineClient
    from margin_local.demo.mark_stamps import MarkStamps
    from margin_local.demo.prices import PriceSeries

__all__ = ["Liquidated", "Replay", "ReplayResult"]

# The engine is one process here: more connections than this wait for one another.
_CONNECTIONS: Final = 4
_MARK_TRIES_MAX = 5
_MARK_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Liquidated:
    """A liquidation as the engine tells it, and the row whose mark price brought it."""

    liquidation_id: int
    account_id: int
    row: int
    positions: tuple[tuple[str, Decimal, Decimal], ...]
    shortfall: Decimal

    @property
    def notional(self) -> Decimal:
        """Quote currency of all closed positions at their closing prices."""
        return sum((abs(quantity) * price for _, quantity, price in self.positions), start=Decimal(0))


@dataclass(slots=True)
class ReplayResult:
    """The tally of a replay."""

    rows_done: int = 0
    interrupted: bool = False
    deposits: int = 0
    deposited: Decimal = Decimal(0)
    trades_accepted: int = 0
    trades_pending: int = 0
    trades_refused: Counter[str] = field(default_factory=Counter)
    marks_posted: int = 0
    marks_s: list[float] = field(default_factory=list)
    at_risk: int = 0
    marks: list[PostedMark] = field(default_factory=list)
    liquidated: list[Liquidated] = field(default_factory=list)
    elapsed_s: float = 0.0


class Replay:
    """One replay of some series, row by row and leg by leg.

    Marks are posted one after the other; trades are sent side by side, one account's never with each other, after one
    mark was answered and before the next is posted. So every trade stands between two known marks.

    Parameters
    ----------
    client : EngineClient
    stamps : MarkStamps or None
        Tells when each mark came into force; None where Redis cannot be read, and then no mark path comes of it.
    series : sequence of PriceSeries
        The same number of rows each.
    traders : Traders
    run_id : str
        Begins every idempotency key.
    """

    def __init__(
        self,
        client: EngineClient,
        stamps: MarkStamps | None,
        series: Sequence[PriceSeries],
        traders: Traders,
        run_id: str,
    ) -> None:
        self._client = client
        self._stamps = stamps
        self._series = series
        self._traders = traders
        self._run_id = run_id
        self._requests = 0
        self._marks: dict[str, str] = {}
        self._seen: set[int] = set()
        self.result = ReplayResult()

    def run(self, *, progress: Callable[[ReplayResult], None], stopped: Callable[[], bool]) -> None:
        """Replay everything, or what there was until ``stopped`` says so, which it is asked between two marks.

        Raises
        ------
        EngineError
            The engine does not answer as it should.
        RedisUnavailableError
            The stamp of a mark cannot be read.
        """
        # Whatever an engine that runs already has liquidated before is not this replay's.
        self._seen.update(row["id"] for page in self._client.liquidation_pages() for row in page)
        started_s = time.monotonic()
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            self._act(pool, self._traders.first_deposits())
            for row in range(len(self._series[0].candles)):
                if not self._replay_row(pool, row, stopped):
                    self.result.interrupted = True
                    break
                self.result.rows_done += 1
                self.result.elapsed_s = time.monotonic() - started_s
                progress(self.result)
        self.result.elapsed_s = time.monotonic() - started_s

    def notice_liquidations(self) -> None:
        """Take in liquidations that were not noticed yet.

        Raises
        ------
        EngineError
        """
        for page in self._client.liquidation_pages():
            news = [row for row in page if row["id"] not in self._seen]
            if not news:
                return
            self._seen.update(row["id"] for row in news)
            for row in news:
                if row["account_id"] in self._traders.by_id:
                    self.result.liquidated.append(_liquidated(row, self._row))
                    self._traders.learn_liquidation(row["account_id"])

    @property
    def _row(self) -> int:
        return min(self.result.rows_done, len(self._series[0].candles) - 1)

    def _replay_row(self, pool: ThreadPoolExecutor, row: int, stopped: Callable[[], bool]) -> bool:
        """Post the four prices of a row, trades after each; False when it was stopped before its end."""
        for leg in zip(*(series.candles[row].legs() for series in self._series), strict=True):
            for series, (name, price) in zip(self._series, leg, strict=True):
                if stopped():
                    return False
                self._post_mark(series.symbol, price, f"{series.candles[row].time} {name}")
            first = len(self._marks) == len(self._series) == self.result.marks_posted
            orders = self._traders.first_orders(self._marks) if first else self._traders.next_actions(self._marks)
            self._act(pool, orders)
        return True

    def _post_mark(self, symbol: str, price: str, label: str) -> None:
        for _ in range(_MARK_TRIES_MAX):
            begun_s = time.perf_counter()
            answer = self._client.set_mark_price(symbol, price)
            taken_s = time.perf_counter() - begun_s
            # Also after a 503: the price may be in force all the same, and accounts may be judged by it.
            self._record_stamp(symbol, price, label)
            if answer.accepted:
                break
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise EngineError(f"mark price {price} of {symbol} ({label}) is refused: {answer.status} {answer.code}")
            time.sleep(_MARK_WAIT_S)
        else:
            raise EngineError(f"mark price {price} of {symbol} ({label}) is not taken: {answer.code}")
        self._marks[symbol] = price
        self.result.marks_posted += 1
        self.result.marks_s.append(taken_s)
        self.result.at_risk += answer.body["at_risk"]
        if answer.body["at_risk"]:
            self.notice_liquidations()

    def _record_stamp(self, symbol: str, price: str, label: str) -> None:
        if self._stamps is None:
            return
        stamp_us = self._stamps.read(symbol)
        if not self.result.marks or stamp_us > self.result.marks[-1].stamp_us:
            self.result.marks.append(PostedMark(stamp_us, symbol, Decimal(price), label))

    def _act(self, pool: ThreadPoolExecutor, actions: Sequence[Deposit | Order]) -> None:
        """Execute actions of different accounts side by side; what is learnt from them has a fixed order."""
        keys = [f"demo-{self._run_id}-{self._requests + number}" for number in range(len(actions))]
        self._requests += len(actions)
        for action, answer in zip(actions, list(pool.map(self._send, actions, keys)), strict=True):
            if answer.accepted:
                self._traders.learn(action, answer.body)
            self._count(action, answer)

    def _send(self, action: Deposit | Order, key: str) -> Answer:
        if isinstance(action, Deposit):
            return self._client.deposit(action.account_id, plain(action.amount), key)
        body = {
            "account_id": action.account_id,
            "symbol": action.symbol,
            "side": str(action.side),
            "quantity": plain(action.quantity),
            "price": action.price,
        }
        return self._client.trade(body, key)

    def _count(self, action: Deposit | Order, answer: Answer) -> None:
        result = self.result
        if isinstance(action, Deposit):
            if not answer.accepted:
                raise EngineError(f"a deposit of {plain(action.amount)} is refused: {answer.status} {answer.code}")
            result.deposits += 1
            result.deposited += action.amount
        elif answer.accepted:
            result.trades_accepted += 1
            result.trades_pending += answer.status == HTTPStatus.ACCEPTED
        else:
            result.trades_refused[answer.code] += 1


def _liquidated(row: dict[str, Any], candle: int) -> Liquidated:
    return Liquidated(
        liquidation_id=row["id"],
        account_id=row["account_id"],
        row=candle,
        positions=tuple(
            (closed["symbol"], Decimal(closed["quantity"]), Decimal(closed["price"])) for closed in row["positions"]
        ),
        shortfall=Decimal(row["shortfall"]),
    )
