"""Joint price paths with gaps: at every step the triggers find exactly those whom a look at everybody finds.

``make faults`` walks the same paths with 10,000 accounts and 1,000 steps.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.account import Account
from margin.domain.instrument import Instrument
from margin.domain.margin_warning import MarginWarnings
from margin.domain.market import Mark, Market
from margin.domain.risk import assess
from margin.domain.safe_zone import Trigger, triggers
from tests.property.joint_paths import PRICES, RARE, TABLES, JointPath, Walk
from tests.property.prepared_accounts import PreparedAccounts
from tests.property.strategies import NOW_US, position_at
from tests.property.trigger_indexes import excess, freezing_the_others, rounding_the_wrong_way

if TYPE_CHECKING:
    from tests.property.trigger_indexes import Index

ACCOUNTS = 200
STEPS = 100


def _walked(seed: int, index: Index) -> JointPath:
    path = JointPath(Walk(seed=seed, accounts=ACCOUNTS, steps=STEPS), index)
    for tally in path.steps():
        assert tally.evaluations == tally.steps * ACCOUNTS
    assert path.tally.steps == STEPS
    assert path.tally.below_margin > ACCOUNTS, "a path must also ruin many"
    assert path.tally.partly > ACCOUNTS / 4
    return path


@pytest.mark.parametrize("seed", range(8))
def test_triggers_find_exactly_those_whom_a_look_at_everybody_finds(seed: int) -> None:
    assert _walked(seed, triggers).tally.missed == []


def _warning_at_80_pct(account: Account, market: Market) -> dict[str, Trigger]:
    """Triggers of an account that was not warned: at the level of the warning, which comes before liquidation."""
    found, _ = MarginWarnings(Decimal(80)).triggers(account, market, warned=False)
    return found


def test_triggers_at_the_level_of_warnings_miss_no_liquidation_either() -> None:
    path = _walked(4, _warning_at_80_pct)
    assert path.tally.missed == []
    assert path.tally.crossed > _walked(4, triggers).tally.crossed


@pytest.mark.parametrize("index", [freezing_the_others, rounding_the_wrong_way])
def test_wrong_index_misses_accounts_on_the_same_paths(index: Index) -> None:
    assert _walked(4, index).tally.missed


def test_a_look_at_everybody_is_the_engines_assessment_of_each() -> None:
    path = JointPath(Walk(seed=9, accounts=ACCOUNTS, steps=30))
    below = 0
    for _ in path.steps():
        found = path.below_margin()
        for account_id in path.accounts:
            prepared, assessed = path.slack_is(account_id)
            assert prepared == assessed == (account_id in found)
        path._move()
        found = path.below_margin()
        for account_id in path.accounts:
            prepared, assessed = path.slack_is(account_id)
            assert prepared == assessed == (account_id in found)
        below += len(found)
    assert below > ACCOUNTS / 4


@pytest.mark.parametrize("tiers", TABLES)
@pytest.mark.parametrize("quantity", ["-1.5", "0.4", "0.40000001", "0.39999999", "1.2", "1.20000001", "7"])
def test_prepared_slack_is_exact_in_every_tier_and_at_their_caps(tiers: tuple[object, ...], quantity: str) -> None:
    price = Decimal(50000)
    instruments = {symbol: Instrument(symbol, tiers) for symbol in PRICES}  # type: ignore[arg-type]
    held = {"BTC": position_at("BTC", Decimal(quantity), price, Decimal("0.0000000000000007"))}
    held[RARE] = position_at(RARE, Decimal("-0.00000003"), Decimal(PRICES[RARE]))
    account = Account(1, Decimal("-12.00000001"), held)
    marks = {symbol: Mark(Decimal(text), NOW_US) for symbol, text in PRICES.items()}
    market = Market(marks, instruments, NOW_US)
    prepared = PreparedAccounts(instruments)
    prepared.put(account)
    for btc in ("50000", "0.00000001", "49999.99999999", "171428.57142857"):
        prices = {**{symbol: mark.price for symbol, mark in marks.items()}, "BTC": Decimal(btc)}
        slack = prepared.slack(1, prices)
        assert slack == excess(account, market, prices)
        risk = assess(account, Market({s: Mark(p, NOW_US) for s, p in prices.items()}, instruments, NOW_US))
        assert (slack < 0) == risk.liquidatable == (prepared.below_margin(prices) == {1})


def test_an_account_at_the_line_is_not_below_it_and_one_unit_less_is() -> None:
    instruments = {symbol: Instrument(symbol, TABLES[0]) for symbol in PRICES}
    prepared = PreparedAccounts(instruments)
    prices = {symbol: Decimal(text) for symbol, text in PRICES.items()}
    held = {"BTC": position_at("BTC", Decimal(1), Decimal(50000))}
    prepared.put(Account(1, Decimal(5000), held))
    prepared.put(Account(2, Decimal("4999.99999999"), held))
    assert prepared.below_margin(prices) == {2}
