"""Setting pause switches, keeping Redis in line with history, and what they do to requests and liquidations."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control, symbol_control
from margin.errors import (
    CursorInvalidError,
    NotActiveError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RedisTimeoutError,
    RedisUnavailableError,
    StateNotLoadedError,
)
from margin.observability import MetricName, counted
from margin.ports.controls import ControlChange
from margin.services.controls import CHANGES_PER_PAGE
from margin.services.cursors import encode_cursor
from margin.services.liquidation import Verdict
from tests.actions import ALICE, BTC, ETH, buy, deposit, mark, sell, switch, withdraw
from tests.fakes.controls import FakeControls

if TYPE_CHECKING:
    from tests.fakes import Exchange

PAUSED, REDUCE_ONLY, ACTIVE = ControlState.PAUSED, ControlState.REDUCE_ONLY, ControlState.ACTIVE
DOWN = RedisUnavailableError("Redis is down.")


# --- setting


async def test_switch_that_is_set_is_in_history_and_in_force(exchange: Exchange) -> None:
    outcome = await exchange.controls.set(ENGINE_CONTROL, PAUSED, "wrong prices", ALICE)
    expected = ControlChange(1, ENGINE_CONTROL, PAUSED, "wrong prices", "alice", exchange.clock.now_us)
    assert (outcome.change, outcome.effective) == (expected, True)
    assert exchange.control_history.recorded == [expected]
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused"}


async def test_switch_that_is_active_again_leaves_nothing_in_force(exchange: Exchange) -> None:
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert (await switch(exchange, ENGINE_CONTROL, ACTIVE)).effective
    assert exchange.redis.controls == {}
    assert (await exchange.controls.list()).changes == []


async def test_switch_is_set_while_the_state_is_not_loaded(exchange: Exchange) -> None:
    exchange.redis.markers.clear()
    assert (await switch(exchange, ENGINE_CONTROL, PAUSED)).effective
    await exchange.opening.open()
    with pytest.raises(NotActiveError):
        await withdraw(exchange, await _funded(exchange), "1")


async def _funded(exchange: Exchange) -> int:
    await deposit(exchange, 1, "10")
    return 1


async def test_without_history_nothing_is_set(exchange: Exchange) -> None:
    exchange.faults.take_down("controls.record", PostgresUnavailableError("PostgreSQL is down."))
    with pytest.raises(PostgresUnavailableError):
        await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert exchange.redis.controls == {}


@pytest.mark.parametrize("error", [DOWN, RedisTimeoutError("Redis is frozen.")])
async def test_without_redis_the_change_is_kept_and_takes_effect_when_it_is_aligned(
    exchange: Exchange, error: RedisUnavailableError
) -> None:
    exchange.faults.take_down("controls.put", error)
    outcome = await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert (outcome.change.id, outcome.effective) == (1, False)
    assert exchange.redis.controls == {}
    assert await exchange.controls.align() == 1
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused"}


async def test_change_whose_reply_was_lost_takes_effect_when_it_is_aligned(exchange: Exchange) -> None:
    exchange.faults.fail("controls.record.after", OutcomeUnknownError("lost"))
    with pytest.raises(OutcomeUnknownError):
        await switch(exchange, ENGINE_CONTROL, PAUSED)
    await exchange.controls.align()
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused"}


async def test_retry_does_no_harm(exchange: Exchange) -> None:
    outcomes = [await switch(exchange, ENGINE_CONTROL, PAUSED) for _ in range(2)]
    assert [outcome.change.id for outcome in outcomes] == [1, 2]
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused"}
    assert [change.id for change in (await exchange.controls.list()).changes] == [2]


async def test_setter_that_comes_late_changes_nothing(exchange: Exchange) -> None:
    async def overtaken() -> None:
        await switch(exchange, ENGINE_CONTROL, ACTIVE)

    exchange.faults.call("controls.put.before", overtaken)
    late = await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert late.change.id == 1
    assert exchange.redis.controls == {}


# --- aligning


async def test_nothing_to_align_is_a_few_looks(exchange: Exchange) -> None:
    before = exchange.faults.calls.copy()
    assert await exchange.controls.align() == 0
    assert exchange.faults.calls - before == {"controls.aligned_to": 1, "controls.changes": 1}
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    await exchange.controls.align()
    before = exchange.faults.calls.copy()
    assert await exchange.controls.align() == 0
    looks = {"controls.aligned_to": 1, "controls.last_id": 1, "controls.changes": 1}
    assert exchange.faults.calls - before == looks


async def test_what_was_aligned_is_not_aligned_again(exchange: Exchange) -> None:
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert await exchange.controls.align() == 1
    assert await exchange.controls.align() == 0
    await switch(exchange, ENGINE_CONTROL, ACTIVE)
    assert await exchange.controls.align() == 1


async def test_emptied_redis_gets_every_switch_back(exchange: Exchange) -> None:
    await switch(exchange, ENGINE_CONTROL, REDUCE_ONLY)
    await switch(exchange, account_control(7), PAUSED)
    await switch(exchange, account_control(8), PAUSED)
    await switch(exchange, account_control(8), ACTIVE)
    await exchange.controls.align()
    exchange.redis.flush()
    await exchange.controls.align()
    assert exchange.redis.controls == {ENGINE_CONTROL: "reduce-only", account_control(7): "paused"}


async def test_redis_that_came_back_older_gets_what_it_lacks_and_loses_what_was_lifted(exchange: Exchange) -> None:
    await switch(exchange, symbol_control(ETH), PAUSED)
    await exchange.controls.align()
    saved = exchange.redis.save()
    await switch(exchange, symbol_control(ETH), ACTIVE)
    await switch(exchange, symbol_control(BTC), PAUSED)
    await exchange.controls.align()
    exchange.redis.restore(saved)
    assert exchange.redis.controls == {symbol_control(ETH): "paused"}
    assert await exchange.controls.align() == 2
    assert exchange.redis.controls == {symbol_control(BTC): "paused"}


async def test_switches_beyond_one_page_are_all_aligned(exchange: Exchange) -> None:
    names = [account_control(account_id) for account_id in range(1, 2 * CHANGES_PER_PAGE + 2)]
    exchange.control_history.recorded += [
        ControlChange(number, name, PAUSED, "a test", None, 0) for number, name in enumerate(names, start=1)
    ]
    assert await exchange.controls.align() == len(names)
    assert exchange.redis.controls == dict.fromkeys(names, "paused")
    assert exchange.faults.calls["controls.align"] == 3


async def test_redis_that_is_emptied_while_it_is_aligned_does_not_claim_to_have_all(exchange: Exchange) -> None:
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    await exchange.controls.align()
    await switch(exchange, symbol_control(BTC), PAUSED)
    exchange.faults.call("controls.align.before", exchange.redis.flush)
    with pytest.raises(StateNotLoadedError):
        await exchange.controls.align()
    await exchange.controls.align()
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused", symbol_control(BTC): "paused"}


# --- a history that came back older than Redis


async def _lose_history(exchange: Exchange, *, kept: int, aligned: bool) -> None:
    """Have eight changes in Redis, of which history keeps the first; it gives the other ids out again."""
    await switch(exchange, symbol_control(ETH), PAUSED)
    await switch(exchange, account_control(7), PAUSED)
    for _ in range(3):
        await switch(exchange, ENGINE_CONTROL, PAUSED)
        await switch(exchange, ENGINE_CONTROL, ACTIVE)
    if aligned:
        await exchange.controls.align()
    exchange.control_history.restore(exchange.control_history.recorded[:kept])


@pytest.mark.parametrize("aligned", [True, False])
async def test_pause_that_was_answered_holds_although_redis_knows_higher_ids(exchange: Exchange, aligned: bool) -> None:
    await _lose_history(exchange, kept=1, aligned=aligned)
    outcome = await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert (outcome.change.id, outcome.effective) == (2, True)
    assert exchange.redis.controls[ENGINE_CONTROL] == "paused"
    await exchange.controls.align()
    assert exchange.redis.controls[ENGINE_CONTROL] == "paused"
    assert (await switch(exchange, ENGINE_CONTROL, ACTIVE)).effective
    assert ENGINE_CONTROL not in exchange.redis.controls


async def test_pause_with_the_very_id_of_a_lost_change_holds(exchange: Exchange) -> None:
    await _lose_history(exchange, kept=7, aligned=True)
    outcome = await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert (outcome.change.id, outcome.effective) == (8, True)
    assert exchange.redis.controls[ENGINE_CONTROL] == "paused"


async def test_pause_is_not_said_to_hold_when_history_cannot_say_what_redis_has(exchange: Exchange) -> None:
    await _lose_history(exchange, kept=1, aligned=True)
    exchange.faults.fail("controls.newest.before", PostgresUnavailableError("PostgreSQL is down."))
    assert not (await switch(exchange, ENGINE_CONTROL, PAUSED)).effective
    await exchange.controls.align()
    assert exchange.redis.controls[ENGINE_CONTROL] == "paused"


@pytest.mark.parametrize("step", ["put", "skip_ids", "newest"])
async def test_of_two_setters_after_history_came_back_older_the_newer_one_wins(exchange: Exchange, step: str) -> None:
    await _lose_history(exchange, kept=1, aligned=True)

    async def overtaken() -> None:
        for state in (PAUSED, ACTIVE) * 4:
            await switch(exchange, ENGINE_CONTROL, state)
        await switch(exchange, ENGINE_CONTROL, REDUCE_ONLY)

    exchange.faults.call(f"controls.{step}.before", overtaken)
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert exchange.redis.controls[ENGINE_CONTROL] == "reduce-only"


async def test_setter_that_stands_still_before_it_writes_over_lost_ids_replaces_nothing_newer(
    exchange: Exchange,
) -> None:
    await _lose_history(exchange, kept=1, aligned=True)

    async def overtaken() -> None:
        assert (await switch(exchange, ENGINE_CONTROL, ACTIVE)).effective

    exchange.faults.skip("controls.put.before")
    exchange.faults.call("controls.put.before", overtaken)
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    assert ENGINE_CONTROL not in exchange.redis.controls


async def test_aligning_gives_redis_what_an_older_history_has_and_lifts_what_it_never_knew(exchange: Exchange) -> None:
    await _lose_history(exchange, kept=1, aligned=True)
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    await switch(exchange, symbol_control(ETH), REDUCE_ONLY)
    await exchange.controls.align()
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused", symbol_control(ETH): "reduce-only"}
    assert await exchange.controls.align() == 0
    exchange.redis.flush()
    await exchange.controls.align()
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused", symbol_control(ETH): "reduce-only"}


async def test_aligning_notices_by_itself_that_history_came_back_older(exchange: Exchange) -> None:
    await _lose_history(exchange, kept=2, aligned=True)
    exchange.control_history.restore(exchange.control_history.recorded[:1])
    exchange.redis.controls[ENGINE_CONTROL] = "paused"
    await exchange.controls.align()
    assert exchange.redis.controls == {symbol_control(ETH): "paused"}
    assert (await switch(exchange, ENGINE_CONTROL, PAUSED)).effective
    assert await exchange.controls.align() == 1


async def test_change_that_redis_holds_for_older_than_a_lost_one_is_aligned(exchange: Exchange) -> None:
    await _lose_history(exchange, kept=1, aligned=False)
    exchange.faults.take_down("controls.put", DOWN)
    assert not (await switch(exchange, ENGINE_CONTROL, PAUSED)).effective
    exchange.faults.bring_up("controls.put")
    await exchange.controls.align()
    assert exchange.redis.controls[ENGINE_CONTROL] == "paused"


@pytest.mark.parametrize("step", ["put", "stopped", "unalign", "align"])
async def test_aligning_to_an_older_history_that_was_broken_off_is_done_by_the_next(
    exchange: Exchange, step: str
) -> None:
    await _lose_history(exchange, kept=1, aligned=True)
    exchange.faults.fail(f"controls.{step}.before", DOWN)
    with pytest.raises(RedisUnavailableError):
        await exchange.controls.align()
    await exchange.controls.align()
    assert exchange.redis.controls == {symbol_control(ETH): "paused"}


async def test_partition_is_written_anew_without_a_moment_in_which_a_pause_is_away(exchange: Exchange) -> None:
    await switch(exchange, ENGINE_CONTROL, PAUSED)
    await exchange.controls.align()
    exchange.redis.controls[symbol_control(BTC)] = "paused"
    exchange.redis.control_ids[symbol_control(BTC)] = 999
    seen: list[dict[str, str]] = []
    for step in ("changes", "put", "stopped", "known", "aligned_to"):
        for when in ("before", "after"):
            exchange.faults.call(f"controls.{step}.{when}", lambda: seen.append(dict(exchange.redis.controls)), times=9)
    await exchange.controls.align(anew=[0])
    assert len(seen) > 4
    assert all(controls[ENGINE_CONTROL] == "paused" for controls in seen)
    assert exchange.redis.controls == {ENGINE_CONTROL: "paused"}


# --- whatever the order


@pytest.mark.parametrize("seed", range(20))
async def test_newest_change_wins_in_whatever_order_changes_arrive(exchange: Exchange, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's own sequence
    names = [ENGINE_CONTROL, symbol_control(BTC), account_control(1)]
    changes = [
        ControlChange(number, chance.choice(names), chance.choice(list(ControlState)), "", None, 0)
        for number in range(1, 30)
    ]
    newest = {change.name: str(change.state) for change in changes if change.state is not ACTIVE}
    lifted = {change.name for change in {change.name: change for change in changes}.values() if change.state is ACTIVE}
    store = FakeControls(exchange.redis)
    for change in chance.sample(changes, len(changes)):
        await store.put([change])
    assert exchange.redis.controls == {name: state for name, state in newest.items() if name not in lifted}


# --- listing


async def test_list_has_those_that_are_not_active_by_name_with_their_latest_change(exchange: Exchange) -> None:
    for name, state in (
        (symbol_control(BTC), PAUSED),
        (account_control(7), PAUSED),
        (ENGINE_CONTROL, PAUSED),
        (ENGINE_CONTROL, REDUCE_ONLY),
        (account_control(7), ACTIVE),
    ):
        await switch(exchange, name, state)
    page = await exchange.controls.list()
    assert [(change.name, change.state, change.id) for change in page.changes] == [
        (ENGINE_CONTROL, REDUCE_ONLY, 4),
        (symbol_control(BTC), PAUSED, 1),
    ]
    assert page.next_cursor is None


async def test_pages_have_everything_once_although_switches_change_between_them(exchange: Exchange) -> None:
    names = sorted(account_control(account_id) for account_id in range(1, 6))
    for name in names:
        await switch(exchange, name, PAUSED)
    seen, cursor = [], None
    while True:
        page = await exchange.controls.list(limit=2, cursor=cursor)
        seen += [change.name for change in page.changes]
        await switch(exchange, names[-1], REDUCE_ONLY)
        if (cursor := page.next_cursor) is None:
            break
    assert seen == names


@pytest.mark.parametrize("cursor", ["x", encode_cursor("liquidations", "engine"), encode_cursor("controls", 1)])
async def test_cursor_of_another_endpoint_is_refused(exchange: Exchange, cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        await exchange.controls.list(cursor=cursor)


# --- what they stop


async def test_trade_that_was_read_before_the_pause_is_refused(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    exchange.faults.call("accounts.commit.before", lambda: switch(exchange, ENGINE_CONTROL, PAUSED))
    with pytest.raises(NotActiveError):
        await buy(exchange, 1, "0.1", "50000")
    assert [commit.event.type for commit in exchange.redis.commits] == ["DEPOSIT"]


async def test_deposit_that_was_read_before_the_pause_is_accepted(exchange: Exchange) -> None:
    exchange.faults.call("accounts.commit.before", lambda: switch(exchange, ENGINE_CONTROL, PAUSED))
    assert (await deposit(exchange, 1, "10")).final


async def test_withdrawal_is_stopped_for_those_who_hold_the_paused_symbol(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    for account_id in (1, 2):
        await deposit(exchange, account_id, "20000")
    await buy(exchange, 1, "0.1", "50000")
    await switch(exchange, symbol_control(BTC), PAUSED)
    with pytest.raises(NotActiveError, match="symbol:BTC-PERP"):
        await withdraw(exchange, 1, "1")
    assert (await withdraw(exchange, 2, "1")).final
    assert (await deposit(exchange, 1, "1")).final


# --- liquidations


async def _at_risk(exchange: Exchange) -> None:
    """Open a long of BTC and a short of ETH that a BTC price of 42300 makes liquidatable."""
    await mark(exchange, "2000", ETH)
    await mark(exchange, "50000")
    await deposit(exchange, 1, "12000")
    await buy(exchange, 1, "1", "50000")
    await sell(exchange, 1, "1", "2000", symbol=ETH)


def _types(exchange: Exchange) -> list[str]:
    return [link.body["type"] for link in exchange.history_store.chains[1]]


STOPPING = [ENGINE_CONTROL, symbol_control(BTC), symbol_control(ETH)]


@pytest.mark.parametrize("name", STOPPING)
async def test_liquidation_that_a_switch_puts_off_is_counted_and_made_up_for_at_the_next_mark(
    exchange: Exchange, name: str
) -> None:
    await _at_risk(exchange)
    await switch(exchange, name, PAUSED)
    before = counted(MetricName.LIQUIDATIONS_PUT_OFF)
    outcome = await mark(exchange, "42300")
    assert (outcome.at_risk, outcome.liquidated) == (1, ())
    assert counted(MetricName.LIQUIDATIONS_PUT_OFF) == before + 1
    assert "LIQUIDATION" not in _types(exchange)
    await switch(exchange, name, ACTIVE)
    assert (await mark(exchange, "42300")).liquidated == (1,)


@pytest.mark.parametrize("name", STOPPING)
async def test_liquidation_that_a_switch_puts_off_is_made_up_for_at_the_next_scan(
    exchange: Exchange, name: str
) -> None:
    await _at_risk(exchange)
    await switch(exchange, name, PAUSED)
    await mark(exchange, "42300")
    report = await exchange.scans.scan()
    assert (report.crossed, report.put_off, report.liquidated, report.failed) == (1, 1, [], 0)
    await switch(exchange, name, REDUCE_ONLY)
    report = await exchange.scans.scan()
    assert (report.crossed, report.put_off, report.liquidated) == (1, 0, [1])


async def test_triggers_stay_crossed_although_the_account_changes_while_its_liquidation_is_put_off(
    exchange: Exchange,
) -> None:
    await _at_risk(exchange)
    await switch(exchange, symbol_control(BTC), PAUSED)
    await mark(exchange, "42300")
    assert (await deposit(exchange, 1, "1")).crossed
    assert (await exchange.market.set_marks({BTC: Decimal(42300)}, crossed_max=10))[0].crossed == (1,)


async def test_pause_between_reading_and_committing_a_liquidation_puts_it_off(exchange: Exchange) -> None:
    await _at_risk(exchange)
    await exchange.market.set_marks({BTC: Decimal(42300)}, crossed_max=0)
    exchange.faults.call("accounts.commit.before", lambda: switch(exchange, symbol_control(ETH), PAUSED))
    assert await exchange.liquidations.evaluate(1) is Verdict.PUT_OFF
    assert "LIQUIDATION" not in _types(exchange)


async def test_account_whose_trading_is_paused_is_liquidated(exchange: Exchange) -> None:
    await _at_risk(exchange)
    await switch(exchange, account_control(1), PAUSED)
    assert (await mark(exchange, "42300")).liquidated == (1,)


async def test_paused_symbol_puts_off_nobody_who_does_not_hold_it(exchange: Exchange) -> None:
    await _at_risk(exchange)
    await switch(exchange, symbol_control("SOL-PERP"), PAUSED)
    assert (await mark(exchange, "42300")).liquidated == (1,)


async def test_healthy_account_is_anchored_while_its_symbol_is_paused(exchange: Exchange) -> None:
    await _at_risk(exchange)
    await switch(exchange, symbol_control(BTC), PAUSED)
    before = counted(MetricName.LIQUIDATIONS_PUT_OFF)
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    assert counted(MetricName.LIQUIDATIONS_PUT_OFF) == before


async def test_those_put_off_are_no_failures_and_hold_up_nobody(exchange: Exchange) -> None:
    await _at_risk(exchange)
    await deposit(exchange, 2, "800")
    await sell(exchange, 2, "1", "2000", symbol=ETH)
    await switch(exchange, symbol_control(BTC), PAUSED)
    await exchange.market.set_marks({BTC: Decimal(42300), ETH: Decimal(2600)}, crossed_max=0)
    evaluations = await exchange.liquidations.evaluate_quietly([1, 2])
    assert (evaluations.put_off, evaluations.liquidated, evaluations.failed) == ([1], [2], [])
    assert evaluations.left == []
