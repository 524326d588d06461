"""Another number of partitions: everything moves to its new place, whatever was on its way, and can come back."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import (
    IdempotencyKeyReusedError,
    InsufficientWithdrawableError,
    StaleMarkPriceError,
    StateNotLoadedError,
)
from tests.actions import BTC, buy, deposit, mark, sell, withdraw
from tests.chains import chain
from tests.faults.points import Fault, FaultKind, FaultPlan, FaultPoint
from tests.faults.serve import FaultyEngine
from tests.integration.stores.dying import DyingFunction, FunctionDiedError
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

ACCOUNTS = range(1, 11)
CHANGES = [(1, 3), (3, 1), (4, 8), (8, 4), (2, 3)]
OF_ACCOUNTS = (
    *("balances", "versions", "chain_hashes", "position"),
    *("triggers", "warnings", "warned", "pending", "blocked"),
)


def _tags(partitions: int) -> list[str]:
    return [""] if partitions == 1 else [f"{{p{number}}}:" for number in range(partitions)]


def _places(store: redis.Redis) -> dict[str, set[str]]:
    """In which partitions each account has a version, by its tag."""
    places: dict[str, set[str]] = {}
    for name in store.scan_iter("*versions"):
        for account_id in store.hkeys(name):
            places.setdefault(account_id, set()).add(name.removesuffix("versions"))
    return places


async def _use(engine: Engine, suffix: str) -> None:
    """Trade with all accounts, and leave one event of some of them behind."""
    for account_id in ACCOUNTS:
        await deposit(engine, account_id, "10000", key=f"deposit-{suffix}")
        await buy(engine, account_id, "0.1", "50000", key=f"trade-{suffix}")
    for account_id in (1, 2, 3, 7):
        with pytest.raises(FunctionDiedError):
            await sell(DyingFunction(engine), account_id, "0.05", "50000", key=f"left-{suffix}")


async def _check_all_keys(engine: Engine, suffix: str) -> None:
    for account_id in ACCOUNTS:
        assert (await deposit(engine, account_id, "10000", key=f"deposit-{suffix}")).replayed
        assert (await buy(engine, account_id, "0.1", "50000", key=f"trade-{suffix}")).replayed
    for account_id in (1, 2, 3, 7):
        replay = await sell(engine, account_id, "0.05", "50000", key=f"left-{suffix}")
        assert (replay.replayed, replay.final) == (True, True)
        with pytest.raises(IdempotencyKeyReusedError):
            await sell(engine, account_id, "0.06", "50000", key=f"left-{suffix}")


def _is_of_accounts(name: str, tag: str) -> bool:
    in_layout = name.startswith(tag) if tag else not name.startswith("{")
    return in_layout and name.removeprefix(tag).startswith(OF_ACCOUNTS)


def _by_account(store: redis.Redis, partitions: int) -> dict[str, Any]:
    """State of the accounts of a layout, without the tags."""
    state: dict[str, Any] = {}
    for tag in _tags(partitions):
        for name, value in hot_state(store).items():
            if not name.startswith(tag) or (tag == "" and name.startswith("{")):
                continue
            bare = name.removeprefix(tag)
            if bare.startswith(("balances", "versions", "chain_hashes")):
                state.setdefault(bare, {}).update(value)
            elif bare.startswith(("position", "idempotency")):
                state[bare] = value
            elif bare.startswith(("triggers", "warnings")):
                state.setdefault(bare, set()).update(value)
    return state


@pytest.mark.parametrize(("before", "after"), CHANGES)
async def test_everything_moves_with_what_was_pending_and_comes_back(
    make_engine: MakeEngine, store: redis.Redis, query: Query, before: int, after: int
) -> None:
    old = await make_engine(partitions=before)
    await mark(old, "50000")
    await _use(old, "a")
    assert store.exists(*(f"{tag}pending" for tag in _tags(before)))

    new = await make_engine(opened=False, partitions=after)
    report = await new.opening.open()
    assert (report.opened, report.drained, report.loaded) == (list(range(after)), 4, 10)
    assert query("select count(*), count(distinct event_id) from events") == [(24, 24)]
    tag_of = {str(number): _tags(after)[number % after] for number in ACCOUNTS}
    assert _places(store) == {account_id: {tag} for account_id, tag in tag_of.items()}
    left = set(_tags(before)) - set(_tags(after))
    assert [name for name in store.scan_iter() for tag in left if _is_of_accounts(name, tag)] == []
    with pytest.raises(StateNotLoadedError):
        await deposit(old, 1, "1")

    await mark(new, "50000")
    await _check_all_keys(new, "a")
    await _use(new, "b")
    moved = _by_account(store, after)

    back = await make_engine(partitions=before)
    await mark(back, "50000")
    await _check_all_keys(back, "a")
    await _check_all_keys(back, "b")
    assert query("select count(*), count(distinct event_id) from events") == [(48, 48)]
    assert _places(store) == {str(number): {_tags(before)[number % before]} for number in ACCOUNTS}
    returned = _by_account(store, before)
    for name in ("balances", "versions", "chain_hashes"):
        assert returned[name] == moved[name]
    assert (await back.reconcile.reconcile()).differences == []
    ids = query("select account_id, array_agg(event_id order by n) from events group by account_id")
    assert all(list(row) == sorted(row) for _, row in ids)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 8)])
async def test_state_in_another_layout_is_that_of_a_rebuild_there(
    make_engine: MakeEngine, store: redis.Redis, before: int, after: int
) -> None:
    old = await make_engine(partitions=before)
    await mark(old, "50000")
    await _use(old, "a")
    new = await make_engine(partitions=after)
    await mark(new, "50000")
    moved = _by_account(store, after)
    store.flushall()
    await new.rebuilding.rebuild()
    await mark(new, "50000")
    assert _by_account(store, after) == moved


@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 8)])
async def test_mark_of_a_former_layout_is_not_taken_for_a_fresh_one_by_whoever_returns(
    make_engine: MakeEngine, store: redis.Redis, before: int, after: int
) -> None:
    old = await make_engine(partitions=before)
    await mark(old, "50000")
    await deposit(old, 1, "10000")
    new = await make_engine(partitions=after)
    assert {store.hget(f"{tag}mark_stamps", BTC) for tag in _tags(after)} == {"0"}
    await mark(new, "60000")
    back = await make_engine(partitions=before)
    assert {store.hget(f"{tag}mark_prices", BTC) for tag in _tags(before)} == {"60000"}
    with pytest.raises(StaleMarkPriceError):
        await buy(back, 1, "0.01", "60000")
    await mark(back, "61000")
    assert (await buy(back, 1, "0.01", "60000")).final


async def test_change_that_ran_out_of_time_at_any_page_goes_on(make_engine: MakeEngine, store: redis.Redis) -> None:
    old = await make_engine(partitions=3)
    await mark(old, "50000")
    await _use(old, "a")
    new = await make_engine(opened=False, partitions=2)
    complete, allowed = False, 0
    while not complete:
        allowed += 1
        left = iter([True] * allowed)
        complete = (await new.opening.open(keep_going=lambda left=left: next(left, False))).complete
        assert allowed < 50
    assert allowed > 5
    assert _places(store) == {str(number): {f"{{p{number % 2}}}:"} for number in ACCOUNTS}
    await mark(new, "50000")
    await _check_all_keys(new, "a")


async def test_change_that_was_given_up_half_way_loses_nothing(make_engine: MakeEngine, store: redis.Redis) -> None:
    """From 3 to 4, and back before the 4 were open: what was noted for 4 says nothing about 3."""
    old = await make_engine(partitions=3)
    await mark(old, "50000")
    await _use(old, "a")
    new = await make_engine(opened=False, partitions=4)
    for allowed in range(3, 24, 4):
        left = iter([True] * allowed)
        report = await new.opening.open(keep_going=lambda left=left: next(left, False))
        assert not report.complete
        if report.opened:
            break
        back = await make_engine(partitions=3)
        await mark(back, "50000")
        assert {account_id for account_id, tags in _places(store).items() if tags} >= set(map(str, ACCOUNTS))
        await _check_all_keys(back, "a")
        assert (await deposit(back, 5, "1")).final
    back = await make_engine(partitions=3)
    await mark(back, "50000")
    await _check_all_keys(back, "a")
    assert _places(store) == {str(number): {f"{{p{number % 3}}}:"} for number in ACCOUNTS}


async def test_change_that_was_given_up_and_is_made_later_compares_what_was_traded_in_between(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    one = await make_engine()
    for account_id in range(1, 9):
        await deposit(one, account_id, "100")
    four = await make_engine(opened=False, partitions=4)
    four.opening._compared_per_page = 1
    for allowed in range(1, 100):
        left = iter([True] * allowed)
        await four.opening.open(keep_going=lambda left=left: next(left, False))
        if int(store.hget("{p0}:opening", "after") or 0) > 0:
            break
    assert store.hget("{p0}:opening", "after") == "4"
    back = await make_engine()
    await withdraw(back, 4, "90")
    again = await make_engine(partitions=4, history="drain")
    held = (await again.accounts.read(4)).account
    assert held is not None
    assert held.balance == 10
    with pytest.raises(InsufficientWithdrawableError):
        await withdraw(again, 4, "90")


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (4, 8)])
async def test_event_that_a_function_of_the_former_layout_stores_too_late_is_undone_or_in_the_state(
    make_engine: MakeEngine, store: redis.Redis, query: Query, before: int, after: int
) -> None:
    """Redis was emptied and divided anew while a function stood still between its commit and history."""
    plan = FaultPlan()
    slow: Any = await make_engine(kind=partial(FaultyEngine, plan=plan), partitions=before)
    await deposit(slow, 5, "100")
    plan.arm(Fault(FaultPoint.AFTER_COMMIT, FaultKind.GATE))
    late = asyncio.create_task(deposit(slow, 5, "10", key="late"))
    await plan.gate.arrived.wait()
    store.flushall()
    new = await make_engine(partitions=after)
    plan.gate.open()
    (answer,) = await asyncio.gather(late, return_exceptions=True)
    stored = query("select balance from accounts where account_id = 5")
    view = await new.accounts.read(5)
    assert view.account is not None
    assert [(view.account.balance,)] == stored
    if not isinstance(answer, BaseException) and answer.final:
        assert view.account.balance == 110
    outcome = await deposit(new, 5, "10", key="late")
    assert outcome.final
    assert query("select balance from accounts where account_id = 5") == [(110,)]


async def test_layout_is_not_left_while_history_refuses_an_event_there(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    old = await make_engine(partitions=1)
    await deposit(old, 2, "10")
    (unstorable,) = chain(1, 1, subject="no text in PostgreSQL holds \0")
    store.rpush("pending:1", f"{unstorable.event_id} {unstorable.body}")
    store.zadd("pending", {"1": 1})
    new = await make_engine(opened=False, partitions=3)
    with pytest.raises(StateNotLoadedError, match="1 accounts of the layout with PARTITIONS=1"):
        await new.opening.open()
    assert store.hget("balances", "2") == "10"
    # The way back is open.
    back = await make_engine(partitions=1)
    assert (await deposit(back, 2, "1")).final
    assert store.llen("pending:1") == 1
