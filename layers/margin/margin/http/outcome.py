"""Answers of operations that are executed once: done (200), or executed with history pending (202)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import Response

    from margin.http.wire import Answer

REPLAYED_HEADER = "Idempotent-Replayed"


def outcome(response: Response, *, pending: bool, replayed: bool) -> None:
    """Set status and headers of an executed operation on the response that FastAPI injects.

    Parameters
    ----------
    response : Response
        The endpoint's parameter of that type.
    pending : bool
        Executed, but not yet in history: 202 instead of 200.
    replayed : bool
        The operation had been executed before, under the same idempotency key.
    """
    if pending:
        response.status_code = 202
    if replayed:
        response.headers[REPLAYED_HEADER] = "true"


def executed(answer: type[Answer]) -> dict[int | str, dict[str, Any]]:
    """Document both outcomes with their header: for the ``responses`` of a route."""
    header = {
        REPLAYED_HEADER: {
            "description": "The request was executed before, under the same Idempotency-Key; this is its result.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    }
    return {
        200: {"description": "Executed.", "headers": header},
        202: {
            "model": answer,
            "description": "Executed, but not yet in history: not final until a repetition answers 200.",
            "headers": header,
        },
    }
