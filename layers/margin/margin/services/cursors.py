"""Cursors: opaque to callers, plain inside.

A cursor says which endpoint made it, so that one from another endpoint is refused instead of misread.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from margin.errors import CursorInvalidError

_INTEGER_MAX = 2**63
_TIMESTAMP_US_MAX = 253_402_300_800_000_000
"""The year 10000, which no timestamp reaches."""


def encode_cursor(kind: str, *values: str | int) -> str:
    """Make a cursor of some values."""
    return base64.urlsafe_b64encode(json.dumps([kind, *values]).encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str, *types: type[str | int]) -> list[Any]:
    """Read a cursor back; texts in it are printable ASCII, as all names are, and can be asked a store for.

    Raises
    ------
    CursorInvalidError
        It was not made by this kind of endpoint.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.urlsafe_b64decode(padded))
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, list)
        or values[:1] != [kind]
        or len(values) != len(types) + 1
        or any(type(value) is not expected for value, expected in zip(values[1:], types, strict=True))
        or any(isinstance(value, int) and not 0 <= value < _INTEGER_MAX for value in values[1:])
        or any(isinstance(value, str) and not (value.isascii() and value.isprintable()) for value in values[1:])
    ):
        raise invalid_cursor()
    return values[1:]


def require_moment(cursor_us: int) -> None:
    """Refuse a cursor whose microseconds since the epoch are no moment that a timestamp can be of.

    Raises
    ------
    CursorInvalidError
    """
    if cursor_us >= _TIMESTAMP_US_MAX:
        raise invalid_cursor()


def invalid_cursor() -> CursorInvalidError:
    """Refuse a cursor that its endpoint has not made."""
    return CursorInvalidError(
        "The cursor was not made by this endpoint; take next_cursor from its last answer, unchanged."
    )
