"""Instruments as Redis keeps them: JSON, read once for each version and kept."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from margin.domain.instrument_terms import instrument_of, terms_of

if TYPE_CHECKING:
    from margin.domain.instrument import Instrument


@functools.lru_cache(maxsize=2000)
def parse_instrument(text: str) -> tuple[Instrument, Instrument | None]:
    """Read the rules of one symbol that are in force, and those that are staged, if any."""
    terms = json.loads(text)
    following = terms.get("next")
    return instrument_of(terms), None if following is None else instrument_of(following)


def parse_dropped(text: str) -> int:
    """Read the highest version that was staged beside these rules and dropped again, 0 where none was."""
    return int(json.loads(text).get("dropped", 0))


def instrument_text(in_force: Instrument, staged: Instrument | None = None, dropped: int = 0) -> str:
    """Write the rules of one symbol that are in force, those that are staged, if any, and which version was dropped."""
    following = {} if staged is None else {"next": terms_of(staged)}
    return json.dumps({**terms_of(in_force), **following, **({"dropped": dropped} if dropped else {})})
