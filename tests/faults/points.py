"""Places of the write path at which something can go wrong, and what can.

The steps of the write path are calls of ports, so a fault point is a place before or after such a call, and is reached
by wrapping the stores where an engine is composed. Production composes without wrappers and pays nothing for them.

Nothing here knows a server: the same names serve stores in memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from enum import StrEnum, unique
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from margin.errors import PostgresUnavailableError, RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from margin.domain.event import StoredEvent
    from margin.errors import MarginError
    from margin.ports import AccountView, Commit, CommitReply, RateLimit
    from margin.ports.history import Appended, HistoryWriter, ReadAt

T = TypeVar("T")


@unique
class FaultPoint(StrEnum):
    """Before and after the steps of the write path, in their order."""

    BEFORE_READ = "before_read"
    AFTER_READ = "after_read"
    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"
    BEFORE_HISTORY = "before_history"
    AFTER_HISTORY = "after_history"
    BEFORE_CLEANUP = "before_cleanup"


@unique
class FaultKind(StrEnum):
    """What goes wrong there.

    ``DROP`` raises what the store's client raises when no answer comes: before a step the request was lost and nothing
    happened, after it the answer was. ``DUPLICATE`` delivers the call twice: before a step it is the second answer that
    is heard, after it the first. ``GATE`` stops until somebody opens it, ``DELAY`` for a time.
    """

    KILL_PROCESS = "kill_process"
    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    GATE = "gate"


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One fault at one point.

    Parameters
    ----------
    point : FaultPoint
        Where.
    kind : FaultKind
        What.
    after : int
        The first time that it happens, counted from when it is armed: 1 is the next one.
    every : int
        From then on each so many times.
    times : int
        How often in all; 0 for ever.
    seconds : float
        How long a delay lasts.

    Examples
    --------
    >>> Fault.parse("after_commit:kill_process:after=57").after
    57
    """

    point: FaultPoint
    kind: FaultKind
    after: int = 1
    every: int = 1
    times: int = 1
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``point:kind[:name=number]...``, the form of `__str__`.

        Raises
        ------
        ValueError
            An unknown point, kind or name, or no number.
        """
        point, kind, *options = text.strip().split(":")
        given: dict[str, Any] = {}
        for option in options:
            name, _, number = option.partition("=")
            if name not in ("after", "every", "times", "seconds"):
                raise ValueError(f"{name!r} in {text!r} is none of after, every, times and seconds")
            given[name] = float(number) if name == "seconds" else int(number)
        return cls(FaultPoint(point), FaultKind(kind), **given)

    def __str__(self) -> str:
        options = "".join(
            f":{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)[2:]
            if getattr(self, field.name) != field.default
        )
        return f"{self.point}:{self.kind}{options}"

    def due(self, number: int) -> bool:
        """Whether it happens the ``number``-th time that its point is reached."""
        turn, between = divmod(number - self.after, self.every)
        return number >= self.after and between == 0 and (self.times == 0 or turn < self.times)


class Gate:
    """A door that is shut: ``arrived`` is set when somebody stands before it, ``open`` lets through."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let everybody through, those who are still to come too."""
        self._opened.set()

    async def pass_through(self) -> None:
        """Wait until it is open."""
        self.arrived.set()
        await self._opened.wait()


class FaultPlan:
    """Which faults are armed, how often every point was reached, and how often one request committed at the most.

    Parameters
    ----------
    faults : sequence of Fault
        Armed from the start.
    on_gate : callable, optional
        Told when somebody arrives at a gate.
    """

    def __init__(
        self, faults: Sequence[Fault] = (), *, on_gate: Callable[[FaultPoint], None] = lambda _point: None
    ) -> None:
        self.reached: Counter[FaultPoint] = Counter()
        self.happened: Counter[Fault] = Counter()
        self.commits_max = 0
        self.gate = Gate()
        self._on_gate = on_gate
        self._commits: WeakKeyDictionary[asyncio.Task[Any], Counter[str]] = WeakKeyDictionary()
        self._armed: dict[Fault, int] = {}
        for fault in faults:
            self.arm(fault)

    def note_commit(self, key: str) -> None:
        """Count the commits that one request makes of one event: each request has a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        commits = self._commits.setdefault(task, Counter())
        commits[key] += 1
        self.commits_max = max(self.commits_max, commits[key])

    def arm(self, fault: Fault) -> None:
        """Let a fault happen from now on; a gate is shut anew."""
        if fault.kind is FaultKind.GATE:
            self.gate = Gate()
        self._armed[fault] = 0

    def disarm(self) -> None:
        """Let nothing happen any more, and open the gate."""
        self._armed.clear()
        self.gate.open()

    async def reach(self, point: FaultPoint, lost: Callable[[], MarginError]) -> bool:
        """Be at a point: what is due there happens.

        Returns
        -------
        bool
            Whether the call is to be delivered once more.

        Raises
        ------
        MarginError
            ``lost()``, where an answer or a request is dropped.
        """
        self.reached[point] += 1
        again = False
        for fault in [fault for fault in self._armed if fault.point is point]:
            self._armed[fault] += 1
            if fault.due(self._armed[fault]):
                self.happened[fault] += 1
                again |= await self._happen(fault, lost)
        return again

    async def _happen(self, fault: Fault, lost: Callable[[], MarginError]) -> bool:
        match fault.kind:
            case FaultKind.KILL_PROCESS:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultKind.DROP:
                raise lost()
            case FaultKind.DELAY:
                await asyncio.sleep(fault.seconds)
            case FaultKind.GATE:
                self._on_gate(fault.point)
                await self.gate.pass_through()
            case FaultKind.DUPLICATE:
                return True
        return False

    async def around(
        self,
        before: FaultPoint,
        after: FaultPoint | None,
        deliver: Callable[[], Awaitable[T]],
        lost: Callable[[], MarginError],
    ) -> T:
        """Make one call of a store between its two points."""
        if await self.reach(before, lost):
            await deliver()
        reply = await deliver()
        if after is not None and await self.reach(after, lost):
            await deliver()
        return reply


class _Wrapper:
    """A store of which some calls have fault points; all else is the store's own.

    Parameters
    ----------
    store : AccountStore or History
        The store around which the points are.
    plan : FaultPlan
        What happens at them.
    """

    def __init__(self, store: Any, plan: FaultPlan) -> None:
        self._store = store
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class FaultyAccounts(_Wrapper):
    """An `AccountStore` whose steps of the write path are fault points; all else is the store's own."""

    async def read(
        self, account_id: int, *, symbol: str = "", key: str = "", limits: Sequence[RateLimit] = ()
    ) -> AccountView:
        """Read an account, between two points."""
        return await self._plan.around(
            FaultPoint.BEFORE_READ,
            FaultPoint.AFTER_READ,
            lambda: self._store.read(account_id, symbol=symbol, key=key, limits=limits),
            _redis_lost,
        )

    async def commit(self, commit: Commit) -> CommitReply:
        """Commit an event, between two points."""
        self._plan.note_commit(commit.event.key)
        return await self._plan.around(
            FaultPoint.BEFORE_COMMIT, FaultPoint.AFTER_COMMIT, lambda: self._store.commit(commit), _redis_lost
        )

    async def forget_pending(self, *stored: Any) -> None:
        """Take events off pending lists, after a point."""
        await self._plan.around(
            FaultPoint.BEFORE_CLEANUP, None, lambda: self._store.forget_pending(*stored), _redis_lost
        )


class FaultyHistory(_Wrapper):
    """A `History` whose writers have fault points; all else is the store's own."""

    def reserve(self) -> AbstractAsyncContextManager[HistoryWriter]:
        """Reserve a connection."""
        return self._reserve()

    @asynccontextmanager
    async def _reserve(self) -> AsyncIterator[Any]:
        async with self._store.reserve() as writer:
            yield _FaultyWriter(writer, self._plan)


class _FaultyWriter:
    def __init__(self, writer: HistoryWriter, plan: FaultPlan) -> None:
        self._writer = writer
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        return await self._plan.around(
            FaultPoint.BEFORE_HISTORY,
            FaultPoint.AFTER_HISTORY,
            lambda: self._writer.append(events, read_at),
            _postgres_lost,
        )


def _redis_lost() -> RedisTimeoutError:
    return RedisTimeoutError("Redis did not answer in time.")


def _postgres_lost() -> PostgresUnavailableError:
    return PostgresUnavailableError("PostgreSQL did not answer in time, or refused the connection or the statement.")
