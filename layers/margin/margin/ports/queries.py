"""What those who look back ask of history."""

from __future__ import annotations

import dataclasses
from typing import Any

LIQUIDATION_BYTES_MAX = 4_000_000
"""Of a page's records. Lambda answers 6 MB at most, in which each of their quotation marks counts twice."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TradeQuery:
    """Which trades, newest first; ``before_id`` continues a page."""

    account_id: int
    symbol: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    before_id: int | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MarkSampleQuery:
    """Which sampled mark prices of a symbol, newest first; ``before_us`` continues a page."""

    symbol: str
    since_us: int | None = None
    until_us: int | None = None
    before_us: int | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LiquidationQuery:
    """Which liquidations, newest first; ``before`` (timestamp in us, id) continues a page.

    A page has no more records than ``bytes_max`` bytes, and at least one: that of an account with very many positions
    can be longer by itself.
    """

    account_id: int | None = None
    before: tuple[int, int] | None = None
    limit: int = 100
    bytes_max: int = LIQUIDATION_BYTES_MAX


@dataclasses.dataclass(frozen=True, slots=True)
class LiquidationPage:
    """Liquidations, and whether there are older ones."""

    rows: list[dict[str, Any]]
    more: bool
