"""Instruments as JSON values: in Redis, and in the records that must be enough to recompute a decision."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import plain
from margin.domain.instrument import Instrument, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["instrument_of", "terms_of"]

_DEFAULTS = Instrument("DEFAULT")


def terms_of(instrument: Instrument) -> dict[str, object]:
    """Return all that an instrument fixes; decimals are strings."""
    return {
        "symbol": instrument.symbol,
        "tiers": [
            {
                "notional_cap": None if tier.notional_cap is None else plain(tier.notional_cap),
                "initial_rate": plain(tier.initial_rate),
                "maintenance_rate": plain(tier.maintenance_rate),
            }
            for tier in instrument.tiers
        ],
        "taker_fee": plain(instrument.taker_fee),
        "price_band": plain(instrument.price_band),
        "lot_size": plain(instrument.lot_size),
        "min_quantity": plain(instrument.min_quantity),
        "liquidation_fee_cap": plain(instrument.liquidation_fee_cap),
        "mark_max_age_s": instrument.mark_max_age_s,
        "version": instrument.version,
    }


def instrument_of(terms: Mapping[str, Any]) -> Instrument:
    """Return the instrument of such terms; those that older ones did not have are the defaults.

    Raises
    ------
    KeyError, TypeError, ValueError, ArithmeticError
        They are not the terms of an instrument.
    """
    return Instrument(
        symbol=terms["symbol"],
        tiers=tuple(
            Tier(
                None if tier["notional_cap"] is None else Decimal(tier["notional_cap"]),
                Decimal(tier["initial_rate"]),
                Decimal(tier["maintenance_rate"]),
            )
            for tier in terms["tiers"]
        ),
        taker_fee=Decimal(terms["taker_fee"]),
        price_band=Decimal(terms["price_band"]),
        lot_size=Decimal(terms["lot_size"]),
        min_quantity=Decimal(terms.get("min_quantity", _DEFAULTS.min_quantity)),
        liquidation_fee_cap=Decimal(terms.get("liquidation_fee_cap", _DEFAULTS.liquidation_fee_cap)),
        mark_max_age_s=terms["mark_max_age_s"],
        version=terms["version"],
    )
