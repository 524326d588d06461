"""Accounts that the benchmarks put straight into Redis: they are as the engine would have put them there."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from margin.ports import AccountLoad, Loaded
from margin.ports.history import HistoryAccount
from tests.actions import deposit
from tests.benchmarks import population
from tests.benchmarks.bulk_load import ACCOUNTS_PER_BATCH, BulkLoad, chain_hash, version
from tests.benchmarks.crossings import assert_all_judged, find_crossing, make_known, unhurried_marks
from tests.benchmarks.servers import NOBODY_IS_WARNED_PCT
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from margin.config import Settings
    from margin.domain.account import Account
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

MANY = ACCOUNTS_PER_BATCH + 500


async def _fill(engine: Engine, accounts: Iterable[Account]) -> None:
    settings = engine.settings
    market, epoch = await engine.market.market(), await engine.accounts.epoch(0)
    bulk = BulkLoad(settings.redis_host, settings.redis_port, market, epoch=epoch)
    await bulk.load_state(accounts, progress=lambda _: None)
    await bulk.load_index()


async def test_bulk_load_leaves_the_very_keys_that_the_engines_own_loading_leaves(
    engine: Engine, store: redis.Redis
) -> None:
    await engine.marks.set_marks(population.MARKS)
    market, epoch = await engine.market.market(), await engine.accounts.epoch(0)
    accounts = list(population.accounts(MANY))
    await _fill(engine, accounts)
    assert store.get("event_seq") == str(MANY)
    bulk = hot_state(store, without=("mark", "event_seq"))

    store.flushall()
    loads = [
        AccountLoad(
            row=HistoryAccount(version(account.account_id, epoch), chain_hash(account.account_id), account),
            keys=(),
            triggers=triggers(account, market),
            expected_version="",
        )
        for account in accounts
    ]
    assert set(await engine.accounts.load_all(loads)) == {Loaded.DONE}
    assert bulk == hot_state(store)


async def test_loaded_accounts_read_back_as_they_were_made_with_the_triggers_of_the_domain(engine: Engine) -> None:
    await engine.marks.set_marks(population.MARKS)
    accounts = {account.account_id: account for account in population.accounts(300)}
    await _fill(engine, accounts.values())
    for account_id, account in accounts.items():
        assert (await engine.accounts.read(account_id)).account == account
    seen: dict[int, dict[str, Trigger]] = {}
    cursor = "0"
    while True:
        page = await engine.accounts.sweep(0, cursor)
        seen |= {indexed.row.account.account_id: dict(indexed.triggers) for indexed in page.accounts}
        cursor = page.cursor
        if cursor == "0":
            break
    assert seen == {account_id: triggers(account, page.market) for account_id, account in accounts.items()}
    assert all(covers(account, page.market, seen[account_id]) for account_id, account in accounts.items())


async def test_loaded_exchange_is_calm_and_its_sweep_finds_nobody_who_could_be_missed(make_engine: MakeEngine) -> None:
    engine = await make_engine(sweep_cycle_s=0)
    await engine.marks.set_marks(population.MARKS)
    await _fill(engine, population.accounts(MANY))
    report = await engine.scans.scan()
    assert report.swept >= MANY
    assert (report.crossed, report.missed, report.unvalued, report.complete) == (0, [], 0, True)


def test_population_has_one_to_three_positions_long_and_short_over_all_symbols() -> None:
    accounts = list(population.accounts(500))
    positions = [position for account in accounts for position in account.positions.values()]
    assert {len(account.positions) for account in accounts} == {1, 2, 3}
    assert {position.symbol for position in positions} == set(population.MARKS)
    longs = sum(position.quantity > 0 for position in positions)
    assert 0.4 < longs / len(positions) < 0.6
    assert list(population.accounts(500)) == accounts
    assert list(population.accounts(500, seed=8)) != accounts


async def test_loaded_account_trades_on_and_its_history_takes_the_event(engine: Engine) -> None:
    await engine.marks.set_marks(population.MARKS)
    await _fill(engine, population.accounts(20))
    await make_known(engine, [20])
    first, second = [await deposit(engine, 20, "1") for _ in range(2)]
    assert first.final
    assert second.final
    assert second.event_id == first.event_id + 1


@pytest.mark.parametrize("side", TriggerSide)
@pytest.mark.parametrize("symbol", ["ETH-PERP", "LTC-PERP"])
async def test_price_found_in_the_index_crosses_exactly_so_many_and_all_are_evaluated(
    make_engine: MakeEngine, symbol: str, side: TriggerSide
) -> None:
    engine = await make_engine(sweep_cycle_s=0, margin_warning_pct=NOBODY_IS_WARNED_PCT)
    await engine.marks.set_marks(population.MARKS)
    await _fill(engine, population.accounts(MANY))
    for size in (1, 7, 20):
        crossing = await find_crossing(engine, symbol, side, size)
        await make_known(engine, crossing.account_ids)
        marks, liquidations = unhurried_marks(engine, size)
        outcome = await marks.set_marks({crossing.symbol: crossing.price})
        assert outcome.at_risk == size
        assert_all_judged(liquidations, crossing)
        if symbol in population.SINGLE:
            assert sorted(outcome.liquidated) == sorted(crossing.account_ids)
        else:
            assert len(outcome.liquidated) < max(1, size / 2)
    report = await engine.scans.scan()
    assert (report.crossed, report.missed, report.failed) == (0, [], 0)


async def test_command_that_the_server_refuses_ends_the_loading(engine: Engine, store: redis.Redis) -> None:
    await engine.marks.set_marks(population.MARKS)
    store.set("balances", "not a hash")
    with pytest.raises(RuntimeError, match="refused a command: WRONGTYPE"):
        await _fill(engine, population.accounts(10))


async def test_calm_mark_price_is_the_same_commands_in_one_round_trip_with_a_hundred_accounts_and_with_two_thousand(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    accounts = population.accounts(2000)
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port)
        direct = await make_engine(opened=False)
        await engine.marks.set_marks(population.MARKS)
        spent: list[tuple[int, dict[str, Any]]] = []
        for more in (100, 1900):
            await _fill(direct, itertools.islice(accounts, more))
            await engine.accounts.read(1)
            store.config_resetstat()
            before = proxy.round_trips
            for symbol, price in population.MARKS.items():
                outcome = await engine.marks.set_marks({symbol: price * (1 + population.NEAREST_TRIGGER / 2)})
                assert outcome.at_risk == 0
            commands = {name: figures["calls"] for name, figures in store.info("commandstats").items()}
            spent.append((proxy.round_trips - before, commands))
        few, many = spent
        assert few == many
        assert few[0] == len(population.MARKS)
        assert few[1]["cmdstat_evalsha"] == len(population.MARKS)
