"""The keys in Redis that people and other tools read: their names, fields and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.actions import BTC, buy, deposit, mark, sell
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

PARTITIONS = 4


async def test_one_partition_has_the_documented_keys_without_a_tag(engine: Engine, store: redis.Redis) -> None:
    opened = await deposit(engine, 1, "10000.50", key="first")
    await mark(engine, "50000")
    traded = await buy(engine, 1, "0.3", "49999.99", key="second")

    state = hot_state(store)
    run_id = store.info("server")["run_id"]
    chain_hash = state.pop("chain_hashes")["1"]
    stamp = state.pop("mark_stamps")[BTC]
    assert state.pop("mark_times") == {BTC: f"{stamp}:{stamp}"}
    records = {name: state.pop(name).split("\n", 2) for name in list(state) if name.startswith("idempotency:")}
    assert state == {
        "balances": {"1": "10000.5"},
        "event_seq": "2",
        "mark_prices": {BTC: "50000"},
        "marker": {"epoch": "1", "partitions": "1", "run_id": run_id},
        "position:1:BTC-PERP": {"quantity": "0.3", "entry_price": "49999.99", "entry_cost": "14999.997"},
        "positions:1": {BTC},
        "triggers:BTC-PERP:floor": state["triggers:BTC-PERP:floor"],
        "versions": {"1": f"2:{traded.event_id}"},
        "warnings:BTC-PERP:floor": state["warnings:BTC-PERP:floor"],
    }
    assert [member for member, _ in state["triggers:BTC-PERP:floor"]] == ["1"]
    assert len(chain_hash) == 64
    assert 0 <= int(store.time()[0]) - int(stamp) // 1_000_000 < 60
    assert {name: record[0] for name, record in records.items()} == {
        "idempotency:1:first": str(opened.event_id),
        "idempotency:1:second": str(traded.event_id),
    }


async def test_event_ids_are_the_epoch_and_a_sequence(engine: Engine) -> None:
    ids = [(await deposit(engine, account_id, "1")).event_id for account_id in (1, 2, 1)]
    assert ids == [2**32 + 1, 2**32 + 2, 2**32 + 3]


async def test_key_of_the_caller_is_kept_for_the_configured_time_and_a_made_one_for_an_hour(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(idempotency_ttl_s=500)
    await deposit(engine, 1, "1", key="mine")
    await deposit(engine, 1, "1")
    (made,) = [name for name in store.scan_iter("idempotency:*") if name != "idempotency:1:mine"]
    assert 490 < store.ttl("idempotency:1:mine") <= 500
    assert 3590 < store.ttl(made) <= 3600


async def test_closed_position_leaves_no_key_behind(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.3", "50000")
    await sell(engine, 1, "0.3", "50000")
    names = set(hot_state(store, without=("idempotency:",)))
    marks = {"mark_prices", "mark_stamps", "mark_times"}
    assert names == {"balances", "chain_hashes", "event_seq", *marks, "marker", "versions"}


async def test_flipped_position_moves_its_trigger_to_the_other_side(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000")
    assert store.zrange("triggers:BTC-PERP:floor", 0, -1) == ["1"]
    await sell(engine, 1, "0.2", "50000")
    assert not store.exists("triggers:BTC-PERP:floor")
    assert store.zrange("triggers:BTC-PERP:ceiling", 0, -1) == ["1"]


async def test_position_that_no_price_can_hurt_is_a_member_below_all_prices(engine: Engine, store: redis.Redis) -> None:
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000")
    # 100000 - 5000 of equity beyond the position's own worth, for 0.09 of the price each.
    assert store.zscore("triggers:BTC-PERP:floor", "1") == pytest.approx(-95000 / 0.09)


async def test_event_that_history_did_not_take_is_pending_with_its_time(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        proxy.break_at(b"append_events")
        outcome = await deposit(engine, 1, "10")
        assert not outcome.final
        (entry,) = store.lrange("pending:1", 0, -1)
        event_id, _, body = entry.partition(" ")
        assert int(event_id) == outcome.event_id
        assert '"type":"DEPOSIT"' in body
        ((member, at_us),) = store.zrange("pending", 0, -1, withscores=True)
        assert member == "1"
        assert f'"at_us":{at_us:.0f},' in body


async def test_every_key_of_a_partition_has_its_tag(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    for account_id in range(1, 6):
        await deposit(engine, account_id, "20000")
    await mark(engine, "50000")
    for account_id in range(1, 6):
        await buy(engine, account_id, "0.5", "50000")

    state = hot_state(store)
    assert {name.partition(":")[0] for name in state} == {f"{{p{number}}}" for number in range(PARTITIONS)}
    balances = {number: set(state[f"{{p{number}}}:balances"]) for number in range(PARTITIONS)}
    assert balances == {0: {"4"}, 1: {"1", "5"}, 2: {"2"}, 3: {"3"}}
    for number in range(PARTITIONS):
        assert state[f"{{p{number}}}:marker"]["partitions"] == str(PARTITIONS)
        holders = {member for member, _ in state[f"{{p{number}}}:triggers:BTC-PERP:floor"]}
        assert holders == balances[number]
    epochs = {state[f"{{p{number}}}:marker"]["epoch"] for number in range(PARTITIONS)}
    assert len(epochs) == PARTITIONS


async def test_mark_price_stands_in_every_partition_with_one_stamp(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    await mark(engine, "50000")
    await mark(engine, "50001.5")
    prices = {store.hget(f"{{p{number}}}:mark_prices", BTC) for number in range(PARTITIONS)}
    stamps = {store.hget(f"{{p{number}}}:mark_stamps", BTC) for number in range(PARTITIONS)}
    assert prices == {"50001.5"}
    assert len(stamps) == 1


async def test_event_ids_of_different_partitions_never_meet(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    ids = [(await deposit(engine, account_id, "1")).event_id for account_id in range(1, 9)]
    assert len(set(ids)) == len(ids)


async def test_report_scan_and_marks_reach_the_accounts_of_all_partitions(make_engine: MakeEngine) -> None:
    engine = await make_engine(partitions=PARTITIONS)
    for account_id in range(1, 9):
        await deposit(engine, account_id, f"{5000 + account_id}")
    await mark(engine, "50000")
    for account_id in range(1, 9):
        await buy(engine, account_id, "0.5", "50000")

    report = await engine.report.page(limit=100, cursor=None)
    assert [row["account_id"] for row in report.rows] == list(range(1, 9))
    outcome = await mark(engine, "44430")
    assert outcome.at_risk == 6
    assert sorted(outcome.liquidated) == [1, 2, 3, 4, 5, 6]
    scan = await engine.scans.scan()
    assert (scan.swept, scan.crossed, scan.complete) == (8, 0, True)
