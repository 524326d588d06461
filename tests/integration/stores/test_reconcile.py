"""Reconciling on real stores: nothing is found while all is well, and exactly what was tampered with otherwise."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.audit_postgres import AuditPostgresClient
from margin.clients.audit_redis import AuditRedisClient
from margin.domain.event import canonical, digest
from margin.errors import PostgresUnavailableError, StateNotLoadedError
from margin.services.reconcile import PAGE_SIZES, PageSizes, ReconcileService
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.integration.conftest import admin
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import redis

    from margin.ports.audit import AuditedAccount
    from margin.runtime import Engine
    from margin.services.reconcile import ReconcileReport
    from margin_local.servers import EmbeddedPostgres
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]
    MakeService = Callable[..., ReconcileService]

TABLES = ("accounts", "events", "trades", "liquidations", "ledger_lines")
PROGRESS = ("reconcile", "{p0}:reconcile")


async def live(engine: Engine) -> None:
    """Three accounts: 1 sees every kind of event and ends liquidated, 2 holds a long and a short, 3 has only cash."""
    for account_id in (1, 2, 3):
        await deposit(engine, account_id, "10000")
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await buy(engine, 1, "0.3", "50000")
    await sell(engine, 1, "0.1", "50000.00000001")
    await withdraw(engine, 1, "100.12345678")
    await buy(engine, 2, "0.1", "50000")
    await sell(engine, 2, "0.5", "2000", symbol=ETH)
    await buy(engine, 1, "0.3", "50000")
    assert (await mark(engine, "32000")).liquidated == (1,)


def contents(store: redis.Redis, query: Query) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Everything that both stores hold, but for how far the reconciling has got."""
    return hot_state(store, without=PROGRESS), {
        table: query(f"select row::text from {table} as row order by 1")  # noqa: S608 - of our own tables
        for table in TABLES
    }


async def found(engine: Engine, store: redis.Redis, query: Query) -> list[tuple[int | None, str, str, str]]:
    """Every difference of a whole cycle, which must have written to neither store."""
    before = contents(store, query)
    report = await engine.reconcile.reconcile()
    assert contents(store, query) == before
    assert report.complete
    assert report.differences_count == len(report.differences)
    return [(one.account_id, one.what, one.expected, one.found) for one in report.differences]


async def whats(engine: Engine, store: redis.Redis, query: Query) -> list[tuple[int | None, str]]:
    return [(account_id, what) for account_id, what, _, _ in await found(engine, store, query)]


def rewrite(query: Query, account_id: int, n: int, **fields: object) -> str:
    """Change fields of an event's body and give it the hash of what it says now, as one who knows the engine would."""
    ((body,),) = query("select body from events where account_id = %(id)s and n = %(n)s", id=account_id, n=n)
    changed = {**body, **fields}
    query(
        "update events set body = %(body)s::jsonb, hash = %(hash)s where account_id = %(id)s and n = %(n)s returning 1",
        body=json.dumps(changed),
        hash=(rehashed := digest(canonical(changed))),
        id=account_id,
        n=n,
    )
    return rehashed


async def test_nothing_differs_after_every_kind_of_event(engine: Engine, store: redis.Redis, query: Query) -> None:
    await live(engine)
    report = await engine.reconcile.reconcile()
    assert (report.differences, report.unverified, report.complete) == ([], [], True)
    ((events,),) = query("select count(*) from events")
    assert (report.accounts, report.events) == (3, events)


async def test_nothing_differs_while_events_wait_for_history(
    engine: Engine, store: redis.Redis, query: Query, postgres_server: EmbeddedPostgres
) -> None:
    await live(engine)
    await leave_pending(engine, store, postgres_server, 3, count=12)
    await leave_pending(engine, store, postgres_server, 9, count=2)
    assert (store.llen("pending:3"), store.llen("pending:9")) == (12, 2)
    assert await found(engine, store, query) == []


async def leave_pending(
    engine: Engine, store: redis.Redis, server: EmbeddedPostgres, account_id: int, *, count: int
) -> None:
    """Deposit while history takes no event of the account."""
    with admin(server, engine.settings.postgres_database) as connection:
        connection.execute(f"alter table events add constraint closed check (account_id <> {account_id}) not valid")
        for _ in range(count):
            assert not (await deposit(engine, account_id, "1")).final
        connection.execute("alter table events drop constraint closed")
    assert store.llen(f"pending:{account_id}") == count


async def test_nothing_differs_while_others_trade(engine: Engine, store: redis.Redis, query: Query) -> None:
    await live(engine)

    async def trade(account_id: int) -> None:
        for _ in range(30):
            await buy(engine, account_id, "0.01", "32000")
            await sell(engine, account_id, "0.01", "32000")

    async def open_accounts() -> None:
        for account_id in range(100, 130):
            await deposit(engine, account_id, "1")

    work = asyncio.gather(trade(2), trade(3), trade(3), open_accounts())
    reports = [await engine.reconcile.reconcile()]
    while not work.done():
        reports.append(await engine.reconcile.reconcile())
    await work
    assert [report.differences for report in reports] == [[]] * len(reports)
    assert all(report.complete for report in reports)
    assert len(reports) > 1, "nobody traded while it looked"
    assert await found(engine, store, query) == []


async def test_nothing_differs_where_redis_alone_acknowledges(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine = await make_engine(history="drain")
    await live(engine)
    for _ in range(20):
        await buy(engine, 3, "0.001", "32000")
    assert store.llen("pending:3") == 21
    assert query("select 1 from events") == []
    assert await found(engine, store, query) == []

    async def trade() -> None:
        for _ in range(30):
            await sell(engine, 3, "0.001", "32000")
            await buy(engine, 3, "0.001", "32000")

    work = asyncio.create_task(trade())
    while not work.done():
        drained, report = await asyncio.gather(engine.drain.drain(), engine.reconcile.reconcile())
        assert (report.differences, report.unverified) == ([], []), drained
    await work
    await engine.drain.drain()
    assert await found(engine, store, query) == []


# --- history, tampered with ---


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "update events set body = jsonb_set(body, '{balance}', '\"10001\"') where (account_id, n) = (2, 2)",
            [(2, "event 2 does not have the hash of its body")],
        ),
        (
            "update events set hash = 'none' where (account_id, n) = (2, 2)",
            [(2, "event 2 does not have the hash of its body")],
        ),
        (
            "update events set body = '[7]' where (account_id, n) = (2, 2)",
            [(2, "event 2 does not have the hash of its body")],
        ),
        ("delete from events where (account_id, n) = (2, 2)", [(2, "event 2 is missing")]),
        ("delete from events where (account_id, n) = (2, 3)", [(2, "event 3 is missing")]),
        ("delete from events where account_id = 3", [(3, "event 1 is missing")]),
        (
            "update events set previous_event_id = 1 where (account_id, n) = (2, 2)",
            [(2, "event 2 does not name the one before it")],
        ),
        (
            "update events set type = 'DEPOSIT' where (account_id, n) = (2, 2)",
            [(2, "column type of event 2 is not what its body says")],
        ),
        (
            "update events set key = 'x' where (account_id, n) = (2, 2)",
            [(2, "column key of event 2 is not what its body says")],
        ),
        (
            "update events set request_hash = 'x' where (account_id, n) = (2, 2)",
            [(2, "column request_hash of event 2 is not what its body says")],
        ),
        (
            "update events set occurred_at = 'infinity' where (account_id, n) = (3, 1)",
            [(3, "column at_us of event 1 is not what its body says")],
        ),
        (
            "update events set subject = 'mallory' where (account_id, n) = (2, 2)",
            [(2, "column subject of event 2 is not what its body says")],
        ),
        (
            "update events set source_ip = null where (account_id, n) = (2, 2)",
            [(2, "column source_ip of event 2 is not what its body says")],
        ),
        (
            "update events set acknowledged_by = 'redis' where (account_id, n) = (2, 2)",
            [(2, "column acknowledged_by of event 2 is not what its body says")],
        ),
        (
            "delete from ledger_lines where account_id = 3 and line = 2",
            [(3, "ledger lines of event 1 are not those of its body"), (None, "the whole ledger does not sum to zero")],
        ),
        (
            "update ledger_lines set amount = amount * 2 where account_id = 3",
            [(3, "ledger lines of event 1 are not those of its body")],
        ),
        (
            "update ledger_lines set ledger_account = 'fees' where account_id = 3 and line = 2",
            [(3, "ledger lines of event 1 are not those of its body")],
        ),
        (
            "insert into ledger_lines values (3, 1, 1, 'cash', 5), (3, 1, 2, 'external', -5)",
            [(3, "ledger_lines has rows that belong to no event")],
        ),
        (
            "insert into ledger_lines values (77, 1, 1, 'cash', 'NaN')",
            [
                (77, "rows in ledger_lines are of an account that has none in accounts"),
                (None, "the whole ledger does not sum to zero"),
            ],
        ),
        (
            "update trades set price = price + 1 where symbol = 'ETH-PERP'",
            [(2, "the row in trades is not what event 3 says")],
        ),
        ("delete from trades where symbol = 'ETH-PERP'", [(2, "the row in trades is not what event 3 says")]),
        (
            "update trades set occurred_at = occurred_at + interval '1 microsecond' where symbol = 'ETH-PERP'",
            [(2, "the row in trades is not what event 3 says")],
        ),
        (
            "insert into trades values (3, 5, 'ETH-PERP', 'BUY', 1, 1, 1, 0, 0, now())",
            [(3, "trades has rows that belong to no event")],
        ),
        ("update liquidations set shortfall = 0.1", [(1, "the row in liquidations is not what event 6 says")]),
        ("update liquidations set positions = '[]'", [(1, "the row in liquidations is not what event 6 says")]),
        ("delete from liquidations", [(1, "the row in liquidations is not what event 6 says")]),
        (
            "update accounts set balance = balance + 1 where account_id = 3",
            [(3, "Redis holds another balance"), (3, "the balance in accounts is not what the events come to")],
        ),
        (
            "update accounts set positions = positions - 'ETH-PERP' where account_id = 2",
            [
                (2, "Redis holds another position in ETH-PERP"),
                (2, "the positions in accounts is not what the events come to"),
            ],
        ),
        (
            "update accounts set positions = '{\"ETH-PERP\": 5}' where account_id = 2",
            [(2, "the row in accounts cannot be read")],
        ),
        (
            "update accounts set balance = 'NaN' where account_id = 3",
            [(3, "the row in accounts cannot be read")],
        ),
        (
            "update accounts set chain_hash = 'none' where account_id = 3",
            [(3, "Redis holds another chain hash"), (3, "the chain hash in accounts is not what the events come to")],
        ),
        (
            "update accounts set event_id = 5 where account_id = 3",
            [
                (3, "Redis holds another event than history"),
                (3, "the version in accounts is not what the events come to"),
            ],
        ),
        (
            "update accounts set n = 2 where account_id = 3",
            [(3, "Redis is behind history"), (3, "event 2 is missing")],
        ),
    ],
)
async def test_row_that_was_tampered_with_is_found_and_nothing_else(
    engine: Engine, store: redis.Redis, query: Query, statement: str, expected: list[tuple[int | None, str]]
) -> None:
    await live(engine)
    assert query(f"{statement} returning 1")
    assert await whats(engine, store, query) == expected


async def test_difference_says_what_was_expected_and_what_is_there(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await live(engine)
    ((event_id,),) = query("select event_id from events where account_id = 3")
    query("update ledger_lines set amount = -9999 where account_id = 3 and line = 2 returning 1")
    assert await found(engine, store, query) == [
        (
            3,
            "ledger lines of event 1 are not those of its body",
            "1 cash 10000, 2 external -10000",
            "1 cash 10000, 2 external -9999",
        ),
        (None, "the whole ledger does not sum to zero", "0", "1"),
    ]
    query("update ledger_lines set amount = -10000 where account_id = 3 and line = 2 returning 1")
    store.hset("balances", "3", "10000.00000001")
    assert await found(engine, store, query) == [(3, "Redis holds another balance", "10000", "10000.00000001")]
    store.hset("balances", "3", "10000")
    store.hset("versions", "3", f"1:{event_id + 1}")
    (difference,) = await found(engine, store, query)
    assert difference == (3, "Redis holds another event than history", f"1:{event_id}", f"1:{event_id + 1}")


async def test_body_that_was_rewritten_with_its_hash_is_found_by_the_next_event(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await live(engine)
    rewrite(query, 2, 2, subject=None)
    query("update events set subject = null where (account_id, n) = (2, 2) returning 1")
    assert await whats(engine, store, query) == [(2, "event 3 does not name the one before it")]


async def test_history_that_was_rewritten_to_its_end_is_found_by_redis(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await live(engine)
    rehashed = rewrite(query, 3, 1, subject="mallory")
    query("update events set subject = 'mallory' where account_id = 3 returning 1")
    query("update accounts set chain_hash = %(hash)s where account_id = 3 returning 1", hash=rehashed)
    assert await whats(engine, store, query) == [(3, "Redis holds another chain hash")]


async def test_event_that_does_not_book_what_it_says_is_found(engine: Engine, store: redis.Redis, query: Query) -> None:
    await live(engine)
    rehashed = rewrite(query, 3, 1, ledger=[["cash", "9999"], ["external", "-9999"]])
    query("update accounts set chain_hash = %(hash)s where account_id = 3 returning 1", hash=rehashed)
    store.hset("chain_hashes", "3", rehashed)
    assert await whats(engine, store, query) == [(3, "the cash of event 1 is not the change of its balance")]
    rehashed = rewrite(query, 3, 1, ledger=[["cash", "10000"], ["external", "-9999"]])
    query("update accounts set chain_hash = %(hash)s where account_id = 3 returning 1", hash=rehashed)
    store.hset("chain_hashes", "3", rehashed)
    assert await whats(engine, store, query) == [(3, "the ledger of event 1 does not sum to zero")]


@pytest.mark.parametrize(
    "body",
    [{"balance": "1e999999999"}, {"balance": 5}, {"positions": 7}, {"ledger": [["cash", "1" * 150], ["cash", "0.1"]]}],
)
async def test_body_of_another_form_is_found_and_hinders_nothing(
    engine: Engine, store: redis.Redis, query: Query, body: dict[str, object]
) -> None:
    await live(engine)
    rehashed = rewrite(query, 1, 6, **body)
    query("update accounts set chain_hash = %(hash)s where account_id = 1 returning 1", hash=rehashed)
    store.hset("chain_hashes", "1", rehashed)
    assert await whats(engine, store, query) == [(1, "event 6 cannot be read")]


async def test_accounts_last_events_deleted_with_all_that_is_derived_are_found_by_redis(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    await live(engine)
    await deposit(engine, 3, "5")
    query("delete from events where (account_id, n) = (3, 2) returning 1")
    query(
        "delete from ledger_lines where account_id = 3"
        " and event_id not in (select event_id from events where account_id = 3) returning 1"
    )
    query(
        "update accounts set n = 1, event_id = events.event_id, chain_hash = hash, balance = 10000 from events"
        " where accounts.account_id = 3 and events.account_id = 3 returning 1"
    )
    assert await whats(engine, store, query) == [(3, "no pending event leads to Redis' version")]


# --- Redis, tampered with ---


def _delete_position(store: redis.Redis) -> None:
    store.delete("position:2:BTC-PERP")
    store.srem("positions:2", BTC)


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (lambda store: store.hset("balances", "3", "9999"), [(3, "Redis holds another balance")]),
        (lambda store: store.hset("balances", "3", "much"), [(3, "Redis holds another balance")]),
        (lambda store: store.hdel("balances", "3"), [(3, "Redis holds another balance")]),
        (
            lambda store: store.hset("position:2:BTC-PERP", "quantity", "0.2"),
            [(2, "Redis holds another position in BTC-PERP")],
        ),
        (
            lambda store: store.hincrbyfloat("position:2:ETH-PERP", "entry_cost", 1),
            [(2, "Redis holds another position in ETH-PERP")],
        ),
        (lambda store: store.delete("position:2:ETH-PERP"), [(2, "Redis holds another position in ETH-PERP")]),
        (
            _delete_position,
            [(2, "Redis holds another position in BTC-PERP"), (2, "a floor of BTC-PERP has no position")],
        ),
        (lambda store: store.hset("chain_hashes", "3", "none"), [(3, "Redis holds another chain hash")]),
        (lambda store: store.hset("versions", "3", "1:7"), [(3, "Redis holds another event than history")]),
        (lambda store: store.hset("versions", "3", "one"), [(3, "the version in Redis cannot be read")]),
        (lambda store: store.hset("versions", "3", "2:7"), [(3, "no pending event leads to Redis' version")]),
        (lambda store: store.hset("versions", "2", "2:7"), [(2, "Redis is behind history")]),
        (lambda store: store.hdel("versions", "3"), [(3, "Redis does not hold the account")]),
        (lambda store: store.hset("versions", "8", "1:7"), [(8, "history does not know the account")]),
        (
            lambda store: store.hset("versions", "mallory", "1:7"),
            [(None, "Redis holds an account that is not of this partition")],
        ),
        (
            lambda store: store.hset("versions", "9" * 30, "1:7"),
            [(None, "Redis holds an account that is not of this partition")],
        ),
        (
            lambda store: store.zrem("triggers:BTC-PERP:floor", "2"),
            [(2, "triggers of BTC-PERP are not those of its position")],
        ),
        (
            lambda store: store.zadd("triggers:ETH-PERP:floor", {"2": 1}),
            [(2, "triggers of ETH-PERP are not those of its position")],
        ),
        (lambda store: store.zadd("triggers:ETH-PERP:floor", {"3": 1}), [(3, "a floor of ETH-PERP has no position")]),
        (
            lambda store: store.zadd("triggers:BTC-PERP:ceiling", {"8": 1}),
            [(8, "a ceiling of BTC-PERP has no position")],
        ),
        (lambda store: store.zadd("pending", {"3": 1}), [(3, "the index of pending accounts is wrong")]),
        (
            lambda store: store.rpush("pending:3", "7 {}"),
            [(3, "the index of pending accounts is wrong"), (3, "the pending events do not end at Redis' version")],
        ),
    ],
)
async def test_key_that_was_tampered_with_is_found_and_nothing_else(
    engine: Engine,
    store: redis.Redis,
    query: Query,
    tamper: Callable[[redis.Redis], object],
    expected: list[tuple[int | None, str]],
) -> None:
    await live(engine)
    tamper(store)
    assert await whats(engine, store, query) == expected


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (lambda store: store.zrem("pending", "3"), "the index of pending accounts is wrong"),
        (lambda store: store.lpop("pending:3"), "pending events do not lead from history to Redis: event 2 is missing"),
        (lambda store: store.rpop("pending:3"), "no pending event leads to Redis' version"),
        (
            lambda store: store.lrem("pending:3", 1, store.lindex("pending:3", 1)),
            "pending events do not lead from history to Redis: event 3 is missing",
        ),
        (
            lambda store: store.lset("pending:3", 0, "9" + store.lindex("pending:3", 0)),
            "pending events do not lead from history to Redis: event 3 does not name the one before it",
        ),
        (
            lambda store: store.lset("pending:3", 2, store.lindex("pending:3", 2).replace("10003", "10009")),
            "pending events do not lead from history to Redis: the cash of event 4 is not the change of its balance",
        ),
        (
            lambda store: store.lset("pending:3", 1, "no event at all"),
            "pending events do not lead from history to Redis: event 3 is missing",
        ),
        (lambda store: store.hset("balances", "3", "10002"), "Redis holds another balance"),
        (lambda store: store.delete("pending:3", "pending"), "no pending event leads to Redis' version"),
    ],
)
async def test_pending_events_must_lead_from_history_to_redis(
    engine: Engine,
    store: redis.Redis,
    query: Query,
    postgres_server: EmbeddedPostgres,
    tamper: Callable[[redis.Redis], object],
    expected: str,
) -> None:
    await live(engine)
    await leave_pending(engine, store, postgres_server, 3, count=3)
    assert await found(engine, store, query) == []
    tamper(store)
    assert await whats(engine, store, query) == [(3, expected)]


@pytest.mark.parametrize(
    ("ids_between", "expected"),
    [
        (0, ["Redis holds another chain hash", "Redis holds another balance"]),
        (1, ["Redis holds another event than history"]),
    ],
)
async def test_fork_is_found(
    make_engine: MakeEngine,
    store: redis.Redis,
    query: Query,
    postgres_server: EmbeddedPostgres,
    ids_between: int,
    expected: list[str],
) -> None:
    engine = await make_engine(postgres_timeout_s=0.2)
    await live(engine)
    older = {name: store.dump(name) for name in store.scan_iter()}
    await deposit(engine, 3, "7")
    # The server is the same, so nobody notices that its state is older; the next event takes another's place.
    for name, dumped in older.items():
        store.restore(name, 0, dumped, replace=True)
    store.incr("event_seq", ids_between)
    with admin(postgres_server, engine.settings.postgres_database) as connection, connection.transaction():
        connection.execute("lock table accounts in access exclusive mode")
        assert not (await deposit(engine, 3, "8")).final
    assert await whats(engine, store, query) == [(3, what) for what in expected]


async def test_account_of_another_partition_is_found(make_engine: MakeEngine, store: redis.Redis, query: Query) -> None:
    engine = await make_engine(partitions=3)
    await live(engine)
    assert await found(engine, store, query) == []
    store.hset("{p1}:versions", "3", "1:7")
    store.hset("{p2}:balances", "2", "1")
    assert await whats(engine, store, query) == [
        (2, "Redis holds another balance"),
        (None, "Redis holds an account that is not of this partition"),
    ]


# --- movement, time, rights ---


class Moved(AuditPostgresClient):
    """Lets something happen after each time that history is read, before Redis is."""

    async def happen(self) -> None:
        raise NotImplementedError

    async def rows(self, account_ids: Sequence[int]) -> dict[int, AuditedAccount]:
        rows = await super().rows(account_ids)
        await self.happen()
        return rows

    async def known(self, account_ids: Sequence[int]) -> set[int]:
        known = await super().known(account_ids)
        await self.happen()
        return known


@pytest.fixture
async def auditors(engine: Engine) -> AsyncIterator[MakeService]:
    """Yield a function that makes a service on clients of its own."""
    made: list[AuditPostgresClient] = []

    def make(
        kind: type[AuditPostgresClient] = AuditPostgresClient, sizes: PageSizes = PAGE_SIZES, **settings: Any
    ) -> ReconcileService:
        made.append(kind(dataclasses.replace(engine.settings, **settings)))
        return ReconcileService(made[-1], AuditRedisClient(engine.accounts.redis, engine.settings.partitions), sizes)

    yield make
    for history in made:
        await history.close()


async def test_accounts_that_move_between_the_looks_raise_no_alarm(engine: Engine, auditors: MakeService) -> None:
    await live(engine)
    opened = itertools.count(100)

    async def happen() -> None:
        """Move every account there is all the way into history, and open one."""
        for account_id in (1, 2, 3):
            assert (await deposit(engine, account_id, "1")).final
        await deposit(engine, next(opened), "1")

    class Gated(Moved):
        async def happen(self) -> None:
            await happen()

    report = await auditors(Gated).reconcile()
    assert (report.differences, report.complete) == ([], True)
    assert next(opened) > 103, "nothing moved"


async def test_account_in_the_middle_of_a_page_of_movement_is_still_found(
    engine: Engine, auditors: MakeService, store: redis.Redis
) -> None:
    await live(engine)
    store.hset("balances", "2", "1")

    class Gated(Moved):
        async def happen(self) -> None:
            await deposit(engine, 3, "1")

    report = await auditors(Gated).reconcile()
    assert [(one.account_id, one.what) for one in report.differences] == [(2, "Redis holds another balance")]


def times(calls: int) -> Callable[[], bool]:
    """Go on for so many questions."""
    left = itertools.count(calls, -1)
    return lambda: next(left) > 0


@pytest.mark.parametrize("calls", [4, 5, 9, 1000])
async def test_cycle_over_many_small_pages_sees_every_account_exactly_once(
    engine: Engine, auditors: MakeService, store: redis.Redis, query: Query, calls: int
) -> None:
    for account_id in range(1, 12):
        for _ in range(account_id % 4 + 1):
            await deposit(engine, account_id, "1")
        store.hset("balances", account_id, "0")
    service = auditors(sizes=PageSizes(accounts=3, batch_events=5, events=3, ledger_lines=2))
    for _ in range(2):
        reports: list[ReconcileReport] = []
        while not (reports and reports[-1].complete):
            reports.append(await service.reconcile(keep_going=times(calls)))
        assert [one.account_id for report in reports for one in report.differences] == list(range(1, 12))
        assert sum(report.accounts for report in reports) == 11
        assert sum(report.events for report in reports) == len(query("select 1 from events"))
        assert len({report.cycle_started_us for report in reports}) == 1
        assert [report.unverified for report in reports] == [[]] * len(reports)
        assert (len(reports) == 1) == (calls == 1000)


async def test_next_cycle_begins_when_one_is_complete_and_the_age_counts_from_the_last(
    engine: Engine, auditors: MakeService
) -> None:
    await live(engine)
    service = auditors()
    first = await service.reconcile()
    second = await service.reconcile(keep_going=times(1))
    third = await service.reconcile()
    assert (first.complete, second.complete, third.complete) == (True, False, True)
    assert first.cycle_started_us < second.cycle_started_us == third.cycle_started_us
    assert second.age_s * 1_000_000 >= second.cycle_started_us - first.cycle_started_us
    assert third.age_s < second.age_s + (third.cycle_started_us - first.cycle_started_us) / 1_000_000


async def test_chain_too_long_for_a_run_is_said_to_be_unverified_and_hinders_nobody(
    engine: Engine, auditors: MakeService, store: redis.Redis
) -> None:
    for account_id, count in ((1, 2), (2, 30), (3, 2)):
        for _ in range(count):
            await deposit(engine, account_id, "1")
        store.hset("balances", account_id, "0")
    service = auditors(sizes=PageSizes(events=4))
    reports = [await service.reconcile(keep_going=times(5))]
    while not reports[-1].complete:
        reports.append(await service.reconcile(keep_going=times(5)))
    assert [account_id for report in reports for account_id in report.unverified] == [2]
    # What needs no chain was compared all the same.
    assert [one.account_id for report in reports for one in report.differences] == [1, 2, 3]


async def test_account_with_more_pending_events_than_are_read_is_unverified(
    engine: Engine, store: redis.Redis, postgres_server: EmbeddedPostgres
) -> None:
    await live(engine)
    await leave_pending(engine, store, postgres_server, 3, count=1)
    store.rpush("pending:3", *(f"{event_id} {{}}" for event_id in range(1000)))
    store.hset("versions", "3", "1002:999")
    report = await engine.reconcile.reconcile()
    assert (report.differences, report.unverified) == ([], [3])


@pytest.mark.parametrize("saved", ["", "{}", "[1]", '{"stage": "ledger"}', "null", "}{"])
async def test_progress_that_cannot_be_read_only_restarts_the_cycle(
    engine: Engine, store: redis.Redis, saved: str
) -> None:
    await live(engine)
    store.set("reconcile", saved)
    report = await engine.reconcile.reconcile()
    assert (report.accounts, report.complete) == (3, True)


async def test_user_who_may_only_read_is_enough(
    engine: Engine, auditors: MakeService, postgres_server: EmbeddedPostgres
) -> None:
    await live(engine)
    database = engine.settings.postgres_database
    with admin(postgres_server, database) as connection:
        connection.execute("create role auditor login")
        connection.execute(
            "grant select on accounts, events, trades, liquidations, ledger_lines, settlement_outcomes,"
            " control_changes, instruments, funding_rates, openings, account_rebuilds, schema_changes, chain_heads"
            " to auditor"
        )
    try:
        report = await auditors(postgres_user="auditor").reconcile()
        assert (report.accounts, report.complete) == (3, True)
    finally:
        with admin(postgres_server, database) as connection:
            connection.execute("drop owned by auditor")
            connection.execute("drop role auditor")


async def test_state_that_is_being_rebuilt_is_not_called_different(engine: Engine, store: redis.Redis) -> None:
    await live(engine)
    store.delete("marker")
    with pytest.raises(StateNotLoadedError):
        await engine.reconcile.reconcile()


async def test_run_that_history_breaks_off_is_gone_on_with_by_the_next(
    engine: Engine, auditors: MakeService, store: redis.Redis
) -> None:
    for account_id in range(1, 7):
        await deposit(engine, account_id, "1")

    class Breaking(AuditPostgresClient):
        pages = 0

        async def accounts(self, after_account_id: int, last_account_id: int, limit: int) -> dict[int, int]:
            self.pages += 1
            if self.pages == 3:
                raise PostgresUnavailableError("PostgreSQL is down.")
            return await super().accounts(after_account_id, last_account_id, limit)

    sizes = PageSizes(accounts=2)
    with pytest.raises(PostgresUnavailableError):
        await auditors(Breaking, sizes).reconcile()
    report = await auditors(sizes=sizes).reconcile()
    assert (report.accounts, report.complete) == (2, True)
