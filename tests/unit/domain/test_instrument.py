from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from margin.domain.instrument import DEFAULT_TIERS, Instrument, InstrumentStatus, Tier, default_instrument
from tests.unit.domain.books import BTC, TWO_TIERS


def tier(cap: str | None, initial: str, maintenance: str) -> Tier:
    return Tier(None if cap is None else Decimal(cap), Decimal(initial), Decimal(maintenance))


def test_symbol_never_configured_has_20_and_10_percent() -> None:
    instrument = default_instrument(BTC)
    assert instrument.initial_margin(Decimal(50000)) == 10000
    assert instrument.maintenance_margin(Decimal(50000)) == 5000
    assert (instrument.taker_fee, instrument.price_band, instrument.version) == (0, Decimal("0.20"), 0)


def test_default_instrument_is_made_once_for_a_symbol() -> None:
    assert default_instrument(BTC) is default_instrument(BTC)
    assert default_instrument(BTC) == Instrument(BTC, DEFAULT_TIERS)


@pytest.mark.parametrize(
    ("notional", "initial", "maintenance"),
    [
        ("0", "0", "0"),
        ("5000", "500", "250"),
        ("10000", "1000", "500"),
        ("10000.01", "1000.002", "500.001"),
        ("30000", "5000", "2500"),
    ],
)
def test_margin_of_two_tiers_charges_each_part_at_its_own_rate(notional: str, initial: str, maintenance: str) -> None:
    instrument = Instrument(BTC, TWO_TIERS)
    assert instrument.initial_margin(Decimal(notional)) == Decimal(initial)
    assert instrument.maintenance_margin(Decimal(notional)) == Decimal(maintenance)


def test_amounts_are_derived_from_caps_and_rates() -> None:
    instrument = Instrument(BTC, (tier("100", "0.1", "0.05"), tier("1000", "0.2", "0.1"), tier(None, "0.5", "0.4")))
    assert instrument.initial_amounts == (0, 10, 310)
    assert instrument.maintenance_amounts == (0, 5, 305)


def test_lowest_maintenance_rate_is_that_of_the_first_tier() -> None:
    instrument = Instrument(BTC, TWO_TIERS)
    assert instrument.lowest_maintenance_rate == Decimal("0.05")


def test_negative_notional_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="never negative"):
        default_instrument(BTC).initial_margin(Decimal(-1))
    with pytest.raises(ValueError, match="never negative"):
        default_instrument(BTC).maintenance_margin(Decimal(-1))


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ((), "last tier"),
        ((tier("100", "0.2", "0.1"),), "last tier"),
        ((tier(None, "0.2", "0.1"), tier(None, "0.3", "0.1")), "last tier"),
        ((tier("100", "0.2", "0.1"), tier("100", "0.2", "0.1"), tier(None, "0.2", "0.1")), "must rise"),
        ((tier("0", "0.2", "0.1"), tier(None, "0.2", "0.1")), "caps are above 0"),
        ((tier("1e24", "0.2", "0.1"), tier(None, "0.2", "0.1")), "caps are above 0"),
        ((tier("NaN", "0.2", "0.1"), tier(None, "0.2", "0.1")), "caps are above 0"),
        ((tier(None, "0.1", "0.1"),), "0 < maintenance < initial <= 1"),
        ((tier(None, "0.1", "0"),), "0 < maintenance < initial <= 1"),
        ((tier(None, "1.01", "0.1"),), "0 < maintenance < initial <= 1"),
        ((tier(None, "0.200000001", "0.1"),), "at most 8 decimals"),
        ((tier("100", "0.2", "0.1"), tier(None, "0.15", "0.1")), "must not fall"),
        ((tier("100", "0.2", "0.1"), tier(None, "0.2", "0.05")), "must not fall"),
    ],
)
def test_unsound_tiers_are_refused(tiers: tuple[Tier, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Instrument(BTC, tiers)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"symbol": ""}, "has a symbol"),
        ({"taker_fee": Decimal(-1)}, "taker_fee"),
        ({"taker_fee": Decimal(1)}, "taker_fee"),
        ({"taker_fee": Decimal("1e-9")}, "taker_fee"),
        ({"maker_fee": Decimal(1)}, "maker_fee"),
        ({"maker_fee": Decimal("1e-9")}, "maker_fee"),
        ({"maker_fee": Decimal("-1e-8")}, "at least -taker_fee"),
        ({"taker_fee": Decimal("0.0005"), "maker_fee": Decimal("-0.00050001")}, "at least -taker_fee"),
        ({"liquidation_fee_cap": Decimal("-1e-8")}, "liquidation_fee_cap"),
        ({"liquidation_fee_cap": Decimal("0.1")}, "liquidation_fee_cap"),
        ({"price_band": Decimal(0)}, "price_band"),
        ({"price_band": Decimal("1.1")}, "price_band"),
        ({"price_band": Decimal("0.100000001")}, "price_band"),
        *(
            ({name: Decimal(value)}, name)
            for name in ("tick_size", "lot_size", "min_quantity", "max_quantity", "position_limit")
            for value in ("0", "-1", "1e-9", "1e12", "NaN")
        ),
        ({"lot_size": Decimal(2), "max_quantity": Decimal(1)}, "max_quantity must be at least 2,"),
        ({"min_quantity": Decimal(2), "max_quantity": Decimal(1)}, "max_quantity must be at least 2,"),
        (
            {"lot_size": Decimal(2), "min_quantity": Decimal(3), "max_quantity": Decimal("3.5")},
            "max_quantity must be at least 4,",
        ),
        ({"lot_size": Decimal(2), "position_limit": Decimal(1)}, "position_limit must be at least 2,"),
        ({"min_quantity": Decimal(2), "position_limit": Decimal(1)}, "position_limit must be at least"),
        ({"mark_jump_max": Decimal(0)}, "mark_jump_max"),
        ({"mark_jump_max": Decimal("-0.1")}, "mark_jump_max"),
        ({"mark_jump_max": Decimal("1e-9")}, "mark_jump_max"),
        ({"mark_jump_max": Decimal("1e12")}, "mark_jump_max"),
        ({"funding_rate_cap": Decimal(0)}, "funding_rate_cap"),
        ({"funding_rate_cap": Decimal("1.00000001")}, "funding_rate_cap"),
        ({"funding_rate_cap": Decimal("1e-9")}, "funding_rate_cap"),
        ({"status": "active"}, "status is one of"),
        ({"status": None}, "status is one of"),
        ({"mark_max_age_s": 0}, "mark_max_age_s"),
        ({"mark_max_age_s": 30.5}, "mark_max_age_s"),
        # They equal whole numbers, and would be another text in the record of a liquidation, and another hash.
        ({"mark_max_age_s": 30.0}, "mark_max_age_s"),
        ({"mark_max_age_s": Decimal(30)}, "mark_max_age_s"),
        ({"mark_max_age_s": True}, "mark_max_age_s"),
        ({"mark_max_age_s": "30"}, "mark_max_age_s"),
        ({"version": -1}, "version"),
        ({"version": 1.0}, "version"),
    ],
)
def test_unsound_terms_are_refused(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Instrument(**{"symbol": BTC, **terms})


def test_initial_rate_of_the_whole_notional_is_the_highest_accepted() -> None:
    assert Instrument(BTC, (tier(None, "1", "0.5"),)).initial_margin(Decimal(7)) == 7


@pytest.mark.parametrize(
    "terms",
    [
        {"taker_fee": "0.0005", "maker_fee": "-0.0005"},
        {"taker_fee": "0", "maker_fee": "0.99999999"},
        {"liquidation_fee_cap": "0.09999999"},
        {"price_band": "1"},
        {"tick_size": "999999999999.99999999"},
        {"lot_size": "2", "min_quantity": "1", "max_quantity": "2", "position_limit": "2"},
        {"mark_jump_max": "0.00000001"},
        {"mark_jump_max": "5"},
        {"funding_rate_cap": "0.00000001"},
        {"funding_rate_cap": "1"},
    ],
)
def test_terms_at_the_edge_of_what_is_sound_are_accepted(terms: dict[str, str]) -> None:
    instrument = Instrument(BTC, **{name: Decimal(value) for name, value in terms.items()})  # type: ignore[arg-type]
    assert {name: getattr(instrument, name) for name in terms} == {
        name: Decimal(value) for name, value in terms.items()
    }


def test_symbol_never_configured_has_no_limits_and_trades() -> None:
    instrument = default_instrument(BTC)
    assert (instrument.max_quantity, instrument.position_limit, instrument.mark_max_age_s) == (None, None, None)
    assert (instrument.mark_jump_max, instrument.funding_rate_cap) == (None, 1)
    assert (instrument.tick_size, instrument.lot_size, instrument.min_quantity) == (Decimal("1e-8"),) * 3
    assert (instrument.maker_fee, instrument.liquidation_fee_cap, instrument.status) == (0, 0, InstrumentStatus.ACTIVE)
