"""Stress tests over all accounts, on stores in memory; and that report and positions name whom a liquidation closes."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from margin.domain.instrument import Instrument
from margin.domain.liquidation import LiquidationPolicy
from margin.domain.market import Mark
from margin.errors import (
    LimitExceededError,
    NoMarkPriceError,
    PostgresUnavailableError,
    RedisUnavailableError,
    StateNotLoadedError,
)
from margin.services.liquidation import Verdict
from margin.services.stress import LADDER_MOVES, Shock, StressService
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

CRASH = Shock("crash", {BTC: Decimal("-0.3"), ETH: Decimal("-0.4")})
CRASH_OF_ONE = Shock("crash", {BTC: Decimal("-0.3")})
FEE_CAP = Decimal("0.01")


@pytest.fixture
async def filled(exchange: Exchange) -> Exchange:
    """Return an exchange at 50000 and 2500: account 1 long, 2 short, 3 long in both, 4 without a position."""
    exchange.redis.instruments[BTC] = Instrument(BTC, liquidation_fee_cap=FEE_CAP, version=1)
    await mark(exchange, "50000")
    await mark(exchange, "2500", ETH)
    for account_id, balance in ((1, "15000"), (2, "15000"), (3, "30000"), (4, "10")):
        await deposit(exchange, account_id, balance)
    await buy(exchange, 1, "1", "50000")
    await sell(exchange, 2, "1", "50000")
    await buy(exchange, 3, "1", "50000")
    await buy(exchange, 3, "20", "2500", symbol=ETH)
    return exchange


async def _liquidated_by(exchange: Exchange, prices: dict[str, Decimal]) -> tuple[int, dict[str, Decimal]]:
    """Set prices on the exchange; how many that liquidates, and what is booked to the house's ledger accounts."""
    outcome = await exchange.marks.set_marks(prices)
    links = [link for chain in exchange.history_store.chains.values() for link in chain]
    booked: dict[str, Decimal] = {}
    for link in links:
        for name, amount in link.body["ledger"]:
            booked[name] = booked.get(name, Decimal(0)) + Decimal(amount)
    return len(outcome.liquidated), booked


async def test_ladder_goes_from_the_deepest_fall_to_the_highest_rise(filled: Exchange) -> None:
    ladder = await filled.stress.ladder(BTC)
    assert (ladder.symbol, ladder.mark_price) == (BTC, 50000)
    assert (ladder.report.as_of_us, ladder.report.accounts, ladder.report.fund_balance) == (filled.clock.now_us, 4, 0)
    assert [step.shock.moves[BTC] for step in ladder.report.shocks] == sorted(LADDER_MOVES)
    assert [step.prices[BTC] for step in ladder.report.shocks] == [50000 * (1 + move) for move in LADDER_MOVES]
    assert len(ladder.report.shocks) == 23
    counts = {step.shock.moves[BTC]: step.outcome.accounts for step in ladder.report.shocks}
    assert {move: count for move, count in counts.items() if count} == {
        Decimal("-0.5"): 2,
        **dict.fromkeys(map(Decimal, ("-0.4", "-0.3", "-0.25")), 1),
        **dict.fromkeys(map(Decimal, ("0.2", "0.25", "0.3", "0.4", "0.5")), 1),
    }


@pytest.mark.parametrize("move", ["-0.5", "-0.4", "-0.25", "-0.2", "0", "0.2", "0.5"])
async def test_step_of_the_ladder_is_what_happens_when_the_price_is_set(filled: Exchange, move: str) -> None:
    ladder = await filled.stress.ladder(BTC)
    (step,) = (step for step in ladder.report.shocks if step.shock.moves[BTC] == Decimal(move))
    liquidated, booked = await _liquidated_by(filled, dict(step.prices))
    assert step.outcome.accounts == liquidated
    assert step.outcome.fees == booked.get("insurance", 0)
    assert step.outcome.shortfall == -booked.get("uncovered", Decimal(0))


async def test_shock_is_what_happens_when_the_prices_are_set_together(filled: Exchange) -> None:
    report = await filled.stress.shocks([CRASH])
    (crash,) = report.shocks
    assert (crash.shock, crash.prices) == (CRASH, {BTC: 35000, ETH: 1500})
    liquidated, booked = await _liquidated_by(filled, dict(crash.prices))
    assert (crash.outcome.accounts, liquidated) == (2, 2)
    assert crash.outcome.shortfall == -booked["uncovered"] > 0
    assert crash.outcome.fees == booked.get("insurance", 0)


async def test_shocks_are_taken_each_by_itself_and_answered_in_order(filled: Exchange) -> None:
    rise = Shock("rise", {BTC: Decimal("0.5")})
    together = await filled.stress.shocks([rise, CRASH, rise])
    alone = [(await filled.stress.shocks([shock])).shocks[0] for shock in (rise, CRASH, rise)]
    assert list(together.shocks) == alone


async def test_fund_suffices_from_what_it_has_and_the_fees(filled: Exchange) -> None:
    # A liquidation that leaves an account something pays a fee into the fund.
    await deposit(filled, 5, "14900")
    await sell(filled, 5, "1", "50000")
    assert set((await mark(filled, "59500")).liquidated) == {2, 5}
    await mark(filled, "50000")
    ladder = await filled.stress.ladder(BTC)
    balance = ladder.report.fund_balance
    assert balance > 0
    for step in ladder.report.shocks:
        missing = step.outcome.shortfall - step.outcome.fees - balance
        assert (step.fund_suffices, step.fund_missing) == (missing <= 0, max(0, missing))
    assert {step.fund_suffices for step in ladder.report.shocks} == {True, False}


async def test_stress_test_reads_only(filled: Exchange) -> None:
    before = (filled.redis.save(), filled.history_store.chains)
    await filled.stress.ladder(BTC)
    await filled.stress.shocks([CRASH])
    assert (filled.redis.save(), filled.history_store.chains) == before


async def test_policy_is_that_of_the_liquidations(filled: Exchange) -> None:
    closing_all = LiquidationPolicy(remaining_notional_min=Decimal(10**6))
    service = StressService(filled.accounts, filled.market, filled.history_store, closing_all, accounts_max=10)
    rise = Shock("rise", {BTC: Decimal("0.2")})
    partly, whole = [(await stress.shocks([rise])).shocks[0].outcome.notional for stress in (filled.stress, service)]
    assert partly < whole == 60000


async def _others_turns(turns: list[int]) -> None:
    while True:
        turns[0] += 1
        await asyncio.sleep(0)


@pytest.mark.parametrize("turn_s", [0.0, 3600.0])
async def test_others_have_their_turn_within_a_page_of_accounts(turn_s: float) -> None:
    exchange = await Exchange(page_size=100).open()
    await mark(exchange, "50000")
    for account_id in range(1, 31):
        await deposit(exchange, account_id, "1")
    stress = StressService(
        exchange.accounts,
        exchange.market,
        exchange.history_store,
        LiquidationPolicy(),
        accounts_max=30,
        turn_s=turn_s,
    )
    turns = [0]
    others = asyncio.create_task(_others_turns(turns))
    report = await stress.shocks([CRASH_OF_ONE])
    others.cancel()
    assert report.accounts == 30
    assert (turns[0] >= 30) is (turn_s == 0)


@pytest.mark.parametrize("begun", [0, 1, 5])
async def test_test_that_is_out_of_time_is_refused_and_says_how_far_it_got(begun: int) -> None:
    exchange = await Exchange(page_size=1).open()
    await mark(exchange, "50000")
    for account_id in range(1, 8):
        await deposit(exchange, account_id, "1")
    for run in (exchange.stress.ladder, exchange.stress.shocks):
        looks = iter([True] * begun)
        asked_for: Any = BTC if run == exchange.stress.ladder else [CRASH_OF_ONE]
        with pytest.raises(LimitExceededError, match=f"after {begun} accounts"):
            await run(asked_for, keep_going=lambda looks=looks: next(looks, False))


async def test_test_that_is_out_of_time_within_a_page_is_refused() -> None:
    exchange = await Exchange(page_size=100).open()
    await mark(exchange, "50000")
    for account_id in range(1, 8):
        await deposit(exchange, account_id, "1")
    stress = StressService(
        exchange.accounts, exchange.market, exchange.history_store, LiquidationPolicy(), accounts_max=30, turn_s=0
    )
    looks = iter([True] * 4)
    with pytest.raises(LimitExceededError, match="after 4 accounts"):
        await stress.shocks([CRASH_OF_ONE], keep_going=lambda: next(looks, False))


@pytest.mark.parametrize("symbol", ["SOL-PERP", "NOTHING"])
async def test_symbol_without_a_mark_is_refused(filled: Exchange, symbol: str) -> None:
    with pytest.raises(NoMarkPriceError):
        await filled.stress.ladder(symbol)
    with pytest.raises(NoMarkPriceError):
        await filled.stress.shocks([Shock("crash", {BTC: Decimal("-0.1"), symbol: Decimal("-0.1")})])


async def test_position_without_a_mark_is_refused(filled: Exchange) -> None:
    del filled.redis.marks[ETH]
    with pytest.raises(NoMarkPriceError):
        await filled.stress.ladder(BTC)


async def test_more_accounts_than_are_covered_are_refused_and_not_left_out() -> None:
    exchange = await Exchange(report_accounts_max=3).open()
    await mark(exchange, "50000")
    for account_id in range(1, 4):
        await deposit(exchange, account_id, "1")
    assert (await exchange.stress.ladder(BTC)).report.accounts == 3
    await deposit(exchange, 4, "1")
    with pytest.raises(LimitExceededError):
        await exchange.stress.ladder(BTC)
    with pytest.raises(LimitExceededError):
        await exchange.stress.shocks([Shock("crash", {BTC: Decimal("-0.1")})])


async def test_all_partitions_are_covered() -> None:
    exchange = await Exchange(partitions=3, page_size=1).open()
    await mark(exchange, "50000")
    for account_id in range(1, 8):
        await deposit(exchange, account_id, "15000")
        await buy(exchange, account_id, "1", "50000")
    steps = (await exchange.stress.ladder(BTC)).report.shocks
    assert (steps[0].outcome.accounts, steps[0].outcome.shortfall, steps[-1].outcome.accounts) == (7, 70000, 0)


async def test_account_that_a_page_names_twice_counts_once(filled: Exchange) -> None:
    class Twice(type(filled.accounts)):  # type: ignore[misc]
        async def page(self, partition: int, cursor: str) -> Any:
            page = await super().page(partition, cursor)
            return type(page)(page.cursor, page.rows * 2)

    service = StressService(
        Twice(filled.redis), filled.market, filled.history_store, LiquidationPolicy(), accounts_max=4
    )
    assert await service.shocks([CRASH]) == await filled.stress.shocks([CRASH])


async def test_exchange_without_accounts_has_nothing_to_lose(exchange: Exchange) -> None:
    await mark(exchange, "50000")
    steps = (await exchange.stress.ladder(BTC)).report.shocks
    assert {(step.outcome.accounts, step.fund_suffices, step.fund_missing) for step in steps} == {(0, True, 0)}


@pytest.mark.parametrize("step", ["market", "accounts.page", "history.ledger_sums"])
async def test_stress_test_without_a_store_fails(filled: Exchange, step: str) -> None:
    error = PostgresUnavailableError("down") if step.startswith("history") else RedisUnavailableError("down")
    filled.faults.take_down(step, error)
    with pytest.raises(type(error)):
        await filled.stress.ladder(BTC)


async def test_stress_test_on_a_state_that_is_not_loaded_fails(filled: Exchange) -> None:
    filled.redis.markers.clear()
    with pytest.raises(StateNotLoadedError):
        await filled.stress.ladder(BTC)


@pytest.mark.parametrize(
    ("price", "eth_age_s", "btc_age_s"),
    [
        ("40000", 0, 0),
        ("39999", 0, 0),
        ("37000", 0, 0),
        # Below its margin at the marks, and not with the benefit of the doubt.
        ("37000", 11, 0),
        # Below it with the benefit of the doubt too, and part of it can be closed.
        ("30000", 11, 0),
        # And nothing can be closed.
        ("20000", 11, 11),
        ("20000", 0, 11),
    ],
)
async def test_report_and_positions_name_whom_the_engine_liquidates(
    exchange: Exchange, price: str, eth_age_s: int, btc_age_s: int
) -> None:
    for symbol in (BTC, ETH):
        exchange.redis.instruments[symbol] = Instrument(symbol, mark_max_age_s=10, version=1)
    await mark(exchange, "50000")
    await mark(exchange, "2500", ETH)
    await deposit(exchange, 1, "14250")
    await buy(exchange, 1, "1", "50000")
    await buy(exchange, 1, "1", "2500", symbol=ETH)
    # Set past everything that evaluates accounts.
    now_us = exchange.clock.now_us
    exchange.redis.marks[BTC] = Mark(Decimal(price), now_us - btc_age_s * 1_000_000)
    exchange.redis.marks[ETH] = Mark(Decimal(2500), now_us - eth_age_s * 1_000_000)
    positions = await exchange.margin.account_margin(1)
    report = await exchange.report.page(limit=1, cursor=None)
    verdict = await exchange.liquidations.evaluate(1)
    is_liquidated = verdict is Verdict.LIQUIDATED
    assert positions.liquidation_risk is is_liquidated
    assert report.liquidation_candidates == ([1] if is_liquidated else [])
    assert report.rows[0]["liquidation_risk"] is is_liquidated
