"""PUT and GET /instruments/{symbol}, and GET /instruments."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, DECIMALS, plain
from margin.domain.instrument import DEFAULT_TIERS, Instrument, InstrumentStatus, Tier, default_instrument
from margin.errors import InvalidInstrumentError
from margin.http.wire import Answer, DecimalText, Price, Quantity, Request, Symbol, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.ports.instruments import ConfiguredInstrument
    from margin.services.instruments import InstrumentOutcome, InstrumentPage

TIERS_MAX = 100
NOTIONAL_CAP_MAX = Decimal("1e24")
MARK_AGE_MAX_S = 10**9
DECIMAL_PATTERN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
_TEXT_LENGTH_MAX = 64
_DECIMAL = re.compile(DECIMAL_PATTERN[1:-1])
_DEFAULT = default_instrument("DEFAULT")


@dataclasses.dataclass(frozen=True)
class _Range:
    """A decimal between two limits, each of them allowed itself or not."""

    what: str
    least: Decimal | int
    most: Decimal | int
    has_least: bool = False
    has_most: bool = False

    def read(self, value: Any) -> Decimal:
        """Read it exactly, in one canonical form: no trailing zeros, no exponent above zero."""
        if isinstance(value, str) and len(value) <= _TEXT_LENGTH_MAX and _DECIMAL.fullmatch(value):
            value = Decimal(value)
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise PydanticCustomError("decimal_type", "must be a number, or a string that holds a decimal number")
        number = Decimal(value)
        if not (number.is_finite() and self._has(number)):
            raise PydanticCustomError("decimal_range", f"must be {self.limits}")
        sign, digits, exponent = number.as_tuple()
        text = "".join(map(str, digits)).rstrip("0")
        exponent = int(exponent) + len(digits) - len(text)
        if not text:
            return Decimal(0)
        if exponent < -DECIMALS:
            raise PydanticCustomError("decimal_fine", f"must have at most {DECIMALS} decimals")
        return Decimal(f"{'-' * sign}{text}{'0' * max(exponent, 0)}E{min(exponent, 0)}")

    @property
    def limits(self) -> str:
        """Say in words where it has to be."""
        least = f"{'at least' if self.has_least else 'greater than'} {plain(Decimal(self.least))}"
        return f"{least} and {'at most' if self.has_most else 'less than'} {plain(Decimal(self.most))}"

    def schema(self, *examples: str) -> WithJsonSchema:
        """Describe it for the API document."""
        return WithJsonSchema(
            {
                "anyOf": [
                    {
                        "type": "number",
                        "minimum" if self.has_least else "exclusiveMinimum": int(self.least),
                        "maximum" if self.has_most else "exclusiveMaximum": int(self.most),
                    },
                    {"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": _TEXT_LENGTH_MAX},
                ],
                "description": f"{self.what}: {self.limits}, with at most {DECIMALS} decimals; a number or a string.",
                "examples": list(examples),
            }
        )

    def _has(self, number: Decimal) -> bool:
        above = number >= self.least if self.has_least else number > self.least
        return above and (number <= self.most if self.has_most else number < self.most)


_CAP = _Range("Largest notional of the bracket, null for the last one", 0, NOTIONAL_CAP_MAX)
_RATE = _Range("Margin for each unit of notional inside the bracket", 0, 1, has_most=True)
_TAKER_FEE = _Range("Fee for each unit of notional, of who took liquidity", 0, 1, has_least=True)
_MAKER_FEE = _Range("Fee of who gave liquidity; below 0 it is a rebate, at most as high as `taker_fee`", -1, 1)
_LIQUIDATION_FEE = _Range("The most that a liquidation takes, below every maintenance rate", 0, 1, has_least=True)
_BAND = _Range("How far from the mark a trade's price may be, as a share of it", 0, 1, has_most=True)
_JUMP = _Range(
    "How far from the mark a new price may be, as a share of it, before a second one has to confirm it; null for"
    " no guard",
    0,
    ABSOLUTE_VALUE_MAX,
)
_FUNDING_CAP = _Range("The highest funding rate of one payment, either way", 0, 1, has_most=True)

StatusText = Literal["active", "reduce-only", "settling", "closed"]
MarkAge = Annotated[
    int,
    Field(
        strict=True,
        ge=1,
        le=MARK_AGE_MAX_S,
        description="Age in seconds from which on a mark price is stale, null for no limit.",
        examples=[60],
    ),
]


class TierRequest(Request):
    """A bracket of the margin table. The amounts that keep margin continuous at its cap are derived."""

    notional_cap: Annotated[Decimal, PlainValidator(_CAP.read), _CAP.schema("50000")] | None
    initial_rate: Annotated[Decimal, PlainValidator(_RATE.read), _RATE.schema("0.01")]
    maintenance_rate: Annotated[Decimal, PlainValidator(_RATE.read), _RATE.schema("0.005")]


def _default(name: str) -> Any:
    """Make the default of a field that is a decimal, shown in the API document as answers show it."""
    value: Decimal = getattr(_DEFAULT, name)
    return Field(value, json_schema_extra={"default": plain(value)})


def _default_tiers() -> list[TierRequest]:
    return [TierRequest(**dataclasses.asdict(tier)) for tier in DEFAULT_TIERS]


class InstrumentRequest(Request):
    """All rules of a symbol. What is left out takes its default, whatever it was before."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tick_size": "0.1",
                    "lot_size": "0.001",
                    "min_quantity": "0.001",
                    "max_quantity": "120",
                    "tiers": [
                        {"notional_cap": "300000", "initial_rate": "0.008", "maintenance_rate": "0.004"},
                        {"notional_cap": "800000", "initial_rate": "0.01", "maintenance_rate": "0.005"},
                        {"notional_cap": None, "initial_rate": "0.02", "maintenance_rate": "0.01"},
                    ],
                    "taker_fee": "0.0004",
                    "maker_fee": "0.0002",
                    "liquidation_fee_cap": "0.003",
                    "mark_max_age_s": 60,
                    "status": "active",
                }
            ]
        }
    )

    tick_size: Price = _default("tick_size")
    lot_size: Quantity = _default("lot_size")
    min_quantity: Quantity = _default("min_quantity")
    max_quantity: Quantity | None = _DEFAULT.max_quantity
    position_limit: Quantity | None = _DEFAULT.position_limit
    tiers: Annotated[
        list[TierRequest],
        Field(
            min_length=1,
            max_length=TIERS_MAX,
            description="Brackets by notional; the last has no cap. Left out: one of 0.2 initial and 0.1 maintenance.",
            default_factory=_default_tiers,
        ),
    ]
    taker_fee: Annotated[Decimal, PlainValidator(_TAKER_FEE.read), _TAKER_FEE.schema("0.0004")] = _default("taker_fee")
    maker_fee: Annotated[Decimal, PlainValidator(_MAKER_FEE.read), _MAKER_FEE.schema("0.0002", "-0.0001")] = _default(
        "maker_fee"
    )
    liquidation_fee_cap: Annotated[Decimal, PlainValidator(_LIQUIDATION_FEE.read), _LIQUIDATION_FEE.schema("0.003")] = (
        _default("liquidation_fee_cap")
    )
    price_band: Annotated[Decimal, PlainValidator(_BAND.read), _BAND.schema("0.2")] = _default("price_band")
    mark_max_age_s: MarkAge | None = _DEFAULT.mark_max_age_s
    mark_jump_max: Annotated[Decimal, PlainValidator(_JUMP.read), _JUMP.schema("0.1")] | None = _DEFAULT.mark_jump_max
    funding_rate_cap: Annotated[Decimal, PlainValidator(_FUNDING_CAP.read), _FUNDING_CAP.schema("0.0075")] = _default(
        "funding_rate_cap"
    )
    status: StatusText = "active"

    def instrument(self, symbol: str) -> Instrument:
        """Return the rules as the domain knows them, valid together.

        Raises
        ------
        InvalidInstrumentError
        """
        terms = {name: getattr(self, name) for name in type(self).model_fields if name not in {"tiers", "status"}}
        tiers = tuple(Tier(tier.notional_cap, tier.initial_rate, tier.maintenance_rate) for tier in self.tiers)
        try:
            return Instrument(symbol, tiers=tiers, status=InstrumentStatus(self.status), **terms)
        except ValueError as error:
            message = f"These are not the terms of an instrument: {error}."
            raise InvalidInstrumentError(message) from error


class TierAnswer(Answer):
    """A bracket of the margin table, with what is subtracted from rate * notional in it."""

    notional_cap: DecimalText | None
    initial_rate: DecimalText
    initial_amount: DecimalText
    maintenance_rate: DecimalText
    maintenance_amount: DecimalText


class InstrumentTerms(Answer):
    """All rules of a symbol, in one version; version 0 are the default ones."""

    symbol: Symbol
    version: int
    tick_size: DecimalText
    lot_size: DecimalText
    min_quantity: DecimalText
    max_quantity: DecimalText | None
    position_limit: DecimalText | None
    tiers: list[TierAnswer]
    taker_fee: DecimalText
    maker_fee: DecimalText
    liquidation_fee_cap: DecimalText
    price_band: DecimalText
    mark_max_age_s: int | None
    mark_jump_max: DecimalText | None
    funding_rate_cap: DecimalText
    status: StatusText
    changed_at: TimestampText | None
    changed_by: str | None


class InstrumentChangeAnswer(InstrumentTerms):
    """Rules as they were asked for; `effective` says that from now on everything is decided by them."""

    effective: bool

    @classmethod
    def of(cls, outcome: InstrumentOutcome) -> InstrumentChangeAnswer:
        """Answer a change."""
        change = outcome.change
        by = (None, None) if change is None else (change.changed_at_us, change.subject)
        return cls(**_terms(outcome.instrument, *by), effective=outcome.effective)


class InstrumentAnswer(InstrumentTerms):
    """Rules in force since `effective_at`, and in `pending` those that everybody who holds it is being anchored to.

    Until those are in force nobody is judged by them.
    """

    effective_at: TimestampText | None
    pending: InstrumentTerms | None

    @classmethod
    def of(cls, configured: ConfiguredInstrument) -> InstrumentAnswer:
        """Answer the rules of a symbol."""
        in_force, following = configured.in_force, configured.under_way
        by = (None, None) if in_force is None else (in_force.changed_at_us, in_force.subject)
        since_us = None if in_force is None else in_force.effective_at_us
        pending = (
            None
            if following is None
            else InstrumentTerms(**_terms(following.instrument, following.changed_at_us, following.subject))
        )
        return cls(
            **_terms(configured.instrument, *by),
            effective_at=None if since_us is None else timestamp(since_us),
            pending=pending,
        )


class InstrumentsAnswer(Answer):
    """One page of the symbols that were ever configured, by symbol; all others have the default rules."""

    instruments: list[InstrumentAnswer]
    next_cursor: str | None

    @classmethod
    def of(cls, page: InstrumentPage) -> InstrumentsAnswer:
        """Answer one page."""
        return cls(instruments=[InstrumentAnswer.of(one) for one in page.instruments], next_cursor=page.next_cursor)


def _terms(instrument: Instrument, changed_at_us: int | None, subject: str | None) -> dict[str, Any]:
    amounts = zip(instrument.tiers, instrument.initial_amounts, instrument.maintenance_amounts, strict=True)
    tiers = [
        TierAnswer(
            notional_cap=tier.notional_cap,
            initial_rate=tier.initial_rate,
            initial_amount=initial_amount,
            maintenance_rate=tier.maintenance_rate,
            maintenance_amount=maintenance_amount,
        )
        for tier, initial_amount, maintenance_amount in amounts
    ]
    own = {"tiers", "status", "changed_at", "changed_by"}
    return {
        **{name: getattr(instrument, name) for name in InstrumentTerms.model_fields if name not in own},
        "tiers": tiers,
        "status": str(instrument.status),
        "changed_at": None if changed_at_us is None else timestamp(changed_at_us),
        "changed_by": subject,
    }
