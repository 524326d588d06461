"""Every error that an HTTP function answers, in one form: ``application/problem+json`` (RFC 9457).

`problem_response` is the one mapping of the engine's errors to answers; `problems` puts the same errors into the API
document. Nothing that was sent is echoed, and an error nobody foresaw shows nothing but its request id.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Response
from pydantic import BaseModel, Field

from margin.errors import (
    ContentionError,
    HistoryForkError,
    IdempotencyKeyReusedError,
    MarginError,
    OutcomeUnknownError,
    PostgresUnavailableError,
    RateLimitedError,
    RedisUnavailableError,
    StateNotLoadedError,
    UnauthenticatedError,
    UnavailableError,
)
from margin.exact_json import shown_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
ERRORS_MAX = 20

STORE_PROBLEMS = (RedisUnavailableError, PostgresUnavailableError, StateNotLoadedError)
"""What every operation may answer that asks a store."""
WRITE_PROBLEMS = (
    IdempotencyKeyReusedError,
    ContentionError,
    HistoryForkError,
    RateLimitedError,
    *STORE_PROBLEMS,
    OutcomeUnknownError,
)
"""What every operation may answer that executes something once."""

_REQUEST_ID = "margin.request_id"


class FieldError(BaseModel):
    """What is wrong with one field."""

    field: str = Field(examples=["quantity"])
    message: str = Field(examples=["must be greater than 0"])


class Problem(BaseModel):
    """Why a request was not done."""

    type: str = Field(description="Names the kind of problem.", examples=["urn:margin:problem:insufficient-margin"])
    title: str = Field(description="The kind of problem in words.", examples=["Insufficient margin"])
    status: int = Field(description="The HTTP status.", examples=[400])
    detail: str = Field(description="What was wrong, and what would be right.")
    code: str = Field(description="What a program branches on.", examples=["INSUFFICIENT_MARGIN"])
    request_id: str = Field(description="Finds the request in the log.")
    field: str | None = Field(default=None, description="The first field that is to blame.", examples=["quantity"])
    errors: list[FieldError] | None = Field(default=None, description="All fields that are to blame, if several are.")


class UnknownPathError(MarginError):
    """The path is none of this API's."""

    code = "UNKNOWN_PATH"
    status = 404
    title = "Unknown path"


class MethodNotAllowedError(MarginError):
    """The path exists, but not with this method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405
    title = "Method not allowed"


class BodyTooLargeError(MarginError):
    """The request body is longer than the engine reads."""

    code = "BODY_TOO_LARGE"
    status = 413
    title = "Body too large"


class UnsupportedMediaTypeError(MarginError):
    """The request body is not declared as JSON."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    title = "Unsupported media type"


class InternalError(MarginError):
    """The engine failed; the log has the details under the request id."""


def request_id(scope: Scope) -> str:
    """Return the id of the request: Lambda's own, else one that is made up at first use."""
    if _REQUEST_ID not in scope:
        context = scope.get("aws.context")
        scope[_REQUEST_ID] = getattr(context, "aws_request_id", None) or str(uuid.uuid4())
    return str(scope[_REQUEST_ID])


def problem_response(
    error: MarginError,
    scope: Scope,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with ``error``.

    Parameters
    ----------
    error : MarginError
        Gives status, code, title and detail, and the field where it has one.
    scope : Scope
        The ASGI scope of the request.
    errors : Sequence[FieldError]
        All fields that are to blame; listed when there are several.
    headers : Mapping[str, str] | None
        More headers of the answer.
    """
    identity = request_id(scope)
    problem = Problem(
        type=f"urn:margin:problem:{error.code.lower().replace('_', '-')}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=identity,
        field=getattr(error, "field", None),
        errors=list(errors[:ERRORS_MAX]) if len(errors) > 1 else None,
    )
    extra = {"X-Request-Id": identity, **(headers or {})}
    if isinstance(error, UnavailableError | RateLimitedError):
        extra["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, UnauthenticatedError):
        extra["WWW-Authenticate"] = "Bearer"
    return Response(
        problem.model_dump_json(exclude_none=True), status_code=error.status, media_type=MEDIA_TYPE, headers=extra
    )


def field_name(location: Sequence[int | str]) -> str:
    """Return the name of a field as callers know it: "quantity", "marks.3.price", "query.limit", "path.account_id"."""
    parts = [shown_name(part) for part in location]
    if parts[0] == "body" and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


def problems(*errors: type[MarginError]) -> dict[int | str, dict[str, Any]]:
    """Document that an operation may answer with ``errors``: for the ``responses`` of a route.

    Examples
    --------
    >>> sorted(problems(InternalError, UnknownPathError))
    [404, 500]
    """
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        response = by_status.setdefault(
            error.status,
            {
                "description": HTTPStatus(error.status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        if issubclass(error, UnavailableError | RateLimitedError):
            response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
        if issubclass(error, UnauthenticatedError):
            response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "enum": ["Bearer"]}}}
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"summary": error.title, "value": _example(error)}
    return by_status


def _example(error: type[MarginError]) -> dict[str, Any]:
    return {
        "type": f"urn:margin:problem:{error.code.lower().replace('_', '-')}",
        "title": error.title,
        "status": error.status,
        "detail": (error.__doc__ or error.title).partition("\n")[0],
        "code": error.code,
        "request_id": "8f9c2a2e-5a55-4d0a-9d0e-0d6f6f1f2c3b",
    }
