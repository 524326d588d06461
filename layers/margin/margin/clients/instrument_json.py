"""Instruments as Redis keeps them: JSON, read once for each version and kept."""

from __future__ import annotations

import functools
import json
from decimal import Decimal

from margin.domain.instrument import Instrument, Tier


@functools.lru_cache(maxsize=2000)
def parse_instrument(text: str) -> Instrument:
    """Read one instrument; decimals are strings in it."""
    fields = json.loads(text)
    return Instrument(
        symbol=fields["symbol"],
        tiers=tuple(
            Tier(
                None if tier["notional_cap"] is None else Decimal(tier["notional_cap"]),
                Decimal(tier["initial_rate"]),
                Decimal(tier["maintenance_rate"]),
            )
            for tier in fields["tiers"]
        ),
        taker_fee=Decimal(fields["taker_fee"]),
        price_band=Decimal(fields["price_band"]),
        lot_size=Decimal(fields["lot_size"]),
        mark_max_age_s=fields["mark_max_age_s"],
        version=fields["version"],
    )
