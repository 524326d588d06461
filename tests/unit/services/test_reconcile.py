"""The service on tables and keys in memory: pages, second looks, cycles. What it finds is tried on real stores."""

from __future__ import annotations

import dataclasses
import itertools
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.event import canonical, digest
from margin.observability import MetricName, counted, flush_metrics
from margin.ports.audit import AuditedSettlement
from margin.services.audit_cycle import Cycle, Stage
from margin.services.reconcile import DIFFERENCES_MAX, PageSizes, ReconcileService
from tests.actions import buy, deposit, mark
from tests.fakes.audit import FakeHistoryAudit, FakeHotAudit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin.ports.audit import HotAccount
    from tests.fakes import Exchange

START_US = 1_700_000_000_000_000


async def stores(exchange: Exchange, *, accounts: int = 3) -> tuple[FakeHistoryAudit, FakeHotAudit]:
    await mark(exchange, "50000")
    for account_id in range(1, accounts + 1):
        await deposit(exchange, account_id, "10000")
        await buy(exchange, account_id, "0.1", "50000")
    return FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)


def times(calls: int) -> Callable[[], bool]:
    left = itertools.count(calls, -1)
    return lambda: next(left) > 0


async def test_difference_that_a_second_look_does_not_find_does_not_count(exchange: Exchange) -> None:
    history, _ = await stores(exchange)

    class Moved(FakeHotAudit):
        """Shows an older state of account 2 the first time."""

        looks = 0

        async def accounts(self, account_ids: Sequence[int], pending_max: int) -> dict[int, HotAccount]:
            found = await super().accounts(account_ids, pending_max)
            self.looks += 1
            return {**found, 2: dataclasses.replace(found[2], balance="1")} if self.looks == 1 else found

    moved = Moved(exchange.redis)
    report = await ReconcileService(history, moved).reconcile()
    assert (report.differences, report.accounts, moved.looks) == ([], 3, 2)


async def test_differences_are_counted_beyond_those_that_are_listed(exchange: Exchange) -> None:
    flush_metrics()
    history, hot = await stores(exchange, accounts=DIFFERENCES_MAX + 5)
    for keys in hot.keys.values():
        keys.balance = "1"
    report = await ReconcileService(history, hot).reconcile()
    assert (len(report.differences), report.differences_count) == (DIFFERENCES_MAX, DIFFERENCES_MAX + 5)
    assert counted(MetricName.RECONCILE_DIFFERENCES) == DIFFERENCES_MAX + 5


async def test_no_time_at_all_is_no_progress_and_no_harm(exchange: Exchange) -> None:
    history, hot = await stores(exchange)
    report = await ReconcileService(history, hot).reconcile(keep_going=lambda: False)
    assert (report.accounts, report.complete, report.unverified, hot.saved) == (0, False, [], "")


async def test_chain_that_does_not_fit_into_what_is_left_is_begun_anew(exchange: Exchange) -> None:
    history, hot = await stores(exchange)
    service = ReconcileService(history, hot, PageSizes(batch_events=2, events=1))
    # Account 1 takes three questions after the first: its two events, and that there are no more.
    first = await service.reconcile(keep_going=times(6))
    assert (first.accounts, first.events, first.unverified) == (1, 2, [])
    second = await service.reconcile(keep_going=times(1000))
    assert (second.accounts, second.events, second.unverified, second.complete) == (2, 4, [], True)


async def test_empty_exchange_is_sound(exchange: Exchange) -> None:
    service = ReconcileService(FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis))
    report = await service.reconcile()
    assert (report.accounts, report.differences, report.complete) == (0, [], True)


async def test_age_grows_until_a_cycle_is_complete(exchange: Exchange) -> None:
    history, hot = await stores(exchange)
    service = ReconcileService(history, hot, PageSizes(accounts=1))
    assert (await service.reconcile()).complete
    hot.now_us += 60_000_000
    partial = await service.reconcile(keep_going=times(3))
    assert not partial.complete
    assert 60 <= partial.age_s < 61
    complete = await service.reconcile()
    assert complete.complete
    assert complete.age_s < 1


@pytest.mark.parametrize(
    "cycle",
    [
        Cycle(START_US),
        Cycle(START_US, START_US - 5, Stage.ACCOUNTS, (7, 9)),
        Cycle(START_US, None, Stage.PARTITIONS, (3,)),
        Cycle(START_US, None, Stage.LEDGER, (1, 2, 3)),
        Cycle(START_US, None, Stage.STRANGERS, (2, -(2**63) - 1)),
        Cycle(START_US, None, Stage.SETTLEMENT, (1, 2)),
        Cycle(START_US, None, Stage.STEPS, (4,)),
    ],
)
def test_cycle_is_resumed_as_it_was_written(cycle: Cycle) -> None:
    assert Cycle.resume(cycle.text(), START_US + 1) == cycle


def test_cycle_that_is_done_is_followed_by_one_that_knows_it() -> None:
    cycle = Cycle(START_US)
    cycle.enter(Stage.DONE)
    assert Cycle.resume(cycle.text(), START_US + 1) == Cycle(START_US + 1, START_US)
    assert cycle.age_s(START_US + 2_000_000) == 2.0


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"started_us": 1, "verified_us": null, "stage": "ledger", "place": [1], "total": "0"}'],
)
def test_cycle_that_cannot_be_read_is_followed_by_a_new_one(text: str) -> None:
    assert Cycle.resume(text, START_US) == Cycle(START_US)


async def test_settlements_are_looked_at_in_pages_and_each_that_is_not_sound_is_found(exchange: Exchange) -> None:
    history, hot = await stores(exchange)
    sound = AuditedSettlement(
        account_id=1,
        liquidation_id=5,
        shortfall=Decimal(10),
        settled=Decimal(10),
        is_noted=True,
        unplanned=0,
        missing=0,
    )
    overpaid = dataclasses.replace(sound, liquidation_id=6, settled=Decimal(11))
    unplanned = dataclasses.replace(sound, account_id=2, unplanned=1)
    missing = dataclasses.replace(sound, account_id=3, settled=Decimal(0), is_noted=False, missing=2)
    unpaid = dataclasses.replace(sound, account_id=4, settled=Decimal(9))
    history.settled = [sound, overpaid, unplanned, missing, unpaid]
    service = ReconcileService(history, hot, PageSizes(settlements=2))
    report = await service.reconcile()
    assert report.complete
    assert [(one.account_id, one.what, one.expected, one.found) for one in report.differences] == [
        (1, "more was paid of liquidation 6 than it left unpaid", "10", "11"),
        (2, "events of liquidation 5 happened that no step planned", "0", "1"),
        (3, "steps of liquidation 5 are noted as executed without their event", "0", "2"),
        (4, "liquidation 5 is noted as settled and is not paid", "10", "9"),
    ]


async def test_liquidation_that_does_not_come_to_what_it_says_is_found(exchange: Exchange) -> None:
    """Whoever makes the hashes anew as well cannot hide that a figure is not what its inputs come to."""
    await mark(exchange, "50000")
    await deposit(exchange, 1, "14000")
    await buy(exchange, 1, "1", "50000")
    await mark(exchange, "39000")
    assert (await ReconcileService(*_audits(exchange)).reconcile()).differences == []
    chain = exchange.history_store.chains[1]
    body = {**chain[-1].body, "detail": {**chain[-1].body["detail"], "maintenance_margin_after": "1"}}
    chain[-1] = dataclasses.replace(chain[-1], hash=digest(canonical(body)), body=body)
    found = (await ReconcileService(*_audits(exchange)).reconcile()).differences
    assert any("maintenance_margin_after of the liquidation is not what it comes to" in str(one) for one in found)


async def test_ledger_of_a_liquidation_that_gives_another_house_account_the_money_is_found(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    await deposit(exchange, 1, "10000")
    await buy(exchange, 1, "1", "50000")
    await mark(exchange, "39000")
    chain = exchange.history_store.chains[1]
    moved = [["fees" if name == "house_pnl" else name, amount] for name, amount in chain[-1].body["ledger"]]
    body = {**chain[-1].body, "ledger": moved}
    chain[-1] = dataclasses.replace(chain[-1], hash=digest(canonical(body)), body=body)
    found = (await ReconcileService(*_audits(exchange)).reconcile()).differences
    assert any("the ledger of the liquidation is not what it comes to" in str(one) for one in found)


async def test_liquidation_by_rules_that_are_not_known_is_not_judged(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    await deposit(exchange, 1, "10000")
    await buy(exchange, 1, "1", "50000")
    await mark(exchange, "39000")
    chain = exchange.history_store.chains[1]
    for rules in (None, 99):
        body = {**chain[-1].body, "detail": {**chain[-1].body["detail"], "rules": rules, "equity_after": "1"}}
        chain[-1] = dataclasses.replace(chain[-1], hash=digest(canonical(body)), body=body)
        found = (await ReconcileService(*_audits(exchange)).reconcile()).differences
        assert not any("of the liquidation" in str(one) for one in found)


def _audits(exchange: Exchange) -> tuple[FakeHistoryAudit, FakeHotAudit]:
    return FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)
