"""What funding asks of the stores, and the values that cross that line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.funding import Funding
    from margin.domain.market import Market


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FundingRate:
    """One payment, as it is to be written down; ``rise`` is what it adds to the index."""

    symbol: str
    rate: Decimal
    mark_price: Decimal
    rise: Decimal
    occurred_us: int
    key: str
    request_hash: str
    subject: str | None
    source_ip: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedFunding:
    """One payment that is in history, the ``n``-th of its symbol; ``funding_index`` is the index after it.

    ``applied``: it is known to be in every partition of Redis. ``at_risk``: how many accounts it brought to evaluation,
    None where nobody knows.
    """

    symbol: str
    n: int
    rate: Decimal
    mark_price: Decimal
    funding_index: Decimal
    occurred_us: int
    key: str
    request_hash: str
    applied: bool
    at_risk: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class KnownFunding:
    """What history knows of a symbol: its last payment and the index after it.

    ``index_then`` is the index after an earlier payment that was asked for, None where history has no such payment.
    """

    n: int
    index: Decimal
    index_then: Decimal | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PaymentQuery:
    """Which payments of an account, newest first; ``before`` (event, place in it) continues a page."""

    account_id: int
    symbol: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    before: tuple[int, int] | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RateQuery:
    """Which rates, newest first; ``before`` (recorded at, symbol, n) continues a page."""

    symbol: str | None = None
    before: tuple[int, str, int] | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True)
class FundingUpdate:
    """What the move of an index did in one partition: how many are at risk, the first of them, and whom to warn."""

    crossed_count: int
    crossed: tuple[int, ...]
    to_warn: tuple[int, ...]


class FundingHistory(Protocol):
    """Payments of funding in PostgreSQL."""

    async def record(self, rate: FundingRate) -> tuple[RecordedFunding, bool] | None:
        """Write a payment down as the next one of its symbol, once for its key; whether it was there before.

        None, and nothing written, when another payment of the symbol was quicker.
        """

    async def recorded(self, symbol: str, key: str) -> RecordedFunding | None:
        """Recall what a key stands for."""

    async def applied(self, symbol: str, n: int, at_risk: int) -> None:
        """Remember that all payments up to one are in every partition, and how many accounts the last one crossed."""

    async def waiting(self) -> list[str]:
        """Name the symbols with payments that are not known to be in every partition."""

    async def known(self, present: Mapping[str, int], symbols: Sequence[str] | None = None) -> dict[str, KnownFunding]:
        """Tell, by symbol, what history knows of some symbols, or of all; ``present`` names payments to look up."""

    async def payments(self, query: PaymentQuery) -> list[dict[str, Any]]:
        """Read what an account received and paid, from its events."""

    async def rates(self, query: RateQuery) -> list[dict[str, Any]]:
        """Read recorded payments."""


class FundingStore(Protocol):
    """Funding in Redis, where it takes effect."""

    @property
    def partitions(self) -> int:
        """Return how many partitions there are."""

    async def market(self, partition: int = 0) -> Market:
        """All marks, instruments and funding, as a partition holds them."""

    async def loaded_market(self) -> Market:
        """All marks, instruments and funding of partition 0, which is open at that moment."""

    async def set_funding(
        self, partition: int, symbol: str, funding: Funding, *, market: Market, crossed_max: int
    ) -> FundingUpdate | None:
        """Put funding in place of that of a market, and answer whom it brings to evaluation.

        None, and nothing written, when funding or rules of the symbol are no longer those of the market.
        """

    async def restore_funding(self, partition: int, symbol: str, funding: Funding, *, market: Market) -> bool:
        """Put funding in place in a closed partition; False when the partition is no longer as in the market."""
