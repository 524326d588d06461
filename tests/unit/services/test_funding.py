"""Payments of funding on fakes: what each failure leaves, and what the next one makes of it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.funding import Funding
from margin.domain.instrument import Instrument
from margin.errors import (
    CursorInvalidError,
    FundingRateCapError,
    FutureTimestampError,
    HistoryLostError,
    IdempotencyKeyReusedError,
    NoMarkPriceError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RedisUnavailableError,
    StaleMarkPriceError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.observability import MetricName, counted, flush_metrics
from tests.actions import ALICE, BTC, ETH, buy, deposit, fund, mark

if TYPE_CHECKING:
    from tests.fakes import Exchange

NO_REDIS = RedisUnavailableError("Redis is down.")
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


@pytest.fixture
async def exchange(exchange: Exchange) -> Exchange:
    """Account 1 is long 1 at 50000 with 14000: liquidated below 40000."""
    await mark(exchange, "50000")
    await deposit(exchange, 1, "14000")
    await buy(exchange, 1, "1", "50000")
    return exchange


def index(exchange: Exchange, symbol: str = BTC) -> Decimal:
    return exchange.redis.live_market().funding_index(symbol)


async def test_payment_moves_the_index_by_rate_times_mark_exactly(exchange: Exchange) -> None:
    flush_metrics()
    await mark(exchange, "50000.00000001")
    paid = await fund(exchange, "0.00000001")
    assert index(exchange) == paid.recorded.funding_index == Decimal("0.0005000000000001")
    assert (paid.recorded.n, paid.at_risk, paid.effective, paid.replayed) == (1, 0, True, False)
    assert counted(MetricName.FUNDING_PAYMENTS) == 1


async def test_rate_of_zero_is_a_payment_that_moves_nothing(exchange: Exchange) -> None:
    paid = await fund(exchange, "0")
    assert (paid.recorded.n, index(exchange), paid.effective) == (1, Decimal(0), True)


async def test_rate_beyond_the_instruments_cap_is_refused_with_the_cap(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, funding_rate_cap=Decimal("0.0075"), version=1)
    for rate in ("0.00750001", "-0.00750001"):
        with pytest.raises(FundingRateCapError) as refused:
            await fund(exchange, rate)
        assert refused.value.detail == (
            f"The funding rate {rate} of BTC-PERP is beyond what its instrument allows: from -0.0075 to 0.0075."
        )
    assert (await fund(exchange, "-0.0075")).effective


async def test_symbol_without_a_mark_price_pays_no_funding(exchange: Exchange) -> None:
    with pytest.raises(NoMarkPriceError, match="No mark price for ETH-PERP"):
        await fund(exchange, "0.001", ETH)


async def test_stale_mark_pays_no_funding(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    exchange.clock.advance(11)
    with pytest.raises(StaleMarkPriceError, match="no funding is paid until a new one"):
        await fund(exchange, "0.001")
    assert exchange.funding_history.payments_of == {}


async def test_moment_in_the_future_is_refused_and_nothing_is_paid(exchange: Exchange) -> None:
    ahead_us = exchange.clock.now_us + 10_000_001
    with pytest.raises(FutureTimestampError, match="timestamp lies in the future"):
        await exchange.funding.pay(BTC, Decimal("0.001"), caller=ALICE, occurred_us=ahead_us)
    assert exchange.funding_history.payments_of == {}
    paid = await exchange.funding.pay(BTC, Decimal("0.001"), caller=ALICE, occurred_us=ahead_us - 1)
    assert paid.recorded.occurred_us == ahead_us - 1


async def test_payment_is_made_once_for_its_key_and_its_body(exchange: Exchange) -> None:
    first, again = [await fund(exchange, rate, key="k") for rate in ("0.001", "0.0010")]
    assert (first.replayed, again.replayed, again.recorded.n, index(exchange)) == (False, True, 1, Decimal(50))
    with pytest.raises(IdempotencyKeyReusedError):
        await fund(exchange, "0.002", key="k")
    assert index(exchange) == 50


async def test_same_key_answers_how_many_were_at_risk(exchange: Exchange) -> None:
    await mark(exchange, "40010")
    first = await fund(exchange, "0.001", key="k")
    again = await fund(exchange, "0.001", key="k")
    assert (first.at_risk, first.liquidated, again.at_risk, again.liquidated) == (1, (1,), 1, ())


async def test_payment_that_redis_did_not_take_is_recorded_and_completed_by_the_drain(exchange: Exchange) -> None:
    exchange.faults.fail("funding.set_funding.before", NO_REDIS)
    paid = await fund(exchange, "0.001")
    assert (paid.effective, index(exchange)) == (False, 0)
    assert await exchange.funding.complete() == 1
    assert index(exchange) == 50
    assert await exchange.funding.complete() == 0


async def test_payment_whose_reply_redis_lost_is_found_to_be_there(exchange: Exchange) -> None:
    exchange.faults.fail("funding.set_funding.after", NO_REDIS)
    paid = await fund(exchange, "0.001", key="k")
    assert (paid.effective, index(exchange)) == (False, 50)
    again = await fund(exchange, "0.001", key="k")
    assert (again.effective, again.replayed, index(exchange)) == (True, True, 50)


async def test_payment_that_nobody_could_note_as_done_is_effective_all_the_same(exchange: Exchange) -> None:
    exchange.faults.fail("funding_history.applied.before", NO_HISTORY)
    assert (await fund(exchange, "0.001")).effective
    assert [payment.applied for payment in exchange.funding_history.payments_of[BTC]] == [False]
    await exchange.funding.complete()
    assert [payment.applied for payment in exchange.funding_history.payments_of[BTC]] == [True]


async def test_unknown_outcome_is_asked_for_with_the_same_key(exchange: Exchange) -> None:
    exchange.faults.fail("funding_history.record.after", OutcomeUnknownError("No answer."))
    with pytest.raises(OutcomeUnknownError):
        await fund(exchange, "0.001", key="k")
    again = await fund(exchange, "0.001", key="k")
    assert (again.replayed, again.effective, again.recorded.n, index(exchange)) == (True, True, 1, 50)


async def test_redis_that_came_back_older_is_brought_up_by_the_drain(exchange: Exchange) -> None:
    saved = exchange.redis.save()
    await fund(exchange, "0.001")
    exchange.redis.restore(saved)
    assert index(exchange) == 0
    assert await exchange.funding.complete() == 1
    assert index(exchange) == 50


async def test_rules_that_change_while_a_payment_is_computed_make_it_be_computed_anew(exchange: Exchange) -> None:
    def change() -> None:
        exchange.redis.instruments[BTC] = Instrument(BTC, version=7)

    exchange.faults.call("funding.set_funding.before", change)
    assert (await fund(exchange, "0.001")).effective
    assert exchange.faults.calls["funding.set_funding"] == 2


async def test_funding_that_history_does_not_know_is_left_to_a_rebuild(exchange: Exchange) -> None:
    exchange.redis.funding[BTC] = Funding(3, Decimal(7))
    assert not (await fund(exchange, "0.001")).effective
    exchange.redis.markers.clear()
    with pytest.raises(HistoryLostError, match="has funding of BTC-PERP that history does not know"):
        await exchange.opening.open()
    await exchange.opening.open(rebuild=[0])
    assert exchange.redis.funding[BTC].index == 50
    assert (await fund(exchange, "0.001")).effective


async def test_rebuild_without_any_payment_in_history_leaves_no_funding(exchange: Exchange) -> None:
    exchange.redis.funding[BTC] = Funding(3, Decimal(7))
    await exchange.rebuilding.rebuild()
    assert exchange.redis.funding == {}


async def test_emptied_redis_gets_its_funding_back(exchange: Exchange) -> None:
    await fund(exchange, "0.001")
    exchange.redis.flush()
    await exchange.opening.open()
    assert (index(exchange), exchange.redis.funding[BTC].n) == (50, 1)


async def test_redis_that_lost_its_state_takes_no_payment(exchange: Exchange) -> None:
    exchange.redis.markers.clear()
    with pytest.raises(StateNotLoadedError):
        await fund(exchange, "0.001")
    assert exchange.funding_history.payments_of == {}


async def test_payment_that_has_to_wait_is_counted_with_each_drain(exchange: Exchange) -> None:
    exchange.redis.funding[BTC] = Funding(3, Decimal(7))
    assert not (await fund(exchange, "0.001")).effective
    flush_metrics()
    for waited in (1, 2):
        assert await exchange.funding.complete() == 0
        assert counted(MetricName.FUNDING_NOT_APPLIED) == waited
    assert await exchange.funding.complete(keep_going=lambda: False) == 0
    assert counted(MetricName.FUNDING_NOT_APPLIED) == 3
    exchange.redis.funding.clear()
    assert await exchange.funding.complete() == 1
    assert counted(MetricName.FUNDING_NOT_APPLIED) == 3


async def test_partition_that_cannot_be_read_holds_up_nothing_that_waits(exchange: Exchange) -> None:
    exchange.faults.fail("funding.set_funding.before", NO_REDIS)
    assert not (await fund(exchange, "0.001")).effective
    exchange.faults.fail("market.market.before", NO_REDIS)
    assert await exchange.funding.complete() == 1
    assert index(exchange) == 50


async def test_time_that_is_up_leaves_the_rest_to_the_next_drain(exchange: Exchange) -> None:
    exchange.faults.fail("funding.set_funding.before", NO_REDIS)
    await fund(exchange, "0.001")
    assert await exchange.funding.complete(keep_going=lambda: False) == 0
    assert index(exchange) == 0


async def test_pending_is_what_the_positions_owe_at_this_moment(exchange: Exchange) -> None:
    await fund(exchange, "0.00000001")
    page = await exchange.funding_list.payments(1)
    assert [(one.symbol, one.quantity, one.amount) for one in page.pending] == [(BTC, Decimal(1), Decimal("-0.0005"))]
    await deposit(exchange, 1, "1")
    page = await exchange.funding_list.payments(1)
    assert (page.pending, [row["amount"] for row in page.rows]) == ([], [Decimal("-0.0005")])


async def test_account_that_was_never_opened_has_no_funding(exchange: Exchange) -> None:
    with pytest.raises(UnknownAccountError):
        await exchange.funding_list.payments(9)


@pytest.mark.parametrize("cursor", ["WyJ0cmFkZXM6MSIsIDFd", "e30"])
async def test_cursor_of_another_list_is_refused(exchange: Exchange, cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        await exchange.funding_list.payments(1, cursor=cursor)
    with pytest.raises(CursorInvalidError):
        await exchange.funding_list.rates(cursor=cursor)
