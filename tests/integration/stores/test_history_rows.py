"""What history holds after each kind of event: chain, trades, liquidations, ledger, accounts."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.event import canonical, digest
from margin.domain.ledger import LedgerAccount
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.runtime import Engine

    Query = Callable[..., list[tuple[Any, ...]]]


async def _live(engine: Engine) -> None:
    """Let one account see every kind of event: its last one is a liquidation with a shortfall."""
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await buy(engine, 1, "0.3", "50000")
    await buy(engine, 1, "0.1", "49999.99999999")
    await sell(engine, 1, "0.3", "50010")
    await sell(engine, 1, "0.3", "50005.5")
    await sell(engine, 1, "1.5", "2000.1", symbol=ETH)
    await withdraw(engine, 1, "100.12345678")
    assert (await mark(engine, "110000")).liquidated == (1,)


async def test_chain_is_unbroken_and_every_hash_can_be_recomputed(engine: Engine, query: Query) -> None:
    await _live(engine)
    rows = query("select n, event_id, previous_event_id, hash, type, body from events order by n")
    assert [row[4] for row in rows] == ["DEPOSIT", *["TRADE"] * 5, "WITHDRAWAL", "LIQUIDATION"]
    previous_id, previous_hash = 0, ""
    for number, (n, event_id, previous_event_id, stored_hash, _, body) in enumerate(rows, start=1):
        assert (n, body["n"]) == (number, number)
        assert (previous_event_id, body["previous_event_id"]) == (previous_id, previous_id)
        assert body["previous_hash"] == previous_hash
        assert digest(canonical(body)) == stored_hash
        previous_id, previous_hash = event_id, stored_hash


async def test_events_carry_key_caller_and_time(engine: Engine, query: Query) -> None:
    await deposit(engine, 1, "10000", key="d-1")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000", key="t-1")
    rows = query(
        "select key, subject, source_ip, occurred_at, recorded_at, length(request_hash) from events order by n"
    )
    assert [row[:3] for row in rows] == [("d-1", None, None), ("t-1", "alice", "192.0.2.1")]
    for *_, occurred_at, recorded_at, hash_length in rows:
        assert dt.timedelta() <= recorded_at - occurred_at < dt.timedelta(seconds=30)
        assert hash_length == 64


async def test_trades_hold_increase_reduce_and_flip_exactly(engine: Engine, query: Query) -> None:
    await _live(engine)
    rows = query("select symbol, side, quantity, price, notional, realised_pnl, fee from trades order by id")
    # Entry after two buys: 0.4 for 19999.999999999; 0.3 of it costs 14999.99999999925.
    assert [tuple(map(str, row)) for row in rows] == [
        (BTC, "BUY", "0.3", "50000", "15000", "0", "0"),
        (BTC, "BUY", "0.1", "49999.99999999", "4999.999999999", "0", "0"),
        (BTC, "SELL", "0.3", "50010", "15003", "3", "0"),
        (BTC, "SELL", "0.3", "50005.5", "15001.65", "0.55", "0"),
        (ETH, "SELL", "1.5", "2000.1", "3000.15", "0", "0"),
    ]


async def test_ledger_of_each_event_and_of_all_is_zero_and_cash_is_the_balance(engine: Engine, query: Query) -> None:
    await _live(engine)
    sums: dict[int, Decimal] = defaultdict(Decimal)
    for event_id, amount in query("select event_id, amount from ledger_lines"):
        sums[event_id] += amount
    assert set(sums.values()) == {Decimal(0)}
    assert len(sums) == 5  # deposit, two realising trades, withdrawal, liquidation
    ledger = await engine.history_store.ledger_sums(list(LedgerAccount))
    assert sum(ledger.values()) == 0
    assert ledger["cash"] == 0
    assert ledger["external"] == Decimal("-9899.87654322")
    assert ledger["uncovered"] < 0


async def test_dust_of_a_closed_position_goes_to_rounding(engine: Engine, query: Query) -> None:
    await deposit(engine, 1, "1000")
    await mark(engine, "1.00000001")
    await buy(engine, 1, "0.00000003", "1.00000001")
    await mark(engine, "1")
    await sell(engine, 1, "0.00000003", "1")
    lines = dict(
        query("select ledger_account, amount from ledger_lines where event_id = (select max(event_id) from events)")
    )
    assert lines == {
        "cash": Decimal("-0.00000001"),
        "house_pnl": Decimal("0.0000000000000003"),
        "rounding": Decimal("0.0000000099999997"),
    }


async def test_liquidation_row_says_what_was_closed_and_what_was_not_covered(engine: Engine, query: Query) -> None:
    await _live(engine)
    ((equity, maintenance_margin, reason, positions, shortfall),) = query(
        "select equity, maintenance_margin, reason, positions, shortfall from liquidations"
    )
    assert reason == "EQUITY_BELOW_MAINTENANCE"
    assert maintenance_margin == 2500  # a tenth of 0.2 * 110000 and of 1.5 * 2000
    assert equity == -shortfall
    assert [(closed["symbol"], closed["quantity"], closed["price"]) for closed in positions] == [
        (BTC, "-0.2", "110000"),
        (ETH, "-1.5", "2000"),
    ]
    assert query("select balance, positions from accounts") == [(Decimal(0), {})]


async def test_account_row_equals_redis_after_each_event(engine: Engine, query: Query, store: redis.Redis) -> None:
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    steps = [
        ("buy", "0.3", "50000"),
        ("buy", "0.1", "49999.99999999"),
        ("sell", "0.3", "50010"),
        ("sell", "0.3", "50005"),
    ]
    for side, quantity, price in steps:
        await {"buy": buy, "sell": sell}[side](engine, 1, quantity, price)
        ((n, event_id, chain_hash, balance, positions),) = query(
            "select n, event_id, chain_hash, balance, positions from accounts"
        )
        state = hot_state(store)
        assert state["versions"] == {"1": f"{n}:{event_id}"}
        assert state["chain_hashes"] == {"1": chain_hash}
        assert Decimal(state["balances"]["1"]) == balance
        held = state["position:1:BTC-PERP"]
        assert positions == {BTC: {"quantity": held["quantity"], "entry_cost": held["entry_cost"]}}


async def test_largest_and_smallest_amounts_are_exact_to_the_last_digit(engine: Engine, query: Query) -> None:
    largest, smallest = "999999999999.99999999", "0.00000001"
    await deposit(engine, 1, largest)
    await mark(engine, largest)
    await buy(engine, 1, smallest, largest)
    notional = Decimal("9999.9999999999999999")
    assert query("select quantity, price, notional from trades") == [(Decimal(smallest), Decimal(largest), notional)]
    assert query("select positions from accounts") == [
        ({BTC: {"quantity": smallest, "entry_cost": "9999.9999999999999999"}},)
    ]
    margin = await engine.margin.account_margin(1)
    assert margin.risk.maintenance_margin == notional / 10
    assert margin.risk.equity == Decimal(largest)


@pytest.mark.parametrize("partitions", [1, 4])
async def test_rows_of_many_accounts_do_not_mix(make_engine: Any, query: Query, partitions: int) -> None:
    engine = await make_engine(partitions=partitions)
    await mark(engine, "50000")
    for account_id in range(1, 6):
        await deposit(engine, account_id, f"{account_id}0000")
        await buy(engine, account_id, f"0.{account_id}", "50000")
    rows = query(
        "select account_id, n, balance, positions -> 'BTC-PERP' ->> 'quantity' from accounts order by account_id"
    )
    assert rows == [(number, 2, Decimal(number * 10000), f"0.{number}") for number in range(1, 6)]
