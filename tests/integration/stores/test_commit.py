"""The commit script: one event, all or nothing, and only on the state that it was decided on."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.controls import account_control, symbol_control
from margin.domain.order import Order
from margin.domain.position import Side
from margin.domain.safe_zone import Trigger, TriggerSide
from margin.errors import StateNotLoadedError
from margin.ports import Anchor, Committed, Conflict, StoredResult
from margin.services.journal import WriteRequest
from margin.services.trading import decide_trade
from tests.actions import BTC, buy, deposit, mark
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.ports import Commit
    from margin.runtime import Engine

INSTRUMENT = {
    "symbol": BTC,
    "tiers": [{"notional_cap": None, "initial_rate": "0.1", "maintenance_rate": "0.05"}],
    "taker_fee": "0",
    "price_band": "0.2",
    "lot_size": "0.00000001",
    "mark_max_age_s": None,
    "version": 7,
}


@pytest.fixture
async def commit(engine: Engine) -> Commit:
    """Return a trade that was decided and not yet committed."""
    await deposit(engine, 1, "20000")
    await mark(engine, "50000")
    request = WriteRequest(account_id=1, fields={"operation": "trade"}, key="mine", symbol=BTC)
    view = await engine.accounts.read(1, symbol=BTC, key="mine")
    decision = decide_trade(Order(1, BTC, Side.BUY, Decimal("0.1"), Decimal(50000)), view)
    decision = dataclasses.replace(decision, marks={BTC: Decimal(50000)})
    return engine._journal._build(request, "mine", view, decision, None)


async def test_commit_of_the_state_that_it_was_decided_on_happens(engine: Engine, commit: Commit) -> None:
    reply = await engine.accounts.commit(commit)
    assert isinstance(reply, Committed)
    assert [event.event_id for event in reply.pending] == [reply.event_id]
    assert reply.pending[0].body == commit.body
    view = await engine.accounts.read(1, key="mine")
    assert view.account == commit.account
    assert view.version == f"{commit.event.n}:{reply.event_id}"
    assert view.chain_hash == commit.event_hash
    assert view.replay == StoredResult(reply.event_id, commit.event.request_hash, commit.result, reply.pending)


async def test_same_commit_again_answers_what_it_did_and_writes_nothing(
    engine: Engine, store: redis.Redis, commit: Commit
) -> None:
    first = await engine.accounts.commit(commit)
    assert isinstance(first, Committed)
    before = hot_state(store)
    again = await engine.accounts.commit(commit)
    assert again == StoredResult(first.event_id, commit.event.request_hash, commit.result, first.pending)
    assert hot_state(store) == before


def _doubt(store: redis.Redis) -> None:
    """Set a price aside, as the guard does with one that is too far from the mark."""
    store.hset("mark_candidates", BTC, f"{store.hget('mark_stamps', BTC)}:1:1:20:")


CHANGES: dict[str, tuple[str, Callable[[redis.Redis], object]]] = {
    "account": ("account", lambda store: store.hset("versions", "1", "1:1")),
    "account, by the id alone": (
        "account",
        lambda store: store.hset("versions", "1", f"{store.hget('versions', '1')}0"),
    ),
    "instrument, configured first": (
        "instrument",
        lambda store: store.hset("instruments", BTC, json.dumps(INSTRUMENT)),
    ),
    "engine switch": ("control", lambda store: store.hset("controls", "engine", "paused")),
    "account switch": ("control", lambda store: store.hset("controls", account_control(1), "paused")),
    "symbol switch": ("control", lambda store: store.hset("controls", symbol_control(BTC), "reduce-only")),
    "mark": ("mark", lambda store: store.hset("mark_prices", BTC, "50000.00000001")),
    "mark, in doubt": ("mark", _doubt),
    "mark, gone": ("mark", lambda store: store.hdel("mark_prices", BTC)),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_commit_on_something_that_has_changed_conflicts_and_writes_nothing(
    engine: Engine, store: redis.Redis, commit: Commit, change: str
) -> None:
    named, apply = CHANGES[change]
    apply(store)
    before = hot_state(store)
    assert await engine.accounts.commit(commit) == Conflict(named)
    assert hot_state(store) == before


async def test_commit_on_another_version_of_the_instrument_conflicts(
    engine: Engine, store: redis.Redis, commit: Commit
) -> None:
    store.hset("instruments", BTC, json.dumps(INSTRUMENT))
    decided_on_it = dataclasses.replace(commit, instrument_versions={BTC: "7"})
    store.hset("instruments", BTC, json.dumps({**INSTRUMENT, "version": 8}))
    assert await engine.accounts.commit(decided_on_it) == Conflict("instrument")
    store.hset("instruments", BTC, json.dumps(INSTRUMENT))
    assert isinstance(await engine.accounts.commit(decided_on_it), Committed)


async def test_switch_of_another_symbol_is_no_conflict(engine: Engine, store: redis.Redis, commit: Commit) -> None:
    store.hset("controls", symbol_control("ETH-PERP"), "paused")
    store.hset("controls", account_control(2), "paused")
    assert isinstance(await engine.accounts.commit(commit), Committed)


@pytest.mark.parametrize("field", ["epoch", "partitions"])
async def test_commit_into_a_state_that_was_loaded_otherwise_is_refused_and_writes_nothing(
    engine: Engine, store: redis.Redis, commit: Commit, field: str
) -> None:
    store.hincrby("marker", field, 1)
    before = hot_state(store)
    with pytest.raises(StateNotLoadedError):
        await engine.accounts.commit(commit)
    assert hot_state(store) == before


async def test_commit_into_an_empty_redis_is_refused_and_writes_nothing(
    engine: Engine, store: redis.Redis, commit: Commit
) -> None:
    store.flushall()
    with pytest.raises(StateNotLoadedError):
        await engine.accounts.commit(commit)
    assert hot_state(store) == {}


async def test_instrument_of_redis_decides_about_margin_fee_and_lot(engine: Engine, store: redis.Redis) -> None:
    store.hset("instruments", BTC, json.dumps({**INSTRUMENT, "taker_fee": "0.001"}))
    await deposit(engine, 1, "6000")
    await mark(engine, "50000")
    outcome = await buy(engine, 1, "1", "50000")
    assert (outcome.result["fee"], outcome.result["initial_margin_required"]) == ("50", "5000")


@pytest.mark.parametrize(("price", "crossed"), [("40000", True), ("40000.00000001", False), ("39999.99999999", True)])
async def test_trigger_at_the_very_mark_counts_as_crossed_by_an_anchor(
    engine: Engine, price: str, crossed: bool
) -> None:
    await mark(engine, "50000")
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    view = await engine.accounts.read(1)
    triggers = {BTC: _floor(40000.0)}
    await engine.market.set_marks({BTC: Decimal(price)}, crossed_max=0)
    assert await engine.accounts.anchor(Anchor(1, view.version, triggers)) is crossed


@pytest.mark.parametrize(("price", "crossed"), [("40000", True), ("40000.00000001", False), ("39999.99999999", True)])
async def test_trigger_at_the_very_mark_counts_as_crossed_by_a_commit(
    engine: Engine, commit: Commit, price: str, crossed: bool
) -> None:
    await engine.market.set_marks({BTC: Decimal(price)}, crossed_max=0)
    reply = await engine.accounts.commit(dataclasses.replace(commit, marks={}, triggers={BTC: _floor(40000.0)}))
    assert isinstance(reply, Committed)
    assert reply.crossed is crossed


def _floor(score: float) -> Trigger:
    return Trigger(BTC, TriggerSide.FLOOR, score)
