"""The stores of one run, and the wires on which processes reach them: where everything goes wrong."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from margin.errors import (
    MarginError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RedisRefusedError,
    RedisTimeoutError,
    RedisUnavailableError,
)
from tests.fakes import Clock, FakeAccounts, FakeHistory, FakeMarket, FakePartitions, FakeRedis, Faults
from tests.fakes.controls import FakeControlHistory, FakeControls
from tests.fakes.funding import FakeFunding, FakeFundingHistory
from tests.fakes.instruments import FakeInstrumentHistory, FakeInstruments
from tests.simulation.clockwork import Clockwork, Process, ProcessKilledError
from tests.simulation.mishaps import MUTATING, POINTS, Mishap, Weather

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from margin.ports.history import RememberedKey

KEY_TTL_S = 3600
_LATE_STEPS_MAX = 500
_POSTGRES = ("history.", "writer.", "switch_records.", "funding_records.", "instrument_records.")
_NOT_TWICE = frozenset({"partitions.begin"})


class Stores:
    """Redis and PostgreSQL of one run, and what is wrong with them at this moment."""

    def __init__(self, partitions: int, chance: random.Random, weather: Weather, *, steps_max: int) -> None:
        self.clock = Clock()
        faults = Faults()
        self.redis = FakeRedis(self.clock, faults, partitions=partitions, page_size=2)
        self.history = FakeHistory(self.clock, faults, idempotency_ttl_s=KEY_TTL_S)
        self.switch_records = FakeControlHistory(self.clock, faults)
        self.funding_records = FakeFundingHistory(self.history, faults)
        self.instrument_records = FakeInstrumentHistory(self.clock, faults)
        self.clockwork = Clockwork(chance, self.clock, steps_max)
        self.chance = chance
        self.weather = weather
        self.down_until: dict[str, int] = {}
        self.happened: Counter[str] = Counter()
        self.late = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def calm_down(self) -> None:
        """Let nothing go wrong from now on; what is late comes soon."""
        self.weather = Weather()
        self.down_until.clear()
        self.clockwork.hurry()

    def is_down(self, store: str) -> bool:
        return self.down_until.get(store, 0) > self.clockwork.steps

    def snapshot(self) -> dict[str, Any]:
        """Copy what Redis holds; a tenth of the work of copying it deeply."""
        return {name: _copy(getattr(self.redis, name)) for name in self.redis._STATE}

    def restore(self, saved: Mapping[str, Any], names: Iterable[str] | None = None) -> None:
        """Put back what Redis held, or some of it."""
        for name in saved if names is None else names:
            setattr(self.redis, name, _copy(saved[name]))


class Accounts(FakeAccounts):
    """Keys are many and of no interest one by one: all on one page."""

    async def remembered_keys(
        self, partition: int, cursor: str, *, account_id: int | None = None
    ) -> tuple[str, list[RememberedKey]]:
        size, self._redis.page_size = self._redis.page_size, len(self._redis.keys) + 1
        try:
            return await super().remembered_keys(partition, cursor, account_id=account_id)
        finally:
            self._redis.page_size = size


class Wire:
    """How one process reaches the stores."""

    def __init__(self, stores: Stores, process: Process) -> None:
        self._stores = stores
        self._process = process

    @property
    def dead(self) -> bool:
        return self._process.dead

    async def call(self, step: str, deliver: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Call a store in this process's turn, with whatever goes wrong there."""
        stores = self._stores
        await stores.clockwork.gate(self._process, step)
        request = functools.partial(deliver, *args, **kwargs)
        postgres = step.startswith(_POSTGRES)
        if stores.is_down("postgres" if postgres else "redis"):
            raise _down(postgres=postgres)
        mishap = stores.weather.draw(step, stores.chance)
        if mishap is None:
            return await request()
        self._note(step, mishap)
        return await self._go_wrong(step, mishap, request, postgres=postgres)

    async def _go_wrong(
        self, step: str, mishap: Mishap, request: Callable[[], Awaitable[Any]], *, postgres: bool
    ) -> Any:
        match mishap:
            case Mishap.KILLED_BEFORE:
                self._die()
            case Mishap.KILLED_AFTER:
                await request()
                self._die()
            case Mishap.KILLED_LATE:
                self._deliver_late(step, request)
                self._die()
            case Mishap.REFUSED:
                raise PostgresUnavailableError("No.") if postgres else RedisRefusedError("No.")
            case Mishap.REPLY_LOST:
                await request()
            case Mishap.LATE:
                self._deliver_late(step, request)
            case Mishap.TWICE:
                return await self._deliver_twice(step, request)
        raise _lost(step, postgres=postgres)

    async def _deliver_twice(self, step: str, request: Callable[[], Awaitable[Any]]) -> Any:
        reply = await request()
        if step in _NOT_TWICE:
            return reply
        if self._stores.chance.random() < 0.5:
            return await request()
        self._deliver_late(step, request)
        return reply

    def _deliver_late(self, step: str, request: Callable[[], Awaitable[Any]]) -> None:
        stores = self._stores
        run_id = None if step.startswith(_POSTGRES) else stores.redis.run_id
        steps = int(_LATE_STEPS_MAX ** stores.chance.random())

        async def deliver() -> None:
            await stores.clockwork.gate(Process("wire"), f"late {step}", steps=steps)
            stores.late -= 1
            # What was sent to a server that is no more never arrives.
            if run_id not in (None, stores.redis.run_id):
                return
            try:
                await request()
            except MarginError as error:
                stores.clockwork.trace(f"wire late {step}: {error.code}")

        stores.late += 1
        task = asyncio.ensure_future(deliver())
        stores.tasks.add(task)
        task.add_done_callback(stores.tasks.discard)

    def _die(self) -> None:
        self._stores.clockwork.kill(self._process)
        raise ProcessKilledError

    def _note(self, step: str, mishap: Mishap) -> None:
        before, after = POINTS.get(step, (None, None))
        early = mishap in (Mishap.KILLED_BEFORE, Mishap.REQUEST_LOST, Mishap.REFUSED)
        point = (before if early else after) or before or step
        self._stores.happened[f"{point}: {mishap}"] += 1
        self._stores.clockwork.trace(f"{self._process.name} {step} MISHAP {mishap}")


def _down(*, postgres: bool) -> MarginError:
    return PostgresUnavailableError("It is down.") if postgres else RedisUnavailableError("It is down.")


def _lost(step: str, *, postgres: bool) -> MarginError:
    if step == "switch_records.record":
        return OutcomeUnknownError("No answer; the change may be in history.")
    if step == "funding_records.record":
        return OutcomeUnknownError("No answer; the payment may be in history.")
    return PostgresUnavailableError("No answer.") if postgres else RedisTimeoutError("No answer.")


class Remote:
    """A store as a process reaches it: every call goes over the wire."""

    def __init__(self, wire: Wire, name: str, store: object) -> None:
        self._wire = wire
        self._name = name
        self._store = store

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._store, method)
        if not inspect.iscoroutinefunction(target):
            return target
        return functools.partial(self._wire.call, f"{self._name}.{method}", target)


class RemoteHistory(Remote):
    """History, whose connections and lock are held as long as the process that took them lives."""

    _store: FakeHistory

    @asynccontextmanager
    async def reserve(self) -> AsyncIterator[Remote]:
        async with await self._wire.call("history.reserve", _now, self._store.reserve) as writer:
            yield Remote(self._wire, "writer", writer)

    @asynccontextmanager
    async def opening_lock(self) -> AsyncIterator[bool]:
        async with await self._wire.call("history.opening_lock", _now, self._store.opening_lock) as mine:
            yield mine


def _copy(kept: Any) -> Any:
    """Copy a dictionary of the fake with those of its values that change in place, or a set."""
    copied = copy.copy(kept)
    if not isinstance(copied, dict):
        return copied
    for name, value in copied.items():
        if isinstance(value, list):
            copied[name] = list(value)
        elif hasattr(value, "triggers"):
            copied[name] = dataclasses.replace(value, triggers=dict(value.triggers))
    return copied


async def _now(enter: Callable[[], Any]) -> Any:
    return enter()


@dataclasses.dataclass(frozen=True, slots=True)
class Reached:
    """All stores as one process reaches them."""

    wire: Wire
    accounts: Any
    market: Any
    partitions: Any
    switches: Any
    switch_records: Any
    funding: Any
    funding_records: Any
    instruments: Any
    instrument_records: Any
    history: Any

    @classmethod
    def by(cls, process: Process, stores: Stores) -> Reached:
        wire = Wire(stores, process)
        redis = stores.redis
        return cls(
            wire=wire,
            accounts=Remote(wire, "accounts", Accounts(redis)),
            market=Remote(wire, "market", FakeMarket(redis)),
            partitions=Remote(wire, "partitions", FakePartitions(redis)),
            switches=Remote(wire, "switches", FakeControls(redis)),
            switch_records=Remote(wire, "switch_records", stores.switch_records),
            funding=Remote(wire, "funding", FakeFunding(redis)),
            funding_records=Remote(wire, "funding_records", stores.funding_records),
            instruments=Remote(wire, "instruments", FakeInstruments(redis)),
            instrument_records=Remote(wire, "instrument_records", stores.instrument_records),
            history=RemoteHistory(wire, "history", stores.history),
        )

    def unchecked_accounts(self, stores: Stores, partitions: int) -> Any:
        """Accounts for a client that does not look at markers when it connects."""
        return Remote(self.wire, "accounts", Accounts(stores.redis, check_marker=False, partitions=partitions))


assert all("." in step for step in MUTATING)
