from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from margin.domain.instrument import Instrument, default_instrument
from margin.domain.market import RESTORED_STAMP_US, Mark, Market
from margin.errors import NoMarkPriceError
from tests.unit.domain.books import BTC, ETH, NOW_US, market


def test_configured_instrument_is_used_and_the_default_otherwise() -> None:
    configured = Instrument(BTC, taker_fee=Decimal("0.0005"), version=3)
    assert market("50000", None, configured).instrument(BTC) is configured
    assert market("50000", None, configured).instrument(ETH) == default_instrument(ETH)


def test_mark_price_is_the_last_one() -> None:
    assert market("50000").mark_price(BTC) == 50000


def test_missing_mark_price_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(NoMarkPriceError, match="No mark price for ETH-PERP; post one to /mark-price first"):
        market("50000").mark_price(ETH)
    with pytest.raises(NoMarkPriceError):
        market("50000").is_stale(ETH)


@pytest.mark.parametrize(("age_us", "stale"), [(0, False), (30_000_000, False), (30_000_001, True)])
def test_mark_is_stale_only_beyond_its_greatest_age(age_us: int, *, stale: bool) -> None:
    marks = {BTC: Mark(Decimal(50000), NOW_US - age_us)}
    assert Market(marks, {BTC: Instrument(BTC, mark_max_age_s=30)}, NOW_US).is_stale(BTC) is stale


@pytest.mark.parametrize(
    ("arrived_s", "observed_s", "stale"),
    [(-600, -600, True), (0, -31, True), (0, -30, False), (-31, 5, True), (0, 5, False), (-31, None, True)],
)
def test_age_of_a_mark_counts_from_its_observation_or_its_arrival_whichever_is_earlier(
    arrived_s: int, observed_s: int | None, *, stale: bool
) -> None:
    observed_us = None if observed_s is None else NOW_US + observed_s * 1_000_000
    marks = {BTC: Mark(Decimal(50000), NOW_US + arrived_s * 1_000_000, observed_us)}
    assert Market(marks, {BTC: Instrument(BTC, mark_max_age_s=30)}, NOW_US).is_stale(BTC) is stale


def test_mark_without_age_limit_is_never_stale() -> None:
    assert not Market({BTC: Mark(Decimal(50000), 1)}, {}, NOW_US).is_stale(BTC)


@pytest.mark.parametrize("age_max_s", [None, 10**9])
def test_mark_that_was_put_back_from_history_is_stale_whatever_the_instrument_allows(age_max_s: int | None) -> None:
    marks = {BTC: Mark(Decimal(50000), RESTORED_STAMP_US)}
    assert Market(marks, {BTC: Instrument(BTC, mark_max_age_s=age_max_s)}, NOW_US).is_stale(BTC)


def test_mark_beside_which_a_price_waits_is_stale_however_young_it_is_and_says_why() -> None:
    found = Market({BTC: Mark(Decimal(50000), NOW_US), ETH: Mark(Decimal(3000), NOW_US)}, {}, NOW_US)
    doubtful = replace(found, waiting={BTC: Decimal(5000)})
    assert (doubtful.is_stale(BTC), doubtful.is_stale(ETH), doubtful.are_fresh([ETH])) == (True, False, True)
    assert not doubtful.are_fresh([BTC, ETH])
    assert doubtful.why_stale(BTC).startswith("The mark price of BTC-PERP is in doubt: a price far from it waits")
    assert doubtful.why_stale(ETH) == "The mark price of ETH-PERP is stale"


@pytest.mark.parametrize("price", ["0", "-1", "NaN", "Infinity"])
def test_mark_price_that_is_no_number_above_zero_is_refused(price: str) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Mark(Decimal(price), NOW_US)
