"""What the fund pays, and how a step is named."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from margin.domain.event import EventType
from margin.domain.settlement import (
    Fence,
    MoneyRaised,
    SettlementStep,
    Shortfall,
    settlement_amount,
    settlement_lines,
    settlement_record,
)
from tests.unit.domain.books import amounts

SHORTFALL = Shortfall(
    account_id=1,
    liquidation_id=77,
    shortfall=Decimal(5000),
    settled=Decimal(1000),
    deleveraged={},
    raised=Decimal(0),
    last_number=1,
)
STEP = SettlementStep(
    id=9,
    account_id=1,
    liquidation_id=77,
    number=2,
    type=EventType.SETTLEMENT,
    fence=Fence(1, 3, 42, 1, ""),
    amount=Decimal(4000),
    uncovered=Decimal(0),
)


@pytest.mark.parametrize(
    ("available", "amount"),
    [("9000", "4000"), ("4000", "4000"), ("12.5", "12.5"), ("0.000000019", "0.00000001"), ("0", "0"), ("-3", "0")],
)
def test_fund_pays_what_it_has_up_to_what_is_uncovered(available: str, amount: str) -> None:
    assert settlement_amount(SHORTFALL, Decimal(available)) == Decimal(amount)


def test_settlement_moves_money_of_the_fund_to_what_is_uncovered() -> None:
    assert amounts(settlement_lines(Decimal(4000))) == {"insurance": -4000, "uncovered": 4000}


def test_record_says_whose_money_it_was() -> None:
    record = {"liquidation_id": 77, "number": 2, "amount": "4000", "uncovered": "0"}
    assert settlement_record(STEP) == {**record, "source": "INSURANCE_FUND"}
    raised = replace(STEP, source=MoneyRaised(1, 5, 99, Decimal(4000)))
    assert settlement_record(raised) == {**record, "source": {"account_id": 5, "event_id": 99}}


def test_key_and_version_name_one_place_of_one_chain() -> None:
    assert (STEP.key, STEP.fence.version) == ("~settlement:77:2", "3:42")
    deleveraging = replace(STEP, type=EventType.DELEVERAGING)
    assert deleveraging.key == "~deleveraging:77:2"
