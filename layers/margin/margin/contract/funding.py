"""POST /funding, GET /funding/{account_id} and GET /funding-rates."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from margin.domain.decimals import DECIMALS, round_down
from margin.http.wire import Answer, DecimalText, ObservedAt, Request, Symbol, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.services.funding import FundingOutcome
    from margin.services.funding_list import FundingPage, RatePage

RATE_PATTERN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
_RATE_LENGTH_MAX = 64
_RATE = re.compile(RATE_PATTERN[1:-1])


def _rate(value: Any) -> Decimal:
    """Read a share from -1 to 1 exactly, in one canonical form."""
    if isinstance(value, str) and len(value) <= _RATE_LENGTH_MAX and _RATE.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("rate_type", "must be a number, or a string that holds a decimal number")
    rate = Decimal(value)
    if not rate.is_finite() or abs(rate) > 1:
        raise PydanticCustomError("rate_large", "must be from -1 to 1")
    if round_down(rate) != rate:
        raise PydanticCustomError("rate_fine", f"must have at most {DECIMALS} decimals")
    return rate.normalize() if rate else Decimal(0)


FundingRateField = Annotated[
    Decimal,
    PlainValidator(_rate),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": -1, "maximum": 1},
                {"type": "string", "pattern": RATE_PATTERN, "maxLength": _RATE_LENGTH_MAX},
            ],
            "description": (
                "Share of the mark price that a long pays to a short for each unit; below 0 the short pays. At most"
                f" {DECIMALS} decimals, and within the instrument's `funding_rate_cap`. Taken exactly, digit by digit,"
                " as a number or as a string."
            ),
            "examples": ["0.0001", "-0.00025"],
        }
    ),
]


class FundingRequest(Request):
    """A payment of funding."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"symbol": "BTC-PERP", "rate": "0.0001"},
                {"symbol": "BTC-PERP", "rate": "-0.00025", "timestamp": "2026-01-31T08:00:00Z"},
            ]
        }
    )

    symbol: Symbol
    rate: FundingRateField
    timestamp: Annotated[ObservedAt, Field(description="The moment that the rate is of; without it, now.")] = None


class FundingAnswer(Answer):
    """A payment, the `n`-th of its symbol, and the funding index after it.

    `at_risk` is how many accounts it brought to evaluation, null where that is not known any more. `effective` says
    that it counts in the equity of every account.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "message": "Funding paid",
                    "symbol": "BTC-PERP",
                    "rate": "0.0001",
                    "mark_price": "50000",
                    "funding_index": "5",
                    "n": 1,
                    "at_risk": 0,
                    "effective": True,
                    "timestamp": "2026-01-31T08:00:00.000000Z",
                }
            ]
        }
    )

    success: bool
    message: str
    symbol: str
    rate: DecimalText
    mark_price: DecimalText
    funding_index: DecimalText
    n: int
    at_risk: int | None
    effective: bool
    timestamp: TimestampText

    @classmethod
    def of(cls, paid: FundingOutcome) -> FundingAnswer:
        """Answer a payment."""
        recorded = paid.recorded
        return cls(
            success=True,
            message="Funding paid" if paid.effective else "Funding recorded",
            symbol=recorded.symbol,
            rate=recorded.rate,
            mark_price=recorded.mark_price,
            funding_index=recorded.funding_index,
            n=recorded.n,
            at_risk=paid.at_risk,
            effective=paid.effective,
            timestamp=timestamp(recorded.occurred_us),
        )


class FundingPayment(Answer):
    """What a position received (above 0) or paid with an event of its account, up to an index; `id` is the event's."""

    id: int
    symbol: str
    quantity: DecimalText
    funding_index: DecimalText
    amount: DecimalText
    timestamp: TimestampText


class PendingFunding(Answer):
    """What a position is still to receive (above 0) or to pay: it counts in equity, and moves with the next event."""

    symbol: str
    quantity: DecimalText
    amount: DecimalText


class FundingPaymentsAnswer(Answer):
    """One page of an account's payments, newest first, and what is pending at this moment."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "payments": [
                        {
                            "id": 4294967310,
                            "symbol": "BTC-PERP",
                            "quantity": "0.1",
                            "funding_index": "5",
                            "amount": "-0.5",
                            "timestamp": "2026-01-31T12:00:00.000000Z",
                        }
                    ],
                    "pending": [{"symbol": "ETH-PERP", "quantity": "-2", "amount": "0.6"}],
                    "next_cursor": None,
                }
            ]
        }
    )

    payments: list[FundingPayment]
    pending: list[PendingFunding]
    next_cursor: str | None

    @classmethod
    def of(cls, page: FundingPage) -> FundingPaymentsAnswer:
        """Answer one page."""
        payments = [FundingPayment.model_validate(_fields(row, FundingPayment)) for row in page.rows]
        pending = [PendingFunding.model_validate(one, from_attributes=True) for one in page.pending]
        return cls(payments=payments, pending=pending, next_cursor=page.next_cursor)


class FundingRate(Answer):
    """A payment of funding; one that is not `effective` yet will be within minutes, without a repetition."""

    symbol: str
    n: int
    rate: DecimalText
    mark_price: DecimalText
    funding_index: DecimalText
    timestamp: TimestampText
    effective: bool


class FundingRatesAnswer(Answer):
    """One page of payments, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rates": [
                        {
                            "symbol": "BTC-PERP",
                            "n": 1,
                            "rate": "0.0001",
                            "mark_price": "50000",
                            "funding_index": "5",
                            "timestamp": "2026-01-31T08:00:00.000000Z",
                            "effective": True,
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    rates: list[FundingRate]
    next_cursor: str | None

    @classmethod
    def of(cls, page: RatePage) -> FundingRatesAnswer:
        """Answer one page."""
        rates = [FundingRate.model_validate(_fields(row, FundingRate)) for row in page.rows]
        return cls(rates=rates, next_cursor=page.next_cursor)


def _fields(row: dict[str, Any], answer: type[Answer]) -> dict[str, Any]:
    """Take what an answer shows of a row."""
    fields = {**row, "timestamp": timestamp(row["timestamp_us"])}
    return {name: fields[name] for name in answer.model_fields}
