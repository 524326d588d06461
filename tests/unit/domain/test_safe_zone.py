from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from margin.domain.funding import Funding
from margin.domain.instrument import Instrument
from margin.domain.safe_zone import Trigger, TriggerSide, covers, triggers
from tests.unit.domain.books import BTC, ETH, TWO_TIERS, account, market, position


def above(exact: Fraction) -> float:
    nearest = float(exact)
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)


def below(exact: Fraction) -> float:
    return -above(-exact)


def test_trigger_of_a_single_long_is_its_liquidation_price_rounded_up() -> None:
    # H = 5000, slope 0.9: 50000 - 5000 / 0.9 = 44444.444...
    found = triggers(account("10000", position(BTC, "1", "50000")), market("50000"))
    assert found == {BTC: Trigger(BTC, TriggerSide.FLOOR, above(Fraction(400000, 9)))}
    assert Fraction(found[BTC].score) >= Fraction(400000, 9)


def test_trigger_of_a_single_short_is_its_liquidation_price_rounded_down() -> None:
    # H = 5000, slope 1.1: 50000 + 5000 / 1.1 = 54545.454...
    found = triggers(account("10000", position(BTC, "-1", "50000")), market("50000"))
    assert found == {BTC: Trigger(BTC, TriggerSide.CEILING, below(Fraction(600000, 11)))}
    assert Fraction(found[BTC].score) <= Fraction(600000, 11)


def test_slack_is_split_in_proportion_to_slope_times_price() -> None:
    held = account("20000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    # H = 20000 - 8000, S = 0.9 * 50000 + 1.1 * 30000: both may move by 12000 / 78000 = 2 / 13.
    assert triggers(held, market("50000", "3000")) == {
        BTC: Trigger(BTC, TriggerSide.FLOOR, above(Fraction(50000 * 11, 13))),
        ETH: Trigger(ETH, TriggerSide.CEILING, below(Fraction(3000 * 15, 13))),
    }


@pytest.mark.parametrize(
    ("quantity", "score"),
    [
        # H = 10000 - 4500. A long may fall by 5500 / 0.95, a short rise by 5500 / 1.1.
        ("1", above(50000 - Fraction(5500 * 100, 95))),
        ("-1", 55000.0),
    ],
)
def test_tiers_take_the_slope_that_hurts_most(quantity: str, score: float) -> None:
    held = account("10000", position(BTC, quantity, "50000"))
    assert triggers(held, market("50000", None, Instrument(BTC, TWO_TIERS)))[BTC].score == score


@pytest.mark.parametrize(
    ("balance", "score"), [("50000", 0.0), ("59000", -10000.0), ("49999.99999999", above(Fraction(1, 9 * 10**7)))]
)
def test_floor_that_no_price_reaches_is_kept_as_funding_may_move_it_to_one(balance: str, score: float) -> None:
    assert triggers(account(balance, position(BTC, "1", "50000")), market("50000"))[BTC].score == score


def test_account_at_its_limit_is_crossed_at_the_present_marks() -> None:
    held = account("8000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    found = triggers(held, market("50000", "3000"))
    assert (found[BTC].score, found[ETH].score) == (50000.0, 3000.0)
    assert found[BTC].is_crossed(Decimal(50000))
    assert found[ETH].is_crossed(Decimal(3000))


def always_crossed() -> dict[str, Trigger]:
    return {
        BTC: Trigger(BTC, TriggerSide.FLOOR, math.inf),
        ETH: Trigger(ETH, TriggerSide.CEILING, -math.inf),
    }


def test_liquidatable_account_is_crossed_at_any_price() -> None:
    held = account("7999.99999999", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    assert triggers(held, market("50000", "3000")) == always_crossed()


def test_missing_or_stale_mark_makes_every_trigger_crossed_at_any_price() -> None:
    held = account("100000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    limited = Instrument(BTC, mark_max_age_s=30)
    assert triggers(held, market("50000")) == always_crossed()
    assert triggers(held, market("50000", "3000", limited, btc_age_s=31)) == always_crossed()
    assert triggers(held, market("50000", "3000", limited, btc_age_s=30)) != always_crossed()
    assert triggers(held, replace(market("50000", "3000"), waiting={BTC: Decimal(1)})) == always_crossed()


def test_account_without_positions_has_no_triggers() -> None:
    assert triggers(account("0"), market()) == {}


@pytest.mark.parametrize(
    ("side", "score", "price", "crossed"),
    [
        (TriggerSide.FLOOR, 100.5, "100.5", True),
        (TriggerSide.FLOOR, 100.5, "100.50000001", False),
        (TriggerSide.FLOOR, 100.5, "100.49999999", True),
        (TriggerSide.CEILING, 100.5, "100.5", True),
        (TriggerSide.CEILING, 100.5, "100.49999999", False),
        (TriggerSide.CEILING, 100.5, "100.50000001", True),
        (TriggerSide.FLOOR, -math.inf, "0.00000001", False),
        (TriggerSide.FLOOR, math.inf, "999999999999", True),
        (TriggerSide.CEILING, -math.inf, "0.00000001", True),
    ],
)
def test_crossing_includes_the_trigger_itself(side: TriggerSide, score: float, price: str, *, crossed: bool) -> None:
    assert Trigger(BTC, side, score).is_crossed(Decimal(price)) is crossed


def floor(score: float, symbol: str = BTC) -> dict[str, Trigger]:
    return {symbol: Trigger(symbol, TriggerSide.FLOOR, score)}


def ceiling(score: float, symbol: str = ETH) -> dict[str, Trigger]:
    return {symbol: Trigger(symbol, TriggerSide.CEILING, score)}


@pytest.mark.parametrize(
    ("balance", "held", "covered"),
    [
        # 0.9 * 44444.5 - 40000 = 0.05 and a little less 1 below.
        ("10000", floor(44444.5), True),
        ("10000", floor(44444.0), False),
        ("10000", floor(60000.0), True),
        ("10000", floor(math.inf), True),
        ("10000", floor(-math.inf), False),
        ("49999.99999999", floor(-math.inf), False),
        ("50000", floor(-math.inf), True),
        ("50000", floor(0.0), True),
        # Funding may cost 9999.99 before a price of 0 matters: 0.9 * -11111.1 - 50000 + 60000 > 0.
        ("60000", floor(-11111.1), True),
        ("60000", floor(-11111.2), False),
        ("10000", {}, False),
        ("10000", ceiling(60000.0, BTC), False),
        ("10000", ceiling(-math.inf, BTC), False),
    ],
)
def test_long_is_covered_by_a_floor_at_which_it_still_has_its_maintenance_margin(
    balance: str, held: dict[str, Trigger], *, covered: bool
) -> None:
    assert covers(account(balance, position(BTC, "1", "50000")), market(), held) is covered


@pytest.mark.parametrize(
    ("score", "covered"), [(54545.4, True), (54545.5, False), (math.inf, False), (-math.inf, True), (1.0, True)]
)
def test_short_is_covered_by_a_ceiling_at_which_it_still_has_its_maintenance_margin(
    score: float, *, covered: bool
) -> None:
    assert covers(account("10000", position(ETH, "-1", "50000")), market(), ceiling(score)) is covered


def test_joint_move_to_all_triggers_is_what_counts() -> None:
    held = account("20000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    # H = 12000; either symbol alone may use it up, both together not.
    assert covers(held, market(), {**floor(50000 - 6000 / 0.9 + 1), **ceiling(3000 + 600 / 1.1 - 1)})
    assert not covers(held, market(), {**floor(50000 - 12000 / 0.9 + 1), **ceiling(3001.0)})
    assert not covers(held, market(), {**floor(50000 - 12000 / 0.9 + 1), **ceiling(3000 + 1200 / 1.1 - 1)})
    assert not covers(held, market(), ceiling(3000.0))


def test_tier_at_the_trigger_is_what_counts() -> None:
    # At 5000 the maintenance margin is 250, at 15000 it is 1000: 0.10 * 15000 - 500.
    held, tiered = account("6000", position(ETH, "-1", "10000")), Instrument(ETH, TWO_TIERS)
    assert covers(held, market(None, None, tiered), ceiling(15000.0))
    assert not covers(held, market(None, None, tiered), ceiling(15000.1))


def test_floor_that_funding_cannot_move_covers_nobody_once_there_is_funding() -> None:
    held, never = account("50000", position(BTC, "1", "50000")), floor(-math.inf)
    assert covers(held, market(), never)
    assert not covers(held, dataclasses.replace(market(), funding={BTC: Funding(n=1)}), never)


def test_account_without_positions_is_covered_by_nothing() -> None:
    assert covers(account("0"), market(), {})


def test_double_of_any_size_is_calculated_with_exactly() -> None:
    held = account("50000", position(BTC, "0.00000001", "0.00000001"), position(ETH, "-0.00000001", "0.00000001"))
    assert covers(held, market(), {**floor(5e-324), **ceiling(5e-324)})
    assert not covers(held, market(), {**floor(5e-324), **ceiling(1.7976931348623157e308)})
