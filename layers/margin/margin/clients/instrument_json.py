"""Instruments as Redis keeps them: JSON, read once for each version and kept."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from margin.domain.instrument_terms import instrument_of

if TYPE_CHECKING:
    from margin.domain.instrument import Instrument


@functools.lru_cache(maxsize=2000)
def parse_instrument(text: str) -> Instrument:
    """Read one instrument."""
    return instrument_of(json.loads(text))
