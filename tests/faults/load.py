"""Callers that do what the README tells them to: ask again with the same key until they know.

Some give no key. They never ask again, and so may never know.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Self, TypeVar

from tests.faults.http import HANG_S, Answer, HttpConnection, NoAnswerError, NotSentError
from tests.faults.ledger import CallersLedger, Kind, Operation, Told

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType

    from tests.faults.house import ServingProcess

T = TypeVar("T")

SYMBOL = "BTC-PERP"
MARK = "50000"
RECOVERY_S = 30.0
"""After this long without the answers that a scenario waits for, the engine does not recover by itself."""
OPENING_DEPOSIT = Decimal(1_000_000)

_MARK_EVERY_S = 0.25
_PAUSE_S = (0.01, 0.06)
_RETRYABLE = frozenset({"CONTENTION", "HISTORY_FORK"})
_MIX = {Kind.DEPOSIT: 25, Kind.WITHDRAWAL: 10, Kind.BUY: 35, Kind.SELL: 27, Kind.TOO_LARGE: 3}


class DoesNotRecoverError(Exception):
    """The engine went on answering something else for too long."""


class Load:
    """Callers at work; use it as an asynchronous context, which ends them.

    Parameters
    ----------
    processes : sequence of ServingProcess
        Where to send; a caller who gets no answer tries the next one.
    account_ids : sequence of int
        Whose operations; opened first.
    callers : int
        How many work at once.
    keyed : float
        Share of the callers that give keys.
    chance : random.Random
        Decides what they do.
    """

    def __init__(
        self,
        processes: Sequence[ServingProcess],
        account_ids: Sequence[int],
        *,
        callers: int,
        keyed: float,
        chance: random.Random,
    ) -> None:
        self.ledger = CallersLedger()
        self.recoveries_s: list[float] = []
        self.slowest_s = 0.0
        self.done = 0
        self.failed = 0
        self._processes = processes
        self._account_ids = account_ids
        self.callers = callers
        self._keyed = round(callers * keyed)
        self._chance = chance
        self._stopping = False
        self._fault_ended_s: float | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._feed: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        connections = _Connections(self._processes)
        try:
            async with asyncio.timeout(RECOVERY_S):
                await self._post_mark(connections)
                for account_id in self._account_ids:
                    opening = self.ledger.open(account_id, Kind.DEPOSIT, keyed=True, size=OPENING_DEPOSIT)
                    await self._settle(opening, connections)
        except TimeoutError:
            raise DoesNotRecoverError(f"the accounts were not opened within {RECOVERY_S:.0f} s") from None
        finally:
            await self._close(connections)
        self._feed = asyncio.create_task(self._feed_marks())
        accounts = itertools.cycle(self._account_ids)
        self._tasks = [
            asyncio.create_task(self._work(next(accounts), number, keyed=number < self._keyed))
            for number in range(self.callers)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._feed] if self._feed is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answers(self, count: int) -> None:
        """Wait for so many more operations that are answered with 200.

        Raises
        ------
        DoesNotRecoverError
        """
        wanted = self.done + count
        await self._until(lambda: self.done >= wanted, f"{count} answers with 200")

    async def failures(self, count: int) -> None:
        """Wait for so many more requests that end otherwise than with 200 or a refusal.

        Raises
        ------
        DoesNotRecoverError
        """
        wanted = self.failed + count
        await self._until(lambda: self.failed >= wanted, f"{count} failures")

    async def work_until(self, event: Awaitable[T]) -> T:
        """Wait for something that the callers' work brings about.

        Raises
        ------
        DoesNotRecoverError
        """
        try:
            async with asyncio.timeout(RECOVERY_S):
                return await event
        except TimeoutError:
            raise DoesNotRecoverError(f"the fault was not reached within {RECOVERY_S:.0f} s") from None

    def fault_ended(self) -> None:
        """Take the time until the next answer with 200 to a request that is sent after this."""
        self._fault_ended_s = time.monotonic()

    def stop(self) -> None:
        """Begin no more operations."""
        self._stopping = True

    async def finish(self) -> None:
        """Begin no more operations, and wait until every caller who can ask again knows.

        Raises
        ------
        DoesNotRecoverError
        """
        self.stop()
        try:
            async with asyncio.timeout(RECOVERY_S):
                await asyncio.gather(*self._tasks)
        except TimeoutError:
            waiting = sum(operation.told is Told.NOTHING for operation in self.ledger.operations)
            raise DoesNotRecoverError(f"{waiting} operations had no answer after {RECOVERY_S:.0f} s") from None

    async def settle(self, operation: Operation) -> None:
        """Send one operation until its caller knows."""
        connections = _Connections(self._processes)
        await self._settle(operation, connections)
        await self._close(connections)

    async def ask_again(self, count: int) -> None:
        """Send some of the operations that were done once more: each must be answered the same."""
        known = [operation for operation in self.ledger.operations if operation.told is Told.DONE and operation.key]
        connections = _Connections(self._processes)
        for operation in self._chance.sample(known, min(count, len(known))):
            answer = await self._send(operation, connections)
            if (
                isinstance(answer, NoAnswerError)
                or answer.status != 200
                or not answer.replayed
                or answer.event_id != operation.event_id
            ):
                was = f"{operation.key}, done as {operation.event_id}"
                self.ledger.findings.append(f"{was}, was asked again: {operation.last_answer or answer}")
        await self._close(connections)

    async def at_once(self, callers: int, kind: Kind) -> None:
        """Let so many callers begin one operation at the same moment; "no" is an answer to each, contention too."""
        connections = [_Connections(self._processes, number) for number in range(callers)]
        operations = [
            self.ledger.open(account_id, kind, keyed=True)
            for account_id, _ in zip(itertools.cycle(self._account_ids), connections, strict=False)
        ]
        await asyncio.gather(
            *(
                self._settle(operation, connection, persistent=False)
                for operation, connection in zip(operations, connections, strict=True)
            )
        )
        for connection in connections:
            await self._close(connection)

    async def _work(self, account_id: int, number: int, *, keyed: bool) -> None:
        connections = _Connections(self._processes, number)
        try:
            while not self._stopping:
                kind = self._chance.choices(list(_MIX), weights=list(_MIX.values()))[0]
                operation = self.ledger.open(account_id, kind, keyed=keyed)
                await self._settle(operation, connections)
                if operation.told is not Told.DONE:
                    # Without it a caller who gives no key would flood an engine that is down.
                    await self._pause()
        finally:
            await self._close(connections)

    async def _settle(self, operation: Operation, connections: _Connections, *, persistent: bool = True) -> None:
        """Send an operation until its caller knows, or at once knows that he will not."""
        while True:
            sent_s = time.monotonic()
            answer = await self._send(operation, connections)
            operation.told = _told(answer, operation, persistent=persistent)
            if operation.told is Told.DONE:
                assert isinstance(answer, Answer)
                operation.event_id = answer.event_id
                self._note_done(sent_s)
            elif operation.told is not Told.REFUSED:
                self.failed += 1
            self._wake()
            if operation.told is not Told.NOTHING:
                return
            await self._pause()

    async def _send(self, operation: Operation, connections: _Connections) -> Answer | NoAnswerError:
        path, body = _request(operation)
        operation.attempts += 1
        connection = connections.current
        try:
            answer = await connection.post(path, body, key=operation.key)
        except NoAnswerError as error:
            operation.last_answer = f"no answer: {error}"
            connections.turn()
            return error
        finally:
            self._note_time(connection)
        operation.last_answer = f"{answer.status} {answer.code}"
        if answer.status not in {200, 202, 400, 409, 503}:
            self.ledger.findings.append(f"operation {operation.number} was answered with {operation.last_answer}")
        return answer

    def _note_time(self, connection: HttpConnection) -> None:
        if connection.slowest_s > HANG_S:
            self.ledger.findings.append(f"a request took {connection.slowest_s:.1f} s")
        self.slowest_s = max(self.slowest_s, connection.slowest_s)
        connection.slowest_s = 0.0

    def _note_done(self, sent_s: float) -> None:
        self.done += 1
        if self._fault_ended_s is not None and sent_s >= self._fault_ended_s:
            self.recoveries_s.append(time.monotonic() - self._fault_ended_s)
            self._fault_ended_s = None

    async def _feed_marks(self) -> None:
        """Post the mark price for ever: history does not hold it, so an emptied Redis needs it anew."""
        connections = _Connections(self._processes)
        try:
            while True:
                await asyncio.sleep(_MARK_EVERY_S)
                await self._post_mark(connections)
        finally:
            await self._close(connections)

    async def _post_mark(self, connections: _Connections) -> None:
        connection = connections.current
        try:
            answer = await connection.post("/mark-price", {"symbol": SYMBOL, "price": MARK})
        except NoAnswerError:
            connections.turn()
        else:
            if answer.status not in {200, 503}:
                self.ledger.findings.append(f"a mark price was answered with {answer.status} {answer.code}")
        self._note_time(connection)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(*_PAUSE_S))

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        self._wake()
        # A caller that ends now has failed for a reason of its own.
        ended, _ = await asyncio.wait({future, *self._tasks}, timeout=RECOVERY_S, return_when=asyncio.FIRST_COMPLETED)
        if not ended:
            raise DoesNotRecoverError(f"{what} did not come within {RECOVERY_S:.0f} s")
        for task in ended:
            task.result()

    def _wake(self) -> None:
        for waiting in [waiting for waiting in self._waiting if waiting[0]()]:
            self._waiting.remove(waiting)
            if not waiting[1].done():
                waiting[1].set_result(None)

    @staticmethod
    async def _close(connections: _Connections) -> None:
        for connection in connections:
            await connection.aclose()


class _Connections:
    """One caller's connections, one to each process; the next one's turn comes when one gives no answer."""

    def __init__(self, processes: Sequence[ServingProcess], first: int = 0) -> None:
        self._connections = [HttpConnection(process.host, process.port) for process in processes]
        self._turn = first

    def __iter__(self) -> Iterator[HttpConnection]:
        return iter(self._connections)

    @property
    def current(self) -> HttpConnection:
        return self._connections[self._turn % len(self._connections)]

    def turn(self) -> None:
        self._turn += 1


def _request(operation: Operation) -> tuple[str, dict[str, object]]:
    if operation.symbol_side:
        return "/trade", {
            "account_id": operation.account_id,
            "symbol": SYMBOL,
            "side": operation.symbol_side,
            "quantity": str(operation.amount),
            "price": MARK,
        }
    what = "deposits" if operation.kind is Kind.DEPOSIT else "withdrawals"
    return f"/accounts/{operation.account_id}/{what}", {"amount": str(operation.amount)}


def _told(answer: Answer | NoAnswerError, operation: Operation, *, persistent: bool) -> Told:
    """What an answer, or none, tells about an operation; `Told.NOTHING` where it is to be sent again."""
    if isinstance(answer, NoAnswerError):
        may_ask = operation.key is not None or isinstance(answer, NotSentError)
        return Told.NOTHING if may_ask else Told.UNKNOWN
    if answer.status == 200:
        return Told.DONE
    if answer.status in {400, 409} and not (persistent and answer.code in _RETRYABLE):
        return Told.REFUSED
    if operation.key is not None:
        return Told.NOTHING
    # 503 says that nothing happened, unless it says that this is not known.
    nothing_happened = answer.code in _RETRYABLE or (answer.status == 503 and answer.code != "OUTCOME_UNKNOWN")
    return Told.REFUSED if nothing_happened else Told.UNKNOWN
