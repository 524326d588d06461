"""An account that reaches the level of the warning is told once, and again only after it was below it."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.instrument import Instrument, Tier
from margin.domain.margin_warning import MarginWarnings
from margin.errors import PostgresUnavailableError, RedisUnavailableError
from margin.observability import MetricName, counted
from margin.services.journal import Journal
from margin.services.liquidation import LiquidationService, Verdict
from margin.services.margin_warning import MarginWarningService
from margin.services.scan import ScanService
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

DOWN = RedisUnavailableError("Redis is down.")


@pytest.fixture
async def warning() -> Exchange:
    """An exchange that warns at a utilisation of 80 %, where account 1 is long 1 at 50000 with a balance of 14000."""
    exchange = await Exchange(margin_warning_pct=80).open()
    await mark(exchange, "50000")
    await deposit(exchange, 1, "14000")
    await buy(exchange, 1, "1", "50000")
    return exchange


def _types(exchange: Exchange) -> Sequence[str]:
    return [link.body["type"] for link in exchange.history_store.chains[1]][2:]


def _details(exchange: Exchange) -> list[dict[str, Any]]:
    bodies = [link.body for link in exchange.history_store.chains[1]]
    return [body["detail"] for body in bodies if body["type"] == "MARGIN_WARNING"]


# At a mark p: E = p - 36000, MM = p / 10; utilisation is 80 % where 0.8 p - 28800 = 0.1 p, at 41142.857...


async def test_price_at_which_utilisation_is_not_above_the_level_warns_nobody(warning: Exchange) -> None:
    assert (await mark(warning, "41142.86")).at_risk == 0
    assert _types(warning) == []


async def test_price_that_takes_an_account_beyond_the_level_warns_it_and_changes_nothing_else(
    warning: Exchange,
) -> None:
    warnings = counted(MetricName.MARGIN_WARNINGS)
    before = warning.redis.accounts[1].account
    outcome = await mark(warning, "41142.85")
    assert (outcome.at_risk, outcome.liquidated) == (0, ())
    assert _types(warning) == ["MARGIN_WARNING"]
    assert warning.redis.accounts[1].account == before
    assert counted(MetricName.MARGIN_WARNINGS) - warnings == 1
    assert _details(warning) == [
        {
            "equity": "5142.85",
            "maintenance_margin": "4114.285",
            "margin_utilisation_pct": "80",
            "warning_pct": "80",
            "marks": {BTC: "41142.85"},
        }
    ]


async def test_warned_account_is_left_alone_until_it_is_liquidated(warning: Exchange) -> None:
    await mark(warning, "41000")
    assert (await mark(warning, "40000.01")).at_risk == 0
    assert (await mark(warning, "39999")).liquidated == (1,)
    assert _types(warning) == ["MARGIN_WARNING", "LIQUIDATION"]


async def test_account_that_a_gap_takes_to_liquidation_needs_no_warning_before_or_after(warning: Exchange) -> None:
    assert (await mark(warning, "39000")).liquidated == (1,)
    # 90.9 % is what the liquidation left it with.
    assert (await mark(warning, "39000")).at_risk == 0
    assert _types(warning) == ["LIQUIDATION"]


async def test_account_is_warned_again_after_a_deposit_took_it_below_the_level(warning: Exchange) -> None:
    await mark(warning, "41000")
    await deposit(warning, 1, "1000")
    await mark(warning, "40100")
    assert _types(warning) == ["MARGIN_WARNING", "DEPOSIT"]
    await mark(warning, "39900")
    assert _types(warning) == ["MARGIN_WARNING", "DEPOSIT", "MARGIN_WARNING"]


async def test_deposit_that_leaves_it_beyond_the_level_brings_no_second_warning(warning: Exchange) -> None:
    await mark(warning, "41000")
    await deposit(warning, 1, "0.01")
    assert (await mark(warning, "40990")).at_risk == 0
    assert _types(warning) == ["MARGIN_WARNING", "DEPOSIT"]


async def test_evaluation_after_the_price_recovered_makes_it_warnable_again(warning: Exchange) -> None:
    await mark(warning, "41000")
    await mark(warning, "45000")
    assert await warning.liquidations.evaluate(1) is Verdict.ANCHORED
    await mark(warning, "41000")
    assert _types(warning) == ["MARGIN_WARNING", "MARGIN_WARNING"]


async def test_account_that_a_trade_takes_beyond_the_level_is_warned_by_the_scan() -> None:
    exchange = await Exchange(margin_warning_pct=80).open()
    tight = Instrument(BTC, (Tier(None, Decimal("0.11"), Decimal("0.10")),), version=1)
    exchange.redis.instruments[BTC] = tight
    await mark(exchange, "50000")
    await deposit(exchange, 1, "5500")
    await buy(exchange, 1, "1", "50000")
    await exchange.scans.scan()
    assert [link.body["type"] for link in exchange.history_store.chains[1]][1:] == ["TRADE", "MARGIN_WARNING"]


async def test_many_at_once_warn_once(warning: Exchange) -> None:
    await warning.market.set_marks({BTC: Decimal(41000)}, crossed_max=0)
    warned = await asyncio.gather(*(warning.warnings.warn(1) for _ in range(10)))
    assert any(warned)
    assert _types(warning) == ["MARGIN_WARNING"]


async def test_lost_reply_of_a_warning_is_settled_and_it_is_given_once(warning: Exchange) -> None:
    warning.faults.fail("accounts.commit.after", DOWN)
    await mark(warning, "41000")
    assert _types(warning) == ["MARGIN_WARNING"]
    assert (await mark(warning, "41000")).at_risk == 0


async def test_price_that_falls_further_while_it_is_warned_still_liquidates(warning: Exchange) -> None:
    async def fall() -> None:
        await mark(warning, "39000")

    warning.faults.call("accounts.commit.before", fall)
    assert (await mark(warning, "41000")).liquidated == ()
    assert _types(warning) == ["LIQUIDATION"]


async def test_account_that_falls_further_before_it_is_warned_is_left_to_liquidation(warning: Exchange) -> None:
    warning.faults.call("accounts.read.before", lambda: warning.market.set_marks({BTC: Decimal(39000)}, crossed_max=0))
    await mark(warning, "41000")
    assert _types(warning) == []
    assert (await warning.scans.scan()).liquidated == [1]


async def test_warning_that_history_cannot_take_hinders_no_evaluation(warning: Exchange) -> None:
    warning.faults.fail("history.reserve.before", PostgresUnavailableError("PostgreSQL is down."))
    assert (await mark(warning, "41000")).at_risk == 0
    assert _types(warning) == []
    assert (await warning.scans.scan()).warned == 1
    assert _types(warning) == ["MARGIN_WARNING"]


async def test_many_who_are_to_be_warned_do_not_stand_before_one_who_is_to_be_liquidated() -> None:
    exchange = await Exchange(margin_warning_pct=80, crossed_inline_max=1, crossed_queued_max=100).open()
    await mark(exchange, "50000")
    # The one who was warned before has its trigger further down than the others have theirs.
    for account_id in range(1, 12):
        await deposit(exchange, account_id, "14000" if account_id == 1 else "14900")
        await buy(exchange, account_id, "1", "50000")
    await mark(exchange, "41000")
    outcome = await mark(exchange, "39900")
    assert (outcome.at_risk, outcome.liquidated) == (1, (1,))
    warned = [chain[-1].body["type"] for number, chain in exchange.history_store.chains.items() if number > 1]
    assert warned == ["MARGIN_WARNING"] * 10


async def test_price_that_trembles_around_the_level_warns_once(warning: Exchange) -> None:
    for _ in range(3):
        await mark(warning, "41100")
        await deposit(warning, 1, "0.00000001")
        await mark(warning, "41200")
        await deposit(warning, 1, "0.00000001")
    assert _types(warning).count("MARGIN_WARNING") == 1


async def test_sweep_makes_an_account_that_recovered_by_price_alone_warnable_again(warning: Exchange) -> None:
    await mark(warning, "41000")
    await mark(warning, "60000")
    report = await warning.scans.scan()
    assert (report.missed, report.warned) == ([], 0)
    await mark(warning, "41000")
    assert _types(warning) == ["MARGIN_WARNING", "MARGIN_WARNING"]


async def test_sweep_brings_accounts_to_a_level_that_is_new() -> None:
    exchange = await Exchange(margin_warning_pct=100).open()
    await mark(exchange, "50000")
    await deposit(exchange, 1, "14000")
    await buy(exchange, 1, "1", "50000")
    await mark(exchange, "41000")
    level, accounts, market = MarginWarnings(Decimal(80)), exchange.accounts, exchange.market
    journal = Journal(accounts, exchange.history_store, exchange.healing, idempotency_ttl_s=3600, warnings=level)
    liquidations = LiquidationService(accounts, market, journal, warnings=level)
    warnings = MarginWarningService(accounts, journal, level, liquidations)
    assert _types(exchange) == []
    assert (await ScanService(accounts, market, liquidations, warnings, sweep_cycle_s=0).scan()).warned == 1
    assert exchange.redis.warned == {1}


async def test_symbol_whose_own_rate_is_the_level_is_anchored_to_liquidation() -> None:
    exchange = await Exchange(margin_warning_pct=80).open()
    exchange.redis.instruments[BTC] = Instrument(BTC, (Tier(None, Decimal("0.9"), Decimal("0.8")),), version=1)
    await mark(exchange, "50000")
    await deposit(exchange, 1, "45000")
    await buy(exchange, 1, "1", "50000")
    await mark(exchange, "30000")
    assert [link.body["type"] for link in exchange.history_store.chains[1]][1:] == ["TRADE"]
    assert (await mark(exchange, "24999")).liquidated == (1,)


async def test_stale_mark_warns_nobody(warning: Exchange) -> None:
    await mark(warning, "2000", ETH)
    await sell(warning, 1, "1", "2000", symbol=ETH)
    warning.redis.instruments[ETH] = Instrument(ETH, mark_max_age_s=10, version=1)
    warning.clock.advance(11)
    await mark(warning, "41100")
    assert _types(warning) == ["TRADE"]


@pytest.mark.parametrize("pct", ["0", "-1", "100.00000001"])
def test_level_is_above_zero_and_at_most_where_liquidation_begins(pct: str) -> None:
    with pytest.raises(ValueError, match="above 0 %"):
        MarginWarnings(Decimal(pct))
