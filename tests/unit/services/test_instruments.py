"""Changing rules with stores that fail: nothing is lost, nothing is in force before everybody is anchored to it."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from margin.domain.instrument import Instrument, InstrumentStatus, Tier
from margin.domain.safe_zone import covers
from margin.errors import (
    ContentionError,
    CursorInvalidError,
    InstrumentChangeUnderWayError,
    InstrumentNotClosableError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RedisUnavailableError,
)
from margin.observability import MetricName, counted, flush_metrics
from margin.services.cursors import encode_cursor
from tests.actions import ALICE, BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

STRICT = Instrument(BTC, (Tier(None, Decimal("0.5"), Decimal("0.25")),))
TICK = Instrument(BTC, tick_size=Decimal(1))
ACCOUNTS = range(1, 7)
REDIS_DOWN = RedisUnavailableError("It is down.")
POSTGRES_DOWN = PostgresUnavailableError("It is down.")

STEPS_OF_REDIS = (
    *("instruments.read", "instruments.stage", "accounts.scan_holders", "accounts.anchor"),
    *("instruments.note", "instruments.activate"),
)


async def _furnished(partitions: int = 1) -> Exchange:
    exchange = await Exchange(partitions=partitions).open()
    await mark(exchange, "50000")
    await mark(exchange, "2000", ETH)
    for account_id in ACCOUNTS:
        await deposit(exchange, account_id, "25000")
        await (buy if account_id % 2 else sell)(exchange, account_id, "1", "50000")
        await buy(exchange, account_id, "0.1", "2000", symbol=ETH)
    return exchange


def _uncovered(exchange: Exchange, instrument: Instrument) -> list[int]:
    market = dataclasses.replace(exchange.redis.market(), instruments={BTC: instrument}, staged={})
    return [
        account_id
        for account_id, hot in exchange.redis.accounts.items()
        if not covers(hot.account, market, hot.triggers)
    ]


async def _put(exchange: Exchange, instrument: Instrument, **options: Any) -> tuple[int, bool]:
    outcome = await exchange.instruments.put(instrument, ALICE, **options)
    return outcome.instrument.version, outcome.effective


@pytest.mark.parametrize("partitions", [1, 3])
async def test_change_is_in_force_when_all_holders_are_anchored(partitions: int) -> None:
    exchange = await _furnished(partitions)
    assert await _put(exchange, STRICT) == (1, True)
    assert exchange.redis.live_market().instrument_version(BTC) == "1"
    assert _uncovered(exchange, STRICT) == []
    configured = await exchange.instruments.get(BTC)
    assert configured.in_force is not None
    assert configured.under_way is None
    assert (configured.in_force.subject, configured.instrument.tiers) == ("alice", STRICT.tiers)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_REDIS)
@pytest.mark.parametrize("skipped", [0, 1, 2])
async def test_call_of_redis_that_fails_leaves_everybody_covered_and_another_function_completes_it(
    step: str, where: str, skipped: int
) -> None:
    exchange = await _furnished()
    exchange.faults.skip(f"{step}.{where}", times=skipped)
    exchange.faults.fail(f"{step}.{where}", REDIS_DOWN)
    try:
        version, effective = await _put(exchange, STRICT)
    except RedisUnavailableError:
        # The first look at Redis is before anything is written.
        assert (step, skipped) == ("instruments.read", 0)
        assert exchange.instrument_history.recorded == {}
        version, effective = await _put(exchange, STRICT)
    assert version == 1
    in_force = exchange.redis.live_market().instrument(BTC)
    assert _uncovered(exchange, in_force) == []
    assert await exchange.make_instruments().complete() == (not effective)
    assert exchange.redis.live_market().instrument_version(BTC) == "1"
    assert _uncovered(exchange, STRICT) == []
    assert (await exchange.instruments.get(BTC)).under_way is None
    assert await exchange.make_instruments().complete() == 0


@pytest.mark.parametrize("step", ["instruments.configured", "instruments.record"])
async def test_history_that_is_down_changes_nothing(step: str) -> None:
    exchange = await _furnished()
    exchange.faults.fail(f"{step}.before", POSTGRES_DOWN)
    with pytest.raises(PostgresUnavailableError):
        await _put(exchange, STRICT)
    assert exchange.redis.live_market().instrument_version(BTC) == "0"
    assert exchange.instrument_history.recorded == {}


async def test_recording_without_an_answer_is_completed_by_the_same_request_again() -> None:
    exchange = await _furnished()
    exchange.faults.fail("instruments.record.after", OutcomeUnknownError("Nobody knows."))
    with pytest.raises(OutcomeUnknownError):
        await _put(exchange, STRICT)
    assert await _put(exchange, STRICT) == (1, True)
    assert len(exchange.instrument_history.recorded) == 1


async def test_change_that_is_in_force_everywhere_but_not_noted_so_is_noted_by_the_schedule() -> None:
    exchange = await _furnished()
    exchange.faults.fail("instruments.set_effective.before", POSTGRES_DOWN)
    assert await _put(exchange, STRICT) == (1, False)
    assert await exchange.instruments.complete() == 1
    configured = await exchange.instruments.get(BTC)
    assert configured.under_way is None


async def test_change_under_way_stands_in_the_way_of_another_until_it_is_completed() -> None:
    exchange = await _furnished()
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    with pytest.raises(InstrumentChangeUnderWayError, match="not in force everywhere yet") as refused:
        await _put(exchange, TICK, budget_s=0)
    assert refused.value.retryable
    # The next one has time, and completes the earlier change first.
    assert await _put(exchange, TICK) == (2, True)
    assert [change.effective_at_us is None for change in exchange.instrument_history.recorded.values()] == [False] * 2


async def test_same_terms_again_are_the_change_that_is_under_way() -> None:
    exchange = await _furnished()
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    assert await _put(exchange, STRICT) == (1, True)


async def test_change_that_is_recorded_by_another_first_is_decided_again() -> None:
    exchange = await _furnished()
    other = exchange.make_instruments()
    exchange.faults.call("instruments.record.before", lambda: other.put(TICK, ALICE))
    assert await _put(exchange, STRICT) == (2, True)


async def test_account_whose_rules_keep_changing_leaves_the_change_to_the_schedule() -> None:
    exchange = await _furnished()

    def stage_another() -> None:
        version = exchange.redis.staged[ETH].version + 1 if ETH in exchange.redis.staged else 1
        exchange.redis.staged[ETH] = Instrument(ETH, version=version)

    exchange.faults.call("accounts.anchor.before", stage_another, times=50)
    assert await _put(exchange, STRICT) == (1, False)
    assert exchange.redis.live_market().instrument_version(BTC) == "0>1"
    for _ in range(50):
        exchange.faults._queued["accounts.anchor.before"].clear()
    assert await exchange.instruments.complete() == 1
    assert _uncovered(exchange, STRICT) == []


async def test_account_that_trades_while_holders_are_anchored_is_anchored_by_its_trade() -> None:
    exchange = await _furnished()
    exchange.faults.call("accounts.scan_holders.after", lambda: sell(exchange, 1, "0.5", "50000"))
    assert await _put(exchange, STRICT) == (1, True)
    assert _uncovered(exchange, STRICT) == []


async def test_versions_that_redis_alone_knows_are_never_given_out_again() -> None:
    exchange = await _furnished()
    exchange.redis.instruments[BTC] = dataclasses.replace(TICK, version=7)
    assert await _put(exchange, STRICT) == (8, True)


async def test_change_that_has_to_wait_is_counted() -> None:
    exchange = await _furnished()
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    flush_metrics()
    for waited in (1, 2):
        assert await exchange.instruments.complete(0) == 0
        assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == waited
    exchange.faults.fail("accounts.scan_holders.before", REDIS_DOWN)
    assert await exchange.instruments.complete() == 0
    assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == 3
    assert await exchange.instruments.complete() == 1
    assert counted(MetricName.INSTRUMENTS_NOT_COMPLETED) == 3


async def test_change_that_a_later_one_of_history_has_replaced_meanwhile_is_through() -> None:
    exchange = await _furnished()
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    other = exchange.make_instruments()

    async def overtake() -> None:
        await other.complete()
        await other.put(TICK, ALICE)

    exchange.faults.call("instruments.read.before", overtake)
    assert await exchange.instruments.complete() == 1
    assert exchange.redis.live_market().instrument_version(BTC) == "2"


@pytest.mark.parametrize("status", [InstrumentStatus.REDUCE_ONLY, InstrumentStatus.SETTLING])
async def test_only_what_trades_no_more_and_nobody_holds_can_be_closed(status: InstrumentStatus) -> None:
    exchange = await _furnished()
    closed = Instrument(BTC, status=InstrumentStatus.CLOSED)
    with pytest.raises(InstrumentNotClosableError, match="BTC-PERP is active; make it reduce-only or settling"):
        await _put(exchange, closed)
    assert await _put(exchange, Instrument(BTC, status=status)) == (1, True)
    with pytest.raises(InstrumentNotClosableError, match="6 accounts hold BTC-PERP"):
        await _put(exchange, closed)
    for account_id in ACCOUNTS:
        await (sell if account_id % 2 else buy)(exchange, account_id, "1", "50000")
    assert await _put(exchange, closed) == (2, True)
    # What is closed can be given other terms without opening it again.
    assert await _put(exchange, dataclasses.replace(closed, tick_size=Decimal(1))) == (3, True)


async def test_list_refuses_a_cursor_that_is_not_its_own() -> None:
    exchange = await Exchange().open()
    for cursor in (encode_cursor("controls", "x"), encode_cursor("instruments", "\0"), "%"):
        with pytest.raises(CursorInvalidError):
            await exchange.instruments.list(cursor=cursor)


async def test_contention_is_no_reason_to_fail_a_change_that_is_in_history() -> None:
    exchange = await _furnished()
    exchange.faults.fail("instruments.stage.before", ContentionError("Again."))
    assert await _put(exchange, STRICT) == (1, False)
    assert await exchange.instruments.complete() == 1


async def test_opening_keeps_a_change_that_is_under_way_as_far_as_it_has_got() -> None:
    exchange = await _furnished()
    assert await _put(exchange, STRICT, budget_s=0) == (1, False)
    exchange.redis.run_id = "run-2"
    report = await exchange.opening.open()
    assert (report.complete, report.loaded) == (True, 0)
    assert exchange.redis.live_market().instrument_version(BTC) == "0>1"
    assert await exchange.instruments.complete() == 1
    assert _uncovered(exchange, STRICT) == []


async def test_account_that_is_kept_while_all_others_are_anchored_to_newer_rules_is_evaluated() -> None:
    exchange = await _furnished()
    older = exchange.redis.save()
    assert await _put(exchange, STRICT) == (1, True)
    exchange.history_store.rejected_keys.add("bad")
    exchange.redis.restore(older)
    assert not (await deposit(exchange, 1, "1", key="bad")).final
    exchange.redis.run_id = "run-2"
    report = await exchange.opening.open()
    assert (report.kept, report.loaded) == (1, len(ACCOUNTS) - 1)
    assert _uncovered(exchange, STRICT) == []
    assert all(trigger.is_always_crossed for trigger in exchange.redis.accounts[1].triggers.values())
