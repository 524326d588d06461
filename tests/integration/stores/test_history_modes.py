"""HISTORY=drain: Redis alone acknowledges, the drain does the rest; and what that means for idempotency keys."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients import postgres
from margin.errors import (
    HistoryForkError,
    IdempotencyKeyReusedError,
    InsufficientWithdrawableError,
    PostgresUnavailableError,
)
from tests.actions import buy, deposit, mark, withdraw
from tests.faults.points import Fault, FaultKind, FaultPlan, FaultPoint
from tests.faults.serve import FaultyEngine
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

UNREACHABLE = 1
"""A port that nobody listens on."""


@pytest.fixture
async def lean(make_engine: MakeEngine) -> Engine:
    """Return an engine that acknowledges after Redis alone."""
    return await make_engine(history="drain")


def _remembered(query: Callable[..., list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    return query("select type, key, acknowledged_by from events order by account_id, n")


async def test_trade_is_done_with_postgresql_down_and_the_drain_stores_it(
    lean: Engine, make_engine: MakeEngine, query: Callable[..., list[tuple[Any, ...]]]
) -> None:
    alone = await make_engine(opened=False, history="drain", postgres_port=UNREACHABLE)
    await mark(alone, "50000")
    assert (await deposit(alone, 1, "100000", key="d")).final
    assert (await buy(alone, 1, "1", "50000", key="t")).final
    assert (await withdraw(alone, 1, "1", key="w")).final
    assert _remembered(query) == []
    report = await lean.drain.drain()
    assert (report.stored, report.waiting_accounts) == (3, 0)
    assert _remembered(query) == [("DEPOSIT", "d", "redis"), ("TRADE", "t", "redis"), ("WITHDRAWAL", "w", "redis")]


async def test_trade_is_two_round_trips_and_none_to_postgresql(
    lean: Engine, make_engine: MakeEngine, settings: Settings
) -> None:
    async with (
        Proxy(settings.redis_host, settings.redis_port) as redis_proxy,
        Proxy(settings.postgres_host, settings.postgres_port) as postgres_proxy,
    ):
        engine = await make_engine(
            opened=False, history="drain", redis_port=redis_proxy.port, postgres_port=postgres_proxy.port
        )
        await deposit(engine, 1, "100000")
        await mark(engine, "50000")
        before = redis_proxy.round_trips
        await buy(engine, 1, "1", "50000")
        assert redis_proxy.round_trips - before == 2
        assert postgres_proxy.round_trips == 0


async def test_retry_is_answered_from_redis_before_and_after_the_drain(lean: Engine) -> None:
    first = await deposit(lean, 1, "10", key="d")
    again = await deposit(lean, 1, "10", key="d")
    await lean.drain.drain()
    later = await deposit(lean, 1, "10", key="d")
    assert (again.replayed, again.final, later.replayed) == (True, True, True)
    assert first.event_id == again.event_id == later.event_id
    assert first.result == again.result == later.result
    with pytest.raises(IdempotencyKeyReusedError):
        await deposit(lean, 1, "11", key="d")


async def test_key_that_redis_has_forgotten_stands_for_a_new_request_and_both_are_stored(
    lean: Engine, store: redis.Redis, query: Callable[..., list[tuple[Any, ...]]]
) -> None:
    await deposit(lean, 1, "10", key="d")
    await lean.drain.drain()
    store.delete("idempotency:1:d")
    second = await deposit(lean, 1, "10", key="d")
    assert not second.replayed
    report = await lean.drain.drain()
    assert (report.stored, report.waiting_accounts, report.set_aside) == (1, 0, 0)
    assert query("select n, key, body ->> 'balance' from events order by n") == [(1, "d", "10"), (2, "d", "20")]


async def test_key_of_an_inline_event_is_executed_once_for_ever_by_inline_engines_whatever_a_lean_one_did(
    engine: Engine, lean: Engine, store: redis.Redis
) -> None:
    first = await deposit(engine, 1, "10", key="d")
    store.delete("idempotency:1:d")
    await deposit(lean, 1, "10", key="d")
    await lean.drain.drain()
    store.delete("idempotency:1:d")
    recalled = await deposit(engine, 1, "10", key="d")
    assert (recalled.replayed, recalled.event_id) == (True, first.event_id)
    assert (await engine.margin.account_margin(1)).account.balance == 20


async def test_emptied_redis_gets_the_keys_of_drained_events_back(lean: Engine, store: redis.Redis) -> None:
    first = await deposit(lean, 1, "10", key="d")
    await lean.drain.drain()
    store.flushall()
    await lean.opening.open()
    again = await deposit(lean, 1, "10", key="d")
    assert (again.replayed, again.event_id) == (True, first.event_id)


async def test_inline_engine_stores_what_a_lean_one_left_pending_before_its_own_event(
    engine: Engine, lean: Engine, query: Callable[..., list[tuple[Any, ...]]]
) -> None:
    await deposit(lean, 1, "10", key="a")
    assert (await deposit(engine, 1, "5", key="b")).final
    assert _remembered(query) == [("DEPOSIT", "a", "redis"), ("DEPOSIT", "b", "history")]


async def test_inline_engine_without_postgresql_executes_nothing(lean: Engine, make_engine: MakeEngine) -> None:
    await deposit(lean, 1, "10")
    inline = await make_engine(opened=False, postgres_port=UNREACHABLE)
    with pytest.raises(PostgresUnavailableError):
        await deposit(inline, 1, "5")
    assert (await lean.margin.account_margin(1)).account.balance == 10


async def test_key_that_only_history_remembers_is_answered_though_the_request_would_be_refused_now(
    engine: Engine, store: redis.Redis
) -> None:
    await deposit(engine, 1, "10")
    first = await withdraw(engine, 1, "8", key="w")
    store.delete("idempotency:1:w")
    again = await withdraw(engine, 1, "8", key="w")
    assert (again.replayed, again.final, again.event_id, again.result) == (True, True, first.event_id, first.result)
    store.delete("idempotency:1:w")
    with pytest.raises(IdempotencyKeyReusedError):
        await withdraw(engine, 1, "9", key="w")
    with pytest.raises(InsufficientWithdrawableError):
        await withdraw(engine, 1, "8", key="never")


async def test_id_that_history_has_for_another_event_is_undone_and_blocks_nobody(
    engine: Engine, store: redis.Redis
) -> None:
    await deposit(engine, 1, "10")
    await deposit(engine, 1, "1")
    store.decr("event_seq")
    with pytest.raises(HistoryForkError):
        await deposit(engine, 1, "5")
    assert (await engine.margin.account_margin(1)).account.balance == 11
    assert (await engine.drain.drain()).waiting_accounts == 0


async def test_late_clean_up_leaves_an_event_alone_that_has_the_id_of_the_one_it_is_about(
    lean: Engine, store: redis.Redis
) -> None:
    await deposit(lean, 1, "10")
    (late,) = (await lean.accounts.pending([1]))[1]
    store.delete("pending:1")
    store.rpush("pending:1", f"{late.event_id} {late.body[:-1]} }}")
    await lean.accounts.forget_pending({1: [late]})
    assert store.llen("pending:1") == 1
    await lean.accounts.forget_pending({1: (await lean.accounts.pending([1]))[1]})
    assert store.llen("pending:1") == 0


@pytest.mark.parametrize("rebuilt", [False, True])
async def test_no_key_of_an_event_that_redis_acknowledged_is_executed_again_however_many_came_after_it(
    lean: Engine,
    store: redis.Redis,
    query: Callable[..., list[tuple[Any, ...]]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    rebuilt: bool,
) -> None:
    monkeypatch.setattr(postgres, "LIVE_KEYS_MAX", 2)
    done = [await deposit(lean, 1, "10", key=f"d{number}") for number in range(7)]
    await lean.drain.drain()
    if rebuilt:
        for name in store.scan_iter("idempotency:*"):
            store.delete(name)
        await lean.rebuilding.rebuild_account(1)
    else:
        store.flushall()
        await lean.opening.open()
    again = [await deposit(lean, 1, "10", key=f"d{number}") for number in range(7)]
    assert [outcome.event_id for outcome in again] == [outcome.event_id for outcome in done]
    assert all(outcome.replayed for outcome in again)
    assert query("select count(*) from events") == [(7,)]
    assert 0 < store.ttl("idempotency:1:d0") <= lean.settings.idempotency_ttl_s


async def test_older_keys_that_an_inline_engine_recalls_are_put_back_where_redis_alone_acknowledges(
    engine: Engine, lean: Engine, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LIVE_KEYS_MAX", 1)
    first = await deposit(engine, 1, "10", key="inline")
    await deposit(lean, 1, "10", key="lean")
    await deposit(engine, 1, "10", key="last")
    store.flushall()
    await engine.opening.open()
    assert {name.rpartition(":")[2] for name in store.scan_iter("idempotency:*")} == {"lean", "last"}
    store.flushall()
    await lean.opening.open()
    again = await deposit(lean, 1, "10", key="inline")
    assert (again.replayed, again.event_id) == (True, first.event_id)


async def test_fork_that_executed_an_old_key_again_is_undone_and_the_key_stands_for_its_first_event(
    lean: Engine, store: redis.Redis, query: Callable[..., list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LIVE_KEYS_MAX", 2)
    done = [await deposit(lean, 1, "10", key="d0")]
    older = {name: store.dump(name) for name in ("balances", "versions", "chain_hashes", "event_seq")}
    done += [await deposit(lean, 1, "10", key=f"d{number}") for number in range(1, 5)]
    await lean.drain.drain()
    # Redis went back unnoticed, and has none of the keys: the same ids are given to other events.
    for name, value in older.items():
        store.restore(name, 0, value, replace=True)
    for name in store.scan_iter("idempotency:*"):
        store.delete(name)
    for number in (1, 0):
        assert not (await deposit(lean, 1, "10", key=f"d{number}")).replayed
    await lean.drain.drain()
    again = [await deposit(lean, 1, "10", key=f"d{number}") for number in range(5)]
    assert [outcome.event_id for outcome in again] == [outcome.event_id for outcome in done]
    assert query("select count(*), max(balance) from events, accounts") == [(5, 50)]


async def test_redis_does_not_acknowledge_what_stands_behind_an_event_that_history_may_refuse(
    make_engine: MakeEngine, lean: Engine, store: redis.Redis
) -> None:
    plan = FaultPlan()
    inline: Any = await make_engine(kind=partial(FaultyEngine, plan=plan))
    await deposit(inline, 1, "10", key="old")
    store.delete("idempotency:1:old")
    plan.arm(Fault(FaultPoint.BEFORE_HISTORY, FaultKind.GATE))
    again = asyncio.create_task(deposit(inline, 1, "10", key="old"))
    await plan.gate.arrived.wait()
    # The key is used: history will undo the event, and with it all that came after it.
    behind = await deposit(lean, 1, "100", key="behind")
    repeated = await deposit(lean, 1, "100", key="behind")
    plan.gate.open()
    assert (await again).replayed
    assert (behind.final, repeated.final, repeated.replayed) == (False, False, True)
    anew = await deposit(lean, 1, "100", key="behind")
    assert (anew.final, anew.replayed) == (True, False)
    await lean.drain.drain()
    assert (await lean.margin.account_margin(1)).account.balance == 110


async def test_redis_acknowledges_again_when_history_has_what_waited(make_engine: MakeEngine, lean: Engine) -> None:
    broken = await make_engine(opened=False, history="drain", postgres_port=UNREACHABLE)
    plan = FaultPlan()
    inline: Any = await make_engine(kind=partial(FaultyEngine, plan=plan))
    await deposit(inline, 1, "10")
    plan.arm(Fault(FaultPoint.BEFORE_HISTORY, FaultKind.DROP))
    assert not (await deposit(inline, 1, "10")).final
    assert not (await deposit(broken, 1, "1")).final
    await lean.drain.drain()
    assert (await deposit(broken, 1, "1")).final
