"""How callers are told that a price is older than the stored one, or from the future."""

from __future__ import annotations

from margin.domain.mark_time import AHEAD_MAX_US, OlderPrice, future_timestamp, older_mark_price
from tests.unit.domain.books import BTC, ETH

NOON_US = 1_769_860_800_000_000


def test_older_prices_are_named_with_both_times_to_the_microsecond() -> None:
    error = older_mark_price([OlderPrice(BTC, NOON_US - 1, NOON_US), OlderPrice(ETH, -1, 0)])
    assert error.detail == (
        "BTC-PERP of 2026-01-31T11:59:59.999999Z is older than the stored price of 2026-01-31T12:00:00.000000Z; "
        "ETH-PERP of 1969-12-31T23:59:59.999999Z is older than the stored price of 1970-01-01T00:00:00.000000Z. "
        "No price of this call was stored."
    )


def test_of_very_many_older_prices_a_hundred_are_named_and_the_others_counted() -> None:
    error = older_mark_price([OlderPrice(f"S{number}", 0, 1) for number in range(104)])
    assert "S99 of" in error.detail
    assert "S100" not in error.detail
    assert "; so are 4 more. No price" in error.detail


def test_future_timestamp_names_both_clocks_and_what_would_be_accepted() -> None:
    error = future_timestamp(BTC, NOON_US + AHEAD_MAX_US + 1, NOON_US)
    assert (error.symbol, error.field, error.status) == (BTC, "timestamp", 422)
    assert error.detail == (
        "BTC-PERP is said to be of 2026-01-31T12:00:10.000001Z, and it is 2026-01-31T12:00:00.000000Z: "
        "a timestamp may be at most 10 s ahead. No price of this call was stored."
    )
