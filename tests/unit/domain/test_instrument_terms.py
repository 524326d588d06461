"""Instruments as JSON: nothing is lost on the way there and back, and older terms are read as they were meant."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import Any

import pytest

from margin.domain.instrument import Instrument, InstrumentStatus, Tier
from margin.domain.instrument_terms import instrument_of, terms_of
from tests.unit.domain.books import BTC

EVERYTHING = Instrument(
    BTC,
    (Tier(Decimal("10000.5"), Decimal("0.1"), Decimal("0.05")), Tier(None, Decimal("0.2"), Decimal("0.1"))),
    taker_fee=Decimal("0.0005"),
    maker_fee=Decimal("-0.0001"),
    price_band=Decimal("0.05"),
    tick_size=Decimal("0.5"),
    lot_size=Decimal("0.001"),
    min_quantity=Decimal("0.002"),
    max_quantity=Decimal(100),
    position_limit=Decimal(250),
    liquidation_fee_cap=Decimal("0.01"),
    mark_max_age_s=30,
    mark_jump_max=Decimal("0.1"),
    funding_rate_cap=Decimal("0.03"),
    status=InstrumentStatus.REDUCE_ONLY,
    version=7,
)
OF_THE_FIRST_RELEASE = {
    "symbol": BTC,
    "tiers": [{"notional_cap": None, "initial_rate": "0.2", "maintenance_rate": "0.1"}],
    "taker_fee": "0.0005",
    "price_band": "0.2",
    "lot_size": "0.001",
    "min_quantity": "0.001",
    "liquidation_fee_cap": "0",
    "mark_max_age_s": None,
    "version": 3,
}


def through_json(instrument: Instrument) -> Instrument:
    return instrument_of(json.loads(json.dumps(terms_of(instrument))))


def test_every_field_comes_back_as_it_went() -> None:
    default = Instrument(BTC)
    fields = [field.name for field in dataclasses.fields(Instrument) if field.init and field.name != "symbol"]
    assert [name for name in fields if getattr(EVERYTHING, name) == getattr(default, name)] == []
    assert through_json(EVERYTHING) == EVERYTHING
    assert through_json(default) == default


@pytest.mark.parametrize("status", InstrumentStatus)
def test_every_status_comes_back(status: InstrumentStatus) -> None:
    assert through_json(dataclasses.replace(EVERYTHING, status=status)).status is status


def test_terms_are_plain_texts_whole_numbers_and_nulls() -> None:
    assert terms_of(EVERYTHING) == {
        "symbol": BTC,
        "tiers": [
            {"notional_cap": "10000.5", "initial_rate": "0.1", "maintenance_rate": "0.05"},
            {"notional_cap": None, "initial_rate": "0.2", "maintenance_rate": "0.1"},
        ],
        "taker_fee": "0.0005",
        "maker_fee": "-0.0001",
        "price_band": "0.05",
        "tick_size": "0.5",
        "lot_size": "0.001",
        "min_quantity": "0.002",
        "max_quantity": "100",
        "position_limit": "250",
        "liquidation_fee_cap": "0.01",
        "mark_max_age_s": 30,
        "mark_jump_max": "0.1",
        "funding_rate_cap": "0.03",
        "status": "reduce-only",
        "version": 7,
    }
    limits = terms_of(Instrument(BTC))
    assert [limits[name] for name in ("max_quantity", "position_limit", "mark_jump_max")] == [None] * 3


def test_terms_from_before_the_later_fields_have_their_defaults() -> None:
    assert instrument_of(OF_THE_FIRST_RELEASE) == Instrument(
        BTC, taker_fee=Decimal("0.0005"), lot_size=Decimal("0.001"), min_quantity=Decimal("0.001"), version=3
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "paused"},
        {"taker_fee": "much"},
        {"maker_fee": None},
        {"max_quantity": "0"},
        {"tiers": []},
        {"tiers": None},
        {"version": "3"},
    ],
)
def test_terms_that_are_no_instrument_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, ArithmeticError)):
        instrument_of({**OF_THE_FIRST_RELEASE, **changes})
