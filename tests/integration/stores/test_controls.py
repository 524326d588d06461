"""Pause switches on real stores: where they stand, in which order they win, and that no commit goes past one."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import NOBODY
from margin.clients.control_postgres import _ONE_AT_A_TIME, _RECORD
from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control, symbol_control
from margin.errors import (
    ContentionError,
    NotActiveError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    StateNotLoadedError,
)
from margin.services.liquidation import Verdict
from margin_local.servers import ports
from tests.actions import BTC, ETH, buy, deposit, mark, sell, switch, withdraw
from tests.database import FUNCTIONS, connect
from tests.integration.stores.hot_state import hot_state
from tests.integration.stores.interrupted import InterruptedEngine
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

PAUSED, REDUCE_ONLY, ACTIVE = ControlState.PAUSED, ControlState.REDUCE_ONLY, ControlState.ACTIVE
PARTITIONS = 4
AT_ONCE = 64
TRADES_EACH_MAX = 100
# As it was before the first change, from which on ids are given out again.
_RESTORED = """
    with lost as (delete from control_changes returning id),
        ends as (delete from chain_heads where chain = 'control_changes')
    select setval('control_changes_id_seq', min(id), false) from lost
"""
_WAITING = "select from pg_locks where locktype = 'advisory' and not granted"


def _controls(store: redis.Redis) -> dict[str, Any]:
    """All that concerns switches, without a look at anything else."""
    return {name: value for name, value in hot_state(store).items() if "control" in name}


# --- where they stand


async def test_switch_is_readable_text_and_an_active_one_leaves_only_its_id(engine: Engine, store: redis.Redis) -> None:
    paused = await switch(engine, ENGINE_CONTROL, PAUSED)
    assert store.hgetall("controls") == {"engine": "paused"}
    assert store.hgetall("control_ids") == {"engine": str(paused.change.id)}
    active = await switch(engine, ENGINE_CONTROL, ACTIVE)
    assert _controls(store) == {"control_ids": {"engine": str(active.change.id)}}


async def test_change_is_in_history_with_who_made_it_and_why(engine: Engine, query: Query) -> None:
    outcome = await engine.controls.set(symbol_control(BTC), REDUCE_ONLY, "the oracle stands still", NOBODY)
    await switch(engine, symbol_control(BTC), ACTIVE)
    rows = query("select name, state, reason, subject, source_ip from control_changes order by id")
    assert rows == [
        ("symbol:BTC-PERP", "reduce-only", "the oracle stands still", None, None),
        ("symbol:BTC-PERP", "active", "a test", "alice", "192.0.2.1"),
    ]
    ((changed_at_us,),) = query("select extract(epoch from min(changed_at)) * 1000000 from control_changes")
    assert outcome.change.changed_at_us == changed_at_us


async def test_engine_and_symbols_stand_in_every_partition_and_an_account_in_its_own(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    for name in (ENGINE_CONTROL, symbol_control(BTC), account_control(6)):
        assert (await switch(engine, name, PAUSED)).effective
    shared = {"engine": "paused", "symbol:BTC-PERP": "paused"}
    for partition in range(PARTITIONS):
        own = {"account:6": "paused"} if partition == 6 % PARTITIONS else {}
        assert store.hgetall(f"{{p{partition}}}:controls") == shared | own


async def test_account_is_read_with_the_switches_of_all_symbols_it_holds(engine: Engine) -> None:
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await deposit(engine, 1, "100000")
    await buy(engine, 1, "1", "50000")
    await sell(engine, 1, "1", "2000", symbol=ETH)
    await switch(engine, symbol_control(ETH), PAUSED)
    names = {ENGINE_CONTROL, account_control(1), symbol_control(BTC), symbol_control(ETH)}
    held = (await engine.accounts.read(1)).controls
    assert held == dict.fromkeys(names, "") | {symbol_control(ETH): "paused"}
    beside = (await engine.accounts.read(1, symbol="SOL-PERP")).controls
    assert beside == {**held, symbol_control("SOL-PERP"): ""}


async def test_switch_is_set_while_the_state_is_closed_and_holds_when_it_is_opened(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    await deposit(engine, 1, "10")
    store.delete("marker")
    another = await make_engine(opened=False)
    assert (await switch(another, ENGINE_CONTROL, PAUSED)).effective
    await another.opening.open()
    with pytest.raises(NotActiveError):
        await withdraw(another, 1, "1")


# --- order


async def test_setters_at_once_end_with_the_newest_change_everywhere(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engines = [await make_engine(partitions=PARTITIONS) for _ in range(3)]
    states = [PAUSED, ACTIVE, REDUCE_ONLY]
    outcomes = await asyncio.gather(
        *(switch(engines[number % 3], ENGINE_CONTROL, states[number % 3]) for number in range(AT_ONCE))
    )
    assert all(outcome.effective for outcome in outcomes)
    ((newest, state),) = query("select id, state from control_changes order by id desc limit 1")
    for partition in range(PARTITIONS):
        assert store.hget(f"{{p{partition}}}:control_ids", "engine") == str(newest)
        assert store.hget(f"{{p{partition}}}:controls", "engine") == (None if state == "active" else state)


async def test_setter_that_comes_late_changes_nothing(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    changes = [(await switch(engine, ENGINE_CONTROL, state)).change for state in (PAUSED, ACTIVE, REDUCE_ONLY)]
    before = _controls(store)
    for late in changes:
        await engine.controls._store.put([late])
    assert _controls(store) == before
    assert store.hget("{p3}:controls", "engine") == "reduce-only"


@pytest.fixture
def slow_setter(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection whose transaction has written a change that nobody sees yet."""
    with connect(settings, autocommit=False, user=FUNCTIONS) as connection:
        change = {"name": "engine", "state": "paused", "reason": "slow", "subject": None, "source_ip": None}
        connection.execute(_RECORD, {"lock": _ONE_AT_A_TIME, **change})
        yield connection
        connection.rollback()


async def test_no_change_is_visible_before_one_with_a_lower_id(
    engine: Engine, store: redis.Redis, query: Query, slow_setter: psycopg.Connection[Any]
) -> None:
    quick = asyncio.ensure_future(switch(engine, symbol_control(BTC), PAUSED))
    async with asyncio.timeout(5):
        while not query(_WAITING):  # noqa: ASYNC110 - the server knows, and tells nobody
            await asyncio.sleep(0.01)
    assert query("select id from control_changes") == []
    assert await engine.controls.align() == 0
    slow_setter.commit()
    outcome = await quick
    assert query("select name from control_changes order by id") == [("engine",), ("symbol:BTC-PERP",)]
    # The slow one died before it wrote to Redis.
    assert store.hgetall("controls") == {"symbol:BTC-PERP": "paused"}
    assert await engine.controls.align() == 2
    assert store.hgetall("controls") == {"engine": "paused", "symbol:BTC-PERP": "paused"}
    assert store.get("controls_aligned_to") == str(outcome.change.id)


# --- stores that are down


async def test_without_redis_the_change_takes_effect_when_it_is_aligned(
    make_engine: MakeEngine, engine: Engine, store: redis.Redis
) -> None:
    cut_off = await make_engine(opened=False, redis_port=ports.choose_port())
    assert not (await switch(cut_off, ENGINE_CONTROL, PAUSED)).effective
    assert store.hgetall("controls") == {}
    assert [change.name for change in (await engine.controls.list()).changes] == ["engine"]
    assert await engine.controls.align() == 1
    assert store.hgetall("controls") == {"engine": "paused"}


async def test_without_postgres_nothing_is_set(make_engine: MakeEngine, engine: Engine, store: redis.Redis) -> None:
    cut_off = await make_engine(opened=False, postgres_port=ports.choose_port())
    with pytest.raises(PostgresUnavailableError):
        await switch(cut_off, ENGINE_CONTROL, PAUSED)
    assert _controls(store) == {}


async def test_change_whose_reply_is_lost_is_said_to_be_unknown_and_takes_effect(
    make_engine: MakeEngine, engine: Engine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        another = await make_engine(opened=False, postgres_port=proxy.port)
        proxy.lose_reply_to(b"insert into control_changes")
        with pytest.raises(OutcomeUnknownError):
            await switch(another, ENGINE_CONTROL, PAUSED)
    assert await engine.controls.align() == 1
    assert store.hgetall("controls") == {"engine": "paused"}


async def test_change_whose_reply_is_lost_with_a_kept_connection_is_written_down_again(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, query: Query
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        await engine.controls.list()
        proxy.lose_reply_to(b"insert into control_changes")
        outcome = await switch(engine, ENGINE_CONTROL, PAUSED)
        assert outcome.effective
    assert [row[1:] for row in query("select id, name, state from control_changes")] == [("engine", "paused")] * 2
    assert store.hget("control_ids", "engine") == str(outcome.change.id)


# --- aligning


async def test_emptied_partition_gets_its_switches_and_the_others_lose_none(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    for name in (ENGINE_CONTROL, symbol_control(BTC), *(account_control(number) for number in range(1, 9))):
        await switch(engine, name, PAUSED)
    await switch(engine, symbol_control(BTC), ACTIVE)
    await engine.controls.align()
    before = _controls(store)
    for name in before:
        if name.startswith("{p2}"):
            store.delete(name)
    assert await engine.controls.align() == 10
    assert _controls(store) == before
    assert await engine.controls.align() == 0


async def test_redis_that_was_emptied_since_it_was_asked_does_not_claim_to_have_all(
    engine: Engine, store: redis.Redis
) -> None:
    for name in (ENGINE_CONTROL, symbol_control(BTC)):
        await switch(engine, name, PAUSED)
    await engine.controls.align()
    after_id, _ = await engine.controls._store.aligned_to()
    await switch(engine, symbol_control(ETH), PAUSED)
    changes = await engine.controls._history.changes(after_id, 10)
    store.delete("controls", "control_ids", "controls_aligned_to")
    assert (await engine.controls._store.align(changes, after_id=after_id)).aligned_to == 0
    assert await engine.controls.align() == 3
    assert set(store.hgetall("controls")) == {"engine", "symbol:BTC-PERP", "symbol:ETH-PERP"}


async def test_opening_writes_switches_anew_and_lifts_what_history_does_not_know(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    await switch(engine, ENGINE_CONTROL, PAUSED)
    await engine.controls.align()
    for partition in range(2):
        # As after history came back older: a change with a higher id, which it does not know.
        store.hset(f"{{p{partition}}}:controls", "symbol:BTC-PERP", "paused")
        store.hset(f"{{p{partition}}}:control_ids", "symbol:BTC-PERP", "999999")
    await engine.controls.align(anew=[1])
    for partition in range(2):
        assert store.hgetall(f"{{p{partition}}}:controls") == {"engine": "paused"}
    assert (await switch(engine, symbol_control(BTC), PAUSED)).change.id > 999999


async def test_opener_that_was_overtaken_takes_no_switch_from_an_open_partition(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine()
    await switch(engine, ENGINE_CONTROL, PAUSED)
    await engine.controls.align()
    before = _controls(store)
    store.config_resetstat()
    await (await make_engine(opened=False)).controls.align(anew=[0])
    called = set(store.info("commandstats"))
    assert "cmdstat_hset" in called
    assert not called & {"cmdstat_del", "cmdstat_hdel", "cmdstat_unlink"}
    assert _controls(store) == before


# --- a history that came back older than Redis


@pytest.mark.parametrize("aligned", [True, False])
async def test_pause_that_was_answered_holds_after_history_came_back_older(
    make_engine: MakeEngine, query: Query, store: redis.Redis, aligned: bool
) -> None:
    engine = await make_engine(partitions=2)
    await mark(engine, "50000")
    await deposit(engine, 1, "100000")
    await switch(engine, account_control(1), REDUCE_ONLY)
    for state in (PAUSED, ACTIVE) * 3:
        await switch(engine, ENGINE_CONTROL, state)
    if aligned:
        await engine.controls.align()
    query(_RESTORED)
    assert (await switch(engine, ENGINE_CONTROL, PAUSED)).effective
    with pytest.raises(NotActiveError, match=ENGINE_CONTROL):
        await buy(engine, 1, "0.1", "50000")
    await engine.controls.align()
    with pytest.raises(NotActiveError, match=ENGINE_CONTROL):
        await buy(engine, 1, "0.1", "50000")
    for partition in range(2):
        assert store.hget(f"{{p{partition}}}:controls", "engine") == "paused"
    await switch(engine, ENGINE_CONTROL, ACTIVE)
    assert await engine.controls.align() == 1
    # What history never knew shows where Redis was in line with it; elsewhere the next opening lifts it.
    expected = {} if aligned else {"account:1": "reduce-only"}
    assert store.hgetall("{p1}:controls") == expected


async def test_setters_at_once_after_history_came_back_older_end_with_the_newest_everywhere(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engines = [await make_engine(partitions=PARTITIONS) for _ in range(3)]
    states = [PAUSED, ACTIVE, REDUCE_ONLY]
    for number in range(AT_ONCE // 2):
        await switch(engines[0], ENGINE_CONTROL, states[number % 3])
    await engines[0].controls.align()
    query(_RESTORED)
    outcomes = await asyncio.gather(
        *(switch(engines[number % 3], ENGINE_CONTROL, states[number % 3]) for number in range(AT_ONCE)),
        *(engine.controls.align() for engine in engines),
        return_exceptions=True,
    )
    assert all(outcome.effective for outcome in outcomes[:AT_ONCE])
    assert [
        one for one in outcomes[AT_ONCE:] if isinstance(one, Exception) and not isinstance(one, StateNotLoadedError)
    ] == []
    ((newest, state),) = query("select id, state from control_changes order by id desc limit 1")
    for partition in range(PARTITIONS):
        assert store.hget(f"{{p{partition}}}:control_ids", "engine") == str(newest)
        assert store.hget(f"{{p{partition}}}:controls", "engine") == (None if state == "active" else state)


async def test_pages_are_by_name_and_have_each_switch_that_is_not_active_once(engine: Engine) -> None:
    names = [account_control(number) for number in range(10, 20)]
    for name in names:
        await switch(engine, name, PAUSED)
    await switch(engine, names[3], ACTIVE)
    await switch(engine, names[4], REDUCE_ONLY)
    seen, cursor = [], None
    while True:
        page = await engine.controls.list(limit=4, cursor=cursor)
        seen += [(change.name, str(change.state)) for change in page.changes]
        if (cursor := page.next_cursor) is None:
            break
    expected = [(name, "paused") for name in names]
    expected[4] = (names[4], "reduce-only")
    del expected[3]
    assert seen == expected


# --- no commit goes past one


@pytest.mark.parametrize("name", [ENGINE_CONTROL, symbol_control(BTC), account_control(1)])
async def test_trade_that_was_read_before_the_pause_and_committed_after_it_is_refused(
    make_engine: MakeEngine, query: Query, name: str
) -> None:
    engine, operator = await make_engine(kind=InterruptedEngine), await make_engine()
    assert isinstance(engine, InterruptedEngine)
    await mark(engine, "50000")
    await deposit(engine, 1, "100000")
    engine.before_commit(lambda: switch(operator, name, PAUSED))
    with pytest.raises(NotActiveError):
        await buy(engine, 1, "0.1", "50000")
    assert query("select type from events") == [("DEPOSIT",)]


async def test_liquidation_that_was_read_before_the_pause_and_committed_after_it_is_put_off(
    make_engine: MakeEngine, query: Query
) -> None:
    engine, operator = await make_engine(kind=InterruptedEngine), await make_engine()
    assert isinstance(engine, InterruptedEngine)
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    await buy(engine, 1, "0.1", "2000", symbol=ETH)
    await engine.market.set_marks({BTC: Decimal(39000)}, crossed_max=0)
    engine.before_commit(lambda: switch(operator, symbol_control(ETH), PAUSED))
    assert await engine.liquidations.evaluate(1) is Verdict.PUT_OFF
    assert query("select count(*) from liquidations") == [(0,)]
    await switch(operator, symbol_control(ETH), ACTIVE)
    assert (await engine.scans.scan()).liquidated == [1]


@pytest.mark.parametrize("name", [ENGINE_CONTROL, symbol_control(BTC)])
async def test_after_a_pause_was_answered_nothing_that_it_forbids_is_committed(
    make_engine: MakeEngine, store: redis.Redis, query: Query, name: str
) -> None:
    engine, operator = await make_engine(), await make_engine()
    await mark(engine, "50000")
    accounts = range(1, AT_ONCE // 2 + 1)
    for account_id in accounts:
        await deposit(engine, account_id, "1000000")
    enough = asyncio.Event()
    traded = 0

    async def trade_until_refused(number: int) -> bool:
        nonlocal traded
        # Half of them on accounts of their own, half of them on one.
        account_id = number if number in accounts else 1
        for _ in range(TRADES_EACH_MAX):
            try:
                await buy(engine, account_id, "0.001", "50000")
            except ContentionError:
                continue
            except NotActiveError:
                return True
            traded += 1
            if traded >= AT_ONCE:
                enough.set()
        return False

    traders = [asyncio.ensure_future(trade_until_refused(number)) for number in range(1, AT_ONCE + 1)]
    await enough.wait()
    assert (await switch(operator, name, PAUSED)).effective
    last = int(store.hget("marker", "epoch") or 0) * 2**32 + int(store.get("event_seq") or 0)
    assert await asyncio.gather(*traders) == [True] * AT_ONCE

    ((trades, newest),) = query("select count(*), max(id) from trades")
    assert trades >= AT_ONCE
    assert newest <= last
    assert (await deposit(engine, 1, "1")).event_id > last


async def test_after_a_pause_was_answered_nobody_is_liquidated_until_it_is_lifted(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    engine, operator = await make_engine(), await make_engine()
    await mark(engine, "50000")
    accounts = range(1, AT_ONCE + 1)
    for account_id in accounts:
        await deposit(engine, account_id, "14000")
        await buy(engine, account_id, "1", "50000")
    await engine.market.set_marks({BTC: Decimal(39000)}, crossed_max=0)
    some = asyncio.Event()
    at_once = asyncio.Semaphore(8)

    async def evaluate(account_id: int) -> Verdict:
        async with at_once:
            verdict = await engine.liquidations.evaluate(account_id)
        if verdict is Verdict.LIQUIDATED:
            some.set()
        return verdict

    evaluations = [asyncio.ensure_future(evaluate(account_id)) for account_id in accounts]
    await some.wait()
    assert (await switch(operator, symbol_control(BTC), PAUSED)).effective
    last = int(store.hget("marker", "epoch") or 0) * 2**32 + int(store.get("event_seq") or 0)
    verdicts = await asyncio.gather(*evaluations)
    assert set(verdicts) == {Verdict.LIQUIDATED, Verdict.PUT_OFF}
    ((liquidated, newest),) = query("select count(*), max(id) from liquidations")
    assert liquidated == verdicts.count(Verdict.LIQUIDATED)
    assert newest <= last

    report = await engine.scans.scan()
    assert (report.liquidated, report.put_off) == ([], AT_ONCE - liquidated)
    await switch(operator, symbol_control(BTC), ACTIVE)
    assert len((await mark(engine, "39000")).liquidated) == AT_ONCE - liquidated
    assert query("select count(*), count(distinct account_id) from liquidations") == [(AT_ONCE, AT_ONCE)]
