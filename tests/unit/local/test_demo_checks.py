"""Every check of the demo passes on what a sound engine records, and fails on each thing that it is there to find."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.account import Account
from margin.domain.instrument import Instrument, Tier
from margin.domain.liquidation import LiquidationPolicy
from margin_local.demo.checks import (
    chains_are_unbroken,
    every_check,
    ledger_sums_to_zero,
    liquidations_were_due,
    none_was_missed,
    shortfalls_were_paid_by_the_rules,
    stores_agree,
    trades_follow_the_rules,
)
from margin_local.demo.evidence import Evidence, RecordedEvent, RecordedLine
from margin_local.demo.mark_path import MarkPath
from tests.unit.local.recorder import BTC, Recorder, with_body, with_detail, with_event

if TYPE_CHECKING:
    from margin_local.demo.checks import Check

# 4 units at 1000 on 1000: liquidatable below (4000 - 1000) / (4 * 0.9), so at 833.33, not at 833.34.
LIQUIDATING, HEALTHY = "833.33", "833.34"
ETH = "ETH-PERP"


def sound() -> Recorder:
    """Account 1 is liquidated in part, account 2 trades with profit and stays open, account 3 only deposits."""
    recorder = Recorder()
    recorder.mark("1000")
    for account_id in (1, 2, 3):
        recorder.deposit(account_id, "1000")
    recorder.trade(1, "4", "1000")
    recorder.trade(2, "-3", "1000")
    recorder.mark(HEALTHY)
    recorder.trade(2, "1", HEALTHY)
    recorder.mark(LIQUIDATING)
    recorder.liquidate(1)
    recorder.mark("900")
    return recorder


@pytest.fixture
def recorder() -> Recorder:
    return sound()


@pytest.fixture
def evidence(recorder: Recorder) -> Evidence:
    return recorder.evidence()


@pytest.fixture
def path(recorder: Recorder) -> MarkPath:
    return recorder.path()


def assert_fails(check: Check, *words: str) -> None:
    assert not check.passed
    assert all(word in " ".join(check.failures) for word in words), check.failures


def test_everything_passes_on_what_a_sound_engine_records(evidence: Evidence, path: MarkPath) -> None:
    checks = every_check(evidence, path)
    assert [check.failures for check in checks] == [()] * 7
    assert "1 of 1 recomputed, 1 partial, 0 whole" in checks[2].figures
    # Account 1 at 1000 and 833.34, and what is left of it at two; account 2 at 1000 and 833.34, then at three.
    assert checks[3].figures.startswith("9 pairs")
    assert checks[4].figures == "0 settlements from the insurance fund, 0 deleveragings"
    assert "3 executed again" in checks[5].figures


# --- the ledger ---


def test_a_missing_ledger_line_fails(evidence: Evidence) -> None:
    tampered = dataclasses.replace(evidence, lines=evidence.lines[1:])
    assert_fails(ledger_sums_to_zero(tampered), "all lines together add up to", "of account 1 add up to")


def test_an_event_out_of_balance_fails_though_another_makes_up_for_it(evidence: Evidence) -> None:
    first, other = evidence.chains[1][0], evidence.chains[2][0]
    extra = (
        RecordedLine(1, first.event_id, "fees", Decimal("0.00000001")),
        RecordedLine(2, other.event_id, "fees", Decimal("-0.00000001")),
    )
    check = ledger_sums_to_zero(dataclasses.replace(evidence, lines=(*evidence.lines, *extra)))
    assert_fails(check, f"lines of event {first.event_id} of account 1 add up to 0.00000001")
    assert len(check.failures) == 2


def test_a_balance_that_is_not_the_accounts_cash_fails(evidence: Evidence) -> None:
    held = evidence.history[3]
    richer = dataclasses.replace(held, account=held.account.with_balance_change(Decimal(1)))
    tampered = dataclasses.replace(evidence, history={**evidence.history, 3: richer})
    assert_fails(ledger_sums_to_zero(tampered), "account 3 has a balance of 1001, but cash of 1000")


# --- the stores ---


def test_a_balance_that_differs_between_the_stores_fails(evidence: Evidence) -> None:
    row = evidence.redis[2]
    poorer = dataclasses.replace(row, account=row.account.with_balance_change(Decimal("-0.00000001")))
    assert_fails(stores_agree(dataclasses.replace(evidence, redis={**evidence.redis, 2: poorer})), "account 2")


@pytest.mark.parametrize("changed", [{"quantity": Decimal(-3)}, {"entry_cost": Decimal(-1999)}])
def test_a_position_that_differs_between_the_stores_fails(evidence: Evidence, changed: dict[str, Decimal]) -> None:
    row = evidence.redis[2]
    position = dataclasses.replace(row.account.positions[BTC], **changed)
    other = dataclasses.replace(row, account=row.account.with_position(BTC, position))
    assert_fails(stores_agree(dataclasses.replace(evidence, redis={**evidence.redis, 2: other})), "account 2")


def test_a_version_that_differs_between_the_stores_fails(evidence: Evidence) -> None:
    other = dataclasses.replace(evidence.redis[3], version="2:77")
    assert_fails(stores_agree(dataclasses.replace(evidence, redis={**evidence.redis, 3: other})), "is at 2:77 in Redis")


def test_an_account_that_one_store_lacks_fails(evidence: Evidence) -> None:
    without = {account_id: row for account_id, row in evidence.redis.items() if account_id != 1}
    assert_fails(stores_agree(dataclasses.replace(evidence, redis=without)), "account 1 is not in Redis")
    without = {account_id: row for account_id, row in evidence.history.items() if account_id != 1}
    assert_fails(stores_agree(dataclasses.replace(evidence, history=without)), "account 1 is not in PostgreSQL")


def test_events_that_wait_fail(evidence: Evidence) -> None:
    assert_fails(stores_agree(dataclasses.replace(evidence, waiting_accounts=2)), "2 accounts are not in PostgreSQL")


# --- liquidations ---


def of_two_symbols() -> Recorder:
    """Both prices fall together: account 1 loses the larger position whole and some of the other."""
    recorder = Recorder()
    recorder.mark_all({BTC: "1000", ETH: "100"})
    recorder.deposit(1, "1000")
    recorder.trade(1, "2", "1000")
    recorder.trade(1, "19", "100", symbol=ETH)
    recorder.mark_all({BTC: "800", ETH: "72"})
    recorder.liquidate(1)
    return recorder


def test_one_position_closed_whole_and_the_next_in_part_passes() -> None:
    recorder = of_two_symbols()
    positions = recorder.chains[1][-1].body["detail"]["positions"]
    assert [(one["symbol"], one["remaining"] == "0") for one in positions] == [(BTC, True), (ETH, False)]
    assert liquidations_were_due(recorder.evidence(), recorder.path()).passed
    assert none_was_missed(recorder.evidence(), recorder.path()).passed


def test_a_whole_liquidation_with_a_shortfall_passes() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark("700")
    recorder.liquidate(1)
    assert recorder.chains[1][-1].body["detail"]["shortfall"] == "200"
    check = liquidations_were_due(recorder.evidence(), recorder.path())
    assert (check.failures, "0 partial, 1 whole" in check.figures) == ((), True)


def test_a_position_closed_whole_because_too_little_would_be_left_passes() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "4")
    recorder.trade(1, "0.012", "1000")
    recorder.mark("730")
    recorder.liquidate(1)
    (closed,) = recorder.chains[1][-1].body["detail"]["positions"]
    assert (closed["remaining"], recorder.accounts[1].balance) == ("0", Decimal("0.76"))
    assert liquidations_were_due(recorder.evidence(), recorder.path()).passed


def test_a_liquidation_of_a_healthy_account_fails() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark("900")
    recorder.liquidate(1, at="800")
    # At 900 equity 600 is above 360. Its record is made to say 900, so that nothing but the comparison can find it.
    tampered = with_event(recorder.evidence(), 1, 3, lambda event: with_mark(event, price="900"))
    assert_fails(liquidations_were_due(tampered, recorder.path()), "equity 600 was not below 360")


def test_equity_of_exactly_the_maintenance_margin_is_not_below_it() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "750")
    recorder.trade(1, "-2", "1000")
    recorder.mark("1250")
    recorder.liquidate(1, at="1400")
    # E = 750 + 2000 - 2 * 1250 = 250, MM = 0.1 * 2 * 1250 = 250.
    tampered = with_event(recorder.evidence(), 1, 3, lambda event: with_mark(event, price="1250"))
    assert_fails(liquidations_were_due(tampered, recorder.path()), "equity 250 was not below 250")


@pytest.mark.parametrize("field", ["equity", "maintenance_margin", "equity_after", "maintenance_margin_after", "fee"])
def test_a_liquidation_recorded_with_another_figure_fails(evidence: Evidence, path: MarkPath, field: str) -> None:
    tampered = with_event(evidence, 1, 3, lambda event: with_detail(event, **{field: "333.3"}))
    assert_fails(liquidations_were_due(tampered, path), f"the {field} of the liquidation", "333.3 is recorded")


def test_a_liquidation_at_a_price_that_was_not_in_force_fails(recorder: Recorder) -> None:
    recorder.mark("1000")
    recorder.deposit(4, "1000")
    recorder.trade(4, "4", "1000")
    recorder.mark("990")
    recorder.liquidate(4, at="700")
    check = liquidations_were_due(recorder.evidence(), recorder.path())
    assert_fails(check, "account 4", "it was decided at BTC-PERP 700", "in force was 990")


def test_a_liquidation_at_the_price_of_an_earlier_step_fails_though_the_price_is_the_same() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark(LIQUIDATING)
    earlier_us = recorder.marks[-1].stamp_us
    recorder.mark(LIQUIDATING)
    recorder.liquidate(1)
    assert liquidations_were_due(recorder.evidence(), recorder.path()).passed
    tampered = with_event(recorder.evidence(), 1, 3, lambda event: with_mark(event, stamp_us=earlier_us))
    assert_fails(liquidations_were_due(tampered, recorder.path()), "it was decided at BTC-PERP 833.33 of")


def test_a_liquidation_that_leaves_less_than_the_target_fails() -> None:
    recorder = unevenly_liquidated(LiquidationPolicy(buffer=Decimal("0.09999999")))
    check = liquidations_were_due(as_if_by_default_policy(recorder), recorder.path())
    assert_fails(check, "it left equity", "below the target")


def test_a_liquidation_that_closes_more_than_needed_fails() -> None:
    recorder = unevenly_liquidated(LiquidationPolicy(buffer=Decimal("0.10000010")))
    check = liquidations_were_due(as_if_by_default_policy(recorder), recorder.path())
    assert_fails(check, "BTC-PERP, and could have left")


def test_a_liquidation_that_closes_whole_what_could_be_left_fails() -> None:
    recorder = unevenly_liquidated(LiquidationPolicy(remaining_notional_min=Decimal(100_000)))
    check = liquidations_were_due(as_if_by_default_policy(recorder), recorder.path())
    assert_fails(check, "it left 0 BTC-PERP, and could have left 0.012")


def test_a_liquidation_by_another_policy_than_the_engines_fails() -> None:
    recorder = unevenly_liquidated(LiquidationPolicy(buffer=Decimal("0.2")))
    assert_fails(
        liquidations_were_due(recorder.evidence(), recorder.path()), "decided by buffer 0.2 and least notional 10"
    )


def test_a_liquidation_that_begins_with_the_smaller_position_fails() -> None:
    recorder = of_two_symbols()
    (btc, eth) = recorder.chains[1][-1].body["detail"]["positions"]
    tampered = with_event(recorder.evidence(), 1, 4, lambda event: with_detail(event, positions=[eth, btc]))
    check = liquidations_were_due(tampered, recorder.path())
    assert_fails(check, "it closed ETH-PERP, BTC-PERP; by their maintenance margin BTC-PERP, ETH-PERP is the order")


def test_a_liquidation_that_closes_something_else_fails(evidence: Evidence, path: MarkPath) -> None:
    (closed,) = evidence.chains[1][-1].body["detail"]["positions"]
    for positions, words in (
        ([], "it closed nothing"),
        ([{**closed, "quantity": "1"}], "which is not what was held less what was closed"),
        ([closed, {**closed, "symbol": ETH}], "it closed ['ETH-PERP'], which were not held"),
    ):
        tampered = with_event(
            evidence, 1, 3, lambda event, positions=positions: with_detail(event, positions=positions)
        )
        assert_fails(liquidations_were_due(tampered, path), words)


def test_a_record_without_inputs_fails(evidence: Evidence, path: MarkPath) -> None:
    tampered = with_event(evidence, 1, 3, lambda event: with_detail(event, inputs=None))
    assert_fails(liquidations_were_due(tampered, path), "does not say what it was decided on")


def unevenly_liquidated(policy: LiquidationPolicy) -> Recorder:
    """Liquidate an account of one long by another policy than the engine's."""
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark(LIQUIDATING)
    recorder.liquidate(1, policy=policy)
    return recorder


def as_if_by_default_policy(recorder: Recorder) -> Evidence:
    """Let the record say that it was decided by the engine's policy."""
    told = {"buffer": "0.1", "remaining_notional_min": "10"}
    return with_event(recorder.evidence(), 1, 3, lambda event: with_inputs(event, **told))


def with_mark(event: RecordedEvent, **fields: object) -> RecordedEvent:
    """Change the mark that a liquidation says it was decided on."""
    (mark,) = event.body["detail"]["inputs"]["marks"].values()
    return with_inputs(event, marks={BTC: {**mark, **fields}})


def with_inputs(event: RecordedEvent, **fields: object) -> RecordedEvent:
    """Change what a liquidation says it was decided on."""
    return with_detail(event, inputs={**event.body["detail"]["inputs"], **fields})


# --- misses ---


def test_an_account_that_is_liquidatable_at_the_end_fails(recorder: Recorder) -> None:
    recorder.mark("1500")
    check = none_was_missed(recorder.evidence(), recorder.path())
    assert_fails(check, "account 2 was liquidatable at BTC-PERP 1500 (step 4)", "nothing followed")


def test_an_account_that_was_liquidatable_at_one_mark_in_between_fails(recorder: Recorder) -> None:
    recorder.mark("1500")
    recorder.mark("900")
    recorder.trade(2, "0.1", "900")
    assert_fails(none_was_missed(recorder.evidence(), recorder.path()), "account 2", "(step 4)", "followed was TRADE")


def test_a_liquidation_one_mark_late_fails() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark(LIQUIDATING)
    recorder.mark("833")
    recorder.liquidate(1)
    check = none_was_missed(recorder.evidence(), recorder.path())
    assert_fails(check, f"liquidatable at BTC-PERP {LIQUIDATING} (step 1)", "followed was LIQUIDATION")


def test_what_a_partial_liquidation_left_is_followed_on() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark(LIQUIDATING)
    recorder.liquidate(1)
    recorder.mark("820")
    recorder.mark("810")
    check = none_was_missed(recorder.evidence(), recorder.path())
    assert_fails(check, "account 1 was liquidatable at BTC-PERP 820 (step 2)", "nothing followed")


def test_a_warning_or_a_trade_before_the_liquidation_at_the_same_marks_is_no_miss() -> None:
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.trade(1, "4", "1000")
    recorder.mark(LIQUIDATING)
    recorder.deposit(1, "0.01")
    recorder.liquidate(1)
    check = none_was_missed(recorder.evidence(), recorder.path())
    assert check.passed, check.failures
    warned = with_event(recorder.evidence(), 1, 3, lambda event: dataclasses.replace(event, type="MARGIN_WARNING"))
    assert none_was_missed(warned, recorder.path()) == check


def test_what_only_the_last_scan_found_fails(evidence: Evidence, path: MarkPath) -> None:
    found = dataclasses.replace(evidence, scan=dataclasses.replace(evidence.scan, liquidated=[1]))
    assert_fails(none_was_missed(found, path), "account 1 was left to the scan")


def test_accounts_of_others_that_the_last_scan_found_do_not_matter(evidence: Evidence, path: MarkPath) -> None:
    found = dataclasses.replace(evidence, scan=dataclasses.replace(evidence.scan, liquidated=[99]))
    assert none_was_missed(found, path).passed


def test_an_account_that_the_index_could_miss_fails_whoevers_it_is(evidence: Evidence, path: MarkPath) -> None:
    found = dataclasses.replace(evidence, scan=dataclasses.replace(evidence.scan, missed=[99]))
    assert_fails(none_was_missed(found, path), "the index could have missed account 99")


@pytest.mark.parametrize("changed", [{"complete": False}, {"failed": 1}])
def test_a_last_scan_that_did_not_see_everybody_fails(
    evidence: Evidence, path: MarkPath, changed: dict[str, int]
) -> None:
    unfinished = dataclasses.replace(evidence, scan=dataclasses.replace(evidence.scan, **changed))
    assert_fails(none_was_missed(unfinished, path), "did not see all accounts")


def test_margin_is_judged_by_the_configured_instrument(recorder: Recorder) -> None:
    strict = Instrument(BTC, tiers=(Tier(None, Decimal("0.9"), Decimal("0.8")),))
    path = MarkPath(recorder.marks, {BTC: strict})
    assert_fails(none_was_missed(recorder.evidence(), path), "account 1 was liquidatable at BTC-PERP 1000 (step 0)")


# --- shortfalls ---


def paid() -> Recorder:
    """Account 1 leaves 200 unpaid at 700, from a bankruptcy price of 750; account 2's short is closed at that price."""
    recorder = Recorder()
    recorder.mark("1000")
    recorder.deposit(1, "1000")
    recorder.deposit(2, "9000")
    recorder.trade(1, "4", "1000")
    recorder.trade(2, "-5", "1000")
    recorder.mark("700")
    recorder.liquidate(1)
    recorder.deleverage(2, against=1, quantity="4", received="200")
    recorder.settle(1, "200")
    return recorder


def test_a_shortfall_paid_by_deleveraging_passes() -> None:
    recorder = paid()
    checks = every_check(recorder.evidence(), recorder.path())
    assert [check.failures for check in checks] == [()] * 7
    assert checks[4].figures == "1 settlements from the insurance fund, 1 deleveragings"


def test_more_paid_than_was_unpaid_fails() -> None:
    recorder = paid()
    recorder.settle(1, "0.01")
    assert_fails(shortfalls_were_paid_by_the_rules(recorder.evidence()), "200.01 were paid of liquidation")


def test_a_settlement_that_changes_its_account_fails() -> None:
    changed = with_event(paid().evidence(), 1, 4, lambda event: with_body(event, balance="200"))
    assert_fails(shortfalls_were_paid_by_the_rules(changed), "account 1", "a settlement changed its account")


def test_a_settlement_from_elsewhere_than_the_fund_fails() -> None:
    lines = [["external", "-200"], ["uncovered", "200"]]
    changed = with_event(paid().evidence(), 1, 4, lambda event: with_body(event, ledger=lines))
    assert_fails(shortfalls_were_paid_by_the_rules(changed), "a settlement of 200 has other ledger lines")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantity": "4"}, "which is no part of what was held"),
        ({"quantity": "-6"}, "which is no part of what was held"),
        ({"quantity": "-3"}, "it did not leave what closing -3 BTC-PERP at 750 leaves"),
        ({"price": "740"}, "it did not leave what closing -4 BTC-PERP at 740 leaves"),
    ],
)
def test_a_deleveraging_that_is_not_what_it_did_fails(fields: dict[str, str], words: str) -> None:
    evidence = paid().evidence()
    (closed,) = evidence.chains[2][-1].body["detail"]["positions"]
    changed = with_event(evidence, 2, 3, lambda event: with_detail(event, positions=[{**closed, **fields}]))
    assert_fails(shortfalls_were_paid_by_the_rules(changed), "account 2", words)


def test_a_deleveraging_where_the_debt_was_shared_anew_is_judged_by_that_price() -> None:
    evidence = paid().evidence()
    (bankrupt,) = evidence.chains[1][2].body["detail"]["positions"]
    shared = with_event(evidence, 2, 3, lambda event: with_detail(event, uncovered="200", shared_notional="2800"))
    nobody = [{**bankrupt, "bankruptcy_price": None}]
    shared = with_event(shared, 1, 3, lambda event: with_detail(event, positions=nobody))
    assert shortfalls_were_paid_by_the_rules(shared).passed
    other = with_event(shared, 2, 3, lambda event: with_detail(event, uncovered="240"))
    assert_fails(shortfalls_were_paid_by_the_rules(other), "account 2", "it closed at 750: bankruptcy price 760")


def test_a_deleveraging_for_no_liquidation_or_at_another_price_or_for_other_money_fails() -> None:
    evidence = paid().evidence()
    (bankrupt,) = evidence.chains[1][2].body["detail"]["positions"]
    for fields, words in (
        ({"bankruptcy_price": "760"}, "it closed at 750: bankruptcy price 760"),
        ({"bankruptcy_price": None}, "there was no bankruptcy price"),
        ({"quantity": "-4"}, "on the side of the liquidated one"),
        ({"price": "710"}, "the fund received 200 for -4 at a gap of 40"),
        ({"symbol": ETH}, "the liquidation that it was for closed no BTC-PERP"),
    ):
        positions = [{**bankrupt, **fields}]
        changed = with_event(evidence, 1, 3, lambda event, positions=positions: with_detail(event, positions=positions))
        assert_fails(shortfalls_were_paid_by_the_rules(changed), "account 2", words)
    changed = with_event(evidence, 2, 3, lambda event: with_detail(event, liquidation_id=5))
    assert_fails(shortfalls_were_paid_by_the_rules(changed), "there was no liquidation 5 of 1")
    others = with_event(evidence, 2, 3, lambda event: with_detail(event, liquidation_id=5, liquidated_account_id=99))
    assert shortfalls_were_paid_by_the_rules(others).passed


# --- trades ---


def test_a_trade_decided_at_a_mark_that_was_not_in_force_fails(evidence: Evidence, path: MarkPath) -> None:
    tampered = with_event(evidence, 2, 3, lambda event: with_detail(event, mark_price="1000"))
    assert_fails(trades_follow_the_rules(tampered, path), f"at mark price 1000, in force was {HEALTHY}")


def test_a_trade_that_the_rules_refuse_fails(evidence: Evidence, path: MarkPath) -> None:
    tampered = with_event(evidence, 1, 2, lambda event: with_detail(event, quantity="5.01"))
    assert_fails(trades_follow_the_rules(tampered, path), "the rules refuse it", "Required: 1002")


def test_a_trade_that_leaves_another_state_fails(evidence: Evidence, path: MarkPath) -> None:
    tampered = with_event(evidence, 1, 2, lambda event: with_detail(event, quantity="3.9"))
    assert_fails(trades_follow_the_rules(tampered, path), "it left 1000 with BTC-PERP 4 for 4000, by the rules it is")


def test_a_trade_with_other_ledger_lines_fails(evidence: Evidence, path: MarkPath) -> None:
    tampered = with_event(
        evidence, 2, 3, lambda event: dataclasses.replace(event, body={**event.body, "ledger": [["cash", "1"]]})
    )
    assert_fails(trades_follow_the_rules(tampered, path), "its ledger lines are not those of the rules")


# --- chains ---


def test_a_missing_event_fails(evidence: Evidence) -> None:
    shorter = dataclasses.replace(
        evidence, chains={**evidence.chains, 2: evidence.chains[2][:1] + evidence.chains[2][2:]}
    )
    assert_fails(chains_are_unbroken(shorter), "account 2: event 2 is missing")


def test_a_missing_last_event_fails(evidence: Evidence) -> None:
    shorter = dataclasses.replace(evidence, chains={**evidence.chains, 2: evidence.chains[2][:-1]})
    assert_fails(chains_are_unbroken(shorter), "account 2: its row is at 3:")


def test_an_account_without_events_fails(evidence: Evidence) -> None:
    without = {account_id: chain for account_id, chain in evidence.chains.items() if account_id != 3}
    assert_fails(chains_are_unbroken(dataclasses.replace(evidence, chains=without)), "account 3: it has no events")


def test_an_event_changed_afterwards_fails(evidence: Evidence) -> None:
    tampered = with_event(evidence, 3, 1, lambda event: with_detail(event, amount="1001"))
    assert_fails(chains_are_unbroken(tampered), "account 3: event 1 does not have the hash")


def test_an_event_that_names_another_predecessor_fails(evidence: Evidence) -> None:
    tampered = with_event(evidence, 2, 2, lambda event: dataclasses.replace(event, previous_event_id=1))
    assert_fails(chains_are_unbroken(tampered), "account 2: event 2 does not name the one before it")


def test_an_event_replaced_with_its_hash_breaks_the_next(recorder: Recorder, evidence: Evidence) -> None:
    forged = Recorder()
    forged.mark("1000")
    for account_id in (1, 2, 3):
        forged.deposit(account_id, "1000" if account_id != 2 else "2000")
    tampered = with_event(evidence, 2, 1, lambda _: forged.chains[2][0])
    assert_fails(chains_are_unbroken(tampered), "account 2: event 2 does not name the one before it")


def test_a_row_that_is_not_what_the_events_come_to_fails(evidence: Evidence) -> None:
    held = dataclasses.replace(evidence.history[1], account=Account(1, Decimal(5), {}))
    tampered = dataclasses.replace(evidence, history={**evidence.history, 1: held})
    assert_fails(chains_are_unbroken(tampered), "account 1: its row is 5 with no position")


def test_ledger_lines_that_the_event_does_not_state_fail(evidence: Evidence) -> None:
    swapped = tuple(
        dataclasses.replace(line, ledger_account="fees") if line.ledger_account == "house_pnl" else line
        for line in evidence.lines
    )
    check = chains_are_unbroken(dataclasses.replace(evidence, lines=swapped))
    assert_fails(check, "account 1: event 3 has other ledger lines", "account 2: event 3 has other ledger lines")
