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
from margin.domain.deleveraging import AUTO_DELEVERAGING
from margin.domain.market import Mark
from margin_local.demo.engine_process import EngineError
from margin_local.demo.mark_path import PostedMarks
from margin_local.demo.traders import Deposit, Order, Traders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    """A liquidation as the engine tells it, and the row whose mark price brought it.

    ``positions`` are symbol, quantity closed and price; ``partial``: it left the account something open.
    """

    liquidation_id: int
    account_id: int
    row: int
    positions: tuple[tuple[str, Decimal, Decimal], ...]
    shortfall: Decimal
    partial: bool

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
    marks: list[PostedMarks] = field(default_factory=list)
    liquidated: list[Liquidated] = field(default_factory=list)
    deleveraged: Counter[int] = field(default_factory=Counter)
    elapsed_s: float = 0.0


class Replay:
    """One replay of some series, row by row and leg by leg.

    The marks of one leg are posted together, in one request, and one leg after the other; trades are sent side by side,
    one account's never with each other, after the marks of one leg were answered and before the next are posted. So
    every trade stands between two known steps.

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
        self._opened = False
        self._seen: set[int] = set()
        self.result = ReplayResult()

    def run(self, *, progress: Callable[[ReplayResult], None], stopped: Callable[[], bool]) -> None:
        """Replay everything, or what there was until ``stopped`` says so, which it is asked between two steps.

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
        """Take in liquidations and deleveragings that were not noticed yet, and what they left their accounts.

        Raises
        ------
        EngineError
        """
        for row in reversed(self._unseen()):
            account_id = row["account_id"]
            if account_id not in self._traders.by_id:
                continue
            left = self._client.account(account_id)
            if row["reason"] == AUTO_DELEVERAGING:
                self.result.deleveraged[account_id] += 1
            else:
                self.result.liquidated.append(_liquidated(row, self._row, partial=bool(left["positions"])))
            self._traders.learn_liquidation(account_id, left)

    def _unseen(self) -> list[dict[str, Any]]:
        """Liquidations that were not noticed yet, newest first."""
        unseen: list[dict[str, Any]] = []
        for page in self._client.liquidation_pages():
            news = [row for row in page if row["id"] not in self._seen]
            if not news:
                break
            self._seen.update(row["id"] for row in news)
            unseen += news
        return unseen

    @property
    def _row(self) -> int:
        return min(self.result.rows_done, len(self._series[0].candles) - 1)

    def _replay_row(self, pool: ThreadPoolExecutor, row: int, stopped: Callable[[], bool]) -> bool:
        """Post the prices of a row, those of a leg together, trades after each; False when it was stopped midway."""
        for leg in zip(*(series.candles[row].legs() for series in self._series), strict=True):
            if stopped():
                return False
            prices = {series.symbol: price for series, (_, price) in zip(self._series, leg, strict=True)}
            names = " and ".join(dict.fromkeys(name for name, _ in leg))
            self._post_marks(prices, f"{self._series[0].candles[row].time} {names}")
            self._trade(pool)
        return True

    def _trade(self, pool: ThreadPoolExecutor) -> None:
        if self._opened:
            self._act(pool, self._traders.next_actions(self._marks))
            return
        self._opened = True
        for orders in self._traders.first_orders(self._marks):
            self._act(pool, orders)

    def _post_marks(self, prices: Mapping[str, str], label: str) -> None:
        named = ", ".join(f"{symbol} {price}" for symbol, price in prices.items())
        for _ in range(_MARK_TRIES_MAX):
            begun_s = time.perf_counter()
            answer = self._client.set_mark_prices(prices)
            taken_s = time.perf_counter() - begun_s
            # Also after a 503: the prices may be in force all the same, and accounts may be judged by them.
            self._record_stamps(prices, label)
            if answer.accepted:
                break
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise EngineError(f"mark prices {named} ({label}) are refused: {answer.status} {answer.code}")
            time.sleep(_MARK_WAIT_S)
        else:
            raise EngineError(f"mark prices {named} ({label}) are not taken: {answer.code}")
        self._marks.update(prices)
        self.result.marks_posted += len(prices)
        self.result.marks_s.append(taken_s)
        self.result.at_risk += answer.body["at_risk"]
        if answer.body["at_risk"]:
            self.notice_liquidations()

    def _record_stamps(self, prices: Mapping[str, str], label: str) -> None:
        if self._stamps is None:
            return
        stamps = self._stamps.read(tuple(prices))
        if not self.result.marks or min(stamps.values()) > self.result.marks[-1].stamp_us:
            marks = {symbol: Mark(Decimal(price), stamps[symbol]) for symbol, price in prices.items()}
            self.result.marks.append(PostedMarks(marks, label))

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


def _liquidated(row: dict[str, Any], candle: int, *, partial: bool) -> Liquidated:
    return Liquidated(
        liquidation_id=row["id"],
        account_id=row["account_id"],
        row=candle,
        positions=tuple(
            (closed["symbol"], Decimal(closed["quantity"]), Decimal(closed["price"])) for closed in row["positions"]
        ),
        shortfall=Decimal(row["shortfall"]),
        partial=partial,
    )
