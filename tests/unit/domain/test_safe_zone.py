from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest

from margin.domain.instrument import Instrument
from margin.domain.safe_zone import Trigger, TriggerSide, triggers
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
    ("balance", "score"), [("50000", -math.inf), ("49999.99999999", above(Fraction(1, 9 * 10**7)))]
)
def test_floor_that_no_price_reaches_is_minus_infinity(balance: str, score: float) -> None:
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
