"""Margin tables and worked examples that large venues have published, from ``tests/data/venues``.

Each file is one JSON object. ``instruments`` has the form of ``PUT /instruments/{symbol}``, so that the file can be
imported as it is; ``maintenance_amounts`` are what the venue says it subtracts in each tier, and ``examples`` what it
says of an account.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from margin.domain.instrument_terms import instrument_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.domain.instrument import Instrument

FOLDER: Final = Path(__file__).parent / "data" / "venues"
_LAST_DECIMAL: Final = Decimal("0.00000001")


@dataclass(frozen=True)
class Example:
    """One account of a venue's example: what it did, at which marks, and what the venue says of it then."""

    name: str
    deposit: str
    entry_marks: dict[str, str]
    """Marks at which it traded, where they are others than those of the figures."""
    marks: dict[str, str]
    trades: tuple[dict[str, str], ...]
    account_figures: dict[str, str]
    position_figures: dict[tuple[str, str], str]
    """By symbol and figure."""


@dataclass(frozen=True)
class Venue:
    name: str
    terms: tuple[dict[str, Any], ...]
    maintenance_amounts: dict[str, tuple[Decimal, ...]]
    examples: tuple[Example, ...]

    @property
    def instruments(self) -> dict[str, Instrument]:
        """What the terms mean; those that a table does not state are the defaults."""
        return {terms["symbol"]: instrument_of({"mark_max_age_s": None, "version": 1, **terms}) for terms in self.terms}


def read_venue(name: str) -> Venue:
    document = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Venue(
        name,
        tuple(document["instruments"]),
        {
            symbol: tuple(Decimal(amount) for amount in published["amounts"])
            for symbol, published in document["maintenance_amounts"].items()
        },
        tuple(_example(example) for example in document["examples"]),
    )


def ids(examples: Sequence[tuple[Venue, Example]]) -> list[str]:
    """Names of examples, for parametrised tests."""
    return [f"{venue.name}: {example.name}" for venue, example in examples]


def agrees(calculated: Decimal, published: str) -> bool:
    """Tell whether a number is the published one, rounded to the decimals that the venue shows.

    Of 8 decimals the last one may differ: a liquidation price is not rounded to the nearest, it is the last one that is
    safe.
    """
    shown = Decimal(published)
    exponent = shown.as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(calculated - shown) <= max(Decimal(1).scaleb(exponent) / 2, _LAST_DECIMAL)


def _example(document: dict[str, Any]) -> Example:
    published = document["published"]
    return Example(
        document["name"],
        document["deposit"],
        document.get("entry_marks", {}),
        document["marks"],
        tuple(document["trades"]),
        {figure: value for figure, value in published.items() if isinstance(value, str)},
        {
            (symbol, figure): value
            for figure, by_symbol in published.items()
            if isinstance(by_symbol, dict)
            for symbol, value in by_symbol.items()
        },
    )


VENUES: Final = tuple(read_venue(path.stem) for path in sorted(FOLDER.glob("*.json")))
EXAMPLES: Final = tuple((venue, example) for venue in VENUES for example in venue.examples)
