from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument
from margin.domain.risk import (
    AccountRisk,
    PositionRisk,
    assess,
    assess_positions,
    calculate_initial_margin_required,
    calculate_maintenance_margin_required,
    liquidation_assessment,
    liquidation_price,
)
from margin.errors import NoMarkPriceError
from tests.unit.domain.books import BTC, ETH, TWO_TIERS, account, market, position


def risk(equity: str, maintenance_margin: str, initial_margin: str = "0") -> AccountRisk:
    return AccountRisk(Decimal(equity), Decimal(initial_margin), Decimal(maintenance_margin))


def test_margin_of_one_bitcoin_at_50000_is_10000_initial_and_5000_maintenance() -> None:
    assert calculate_initial_margin_required(Decimal(1), Decimal(50000)) == Decimal(10000)
    assert calculate_maintenance_margin_required(Decimal(1), Decimal(50000)) == Decimal(5000)


def test_margin_required_takes_the_size_of_a_short_and_the_instruments_tiers() -> None:
    instrument = Instrument(BTC, TWO_TIERS)
    assert calculate_initial_margin_required(Decimal(-1), Decimal(30000), instrument) == 5000
    assert calculate_maintenance_margin_required(Decimal(-1), Decimal(30000), instrument) == 2500


def test_account_of_the_readme_example_at_51000() -> None:
    assessed = assess(account("10000", position(BTC, "0.1", "50000")), market("51000"))
    assert assessed == AccountRisk(Decimal(10100), Decimal(1020), Decimal(510))
    assert assessed.utilisation_pct == Decimal("5.05")
    assert not assessed.liquidatable


def test_two_positions_share_equity_and_add_their_margins() -> None:
    held = account("10000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    assert assess(held, market("49000", "3100")) == AccountRisk(Decimal(8000), Decimal(16000), Decimal(8000))


def test_equity_equal_to_maintenance_margin_is_not_liquidatable_and_a_hair_less_is() -> None:
    assert not risk("8000", "8000").liquidatable
    assert risk("7999.9999999999999999", "8000").liquidatable


@pytest.mark.parametrize(
    ("equity", "maintenance_margin", "pct"),
    [
        ("8000", "8000", "100"),
        ("3", "1", "33.33"),
        ("800", "1", "0.12"),
        ("800", "3", "0.38"),
        ("0", "0", "0"),
        ("-5", "0", "0"),
        ("0", "1", None),
        ("-5", "1", None),
    ],
)
def test_utilisation_has_two_decimals_and_is_null_without_equity(
    equity: str, maintenance_margin: str, pct: str | None
) -> None:
    assert risk(equity, maintenance_margin).utilisation_pct == (None if pct is None else Decimal(pct))


@pytest.mark.parametrize(
    ("balance", "equity", "initial_margin", "withdrawable"),
    [
        ("10000", "10100", "1020", "9080"),
        ("10000", "50000", "1020", "10000"),
        ("10000", "1000", "1020", "0"),
        ("-5", "1000", "0", "0"),
    ],
)
def test_withdrawable_is_bounded_by_balance_and_free_equity(
    balance: str, equity: str, initial_margin: str, withdrawable: str
) -> None:
    assert risk(equity, "0", initial_margin).withdrawable(Decimal(balance)) == Decimal(withdrawable)


def test_position_without_mark_price_is_never_left_out() -> None:
    held = account("10000", position(BTC, "1", "50000"), position(ETH, "-10", "3000"))
    for assessment in (assess, assess_positions, liquidation_assessment):
        with pytest.raises(NoMarkPriceError, match="ETH-PERP"):
            assessment(held, market("50000"))
    with pytest.raises(NoMarkPriceError, match="ETH-PERP"):
        liquidation_price(held, BTC, market("50000"))


def test_positions_are_described_sorted_by_symbol() -> None:
    held = account("20000", position(ETH, "-10", "3000"), position(BTC, "1", "50000"))
    assert assess_positions(held, market("51000", "2900")) == [
        PositionRisk(
            symbol=BTC,
            quantity=Decimal(1),
            entry_price=Decimal(50000),
            mark_price=Decimal(51000),
            notional=Decimal(51000),
            unrealised_pnl=Decimal(1000),
            pending_funding=Decimal(0),
            maintenance_margin=Decimal(5100),
            # 20000 + 1000 - 2900 + p - 50000 = 0.1 p
            liquidation_price=Decimal("35444.44444445"),
        ),
        PositionRisk(
            symbol=ETH,
            quantity=Decimal(-10),
            entry_price=Decimal(3000),
            mark_price=Decimal(2900),
            notional=Decimal(29000),
            unrealised_pnl=Decimal(1000),
            pending_funding=Decimal(0),
            maintenance_margin=Decimal(2900),
            # 20000 + 1000 - 5100 + 30000 - 10 p = p
            liquidation_price=Decimal("4172.72727272"),
        ),
    ]


def test_account_without_positions_has_equity_and_no_margin() -> None:
    assert assess(account("10000"), market()) == AccountRisk(Decimal(10000), Decimal(0), Decimal(0))
    assert assess_positions(account("10000"), market()) == []


@pytest.mark.parametrize(
    ("quantity", "balance", "price"),
    [
        ("1", "10000", "44444.44444445"),
        ("-1", "10000", "54545.45454545"),
        ("1", "5000", "50000"),
        ("1", "50000", None),
        ("-1", "-50000", None),
        ("-1", "-49999.9", "0.09090909"),
    ],
)
def test_liquidation_price_of_one_tier_by_hand(quantity: str, balance: str, price: str | None) -> None:
    held = account(balance, position(BTC, quantity, "50000"))
    expected = None if price is None else Decimal(price)
    assert liquidation_price(held, BTC, market("50000")) == expected
    assert assess_positions(held, market("50000"))[0].liquidation_price == expected


@pytest.mark.parametrize(
    ("quantity", "balance", "price"),
    [
        ("1", "10000", "43888.88888889"),  # 0.9 p = 40000 - 500, in the second tier
        ("1", "41000", "9473.68421053"),  # 0.95 p = 9000, in the first
        ("1", "40500", "10000"),  # 9500 / 0.95 = 9000 / 0.9, exactly at the cap
        ("-1", "10000", "55000"),  # 1.1 p = 60000 + 500
        ("-1", "-42000", "7619.04761904"),  # 1.05 p = 8000
    ],
)
def test_liquidation_price_of_two_tiers_is_solved_in_the_tier_it_falls_into(
    quantity: str, balance: str, price: str
) -> None:
    held = account(balance, position(BTC, quantity, "50000"))
    assert liquidation_price(held, BTC, market("50000", None, Instrument(BTC, TWO_TIERS))) == Decimal(price)


def test_symbol_not_held_has_no_liquidation_price() -> None:
    assert liquidation_price(account("10"), BTC, market("50000")) is None


@pytest.mark.parametrize(
    ("quantity", "equity", "maintenance_margin"),
    [("1", "15000", "6000"), ("-1", "15000", "4000")],
)
def test_stale_mark_is_moved_by_the_band_in_the_accounts_favour(
    quantity: str, equity: str, maintenance_margin: str
) -> None:
    held = account("5000", position(BTC, quantity, "50000"))
    stale = market("50000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=31)
    favoured = liquidation_assessment(held, stale)
    assert (favoured.equity, favoured.maintenance_margin) == (Decimal(equity), Decimal(maintenance_margin))
    assert assess(held, stale).equity == 5000


@pytest.mark.parametrize(
    ("quantity", "waiting", "equity"),
    [
        ("1", "70000", "25000"),
        ("1", "59999", "15000"),
        ("1", "1", "15000"),
        ("-1", "30000", "25000"),
        ("-1", "40001", "15000"),
        ("-1", "90000", "15000"),
    ],
)
def test_mark_in_doubt_is_moved_in_the_accounts_favour_as_far_as_the_price_that_waits(
    quantity: str, waiting: str, equity: str
) -> None:
    held = account("5000", position(BTC, quantity, "50000"))
    doubtful = replace(market("50000"), waiting={BTC: Decimal(waiting)})
    assert liquidation_assessment(held, doubtful).equity == Decimal(equity)
    assert assess(held, doubtful).equity == 5000


def test_fresh_mark_is_not_moved() -> None:
    held = account("5000", position(BTC, "1", "50000"))
    fresh = market("50000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=30)
    assert liquidation_assessment(held, fresh) == assess(held, fresh)
