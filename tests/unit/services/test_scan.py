"""The scan evaluates everyone whom a mark crosses; its sweep gets to everybody and finds whom the index could miss."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.controls import ControlState, symbol_control
from margin.domain.instrument import Instrument
from margin.domain.market import RESTORED_STAMP_US
from margin.domain.safe_zone import Trigger, TriggerSide
from margin.errors import NoMarkPriceError, PostgresUnavailableError, RedisUnavailableError
from margin.observability import MetricName, counted
from margin.services import scan
from margin.services.liquidation import Verdict
from margin.services.scan import ScanReport, ScanService
from tests.actions import BTC, ETH, buy, deposit, mark, switch
from tests.fakes import Exchange, FakeAccounts

if TYPE_CHECKING:
    from margin.ports import SweepPage
    from tests.fakes import FakeRedis

DOWN = RedisUnavailableError("Redis is down.")
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")
SAFE, AT_RISK = "20000", "14000"
"""Balances of longs of 1 at 50000: at 39000 one is healthy, the other is not."""


async def _longs(exchange: Exchange, *balances: str) -> None:
    """Open a long of 1 at 50000 for an account with each balance, numbered from 1."""
    await mark(exchange, "50000")
    for account_id, balance in enumerate(balances, start=1):
        await deposit(exchange, account_id, balance)
        await buy(exchange, account_id, "1", "50000")


async def _set(exchange: Exchange, price: str) -> None:
    """Store a mark price without evaluating anybody."""
    await exchange.market.set_marks({BTC: Decimal(price)}, crossed_max=0)


class _Watched(FakeAccounts):
    """Accounts that tell whom a sweep has read."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__(redis)
        self.seen: list[int] = []

    async def sweep(self, partition: int, cursor: str) -> SweepPage:
        page = await super().sweep(partition, cursor)
        self.seen += [indexed.row.account.account_id for indexed in page.accounts]
        return page

    def take(self) -> list[int]:
        seen, self.seen = self.seen, []
        return seen


def _scans(exchange: Exchange, accounts: FakeAccounts | None = None, **options: int) -> ScanService:
    options = {"sweep_cycle_s": 0, **options}
    return ScanService(
        accounts or exchange.accounts, exchange.market, exchange.liquidations, exchange.warnings, **options
    )


# --- whom a mark crosses


@pytest.mark.parametrize("partitions", [1, 3])
async def test_scan_liquidates_whom_a_mark_crosses_and_sweeps_everybody(partitions: int) -> None:
    exchange = await Exchange(partitions=partitions, page_size=2).open()
    await _longs(exchange, AT_RISK, SAFE, AT_RISK, SAFE, AT_RISK, SAFE, AT_RISK)
    await _set(exchange, "39000")
    report = await exchange.scans.scan()
    assert (report.crossed, report.swept, report.complete) == (4, 7, True)
    assert sorted(report.liquidated) == [1, 3, 5, 7]
    assert (report.missed, report.unvalued, report.failed, report.put_off) == ([], 0, 0, 0)


async def test_crossed_accounts_of_many_pages_are_all_collected_before_one_is_evaluated(exchange: Exchange) -> None:
    await _longs(exchange, *[AT_RISK] * 7)
    await _set(exchange, "39000")
    evaluated_before = exchange.faults.calls["accounts.read"]
    at_each_page: list[int] = []
    note = lambda: at_each_page.append(exchange.faults.calls["accounts.read"] - evaluated_before)  # noqa: E731
    exchange.faults.call("accounts.crossed.before", note, times=4)
    report = await _scans(exchange, crossed_per_page=2).scan()
    assert (report.crossed, sorted(report.liquidated)) == (7, [1, 2, 3, 4, 5, 6, 7])
    assert at_each_page == [0, 0, 0, 0]


async def test_crossed_accounts_of_several_symbols_are_evaluated_once_each(exchange: Exchange) -> None:
    await mark(exchange, "50000", ETH)
    await _longs(exchange, SAFE, SAFE, SAFE)
    for account_id in (1, 2, 3):
        await buy(exchange, account_id, "1", "50000", symbol=ETH)
    await exchange.market.set_marks({BTC: Decimal(40000), ETH: Decimal(40000)}, crossed_max=0)
    evaluated = counted(MetricName.ACCOUNTS_EVALUATED)
    report = await _scans(exchange, crossed_per_page=2).scan()
    assert (report.crossed, sorted(report.liquidated)) == (3, [1, 2, 3])
    assert counted(MetricName.ACCOUNTS_EVALUATED) - evaluated == 3


async def test_undecided_and_put_off_accounts_stay_and_keep_nobody_waiting(exchange: Exchange) -> None:
    exchange.redis.instruments[ETH] = Instrument(ETH, mark_max_age_s=10, version=1)
    await mark(exchange, "50000", "SOL-PERP")
    await mark(exchange, "50000", ETH)
    await mark(exchange, "50000")
    symbols = {1: ETH, 2: ETH, 3: ETH, 4: "SOL-PERP", 5: "SOL-PERP", 6: BTC, 7: BTC, 8: BTC}
    for account_id, symbol in symbols.items():
        await deposit(exchange, account_id, AT_RISK)
        await buy(exchange, account_id, "1", "50000", symbol=symbol)
    exchange.clock.advance(11)
    for account_id in (1, 2, 3):
        assert await exchange.liquidations.evaluate(account_id) is Verdict.UNDECIDED
    await switch(exchange, symbol_control("SOL-PERP"), ControlState.PAUSED)
    fallen = {"SOL-PERP": Decimal(39000), BTC: Decimal(39000)}
    await exchange.market.set_marks(fallen, crossed_max=0)

    scans = _scans(exchange, crossed_per_page=2)
    first, second = await scans.scan(), await scans.scan()

    assert (first.crossed, sorted(first.liquidated), first.put_off, first.complete) == (8, [6, 7, 8], 2, True)
    assert (second.crossed, second.liquidated, second.put_off, second.complete) == (5, [], 2, True)
    assert (first.missed, second.missed) == ([], [])


async def test_account_that_a_queue_lost_is_found_by_the_next_scan() -> None:
    exchange = await Exchange(crossed_inline_max=1, crossed_queued_max=10).open()
    await _longs(exchange, AT_RISK, AT_RISK, AT_RISK)
    outcome = await mark(exchange, "39000")
    assert exchange.queue is not None
    assert (outcome.liquidated, exchange.queue.sent) == ((3,), [2, 1])
    exchange.queue.sent.clear()
    report = await exchange.scans.scan()
    assert (report.crossed, sorted(report.liquidated), report.missed) == (2, [1, 2], [])


async def test_scan_out_of_time_for_the_crossed_says_so_and_the_next_goes_on(exchange: Exchange) -> None:
    await _longs(exchange, *[AT_RISK] * 5)
    await _set(exchange, "39000")
    report = await exchange.scans.scan(keep_going=lambda: False)
    assert (report.complete, report.crossed, report.swept, report.liquidated) == (False, 5, 0, [])
    report = await exchange.scans.scan()
    assert (report.complete, report.swept, sorted(report.liquidated)) == (True, 5, [1, 2, 3, 4, 5])


async def test_scan_of_an_empty_exchange_is_complete(exchange: Exchange) -> None:
    assert await exchange.scans.scan() == ScanReport()


async def test_scan_with_redis_down_fails(exchange: Exchange) -> None:
    await _longs(exchange, AT_RISK)
    exchange.faults.take_down("accounts", DOWN)
    with pytest.raises(RedisUnavailableError):
        await exchange.scans.scan()


async def test_scan_counts_the_accounts_that_it_could_not_evaluate(exchange: Exchange) -> None:
    await _longs(exchange, AT_RISK, AT_RISK)
    await _set(exchange, "39000")
    exchange.faults.take_down("history", NO_HISTORY)
    report = await exchange.scans.scan()
    assert (report.crossed, report.liquidated, report.failed) == (2, [], 2)


async def test_scan_goes_past_an_account_whose_symbol_has_no_mark(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, AT_RISK, AT_RISK, AT_RISK)
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    del exchange.redis.marks[ETH]
    await _set(exchange, "39000")
    report = await exchange.scans.scan()
    assert (report.swept, report.unvalued, sorted(report.liquidated), report.missed) == (3, 1, [2, 3], [])
    with pytest.raises(NoMarkPriceError):
        await exchange.margin.account_margin(1)


async def test_age_of_the_oldest_mark_is_that_of_all_positions_whomever_the_sweep_gets_to(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await mark(exchange, "1", "SOL-PERP")
    exchange.clock.advance(70)
    await _longs(exchange, SAFE, SAFE, SAFE, SAFE)
    await buy(exchange, 4, "0.1", "2000", symbol=ETH)
    exchange.clock.advance(5)
    scans = _scans(exchange, sweep_cycle_s=100)
    exchange.redis.sweeps[0] = dataclasses.replace(
        await exchange.accounts.sweep_progress(0), at_us=exchange.clock.now_us
    )
    report = await scans.scan()
    assert (report.swept, report.oldest_mark_age_s) == (2, 75.0)


# --- the sweep


@pytest.fixture
async def ten() -> Exchange:
    """Return an exchange with ten accounts, swept one by one."""
    exchange = await Exchange(page_size=1).open()
    for account_id in range(1, 11):
        await deposit(exchange, account_id, "1")
    return exchange


async def test_first_sweep_ever_is_of_everybody(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    report = await _scans(ten, accounts, sweep_cycle_s=100).scan()
    assert (accounts.take(), report.swept, report.complete) == (list(range(1, 11)), 10, True)


@pytest.mark.parametrize(
    ("elapsed_s", "seen"),
    [(0, [1]), (5, [1]), (10, [1]), (11, [1, 2]), (20, [1, 2]), (99, list(range(1, 11))), (10_000, list(range(1, 11)))],
)
async def test_share_of_a_sweep_follows_the_time_since_the_last(ten: Exchange, elapsed_s: int, seen: list[int]) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=100)
    await scans.scan()
    accounts.take()
    ten.clock.advance(elapsed_s)
    report = await scans.scan()
    assert (accounts.take(), report.swept, report.complete) == (seen, len(seen), True)


async def test_sweep_goes_on_where_it_stopped_and_begins_again_at_its_end(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=100)
    await scans.scan()
    accounts.take()
    shares = []
    for _ in range(4):
        ten.clock.advance(40)
        await scans.scan()
        shares.append(accounts.take())
    assert shares == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 1, 2], [3, 4, 5, 6]]


async def test_every_account_has_its_turn_in_every_cycle(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=90)
    await scans.scan()
    shares = []
    for seconds in [7, 13, 1, 29, 3, 11, 17, 9] * 9:
        accounts.take()
        ten.clock.advance(seconds)
        await scans.scan()
        shares.append((seconds, set(accounts.take())))
    for start in range(len(shares) - 8):
        assert set().union(*(seen for _, seen in shares[start : start + 8])) == set(range(1, 11)), start


async def test_sweep_out_of_time_says_so_and_whom_it_left_is_due_at_the_next_scan(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=100)
    answers = iter([True, True, True, False])
    report = await scans.scan(keep_going=lambda: next(answers))
    assert (report.complete, report.swept, accounts.take()) == (False, 3, [1, 2, 3])
    report = await scans.scan()
    assert (report.complete, report.swept, accounts.take()) == (True, 7, [4, 5, 6, 7, 8, 9, 10])


async def test_sweep_of_everybody_at_each_scan_is_of_everybody_wherever_the_last_stopped(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts)
    answers = iter([True, True, False])
    report = await scans.scan(keep_going=lambda: next(answers))
    assert (report.complete, accounts.take()) == (False, [1, 2])
    await deposit(ten, 11, "1")
    report = await scans.scan()
    assert (report.complete, accounts.take()) == (True, [3, 4, 5, 6, 7, 8, 9, 10, 11, *range(1, 12)])
    await scans.scan()
    assert accounts.take() == list(range(1, 12))


async def test_clock_that_goes_back_does_not_stop_the_sweep(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=100)
    await scans.scan()
    accounts.take()
    ten.clock.advance(-1_000_000)
    for _ in range(2):
        await scans.scan()
        ten.clock.advance(20)
    await scans.scan()
    assert accounts.take() == [1, 2, 3, 4, 5]


async def test_sweep_begins_anew_when_the_state_is_opened_anew(ten: Exchange) -> None:
    accounts = _Watched(ten.redis)
    scans = _scans(ten, accounts, sweep_cycle_s=100)
    await scans.scan()
    ten.clock.advance(40)
    await scans.scan()
    accounts.take()
    await ten.rebuilding.rebuild([0])
    await scans.scan()
    assert accounts.take() == list(range(1, 11))


# --- whom the index could miss


def _remove(_: Trigger) -> None:
    return None


def _move_beyond(trigger: Trigger) -> Trigger:
    return dataclasses.replace(trigger, score=math.nextafter(trigger.score, 0))


def _turn_round(trigger: Trigger) -> Trigger:
    return dataclasses.replace(trigger, side=TriggerSide.CEILING, score=math.inf)


@pytest.mark.parametrize("mistake", [_remove, _move_beyond, _turn_round])
async def test_account_that_the_index_could_miss_is_counted_logged_and_anchored_anew(
    exchange: Exchange, mistake: Any, log: list[dict[str, Any]]
) -> None:
    await _longs(exchange, SAFE, "14500", SAFE)
    sound = dict(exchange.redis.accounts[2].triggers)
    wrong = mistake(sound[BTC])
    exchange.redis.accounts[2].triggers = {} if wrong is None else {BTC: wrong}
    misses = counted(MetricName.LIQUIDATION_MISSES)

    report = await exchange.scans.scan()

    assert (report.missed, report.liquidated, report.swept) == ([2], [], 3)
    assert counted(MetricName.LIQUIDATION_MISSES) - misses == 1
    assert exchange.redis.accounts[2].triggers == sound
    (line,) = [line for line in log if line["message"] == "liquidation_missed"]
    assert (line["level"], line["account_id"], line["version"]) == ("ERROR", 2, exchange.redis.accounts[2].version)
    assert (line["balance"], line["positions"]) == ("14500", {BTC: ["1", "50000", "0"]})
    assert line["triggers"] == ({} if wrong is None else {BTC: [wrong.side, repr(wrong.score)]})
    assert line["marks"] == {BTC: ["50000", exchange.redis.marks[BTC].stamp_us]}
    assert line["instruments"] == {BTC: 0}
    assert (await exchange.scans.scan()).missed == []
    assert counted(MetricName.LIQUIDATION_MISSES) - misses == 1


@pytest.mark.parametrize("mistake", [_remove, _turn_round])
async def test_account_that_the_index_did_miss_is_liquidated_at_once(exchange: Exchange, mistake: Any) -> None:
    await _longs(exchange, SAFE, AT_RISK, SAFE)
    wrong = mistake(exchange.redis.accounts[2].triggers[BTC])
    exchange.redis.accounts[2].triggers = {} if wrong is None else {BTC: wrong}
    assert (await mark(exchange, "39000")).at_risk == 0
    report = await exchange.scans.scan()
    assert (report.crossed, report.missed, report.liquidated) == (0, [2], [2])
    assert (await exchange.scans.scan()).missed == []


async def test_miss_is_found_when_the_sweep_comes_to_the_account_and_counted_once(ten: Exchange) -> None:
    await mark(ten, "50000")
    await deposit(ten, 7, AT_RISK)
    await buy(ten, 7, "1", "50000")
    scans = _scans(ten, sweep_cycle_s=100)
    await scans.scan()
    ten.redis.accounts[7].triggers.clear()
    found = []
    for _ in range(12):
        ten.clock.advance(20)
        found.append((await scans.scan()).missed)
    assert found == [[], [], [], [7], *[[]] * 8]


async def test_miss_is_evaluated_though_time_is_up(exchange: Exchange) -> None:
    await _longs(exchange, SAFE, AT_RISK, SAFE)
    exchange.redis.accounts[2].triggers.clear()
    await _set(exchange, "39000")
    answers = iter([True, False])
    report = await exchange.scans.scan(keep_going=lambda: next(answers))
    assert (report.complete, report.missed, report.liquidated) == (False, [2], [2])


async def test_floor_of_an_early_release_that_funding_cannot_move_is_anchored_anew_and_no_miss(
    exchange: Exchange,
) -> None:
    await _longs(exchange, "100000")
    hot = exchange.redis.accounts[1]
    sound = dict(hot.triggers)
    hot.triggers = {BTC: dataclasses.replace(sound[BTC], score=-math.inf)}
    assert (await exchange.scans.scan()).missed == []
    assert hot.triggers == sound


async def test_missing_trigger_is_found_although_another_is_crossed(exchange: Exchange) -> None:
    await mark(exchange, "2000", ETH)
    await _longs(exchange, "14500")
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    del exchange.redis.accounts[1].triggers[ETH]
    del exchange.redis.marks[ETH]
    # Nothing can be decided about the account, so that its triggers stay as they are.
    await _set(exchange, "39000")
    report = await exchange.scans.scan()
    assert (report.crossed, report.missed, report.unvalued) == (1, [1], 1)


async def _stale(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_max_age_s=10, version=1)
    exchange.clock.advance(11)


async def _restored(exchange: Exchange) -> None:
    exchange.redis.marks[BTC] = dataclasses.replace(exchange.redis.marks[BTC], stamp_us=RESTORED_STAMP_US)


async def _lost(exchange: Exchange) -> None:
    del exchange.redis.marks[BTC]


async def _paused(exchange: Exchange) -> None:
    await switch(exchange, symbol_control(BTC), ControlState.PAUSED)


async def _rebuilt(exchange: Exchange) -> None:
    await exchange.rebuilding.rebuild([0])


async def _emptied(exchange: Exchange) -> None:
    exchange.redis.flush()
    await exchange.opening.open()


@pytest.mark.parametrize("price", ["50000", "39000", "20000"])
@pytest.mark.parametrize("state", [_stale, _restored, _lost, _paused, _rebuilt, _emptied])
async def test_no_miss_is_counted_whatever_happens_to_the_marks(exchange: Exchange, state: Any, price: str) -> None:
    await _longs(exchange, SAFE, AT_RISK, "10000", "100000")
    await _set(exchange, price)
    await state(exchange)
    for _ in range(2):
        report = await exchange.scans.scan()
        assert (report.swept, report.missed, report.complete) == (4, [], True)
    await deposit(exchange, 1, "1")
    assert (await exchange.scans.scan()).missed == []


async def test_liquidatable_account_that_is_not_crossed_is_a_miss_whatever_its_triggers_promise(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "covers", lambda *_: True)
    await _longs(exchange, SAFE, AT_RISK, AT_RISK)
    exchange.redis.accounts[2].triggers.clear()
    await _set(exchange, "39000")
    report = await exchange.scans.scan()
    assert (report.crossed, report.missed, sorted(report.liquidated)) == (1, [2], [2, 3])
