"""Replies that never arrive: what was asked happens once, whoever asks again."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import NOBODY, Caller
from margin.clients import account_redis
from margin.errors import OutcomeUnknownError, OutsidePriceBandError, PostgresUnavailableError
from tests.actions import buy, deposit, mark
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

COMMIT = b'"event_hash"'
APPEND = b"append_events"
KEYS = [None, "mine"]


@pytest.fixture
async def redis_proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        yield proxy


@pytest.fixture
async def postgres_proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        yield proxy


async def _ready(engine: Engine) -> None:
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")


@pytest.mark.parametrize("key", KEYS)
async def test_lost_reply_of_the_commit_is_asked_for_and_the_trade_executed_once(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, key: str | None
) -> None:
    engine = await make_engine(redis_port=redis_proxy.port)
    await _ready(engine)
    redis_proxy.lose_reply_to(COMMIT)
    outcome = await buy(engine, 1, "0.1", "50000", key=key)
    assert redis_proxy.lost == 1
    assert outcome.final
    assert outcome.result["position"] == {"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"}
    assert query("select id from trades") == [(outcome.event_id,)]


@pytest.mark.parametrize("key", KEYS)
async def test_lost_commit_is_sent_again_and_the_trade_executed_once(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, key: str | None
) -> None:
    engine = await make_engine(redis_port=redis_proxy.port)
    await _ready(engine)
    redis_proxy.lose_request(COMMIT)
    outcome = await buy(engine, 1, "0.1", "50000", key=key)
    assert redis_proxy.lost == 1
    assert (outcome.final, outcome.replayed) == (True, False)
    assert query("select id from trades") == [(outcome.event_id,)]


@pytest.mark.parametrize("marker_is_lost", ["reply", "request"])
async def test_redis_gone_at_the_commit_is_an_unknown_outcome_whose_key_finds_out(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, marker_is_lost: str
) -> None:
    engine = await make_engine(redis_port=redis_proxy.port)
    await _ready(engine)
    if marker_is_lost == "reply":
        redis_proxy.lose_reply_to(COMMIT, breaking=True)
    else:
        redis_proxy.break_at(COMMIT)
    with pytest.raises(OutcomeUnknownError) as caught:
        await buy(engine, 1, "0.1", "50000")
    key = caught.value.detail.rpartition(" ")[2]
    redis_proxy.repair()
    outcome = await buy(engine, 1, "0.1", "50000", key=key)
    assert outcome.replayed is (marker_is_lost == "reply")
    assert outcome.final
    assert query("select id from trades") == [(outcome.event_id,)]


async def _trade_whose_commit_is_held_back_while_the_price_moves(
    make_engine: MakeEngine, redis_proxy: Proxy, key: str | None
) -> tuple[Engine, str]:
    """Send a trade whose commit is on its way for longer than anybody waits, and which a second decision refuses."""
    direct = await make_engine()
    await _ready(direct)
    engine = await make_engine(opened=False, redis_port=redis_proxy.port, redis_timeout_s=0.3)
    await engine.margin.account_margin(1)
    redis_proxy.hold_back(COMMIT)
    trade = asyncio.ensure_future(buy(engine, 1, "0.1", "50000", key=key))
    await redis_proxy.held.wait()
    await mark(direct, "70000")
    with pytest.raises(OutcomeUnknownError) as caught:
        await trade
    return direct, caught.value.detail.rpartition("Idempotency-Key: ")[2]


@pytest.mark.parametrize("key", KEYS)
async def test_commit_that_arrives_late_was_not_refused_and_its_key_finds_out(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, key: str | None
) -> None:
    engine, named = await _trade_whose_commit_is_held_back_while_the_price_moves(make_engine, redis_proxy, key)
    assert key in {None, named}
    assert (await engine.margin.account_margin(1)).positions == ()
    await redis_proxy.deliver()
    outcome = await buy(engine, 1, "0.1", "50000", key=named)
    assert (outcome.final, outcome.replayed) == (True, True)
    assert outcome.result["position"] == {"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"}
    assert query("select id from trades") == [(outcome.event_id,)]


async def test_commit_that_never_arrives_is_refused_when_its_key_asks_again(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query
) -> None:
    engine, named = await _trade_whose_commit_is_held_back_while_the_price_moves(make_engine, redis_proxy, "mine")
    with pytest.raises(OutsidePriceBandError):
        await buy(engine, 1, "0.1", "50000", key=named)
    assert query("select count(*) from trades") == [(0,)]


async def test_lost_reply_of_the_clean_up_is_cleaned_up_on_a_new_connection(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine(redis_port=redis_proxy.port)
    await _ready(engine)
    redis_proxy.lose_request(account_redis._FORGET.digest.encode())
    assert (await buy(engine, 1, "0.1", "50000")).final
    assert redis_proxy.lost == 1
    assert not store.exists("pending:1", "pending")
    assert query("select count(*) from trades") == [(1,)]


async def test_clean_up_that_fails_leaves_a_pending_event_that_the_next_one_takes_away(
    make_engine: MakeEngine, redis_proxy: Proxy, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine(redis_port=redis_proxy.port)
    await _ready(engine)
    redis_proxy.break_at(account_redis._FORGET.digest.encode())
    assert (await buy(engine, 1, "0.1", "50000")).final
    assert store.llen("pending:1") == 1
    redis_proxy.repair()
    assert (await buy(engine, 1, "0.1", "50000")).final
    assert not store.exists("pending:1", "pending")
    assert query("select count(*) from trades") == [(2,)]


async def test_lost_reply_of_the_append_on_a_kept_connection_is_found_out_on_a_new_one(
    make_engine: MakeEngine, postgres_proxy: Proxy, query: Query
) -> None:
    engine = await make_engine(postgres_port=postgres_proxy.port)
    await _ready(engine)
    postgres_proxy.lose_reply_to(APPEND)
    outcome = await buy(engine, 1, "0.1", "50000")
    assert postgres_proxy.lost == 1
    assert outcome.final
    assert query("select id from trades") == [(outcome.event_id,)]


async def test_lost_reply_of_the_append_on_a_new_connection_is_not_final_until_the_drain_found_out(
    make_engine: MakeEngine, postgres_proxy: Proxy, query: Query, store: redis.Redis
) -> None:
    await _ready(await make_engine())
    engine = await make_engine(postgres_port=postgres_proxy.port, opened=False)
    postgres_proxy.lose_reply_to(APPEND)
    outcome = await buy(engine, 1, "0.1", "50000", key="mine")
    assert postgres_proxy.lost == 1
    assert not outcome.final
    # It is stored, but nobody knows: that is what the pending list is for.
    assert query("select id from trades") == [(outcome.event_id,)]
    assert store.llen("pending:1") == 1
    report = await engine.drain.drain()
    assert (report.stored, report.accounts, report.waiting_accounts) == (1, 1, 0)
    replay = await buy(engine, 1, "0.1", "50000", key="mine")
    assert (replay.event_id, replay.final, replay.replayed) == (outcome.event_id, True, True)
    assert query("select count(*) from trades") == [(1,)]


async def test_postgresql_gone_after_the_commit_is_executed_but_not_final(
    make_engine: MakeEngine, postgres_proxy: Proxy, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine(postgres_port=postgres_proxy.port)
    await _ready(engine)
    postgres_proxy.break_at(APPEND)
    first = await buy(engine, 1, "0.1", "50000", key="mine")
    assert not first.final
    assert query("select count(*) from trades") == [(0,)]

    before = hot_state(store)
    with pytest.raises(PostgresUnavailableError):
        await buy(engine, 1, "0.2", "50000")
    assert hot_state(store) == before

    postgres_proxy.repair()
    second = await buy(engine, 1, "0.2", "50000")
    assert second.final
    assert query("select id from trades order by id") == [(first.event_id,), (second.event_id,)]
    assert not store.exists("pending:1", "pending")


async def test_replay_of_a_pending_event_completes_it(
    make_engine: MakeEngine, postgres_proxy: Proxy, query: Query
) -> None:
    engine = await make_engine(postgres_port=postgres_proxy.port)
    await _ready(engine)
    postgres_proxy.break_at(APPEND)
    outcome = await buy(engine, 1, "0.1", "50000", key="mine")
    assert not outcome.final
    postgres_proxy.repair()
    replay = await buy(engine, 1, "0.1", "50000", key="mine")
    assert (replay.event_id, replay.final, replay.replayed) == (outcome.event_id, True, True)
    assert replay.result == outcome.result
    assert query("select id from trades") == [(outcome.event_id,)]


async def test_event_that_postgresql_cannot_store_stays_pending_and_does_not_hinder_other_accounts(
    make_engine: MakeEngine, postgres_proxy: Proxy, query: Query
) -> None:
    engine = await make_engine(postgres_port=postgres_proxy.port)
    unstorable = Caller(subject="no text in PostgreSQL holds \0", source_ip=None)
    await engine.funds.deposit(1, Decimal(10), key=None, caller=NOBODY)
    moved = await engine.funds.deposit(1, Decimal(10), key=None, caller=unstorable)
    assert not moved.final
    postgres_proxy.break_at(APPEND)
    await deposit(engine, 2, "10")
    postgres_proxy.repair()
    report = await engine.drain.drain()
    assert (report.stored, report.waiting_accounts) == (1, 1)
    assert query("select account_id from events order by account_id") == [(1,), (2,)]
