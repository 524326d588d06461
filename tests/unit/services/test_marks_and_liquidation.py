"""Mark prices bring accounts to evaluation; evaluation anchors or liquidates."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation_record import verify_liquidation
from margin.domain.safe_zone import triggers
from margin.errors import (
    OutcomeUnknownError,
    PostgresUnavailableError,
    QueueUnavailableError,
    RedisUnavailableError,
    StateNotLoadedError,
)
from margin.observability import MetricName, counted
from margin.services import crossed
from margin.services.liquidation import Verdict
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

DOWN = RedisUnavailableError("Redis is down.")
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


async def _longs(exchange: Exchange, *balances: str) -> None:
    """Open a long of 1 at 50000 for an account with each balance, numbered from 1."""
    await mark(exchange, "50000")
    for account_id, balance in enumerate(balances, start=1):
        await deposit(exchange, account_id, balance)
        await buy(exchange, account_id, "1", "50000")


async def _set(exchange: Exchange, price: str) -> None:
    """Store a mark price without evaluating anybody."""
    await exchange.market.set_marks({BTC: Decimal(price)}, crossed_max=0)


def _types(exchange: Exchange, account_id: int = 1) -> list[str]:
    return [link.body["type"] for link in exchange.history_store.chains[account_id]]


async def test_mark_price_that_crosses_nobody_evaluates_nobody(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    reads = exchange.faults.calls["accounts.read"]
    outcome = await mark(exchange, "40000.00000001")
    assert (outcome.at_risk, outcome.liquidated) == (0, ())
    assert exchange.faults.calls["accounts.read"] == reads


async def test_mark_price_liquidates_those_below_maintenance_and_anchors_the_others(exchange: Exchange) -> None:
    await _longs(exchange, "14000", "13999.99999999", "20000")
    outcome = await mark(exchange, "40000")
    assert (outcome.at_risk, outcome.liquidated) == (2, (2,))
    assert _types(exchange, 1) == ["DEPOSIT", "TRADE"]
    assert _types(exchange, 2) == ["DEPOSIT", "TRADE", "LIQUIDATION"]


async def test_liquidation_closes_the_least_of_the_largest_position_and_anchors_what_remains(
    exchange: Exchange,
) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "12000")
    await sell(exchange, 1, "1", "2000", symbol=ETH)
    assert (await mark(exchange, "42300")).liquidated == (1,)
    hot = exchange.redis.accounts[1]
    # E = 4300, T = 1.1 * 4430: x = 573 / 0.11 of notional, in units 0.12314636.
    assert hot.account.positions[BTC].quantity == Decimal("0.87685364")
    assert hot.account.positions[ETH].quantity == -1
    assert hot.account.balance == Decimal("11051.773028")
    assert hot.triggers == triggers(hot.account, await exchange.market.market())
    (row,) = (await exchange.history.liquidations()).rows
    assert (row["equity"], row["maintenance_margin"], row["shortfall"]) == (4300, 4430, 0)
    assert [(closed["symbol"], closed["realised_pnl"]) for closed in row["positions"]] == [(BTC, "-948.226972")]
    assert (await mark(exchange, "42300")).at_risk == 0
    # A little further down it happens again, to the rest.
    assert (await mark(exchange, "41000")).liquidated == (1,)


async def test_record_of_a_liquidation_is_enough_to_recompute_it(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "12000")
    await sell(exchange, 1, "1", "2000", symbol=ETH)
    before = exchange.redis.accounts[1].account
    exchange.clock.advance(7)
    await mark(exchange, "42300")
    (row,) = (await exchange.history.liquidations()).rows
    assert verify_liquidation(row["record"], before) == []
    assert row["record"]["inputs"]["marks"][ETH]["price"] == "2000"
    assert [closed["mark_age_s"] for closed in row["positions"]] == ["0"]


async def test_liquidation_with_a_shortfall_leaves_balance_zero_and_books_it_as_uncovered(exchange: Exchange) -> None:
    shortfalls = counted(MetricName.LIQUIDATION_SHORTFALLS)
    await _longs(exchange, "10000")
    assert (await mark(exchange, "39000.5")).liquidated == (1,)
    assert exchange.redis.accounts[1].account.balance == 0
    (row,) = (await exchange.history.liquidations(account_id=1)).rows
    assert (row["equity"], row["shortfall"]) == (Decimal("-999.5"), Decimal("999.5"))
    ledger = dict(exchange.history_store.chains[1][-1].body["ledger"])
    assert ledger == {"cash": "-10000", "house_pnl": "10999.5", "uncovered": "-999.5"}
    assert counted(MetricName.LIQUIDATION_SHORTFALLS) - shortfalls == 1


async def test_evaluation_of_a_healthy_account_anchors_its_triggers_to_the_present_mark(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "20000")
    await buy(exchange, 1, "10", "2000", symbol=ETH)
    before = dict(exchange.redis.accounts[1].triggers)
    version = exchange.redis.accounts[1].version
    await _set(exchange, "45000")
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    after = exchange.redis.accounts[1].triggers
    assert after[BTC].score < before[BTC].score
    assert exchange.redis.accounts[1].version == version
    assert (await mark(exchange, "45000")).at_risk == 0


async def test_anchor_that_changes_nothing_writes_nothing(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    writes = exchange.redis.trigger_writes
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    assert exchange.redis.trigger_writes == writes


async def test_account_without_positions_needs_no_anchor(exchange: Exchange) -> None:
    await deposit(exchange, 1, "10")
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    assert await exchange.liquidations.evaluate(2) is Verdict.ANCHORED
    assert exchange.faults.calls["accounts.anchor"] == 0


async def test_mark_that_moves_during_the_evaluation_is_seen_before_it_ends(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    await _set(exchange, "41000")
    exchange.faults.call("accounts.anchor.before", lambda: _set(exchange, "39000"))
    assert await exchange.liquidations.evaluate(1) is Verdict.LIQUIDATED


async def test_trade_during_the_evaluation_is_evaluated_with_it(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    await _set(exchange, "41000")
    exchange.faults.call("accounts.anchor.before", lambda: deposit(exchange, 1, "1000"))
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    hot = exchange.redis.accounts[1]
    assert hot.account.balance == 15000
    assert hot.triggers[BTC].score == pytest.approx(35000 / 0.9)


async def test_price_that_recovers_before_the_liquidation_commits_saves_the_account(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    exchange.faults.call("accounts.commit.before", lambda: _set(exchange, "50000"))
    assert (await mark(exchange, "39000")).liquidated == ()
    assert _types(exchange) == ["DEPOSIT", "TRADE"]


async def test_deposit_before_the_liquidation_commits_saves_the_account(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    exchange.faults.call("accounts.commit.before", lambda: deposit(exchange, 1, "10000"))
    assert (await mark(exchange, "39000")).liquidated == ()
    assert _types(exchange) == ["DEPOSIT", "TRADE", "DEPOSIT"]


async def test_instrument_that_changes_before_the_liquidation_commits_is_decided_on_anew(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    relieved = Instrument(BTC, tiers=(Tier(None, Decimal("0.10"), Decimal("0.01")),), version=1)
    exchange.faults.call("accounts.commit.before", lambda: exchange.redis.instruments.update({BTC: relieved}))
    assert (await mark(exchange, "39000")).liquidated == ()
    assert _types(exchange) == ["DEPOSIT", "TRADE"]


async def test_liquidation_names_every_mark_and_instrument_that_it_was_decided_on(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "14000")
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    await mark(exchange, "39000")
    commit = exchange.redis.commits[-1]
    assert commit.marks == {BTC: 39000, ETH: 2000}
    assert commit.instrument_versions == {BTC: "0", ETH: "0"}
    assert commit.event.key == f"~liquidation:{commit.expected_version}"


async def test_liquidation_happens_once_with_many_evaluators_at_once(exchange: Exchange) -> None:
    liquidations = counted(MetricName.LIQUIDATIONS)
    await _longs(exchange, "14000")
    await _set(exchange, "39000")
    verdicts = await asyncio.gather(*(exchange.liquidations.evaluate(1) for _ in range(20)))
    assert set(verdicts) <= {Verdict.LIQUIDATED, Verdict.ANCHORED}
    assert _types(exchange) == ["DEPOSIT", "TRADE", "LIQUIDATION"]
    assert counted(MetricName.LIQUIDATIONS) - liquidations == 1


async def test_account_can_be_liquidated_again_later(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    await mark(exchange, "39000")
    await mark(exchange, "50000")
    await deposit(exchange, 1, "14000")
    await buy(exchange, 1, "1", "50000")
    assert (await mark(exchange, "30000")).liquidated == (1,)
    assert _types(exchange).count("LIQUIDATION") == 2


async def test_lost_reply_of_a_liquidation_is_settled_and_it_happens_once(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    exchange.faults.fail("accounts.commit.after", DOWN)
    assert (await mark(exchange, "39000")).liquidated == (1,)
    assert _types(exchange).count("LIQUIDATION") == 1


async def test_liquidation_that_is_not_called_for_any_more_after_a_lost_commit_is_unknown(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    await _set(exchange, "39000")
    exchange.faults.fail("accounts.commit.before", DOWN)
    exchange.faults.skip("accounts.read.before", times=3)
    exchange.faults.call("accounts.read.before", lambda: _set(exchange, "50000"))
    with pytest.raises(OutcomeUnknownError):
        await exchange.liquidations.evaluate(1)
    assert await exchange.liquidations.evaluate(1) is Verdict.ANCHORED
    assert _types(exchange) == ["DEPOSIT", "TRADE"]


async def test_price_is_stored_though_the_evaluation_fails_and_the_scan_comes_back(exchange: Exchange) -> None:
    await _longs(exchange, "14000", "14000")
    exchange.faults.take_down("history", NO_HISTORY)
    outcome = await mark(exchange, "39000")
    assert (outcome.at_risk, outcome.liquidated) == (2, ())
    exchange.faults.bring_up("history")
    assert sorted((await exchange.scans.scan()).liquidated) == [1, 2]


async def test_mark_price_without_a_loaded_state_is_not_stored(exchange: Exchange) -> None:
    exchange.redis.markers.clear()
    with pytest.raises(StateNotLoadedError):
        await mark(exchange, "50000")
    assert exchange.redis.marks == {}


async def test_account_with_a_stale_mark_is_liquidated_only_where_it_is_fresh(exchange: Exchange) -> None:
    exchange.redis.instruments[ETH] = Instrument(ETH, mark_max_age_s=10, version=1)
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "14000")
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    exchange.clock.advance(11)
    assert (await mark(exchange, "30000")).liquidated == (1,)
    assert set(exchange.redis.accounts[1].account.positions) == {ETH}


async def test_account_whose_marks_are_all_stale_stays_undecided_and_crossed(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    await _longs(exchange, "10000")
    await _set(exchange, "20000")
    exchange.clock.advance(11)
    assert await exchange.liquidations.evaluate(1) is Verdict.UNDECIDED
    assert _types(exchange) == ["DEPOSIT", "TRADE"]
    assert (await mark(exchange, "20000")).liquidated == (1,)


def _work(exchange: Exchange) -> dict[str, int]:
    """How often an evaluation has read and anchored until now, and how often it was counted."""
    calls = exchange.faults.calls
    evaluated = int(counted(MetricName.ACCOUNTS_EVALUATED))
    return {"read": calls["accounts.read"], "anchored": calls["accounts.anchor"], "evaluated": evaluated}


async def _evaluate(exchange: Exchange) -> tuple[Verdict, dict[str, int]]:
    """Evaluate account 1, and say what it took."""
    before = _work(exchange)
    verdict = await exchange.liquidations.evaluate(1)
    return verdict, {name: times - before[name] for name, times in _work(exchange).items()}


async def test_account_with_exactly_its_maintenance_margin_is_undecided_after_a_second_look(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    await _set(exchange, "40000")
    assert await _evaluate(exchange) == (Verdict.UNDECIDED, {"read": 2, "anchored": 1, "evaluated": 1})
    assert (await mark(exchange, "40000")).at_risk == 1
    assert (await mark(exchange, "39999.99999999")).liquidated == (1,)


async def test_healthy_account_with_only_stale_marks_is_undecided_after_a_second_look(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    await _longs(exchange, "20000")
    exchange.clock.advance(11)
    assert await _evaluate(exchange) == (Verdict.UNDECIDED, {"read": 2, "anchored": 1, "evaluated": 1})
    assert (await mark(exchange, "50000")).at_risk == 1
    assert (await mark(exchange, "50000")).at_risk == 0


async def test_account_below_maintenance_with_only_stale_marks_is_undecided_after_a_second_look(
    exchange: Exchange,
) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    await _longs(exchange, "10000")
    await _set(exchange, "20000")
    exchange.clock.advance(11)
    assert await _evaluate(exchange) == (Verdict.UNDECIDED, {"read": 2, "anchored": 1, "evaluated": 1})


async def test_account_whose_symbol_has_no_mark_is_undecided_at_once(exchange: Exchange) -> None:
    await _longs(exchange, "14000")
    del exchange.redis.marks[BTC]
    assert await _evaluate(exchange) == (Verdict.UNDECIDED, {"read": 1, "anchored": 0, "evaluated": 1})


# --- more than one call evaluates


async def _crossed_with_a_slow_history(exchange: Exchange, accounts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open positions that a price of 39000 crosses, and make each liquidation take longer than a call may."""
    await _longs(exchange, *["14000"] * accounts)
    monkeypatch.setattr(crossed, "EVALUATION_BUDGET_S", 0.1)
    exchange.faults.call("history.append.before", lambda: asyncio.sleep(0.12), times=accounts)


async def test_accounts_that_the_time_of_a_call_does_not_suffice_for_are_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange = await Exchange(crossed_inline_max=20, crossed_queued_max=24).open()
    await _crossed_with_a_slow_history(exchange, 24, monkeypatch)
    started_s = asyncio.get_running_loop().time()
    outcome = await mark(exchange, "39000")
    assert asyncio.get_running_loop().time() - started_s < 0.24
    assert exchange.queue is not None
    # The most urgent ones at once; then those whose turn did not come, then those that were never meant to have one.
    named = [int(name) for name in sorted((str(account_id) for account_id in range(1, 25)), reverse=True)]
    assert (outcome.at_risk, sorted(outcome.liquidated), exchange.queue.sent) == (24, sorted(named[:8]), named[8:])


async def test_accounts_that_the_time_of_a_call_does_not_suffice_for_are_left_to_the_scan_where_there_is_no_queue(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _crossed_with_a_slow_history(exchange, 12, monkeypatch)
    outcome = await mark(exchange, "39000")
    assert (outcome.at_risk, len(outcome.liquidated)) == (12, 8)
    exchange.faults.skip("history.append.before", times=4)
    report = await exchange.scans.scan()
    assert sorted([*outcome.liquidated, *report.liquidated]) == list(range(1, 13))


async def test_accounts_that_an_outage_leaves_are_queued() -> None:
    exchange = await Exchange(crossed_inline_max=20, crossed_queued_max=20).open()
    await _longs(exchange, *["14000"] * 12)
    exchange.faults.take_down("history", NO_HISTORY)
    outcome = await mark(exchange, "39000")
    assert exchange.queue is not None
    assert (outcome.at_risk, outcome.liquidated, len(exchange.queue.sent)) == (12, (), 4)


def test_time_of_a_mark_prices_call_leaves_room_for_its_last_evaluations() -> None:
    assert crossed.EVALUATION_BUDGET_S <= 2


async def test_accounts_beyond_those_evaluated_at_once_are_queued() -> None:
    exchange = await Exchange(crossed_inline_max=2, crossed_queued_max=4).open()
    await _longs(exchange, *["14000"] * 5)
    outcome = await mark(exchange, "39000")
    assert exchange.queue is not None
    assert (outcome.at_risk, outcome.liquidated, exchange.queue.sent) == (5, (5, 4), [3, 2])
    assert sorted((await exchange.scans.scan()).liquidated) == [1, 2, 3]


async def test_queue_that_is_down_hinders_neither_the_price_nor_the_first_accounts() -> None:
    exchange = await Exchange(crossed_inline_max=1, crossed_queued_max=10).open()
    await _longs(exchange, "14000", "14000")
    exchange.faults.take_down("queue", QueueUnavailableError("The queue is down."))
    outcome = await mark(exchange, "39000")
    assert (outcome.at_risk, outcome.liquidated) == (2, (2,))


async def test_account_crossed_by_two_symbols_is_evaluated_once(exchange: Exchange) -> None:
    await mark(exchange, "50000", ETH)
    await _longs(exchange, "20000")
    await buy(exchange, 1, "1", "50000", symbol=ETH)
    evaluated = counted(MetricName.ACCOUNTS_EVALUATED)
    outcome = await exchange.marks.set_marks({BTC: Decimal(40000), ETH: Decimal(40000)})
    assert outcome.liquidated == (1,)
    assert counted(MetricName.ACCOUNTS_EVALUATED) - evaluated == 1
