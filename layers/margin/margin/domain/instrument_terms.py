"""Instruments as JSON values: in Redis, and in the records that must be enough to recompute a decision."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from margin.domain.decimals import plain
from margin.domain.instrument import Instrument, InstrumentStatus, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["instrument_of", "terms_of"]

_DEFAULTS: Final = Instrument("DEFAULT")
_DECIMALS: Final = (
    "taker_fee",
    "maker_fee",
    "price_band",
    "tick_size",
    "lot_size",
    "min_quantity",
    "liquidation_fee_cap",
    "funding_rate_cap",
)
_LIMITS: Final = ("max_quantity", "position_limit", "mark_jump_max")
"""Without these there is no limit; the default is that there is none."""


def terms_of(instrument: Instrument) -> dict[str, object]:
    """Return all that an instrument fixes; decimals are strings."""
    return {
        "symbol": instrument.symbol,
        "tiers": [
            {
                "notional_cap": _plain_or_none(tier.notional_cap),
                "initial_rate": plain(tier.initial_rate),
                "maintenance_rate": plain(tier.maintenance_rate),
            }
            for tier in instrument.tiers
        ],
        **{name: plain(getattr(instrument, name)) for name in _DECIMALS},
        **{name: _plain_or_none(getattr(instrument, name)) for name in _LIMITS},
        "mark_max_age_s": instrument.mark_max_age_s,
        "status": str(instrument.status),
        "version": instrument.version,
    }


def instrument_of(terms: Mapping[str, Any]) -> Instrument:
    """Return the instrument of such terms; those that older ones did not have are the defaults.

    Raises
    ------
    KeyError, TypeError, ValueError, ArithmeticError
        They are not the terms of an instrument.
    """
    decimals: dict[str, Any] = {name: Decimal(terms.get(name, getattr(_DEFAULTS, name))) for name in _DECIMALS}
    limits: dict[str, Any] = {name: _decimal_or_none(terms.get(name)) for name in _LIMITS}
    return Instrument(
        **decimals,
        **limits,
        symbol=terms["symbol"],
        tiers=tuple(
            Tier(
                _decimal_or_none(tier["notional_cap"]),
                Decimal(tier["initial_rate"]),
                Decimal(tier["maintenance_rate"]),
            )
            for tier in terms["tiers"]
        ),
        mark_max_age_s=terms["mark_max_age_s"],
        status=InstrumentStatus(terms.get("status", _DEFAULTS.status)),
        version=terms["version"],
    )


def _plain_or_none(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)


def _decimal_or_none(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
