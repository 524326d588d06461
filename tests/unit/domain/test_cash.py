from __future__ import annotations

from decimal import Decimal

import pytest

from margin.domain.cash import contribute, deposit, withdraw
from margin.domain.instrument import Instrument
from margin.domain.risk import AccountRisk
from margin.errors import InsufficientWithdrawableError, NoMarkPriceError, StaleMarkPriceError
from tests.unit.domain.books import BTC, account, amounts, market, position

LONG = position(BTC, "0.1", "50000")


def test_deposit_raises_balance_and_equity() -> None:
    result = deposit(account("100", LONG), Decimal("900.5"), market("51000"))
    assert result.account == account("1000.5", LONG)
    assert result.risk == AccountRisk(Decimal("1100.5"), Decimal(1020), Decimal(510))
    assert amounts(result.ledger_lines) == {"cash": Decimal("900.5"), "external": Decimal("-900.5")}


def test_deposit_without_mark_price_is_booked_without_risk() -> None:
    result = deposit(account("100", LONG), Decimal(900), market())
    assert (result.account.balance, result.risk) == (1000, None)


def test_deposit_with_stale_mark_price_is_booked() -> None:
    stale = market("51000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=31)
    assert deposit(account("100", LONG), Decimal(900), stale).account.balance == 1000


def test_withdrawal_of_all_that_is_withdrawable_leaves_equity_at_initial_margin() -> None:
    result = withdraw(account("10000", LONG), Decimal(9080), market("51000"))
    assert result.account == account("920", LONG)
    assert result.risk == AccountRisk(Decimal(1020), Decimal(1020), Decimal(510))
    assert amounts(result.ledger_lines) == {"cash": Decimal(-9080), "external": Decimal(9080)}


def test_contribution_is_limited_as_a_withdrawal_and_goes_to_the_fund() -> None:
    result = contribute(account("10000", LONG), Decimal(9080), market("51000"))
    assert result.account == account("920", LONG)
    assert amounts(result.ledger_lines) == {"cash": Decimal(-9080), "insurance": Decimal(9080)}
    with pytest.raises(InsufficientWithdrawableError):
        contribute(account("10000", LONG), Decimal("9080.00000001"), market("51000"))
    stale = market("51000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=31)
    with pytest.raises(StaleMarkPriceError):
        contribute(account("10000", LONG), Decimal(1), stale)


def test_withdrawal_of_a_hair_more_is_refused_with_both_numbers() -> None:
    with pytest.raises(InsufficientWithdrawableError) as refused:
        withdraw(account("10000", LONG), Decimal("9080.00000001"), market("51000"))
    assert refused.value.detail == "Withdrawable: 9080, requested: 9080.00000001"


def test_unrealised_profit_cannot_be_withdrawn() -> None:
    with pytest.raises(InsufficientWithdrawableError, match="Withdrawable: 100, requested: 101"):
        withdraw(account("100", position(BTC, "1", "50000")), Decimal(101), market("90000"))


def test_withdrawal_without_mark_price_is_refused() -> None:
    with pytest.raises(NoMarkPriceError):
        withdraw(account("10000", LONG), Decimal(1), market())


def test_withdrawal_with_stale_mark_price_is_refused() -> None:
    stale = market("51000", None, Instrument(BTC, mark_max_age_s=30), btc_age_s=31)
    with pytest.raises(StaleMarkPriceError, match="BTC-PERP"):
        withdraw(account("10000", LONG), Decimal(1), stale)


@pytest.mark.parametrize("amount", ["0", "-1", "1e12", "0.000000001"])
def test_amount_outside_the_limits_is_a_programmers_error(amount: str) -> None:
    for move in (deposit, withdraw):
        with pytest.raises(ValueError, match="amount must be above 0"):
            move(account("10000"), Decimal(amount), market())
