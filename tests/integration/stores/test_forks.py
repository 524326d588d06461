"""Keys that Redis forgot and history remembers, used by several at once: each is answered, and nothing is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.postgres import PostgresClient
from margin.errors import HistoryForkError
from margin.runtime import Engine
from tests.actions import buy, deposit, mark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import redis

    from margin.domain.event import StoredEvent
    from margin.ports.history import Appended, HistoryWriter, ReadAt
    from margin.services.journal import Outcome
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

CONNECTIONS = 8


class _HesitatingWriter:
    """Waits before it appends until it is told to go on."""

    def __init__(self, writer: HistoryWriter, arrived: asyncio.Event, go_on: asyncio.Event) -> None:
        self._writer, self._arrived, self._go_on = writer, arrived, go_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        self._arrived.set()
        await self._go_on.wait()
        return await self._writer.append(events, read_at)


class _HesitatingHistory(PostgresClient):
    arrived: asyncio.Event
    go_on: asyncio.Event

    @contextlib.asynccontextmanager
    async def reserve(self) -> AsyncIterator[Any]:
        async with super().reserve() as writer:
            yield _HesitatingWriter(writer, self.arrived, self.go_on)


class _HesitatingEngine(Engine):
    """A function that stands still between its commit and its append."""

    @cached_property
    def history_store(self) -> _HesitatingHistory:
        history = _HesitatingHistory(self.settings)
        history.arrived, history.go_on = asyncio.Event(), asyncio.Event()
        return history

    def begin(self, work: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(work)

    async def committed(self) -> None:
        await self.history_store.arrived.wait()

    def go_on(self) -> None:
        self.history_store.go_on.set()


async def test_whoever_heals_late_drops_nothing_that_was_decided_after_another_has_healed(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    first, second, third = [await make_engine(opened=False, kind=_HesitatingEngine) for _ in range(3)]
    await mark(engine, "50000")
    await deposit(engine, 1, "20000", key="old")
    store.delete("idempotency:1:old")

    # The first executes an old key again, the second trades on what came of it: both forks, still to be found out.
    again = first.begin(deposit(first, 1, "20000", key="old"))
    await first.committed()
    on_the_fork = second.begin(buy(second, 1, "0.1", "50000"))
    await second.committed()
    first.go_on()
    assert (await again).replayed
    assert store.hget("balances", "1") == "20000"

    # The account is sound again. The third trades, then the second learns that its trade is not in history.
    sound = third.begin(buy(third, 1, "1", "50000"))
    await third.committed()
    second.go_on()
    with pytest.raises(HistoryForkError):
        await on_the_fork
    third.go_on()
    outcome: Outcome = await sound

    assert outcome.final
    assert store.hget("position:1:BTC-PERP", "quantity") == "1"
    assert query("select id, quantity from trades") == [(outcome.event_id, Decimal(1))]
    assert query("select n || ':' || event_id from accounts") == [(store.hget("versions", "1"),)]
    assert (await mark(engine, "30000")).liquidated == (1,)


async def test_drain_that_finds_a_fork_late_drops_nothing_that_was_decided_after_another_has_healed(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine()
    first, drainer, third = [await make_engine(opened=False, kind=_HesitatingEngine) for _ in range(3)]
    await mark(engine, "50000")
    await deposit(engine, 1, "20000", key="old")
    store.delete("idempotency:1:old")
    again = first.begin(deposit(first, 1, "20000", key="old"))
    await first.committed()
    drain = drainer.begin(drainer.drain.drain())
    await drainer.committed()
    first.go_on()
    assert (await again).replayed
    sound = third.begin(buy(third, 1, "1", "50000"))
    await third.committed()
    drainer.go_on()
    await drain
    third.go_on()
    outcome: Outcome = await sound
    assert outcome.final
    assert store.hget("position:1:BTC-PERP", "quantity") == "1"
    assert query("select n || ':' || event_id from accounts") == [(store.hget("versions", "1"),)]


async def test_more_retries_of_forgotten_keys_at_once_than_there_are_connections_are_all_replayed(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine(postgres_connections_max=CONNECTIONS)
    account_ids = range(1, 2 * CONNECTIONS + 1)
    before = [await deposit(engine, account_id, "100", key="old") for account_id in account_ids]
    balances = store.hgetall("balances")
    for account_id in account_ids:
        store.delete(f"idempotency:{account_id}:old")
    again = await asyncio.gather(*(deposit(engine, account_id, "100", key="old") for account_id in account_ids))
    assert [(outcome.event_id, outcome.final, outcome.replayed) for outcome in again] == [
        (outcome.event_id, True, True) for outcome in before
    ]
    assert store.hgetall("balances") == balances
    assert not store.exists("pending")
    assert query("select count(*), sum(balance) from accounts") == [(len(account_ids), 100 * len(account_ids))]
