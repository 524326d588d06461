"""JSON in, with nothing lost: numbers keep all their digits, and what JSON leaves open is refused.

Python's parser takes NaN, keeps the last of two equal keys, makes floats and fails with errors of its own kinds on deep
nesting, long integers and lone surrogates. Here each of these ends in one `InvalidRequestError`, which echoes nothing.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from margin.errors import InvalidRequestError

DEPTH_MAX = 16
# Far above the longest request that there is, ten shocks of a hundred symbols: what is refused costs by its values.
VALUES_MAX = 8192
# An integer this long is in range for no field. A longer one becomes a Decimal, which the field then refuses by name:
# int() raises above 4300 digits and is quadratic below that.
INTEGER_DIGITS_MAX = 32

# A whole string (an unterminated one up to the end of the text), one bracket or a comma. Possessive, thus linear.
_STRING_OR_MARK = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{\]},]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_PRINTABLE_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def loads(raw: bytes) -> Any:
    """Parse a JSON text: integers as int, every other number as Decimal.

    Parameters
    ----------
    raw : bytes
        The text in UTF-8, already bounded in length by the caller.

    Raises
    ------
    InvalidRequestError
        The text is not UTF-8 or not JSON, is nested deeper than `DEPTH_MAX`, has more than `VALUES_MAX` values, repeats
        a key, holds NaN or an infinity, a number beyond any exponent, or half of a surrogate pair.

    Examples
    --------
    >>> loads(b'{"price": 123456789012.12345678}')
    {'price': Decimal('123456789012.12345678')}
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("The body is not UTF-8.")
    if text.startswith("\ufeff"):
        _refuse("The body starts with a byte order mark; send JSON without one.")
    _check_size(text)
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_decimal,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        _refuse(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.")
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def shown_name(name: object) -> str:
    """Return a field name that came from outside if it is harmless to print, else a placeholder."""
    text = str(name)
    return text if _PRINTABLE_NAME.fullmatch(text) else "?"


def _refuse(detail: str, field: str = "body") -> NoReturn:
    raise InvalidRequestError(detail, field) from None


def _check_size(text: str) -> None:
    depth, values = 0, 1
    for match in _STRING_OR_MARK.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                _refuse(f"The body is nested deeper than {DEPTH_MAX} levels.")
        elif match[0] in "]}":
            depth -= 1
        if match[0] in "[{,":
            values += 1
            if values > VALUES_MAX:
                _refuse(f"The body has more than {VALUES_MAX} values.")


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= INTEGER_DIGITS_MAX else Decimal(digits)


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:
        _refuse("A number in the body has an exponent that no number of the engine can have.")


def _constant(_name: str) -> NoReturn:
    _refuse("NaN and Infinity are not JSON; numbers must be finite.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        _refuse("A field is given twice.", shown_name(twice))
    return value


def _check_surrogates(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            _check_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _check_surrogates(item)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse("A string in the body holds half of a surrogate pair.")
