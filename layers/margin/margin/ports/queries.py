"""What those who look back ask of history."""

from __future__ import annotations

import dataclasses


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
class LiquidationQuery:
    """Which liquidations, newest first; ``before`` (timestamp in us, id) continues a page."""

    account_id: int | None = None
    before: tuple[int, int] | None = None
    limit: int = 100
