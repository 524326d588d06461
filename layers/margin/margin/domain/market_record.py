"""The market as it is recorded with a decision, in JSON values: enough to decide anew.

Rules that are staged, and shifts of triggers, decide nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import plain
from margin.domain.funding import Funding
from margin.domain.instrument_terms import instrument_of, terms_of
from margin.domain.market import Mark, Market

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["mark_age_s", "market_of", "market_record"]


def market_record(market: Market, symbols: Iterable[str]) -> dict[str, object]:
    """Return marks with their times, instruments, funding and the moment at which they were judged, of some symbols.

    Raises
    ------
    KeyError
        When a symbol has no mark price.
    """
    ordered = sorted(symbols)
    waiting = {symbol: plain(market.waiting[symbol]) for symbol in ordered if symbol in market.waiting}
    return {
        "marks": {symbol: _mark_fields(market.marks[symbol]) for symbol in ordered},
        "instruments": {symbol: terms_of(market.instrument(symbol)) for symbol in ordered},
        "funding_indexes": {
            symbol: plain(market.funding_index(symbol)) for symbol in ordered if symbol in market.funding
        },
        "now_us": market.now_us,
        **({"waiting": waiting} if waiting else {}),
    }


def market_of(record: Mapping[str, Any]) -> Market:
    """Return the market of such a record.

    Raises
    ------
    AttributeError, LookupError, TypeError, ValueError, ArithmeticError
        It is not one that the engine writes.
    """
    return Market(
        {
            symbol: Mark(Decimal(fields["price"]), fields["stamp_us"], fields["observed_us"])
            for symbol, fields in record["marks"].items()
        },
        {symbol: instrument_of(terms) for symbol, terms in record["instruments"].items()},
        record["now_us"],
        {symbol: Funding(index=Decimal(index)) for symbol, index in record.get("funding_indexes", {}).items()},
        waiting={symbol: Decimal(price) for symbol, price in record.get("waiting", {}).items()},
    )


def mark_age_s(market: Market, symbol: str) -> str:
    """Write how old a mark is, in seconds."""
    return plain(Decimal(market.now_us - market.marks[symbol].as_of_us).scaleb(-6))


def _mark_fields(mark: Mark) -> dict[str, object]:
    return {"price": plain(mark.price), "stamp_us": mark.stamp_us, "observed_us": mark.observed_us}
