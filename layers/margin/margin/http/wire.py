"""The types of single fields on the wire, and the base classes of requests and answers.

Each type checks one form and describes the same form in the API document. Messages say what would be right and never
repeat what was sent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from fastapi import Header, Path, Query
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from margin.domain.decimals import ABSOLUTE_VALUE_MAX, DECIMALS, plain

ACCOUNT_ID_MAX = 2**63 - 1
INTEGER_DIGITS_MAX = ABSOLUTE_VALUE_MAX.adjusted()
LIMIT_MAX = 1000
LIMIT_DEFAULT = 100
MONEY_TEXT_LENGTH_MAX = 64

SYMBOL_PATTERN = r"^[A-Z0-9][A-Z0-9._-]{0,31}$"
IDEMPOTENCY_KEY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
CLIENT_ORDER_ID_PATTERN = r"^[ -~]{1,64}$"
SOURCE_PATTERN = r"^[ -~]{1,64}$"
CURSOR_PATTERN = r"^[A-Za-z0-9_-]+={0,2}$"
MONEY_PATTERN = r"^(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
DECIMAL_TEXT_PATTERN = r"^-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?$"
ACCOUNT_ID_PATTERN = r"^[1-9][0-9]{0,18}$"

_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)
_MONEY = re.compile(r"-?" + MONEY_PATTERN[1:-1])
_SOURCE = re.compile(SOURCE_PATTERN[1:-1])
_ACCOUNT_ID = re.compile(ACCOUNT_ID_PATTERN[1:-1])
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _refuse(kind: str, message: str) -> NoReturn:
    raise PydanticCustomError(kind, message)


# --- money, prices, quantities ---


def _money(value: Any) -> Decimal:
    """Read a positive decimal exactly, in one canonical form: no trailing zeros, no exponent above zero."""
    if isinstance(value, str) and len(value) <= MONEY_TEXT_LENGTH_MAX and _MONEY.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        _refuse("money_type", "must be a number, or a string that holds a decimal number")
    sign, digits, exponent = Decimal(value).as_tuple()
    if not isinstance(exponent, int):
        _refuse("money_finite", "must be a finite number")
    if sign or not any(digits):
        _refuse("money_positive", "must be greater than 0")
    if len(digits) + exponent > INTEGER_DIGITS_MAX:
        _refuse("money_large", f"must be less than {ABSOLUTE_VALUE_MAX:f}")
    text = "".join(map(str, digits))
    significant = text.rstrip("0")
    exponent += len(text) - len(significant)
    if exponent < -DECIMALS:
        _refuse("money_fine", f"must have at most {DECIMALS} decimals")
    return Decimal(f"{significant}{'0' * max(exponent, 0)}E{min(exponent, 0)}")


def _money_schema(what: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": int(ABSOLUTE_VALUE_MAX)},
                {"type": "string", "pattern": MONEY_PATTERN, "maxLength": MONEY_TEXT_LENGTH_MAX},
            ],
            "description": (
                f"{what}: greater than 0, less than {ABSOLUTE_VALUE_MAX:f}, at most {DECIMALS} decimals. "
                "Taken exactly, digit by digit, as a number or as a string."
            ),
            "examples": list(examples),
        }
    )


Price = Annotated[Decimal, PlainValidator(_money), _money_schema("A price for one unit", "50000", "0.00001234")]
Quantity = Annotated[Decimal, PlainValidator(_money), _money_schema("A number of units", "0.1", "25")]
Amount = Annotated[Decimal, PlainValidator(_money), _money_schema("An amount of money", "10000", "0.5")]

_AS_PLAIN_TEXT = PlainSerializer(plain, return_type=str)
_DECIMAL_TEXT = re.compile(DECIMAL_TEXT_PATTERN[1:-1])


def _decimal(value: Any) -> Any:
    """Take an answer's own form too: results that were kept as text are answered from it."""
    return Decimal(value) if isinstance(value, str) and _DECIMAL_TEXT.fullmatch(value) else value


DecimalText = Annotated[
    Decimal,
    BeforeValidator(_decimal),
    Field(strict=True),
    _AS_PLAIN_TEXT,
    WithJsonSchema(
        {
            "type": "string",
            "pattern": DECIMAL_TEXT_PATTERN,
            "description": "An exact decimal: no exponent, no trailing zeros.",
            "examples": ["10000", "-0.1"],
        },
    ),
]


# --- accounts, symbols, sides ---


def _account_id(value: Any) -> int:
    if isinstance(value, str) and _ACCOUNT_ID.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= ACCOUNT_ID_MAX:
        _refuse("account_id", f"must be a whole number from 1 to {ACCOUNT_ID_MAX}")
    return value


ACCOUNT_NUMBER = PlainValidator(_account_id)
"""In the type of every field that names an account: `margin.http.access` looks for it."""

_ACCOUNT_ID_NUMBER: dict[str, Any] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": ACCOUNT_ID_MAX}

AccountId = Annotated[
    int,
    ACCOUNT_NUMBER,
    WithJsonSchema(
        {
            # No maximum here: the document's generator would write it as a float, which is a wrong number.
            "anyOf": [
                {"type": "integer", "format": "int64", "minimum": 1},
                {"type": "string", "pattern": ACCOUNT_ID_PATTERN},
            ],
            "description": "The account: a whole number, as a number or as a string.",
            "examples": [1],
        }
    ),
]
AccountIdPath = Annotated[
    int,
    Path(description="The account.", examples=[1]),
    ACCOUNT_NUMBER,
    WithJsonSchema(_ACCOUNT_ID_NUMBER),
]
AccountIdQuery = Annotated[
    int,
    Query(description="Only this account.", examples=[1]),
    ACCOUNT_NUMBER,
    WithJsonSchema(_ACCOUNT_ID_NUMBER),
]

Symbol = Annotated[
    str,
    StringConstraints(pattern=SYMBOL_PATTERN, max_length=32),
    Field(description="The instrument's symbol.", examples=["BTC-PERP"]),
]
SymbolQuery = Annotated[
    str,
    Query(pattern=SYMBOL_PATTERN, max_length=32, description="Only this symbol.", examples=["BTC-PERP"]),
]
SymbolPath = Annotated[
    str,
    Path(pattern=SYMBOL_PATTERN, max_length=32, description="The instrument's symbol.", examples=["BTC-PERP"]),
]
SideText = Literal["BUY", "SELL"]
LiquidityText = Annotated[
    Literal["MAKER", "TAKER"],
    Field(description="Whose order waited in the book (MAKER), or met it there (TAKER): it decides which fee is paid."),
]
ClientOrderId = Annotated[
    str,
    StringConstraints(pattern=CLIENT_ORDER_ID_PATTERN, max_length=64),
    Field(
        description="What the caller knows the order by: recorded and answered, never interpreted, never unique.",
        examples=["grid-17/BUY/3"],
    ),
]


# --- headers and query parameters ---


def _limit(value: Any) -> int:
    number = int(value) if isinstance(value, str) and _LIMIT.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LIMIT_MAX:
        _refuse("limit", f"must be a whole number from 1 to {LIMIT_MAX}")
    return number


def _timestamp(value: Any) -> datetime:
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    _refuse(
        "timestamp",
        "must be an ISO 8601 date and time with an offset, such as 2026-01-31T12:00:00Z (in a query, write + as %2B)",
    )


def _source(value: Any) -> str:
    if isinstance(value, str) and _SOURCE.fullmatch(value):
        return value
    _refuse("source", "must be a string of 1 to 64 printable ASCII characters")


def _timestamp_text(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=IDEMPOTENCY_KEY_PATTERN,
        max_length=128,
        description="Makes the request safe to repeat: the same key and the same body are executed once.",
        examples=["3f0a2a52-8c1e-4b57-9b1e-0d9f3f6f2b11"],
    ),
]
Limit = Annotated[
    int,
    Query(description="The most items in one page.", examples=[LIMIT_DEFAULT]),
    PlainValidator(_limit),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}),
]
Cursor = Annotated[
    str | None,
    Query(
        pattern=CURSOR_PATTERN,
        max_length=512,
        description="Where the next page starts: the `next_cursor` of the page before.",
    ),
]
Timestamp = Annotated[
    datetime,
    Query(description="A date and time with an offset.", examples=["2026-01-31T12:00:00Z"]),
    PlainValidator(_timestamp),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
ObservedAt = Annotated[
    datetime | None,
    PlainValidator(_timestamp),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": (
                "When the price was observed, with an offset and at most microseconds; without it, now. One that is "
                "older than the stored price's is refused; an equal one is the same price again, or corrected."
            ),
            "examples": ["2026-01-31T12:00:00Z"],
        }
    ),
]
Source = Annotated[
    str | None,
    PlainValidator(_source),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": SOURCE_PATTERN,
            "description": "Where the price is from: 1 to 64 printable ASCII characters, kept beside it as they are.",
            "examples": ["index-1"],
        }
    ),
]
TimestampText = Annotated[
    datetime,
    PlainSerializer(_timestamp_text, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000000Z"]}),
]


def timestamp(microseconds_: int) -> datetime:
    """Return the moment that is so many microseconds after the epoch, exactly."""
    return _EPOCH + microseconds_ * _MICROSECOND


def microseconds(moment: datetime | None) -> int | None:
    """Return how many microseconds after the epoch a moment is; None for none."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


# --- models ---


class Request(BaseModel):
    """Base of request bodies: fields that it does not name are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Answer(BaseModel):
    """Base of answers: every decimal in it is a `DecimalText`, which is checked when the class is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field that would lose digits or show an exponent."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if _loses_digits(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation):
                message = f"{cls.__name__}.{name} must be DecimalText: a bare Decimal or float is not exact on the wire"
                raise TypeError(message)


def _loses_digits(annotation: Any) -> bool:
    if annotation in (Decimal, float):
        return True
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _AS_PLAIN_TEXT not in metadata and _loses_digits(inner)
    return any(_loses_digits(argument) for argument in get_args(annotation))
