"""Rebuilding: the state of an account, a partition or all comes from history, whatever happens on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.position import Position
from margin.errors import (
    ContentionError,
    EventsBlockedError,
    HistoryLostError,
    InvalidRequestError,
    PostgresUnavailableError,
    RedisUnavailableError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.services.former_layout import FormerLayoutService
from margin.services.opening import OpeningReport, OpeningService
from margin.services.rebuilding import HOLD_S, RebuildService
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.ports.opening import Opening

ACCOUNTS = range(1, 8)
# What each opening makes anew.
OF_THE_OPENING = {"markers", "openings", "sequences", "controls_aligned_to"}
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


class KilledError(BaseException):
    """The process is gone: nothing catches this."""


async def _used(partitions: int = 2) -> Exchange:
    """Make an exchange on which seven accounts traded; two of these are equal."""
    exchange = await _with_small_pages(Exchange(partitions=partitions)).open()
    await mark(exchange, "50000")
    await mark(exchange, "2000", ETH)
    for account_id in ACCOUNTS:
        await deposit(exchange, account_id, "10000", key=f"deposit-{account_id}")
    for account_id in (1, 2, 3):
        await buy(exchange, account_id, "0.1", "50000", key="mine")
        await sell(exchange, account_id, "0.5", "2000", symbol=ETH, key="short")
    return exchange


def _with_small_pages(exchange: Exchange) -> Exchange:
    layout = exchange._layout(exchange.redis.partitions)
    history = exchange.history_store
    former = FormerLayoutService(history, exchange._layout)
    exchange.opening = OpeningService(layout, history, former, compared_per_page=2, rebuilt_per_page=2)
    exchange.rebuilding = RebuildService(layout, history, exchange.opening)
    return exchange


def _state(exchange: Exchange) -> dict[str, Any]:
    return {name: value for name, value in exchange.redis.save().items() if name not in OF_THE_OPENING}


def _tamper(exchange: Exchange) -> None:
    """Change what versions do not show: a balance, a position, a result, keys and an account that never were."""
    redis = exchange.redis
    redis.accounts[1].account = redis.accounts[1].account.with_balance_change(Decimal(5))
    positions = {**redis.accounts[2].account.positions, BTC: Position(BTC, Decimal(9), Decimal(9))}
    redis.accounts[2].account = dataclasses.replace(redis.accounts[2].account, positions=positions)
    del redis.accounts[3].triggers[ETH]
    redis.keys[4, "deposit-4"] = dataclasses.replace(redis.keys[4, "deposit-4"], result="{}")
    redis.keys[5, "bogus"] = dataclasses.replace(redis.keys[4, "deposit-4"], event_id=99)
    del redis.keys[6, "deposit-6"]
    redis.accounts[7].chain_hash = "another"
    redis.accounts[80] = dataclasses.replace(redis.accounts[1], version="1:1")
    redis.keys[80, "k"] = redis.keys[5, "bogus"]


async def test_tampered_state_of_equal_versions_is_made_equal_to_an_untouched_twin() -> None:
    exchange, twin = await _used(), await _used()
    assert _state(exchange) == _state(twin)
    _tamper(exchange)
    report = await exchange.rebuilding.rebuild()
    assert (report.opened, report.accounts, report.loaded, report.dropped, report.kept) == ([0, 1], 7, 7, 1, 0)
    assert report.complete
    assert _state(exchange) == _state(twin)
    assert (await buy(exchange, 1, "0.1", "50000", key="mine")).replayed
    assert (await buy(exchange, 1, "0.1", "50000", key="new")).final


async def test_opening_looks_at_versions_only_and_refuses_an_account_that_history_lost() -> None:
    exchange = await _used()
    _tamper(exchange)
    exchange.redis.run_id = "run-2"
    with pytest.raises(HistoryLostError, match="Redis holds account 80"):
        await exchange.opening.open()
    assert exchange.redis.accounts[1].account.balance == 10005


async def test_only_the_partition_that_was_asked_for_is_rebuilt() -> None:
    exchange, twin = await _used(), await _used()
    _tamper(exchange)
    epochs = {number: marker.epoch for number, marker in exchange.redis.markers.items()}
    report = await exchange.rebuilding.rebuild([1])
    assert (report.opened, report.accounts, report.loaded) == ([1], 4, 4)
    now, whole = _state(exchange), _state(twin)
    assert {account: hot for account, hot in now["accounts"].items() if account % 2} == {
        account: hot for account, hot in whole["accounts"].items() if account % 2
    }
    assert exchange.redis.accounts[80].version == "1:1"
    assert exchange.redis.markers[0].epoch == epochs[0]
    assert int(exchange.redis.markers[1].epoch) > int(epochs[1])


async def test_rebuild_is_idempotent_and_each_takes_an_epoch_of_its_own() -> None:
    exchange, twin = await _used(), await _used()
    seen = []
    for _ in range(3):
        assert (await exchange.rebuilding.rebuild()).loaded == 7
        assert _state(exchange) == _state(twin)
        seen.append(exchange.redis.markers[0].epoch)
    assert len(set(seen)) == 3


@pytest.mark.parametrize("partition", [-1, 2, 99])
async def test_partition_that_does_not_exist_is_refused_and_nothing_closed(partition: int) -> None:
    exchange = await _used()
    before = exchange.redis.save()
    with pytest.raises(InvalidRequestError, match="from 0 to 1"):
        await exchange.rebuilding.rebuild([partition])
    assert exchange.redis.save() == before


# --- broken off ---


async def _in_bits(
    exchange: Exchange, pages_per_call: int, call: Callable[[Callable[[], bool]], Any]
) -> list[OpeningReport]:
    """Call again and again, each time with time for some pages only."""
    reports: list[OpeningReport] = []
    while not reports or not reports[-1].complete:
        until = exchange.faults.calls["partitions.note"] + pages_per_call
        reports.append(await call(lambda until=until: exchange.faults.calls["partitions.note"] < until))
        assert len(reports) < 30
    return reports


@pytest.mark.parametrize("pages_per_call", [1, 2, 3, 4])
async def test_rebuild_that_runs_out_of_time_goes_on_and_loads_each_account_once(pages_per_call: int) -> None:
    exchange, twin = await _used(), await _used()
    _tamper(exchange)
    reports = await _in_bits(
        exchange, pages_per_call, lambda keep_going: exchange.rebuilding.rebuild(keep_going=keep_going)
    )
    assert len(reports) > 1
    assert sum(report.loaded for report in reports) == 7
    assert sorted(partition for report in reports for partition in report.opened) == [0, 1]
    assert _state(exchange) == _state(twin)
    # The one after that begins anew.
    assert (await exchange.rebuilding.rebuild()).loaded == 7


@pytest.mark.parametrize("pages_per_call", [1, 2, 3])
async def test_opening_that_runs_out_of_time_goes_on_and_loads_each_account_once(pages_per_call: int) -> None:
    exchange, twin = await _used(), await _used()
    # Marks are not in the events; the drain keeps them.
    for one in (exchange, twin):
        await one.mark_records.save()
    marks = dict(exchange.redis.marks)
    exchange.redis.flush()
    exchange.redis.marks.update(marks)
    reports = await _in_bits(exchange, pages_per_call, lambda keep_going: exchange.opening.open(keep_going=keep_going))
    assert len(reports) > 1
    assert sum(report.loaded for report in reports) == 7
    assert _state(exchange) == _state(twin)


async def test_search_for_false_keys_that_runs_out_of_time_goes_on_at_the_page_where_it_was() -> None:
    exchange, twin = await _used(), await _used()
    _tamper(exchange)
    searched = twin.faults.calls["accounts.remembered_keys"]
    await twin.rebuilding.rebuild()
    pages = twin.faults.calls["accounts.remembered_keys"] - searched
    searched = exchange.faults.calls["accounts.remembered_keys"]
    seen = [searched]

    async def rebuild(keep_going: Callable[[], bool]) -> OpeningReport:
        report = await exchange.rebuilding.rebuild(keep_going=keep_going)
        seen.append(exchange.faults.calls["accounts.remembered_keys"])
        return report

    await _in_bits(exchange, 1, rebuild)
    assert pages > 4
    # Tampering left one key more than the twin has in each partition, which can fill another page.
    assert pages <= seen[-1] - searched <= pages + 2
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(seen))
    assert _state(exchange) == _state(twin)


async def test_opening_completes_a_rebuild_that_was_broken_off_as_a_rebuild() -> None:
    exchange, twin = await _used(), await _used()
    _tamper(exchange)
    until = exchange.faults.calls["partitions.note"] + 1
    first = await exchange.rebuilding.rebuild(keep_going=lambda: exchange.faults.calls["partitions.note"] < until)
    assert not first.complete
    second = await exchange.opening.open()
    assert second.complete
    assert first.loaded + second.loaded == 7
    assert _state(exchange) == _state(twin)


async def test_partitions_that_are_done_are_not_done_again_when_the_same_call_goes_on() -> None:
    exchange = await _used(partitions=3)
    done: list[list[int]] = []
    reports = await _in_bits(exchange, 2, lambda keep_going: exchange.rebuilding.rebuild(keep_going=keep_going))
    done = [report.opened for report in reports]
    assert sorted(partition for opened in done for partition in opened) == [0, 1, 2]


async def test_server_that_was_replaced_while_a_rebuild_was_broken_off_is_rebuilt_from_the_first_account() -> None:
    exchange, twin = await _used(), await _used()
    until = exchange.faults.calls["partitions.note"] + 1
    await exchange.rebuilding.rebuild(keep_going=lambda: exchange.faults.calls["partitions.note"] < until)
    exchange.redis.run_id = "run-2"
    _tamper(exchange)
    assert (await exchange.rebuilding.rebuild()).loaded == 7
    assert _state(exchange) == _state(twin)


async def _reached(start: Callable[[Exchange], Any]) -> Counter[str]:
    """Count how often each step is reached when nothing goes wrong."""
    exchange = await _used()
    _tamper(exchange)
    before = Counter(exchange.faults.calls)
    await start(exchange)
    return Counter(exchange.faults.calls) - before


def _die() -> None:
    raise KilledError


@pytest.mark.parametrize("when", ["before", "after"])
async def test_rebuild_that_is_killed_at_any_step_is_completed_by_the_next_call_and_ends_equal(when: str) -> None:
    """Every call of every step of a whole rebuild, in turn, is the one at which the process dies."""
    steps = await _reached(lambda exchange: exchange.rebuilding.rebuild())
    assert {"accounts.load", "partitions.note", "partitions.finish", "accounts.drop"} <= steps.keys()
    whole = _state(await _used())
    killed = 0
    for step, times in steps.items():
        for number in range(times):
            exchange = await _used()
            _tamper(exchange)
            exchange.faults.skip(f"{step}.{when}", times=number)
            exchange.faults.call(f"{step}.{when}", _die)
            try:
                await exchange.rebuilding.rebuild()
            except KilledError:
                killed += 1
            assert (await exchange.rebuilding.rebuild()).complete, (step, number)
            assert _state(exchange) == whole, (step, number)
            assert await exchange.opening.needed() == []
            assert (await deposit(exchange, 1, "1")).final
    assert killed > 10


@pytest.mark.parametrize("when", ["before", "after"])
async def test_rebuild_of_an_account_that_is_killed_at_any_step_can_be_repeated_after_its_hold(when: str) -> None:
    def make_false_key(exchange: Exchange) -> None:
        exchange.redis.keys[2, "never"] = dataclasses.replace(exchange.redis.keys[2, "mine"], event_id=99)

    async def rebuild(exchange: Exchange) -> None:
        make_false_key(exchange)
        await exchange.rebuilding.rebuild_account(2)

    steps = await _reached(rebuild)
    assert {"accounts.hold", "accounts.load", "accounts.forget_keys", "accounts.release"} <= steps.keys()
    whole = _state(await _used())
    killed = 0
    for step, times in steps.items():
        for number in range(times):
            exchange = await _used()
            positions = {BTC: Position(BTC, Decimal(9), Decimal(9))}
            hot = exchange.redis.accounts[2]
            hot.account = dataclasses.replace(hot.account, positions=positions)
            make_false_key(exchange)
            exchange.faults.skip(f"{step}.{when}", times=number)
            exchange.faults.call(f"{step}.{when}", _die)
            try:
                await exchange.rebuilding.rebuild_account(2)
            except KilledError:
                killed += 1
            await exchange.rebuilding.rebuild_account(2)
            now = _state(exchange)
            assert now.pop("holds").keys() == {2}
            assert now == {name: value for name, value in whole.items() if name != "holds"}, (step, number)
            assert (await deposit(exchange, 2, "1")).final
    assert killed >= 4


# --- taken over ---

TAKEN_OVER_AT = [
    *("market.restore_marks", "history.accounts", "accounts.versions", "accounts.pending", "history.live_keys"),
    *("accounts.load", "partitions.note", "accounts.ids", "accounts.drop", "market.sweep_triggers"),
    *("accounts.forget_keys", "history.raise_fence", "history.record_opening", "partitions.finish"),
]


@pytest.mark.parametrize("step", TAKEN_OVER_AT)
async def test_opener_whose_lock_was_lost_changes_nothing_after_another_has_taken_over(step: str) -> None:
    """The second opens everything, and trading goes on, while the first stands still at a step."""
    exchange = await _used(partitions=1)
    _tamper(exchange)
    seconds: list[tuple[str, dict[str, Any]]] = []

    async def take_over() -> None:
        exchange.history_store.opening = False
        assert (await exchange.rebuilding.rebuild()).complete
        for account_id in ACCOUNTS:
            await deposit(exchange, account_id, "7", key="between")
        seconds.append((exchange.redis.markers[0].epoch, _state(exchange)))

    exchange.faults.call(f"{step}.before", take_over)
    with pytest.raises(StateNotLoadedError, match="taken over"):
        await exchange.rebuilding.rebuild()
    (epoch, state), *more = seconds
    assert more == []
    assert exchange.redis.markers[0].epoch == epoch
    assert _state(exchange) == state
    assert exchange.redis.accounts[1].account.balance == exchange.history_store.state_of(1).account.balance
    # The fence of the one that came too late must not shut out the other's epoch.
    assert (await deposit(exchange, 1, "1")).final


async def test_opener_that_stood_still_before_it_closed_anything_does_not_close_what_another_has_opened() -> None:
    exchange = await _used(partitions=1)

    async def take_over() -> None:
        exchange.history_store.opening = False
        assert (await exchange.rebuilding.rebuild()).complete

    exchange.faults.call("partitions.begin.before", take_over)
    with pytest.raises(StateNotLoadedError, match="taken over"):
        await exchange.rebuilding.rebuild()
    assert await exchange.opening.needed() == []
    assert (await deposit(exchange, 1, "1")).final


async def test_openings_that_fail_again_and_again_use_up_one_epoch() -> None:
    exchange = await _used(partitions=1)
    exchange.redis.markers.clear()
    epochs = []
    for _ in range(5):
        exchange.faults.fail("partitions.note.before", RedisUnavailableError("Redis is down."))
        with pytest.raises(RedisUnavailableError):
            await exchange.opening.open()
        epochs.append(exchange.history_store.epoch)
    assert len(set(epochs)) == 1
    assert (await exchange.opening.open()).opened == [0]
    assert exchange.redis.markers[0].epoch == str(epochs[0])


async def test_opener_that_was_taken_over_before_the_other_is_done_neither_notes_nor_finishes() -> None:
    exchange = await _used(partitions=1)
    others: list[Opening] = []

    async def begin() -> None:
        epoch = await exchange.history_store.next_epoch()
        opening = await exchange.partitions.begin(0, "another", epoch)
        assert opening is not None
        others.append(opening)

    exchange.faults.call("partitions.note.before", begin)
    with pytest.raises(StateNotLoadedError, match="taken over"):
        await exchange.rebuilding.rebuild()
    assert exchange.redis.openings[0].token == "another"
    assert exchange.redis.openings[0].after == others[0].after
    assert exchange.redis.markers == {}


async def test_rebuild_while_another_process_opens_is_refused_and_nothing_closed() -> None:
    exchange = await _used()
    exchange.history_store.opening = True
    before = exchange.redis.save()
    with pytest.raises(StateNotLoadedError, match="Another process"):
        await exchange.rebuilding.rebuild()
    assert exchange.redis.save() == before


# --- what history refuses, and what it does not know ---


async def _blocked(exchange: Exchange, account_id: int) -> None:
    """Leave an event behind that history refuses."""
    exchange.history_store.rejected_keys.add("bad")
    assert not (await deposit(exchange, account_id, "1", key="bad")).final


@pytest.mark.parametrize("rebuild", [True, False])
async def test_account_whose_events_history_refuses_is_kept_as_it_is(rebuild: bool) -> None:
    exchange = await _used()
    await _blocked(exchange, 1)
    kept = exchange.redis.save()["accounts"][1]
    if rebuild:
        report = await exchange.rebuilding.rebuild()
    else:
        exchange.redis.run_id = "run-2"
        report = await exchange.opening.open()
    assert (report.complete, report.opened, report.kept) == (True, [0, 1], 1)
    now = exchange.redis.accounts[1]
    assert (now.account, now.version, now.chain_hash) == (kept.account, kept.version, kept.chain_hash)
    # Where all others are anchored anew, any price brings it to evaluation.
    assert [trigger.is_always_crossed for trigger in now.triggers.values()] == [rebuild] * len(kept.triggers)
    assert kept.triggers
    assert [event.event_id for event in exchange.redis.pending[1]] == [int(kept.version.split(":")[1])]
    assert (1, "bad") in exchange.redis.keys
    exchange.history_store.rejected_keys.clear()
    assert (await exchange.drain.drain()).stored == 1
    assert (await deposit(exchange, 1, "1", key="bad")).replayed


async def test_new_account_whose_first_event_history_refuses_is_kept_by_a_rebuild() -> None:
    exchange = await _used()
    await _blocked(exchange, 90)
    report = await exchange.rebuilding.rebuild()
    assert (report.kept, report.dropped) == (1, 0)
    assert exchange.redis.accounts[90].account.balance == 1


async def test_account_with_a_position_that_history_has_lost_and_cannot_take_back_is_crossed_by_a_rebuild() -> None:
    """Rules and funding are those of history now, and its triggers may be of others."""
    exchange = await _used()
    await _blocked(exchange, 90)
    redis = exchange.redis
    held = redis.accounts[1].account.positions
    redis.accounts[90].account = dataclasses.replace(redis.accounts[90].account, positions=held)
    redis.accounts[90].triggers = dict(redis.accounts[1].triggers)
    assert redis.accounts[90].triggers
    assert (await exchange.rebuilding.rebuild()).kept == 1
    assert all(trigger.is_always_crossed for trigger in redis.accounts[90].triggers.values())


async def test_account_with_blocked_events_is_not_rebuilt_and_its_hold_ends() -> None:
    exchange = await _used()
    await _blocked(exchange, 1)
    kept = exchange.redis.save()["accounts"][1]
    with pytest.raises(EventsBlockedError):
        await exchange.rebuilding.rebuild_account(1)
    assert exchange.redis.accounts[1] == kept
    assert not (await deposit(exchange, 1, "1")).final


async def test_account_that_history_does_not_know_is_removed_with_its_keys() -> None:
    exchange, twin = await _used(), await _used()
    redis = exchange.redis
    redis.accounts[80] = dataclasses.replace(redis.accounts[1], version="1:1")
    redis.keys[80, "k"] = redis.keys[1, "mine"]
    assert await exchange.rebuilding.rebuild_account(80) == ""
    assert {**_state(exchange), "holds": {}} == _state(twin)


async def test_account_that_nobody_knows_is_unknown() -> None:
    exchange = await _used()
    with pytest.raises(UnknownAccountError):
        await exchange.rebuilding.rebuild_account(81)


# --- holds ---


async def test_account_is_refused_while_it_is_rebuilt_and_the_others_go_on() -> None:
    exchange = await _used()
    tried: list[str] = []

    async def try_both() -> None:
        with pytest.raises(StateNotLoadedError, match="being rebuilt"):
            await deposit(exchange, 1, "1", key="held")
        assert (await deposit(exchange, 3, "1", key="held")).final
        tried.append("both")

    exchange.faults.call("accounts.load.before", try_both)
    version = await exchange.rebuilding.rebuild_account(1)
    assert tried == ["both"]
    assert version == exchange.redis.accounts[1].version
    assert not (await deposit(exchange, 1, "1", key="held")).replayed


async def test_hold_of_a_rebuild_that_died_expires() -> None:
    exchange = await _used()
    exchange.faults.call("accounts.load.before", _die)
    exchange.faults.fail("accounts.release.before", StateNotLoadedError("gone"))
    with pytest.raises((KilledError, StateNotLoadedError)):
        await exchange.rebuilding.rebuild_account(1)
    with pytest.raises(StateNotLoadedError):
        await deposit(exchange, 1, "1")
    exchange.clock.advance(HOLD_S - 1)
    with pytest.raises(StateNotLoadedError):
        await deposit(exchange, 1, "1")
    exchange.clock.advance(1)
    assert (await deposit(exchange, 1, "1")).final


async def test_what_was_decided_on_the_state_before_a_rebuild_is_decided_anew() -> None:
    """A request read an account that was tampered with, and commits after the rebuild: at the very same version."""
    exchange = await _used()
    hot = exchange.redis.accounts[4]
    hot.account = hot.account.with_balance_change(Decimal(1_000_000))

    async def rebuild() -> None:
        await exchange.rebuilding.rebuild_account(4)

    exchange.faults.call("accounts.commit.before", rebuild)
    assert (await deposit(exchange, 4, "5")).final
    assert exchange.redis.accounts[4].account.balance == 10005
    assert exchange.history_store.state_of(4).account.balance == 10005


async def test_two_rebuilds_of_an_account_at_once_end_right() -> None:
    exchange, twin = await _used(), await _used()
    _tamper(exchange)
    answers = await asyncio.gather(*(exchange.rebuilding.rebuild_account(2) for _ in range(4)), return_exceptions=True)
    assert {type(answer) for answer in answers} <= {str, ContentionError}
    assert str in {type(answer) for answer in answers}
    assert exchange.redis.accounts[2] == twin.redis.accounts[2]
    assert (await deposit(exchange, 2, "1")).final


async def test_rebuild_that_stood_still_for_longer_than_its_hold_puts_nothing_back() -> None:
    exchange = await _used()

    async def stand_still() -> None:
        exchange.clock.advance(HOLD_S + 1)
        await deposit(exchange, 1, "3", key="between")

    exchange.faults.call("accounts.versions.before", stand_still)
    with pytest.raises(ContentionError):
        await exchange.rebuilding.rebuild_account(1)
    assert exchange.redis.accounts[1].account.balance == exchange.history_store.state_of(1).account.balance


async def test_hold_that_ends_before_false_keys_are_removed_is_no_success() -> None:
    exchange = await _used()
    exchange.redis.keys[1, "never"] = dataclasses.replace(exchange.redis.keys[1, "mine"], event_id=99)

    async def stand_still() -> None:
        exchange.clock.advance(HOLD_S + 1)

    exchange.faults.call("accounts.forget_keys.before", stand_still)
    with pytest.raises(ContentionError):
        await exchange.rebuilding.rebuild_account(1)
    assert (1, "never") in exchange.redis.keys
    await exchange.rebuilding.rebuild_account(1)
    assert (1, "never") not in exchange.redis.keys


async def test_account_is_not_held_while_its_keys_are_searched_for_and_what_happens_then_stays() -> None:
    exchange = await _used()
    exchange.redis.keys[1, "never"] = dataclasses.replace(exchange.redis.keys[1, "mine"], event_id=99)
    done: list[int] = []

    async def trade_on() -> None:
        exchange.faults.fail("history.append.before", NO_HISTORY)
        done.append((await deposit(exchange, 1, "1", key="meanwhile")).event_id)

    exchange.faults.call("accounts.remembered_keys.before", trade_on)
    await exchange.rebuilding.rebuild_account(1)
    assert (1, "never") not in exchange.redis.keys
    again = await deposit(exchange, 1, "1", key="meanwhile")
    assert (again.replayed, [again.event_id]) == (True, done)


async def test_clock_that_goes_back_after_a_rebuild_holds_up_nobody() -> None:
    exchange = await _used()
    await exchange.rebuilding.rebuild_account(1)
    exchange.clock.advance(-10 * HOLD_S)
    assert (await deposit(exchange, 1, "1")).final


async def test_pending_events_of_the_account_are_stored_before_it_is_loaded() -> None:
    exchange = await _used()
    exchange.faults.fail("history.append.before", NO_HISTORY)
    waiting = await deposit(exchange, 1, "1", key="waiting")
    assert not waiting.final
    await exchange.rebuilding.rebuild_account(1)
    assert exchange.history_store.event_ids(1)[-1] == waiting.event_id
    assert exchange.redis.accounts[1].version.endswith(f":{waiting.event_id}")
    assert (await deposit(exchange, 1, "1", key="waiting")).replayed
