"""What happens to a request before an endpoint sees it.

FastAPI reads bodies with Python's JSON parser and ignores query parameters it does not know: neither is right for
money. `ExactRoute` bounds the body, wants JSON and says so, parses it exactly, and refuses what would be silently
ignored. First of all it asks who sent the request and whether they may: see `margin.http.access`.
"""

from __future__ import annotations

import email.message
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.routing import APIRoute

from margin import exact_json
from margin.errors import ForbiddenError, InvalidRequestError, UnauthenticatedError, UnknownAccountError
from margin.http.access import Reach, access_of
from margin.http.authentication import present_caller
from margin.http.problem import BodyTooLargeError, UnsupportedMediaTypeError, problems
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from fastapi.dependencies.models import Dependant

BODY_BYTES_MAX = 256 * 1024
"""Room for the longest request that there is, ten shocks of a hundred symbols each, however a program indents it."""


SECURITY_SCHEME = "token"


class _ExactRequest(HttpRequest):
    """A request whose body was read and parsed already."""

    _raw = b""
    _value: Any = None

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


class ExactRoute(APIRoute):
    """A route that takes JSON exactly, and no more than its endpoint names."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.access = access_of(endpoint)
        if not self.access.is_open:
            options["openapi_extra"] = {"security": [{SECURITY_SCHEME: [scope]} for scope in self.access.scopes]}
        super().__init__(path, endpoint, **options)
        documented = problems(InvalidRequestError)
        if not self.access.is_open:
            documented |= problems(UnauthenticatedError, ForbiddenError)
        if self.access.reach is Reach.ACCOUNT:
            documented |= problems(UnknownAccountError)
        if self.body_field is not None:
            documented |= problems(BodyTooLargeError, UnsupportedMediaTypeError)
        self.responses = dict(sorted((documented | self.responses).items(), key=lambda item: str(item[0])))

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, behind our checks."""
        handler = super().get_route_handler()
        takes_body = self.body_field is not None
        query_names = frozenset(_names(self.dependant, "query_params"))
        header_names = tuple(_names(self.dependant, "header_params"))

        access = self.access

        async def exact(request: HttpRequest) -> Response:
            if not access.is_open:
                caller = await request.app.state.authenticate(request)
                logger.thread_safe_append_keys(subject=caller.subject, source_ip=caller.source_ip)
                access.require_scope(caller)
                present_caller.set(caller)
            _check_query(request, query_names)
            _check_headers(request, header_names)
            parsed = _ExactRequest(request.scope, request.receive)
            if takes_body:
                parsed._raw = await _bounded_body(request)  # noqa: SLF001
                if parsed._raw:  # noqa: SLF001
                    _check_content_type(request)
                    parsed._value = _json_object(parsed._raw)  # noqa: SLF001
            return await handler(parsed)

        return exact


def _names(dependant: Dependant, kind: str) -> Iterator[str]:
    for field in getattr(dependant, kind):
        yield field.alias
    for dependency in dependant.dependencies:
        yield from _names(dependency, kind)


def _check_query(request: HttpRequest, known: frozenset[str]) -> None:
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        field = f"query.{exact_json.shown_name(name)}"
        if name not in known:
            expected = ", ".join(sorted(known)) or "none"
            message = f"{field} is not a parameter of this operation; it has: {expected}."
            raise InvalidRequestError(message, field)
        if name in seen:
            message = f"{field} is given twice."
            raise InvalidRequestError(message, field)
        seen.add(name)


def _check_headers(request: HttpRequest, names: tuple[str, ...]) -> None:
    for name in names:
        if len(request.headers.getlist(name)) > 1:
            message = f"header.{name} is given twice."
            raise InvalidRequestError(message, f"header.{name}")


async def _bounded_body(request: HttpRequest) -> bytes:
    chunks: list[bytes] = []
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > BODY_BYTES_MAX:
            message = f"The body is longer than {BODY_BYTES_MAX} bytes."
            raise BodyTooLargeError(message)
        chunks.append(chunk)
    return b"".join(chunks)


def _json_object(raw: bytes) -> dict[str, Any]:
    value = exact_json.loads(raw)
    if not isinstance(value, dict):
        # FastAPI takes fields from attributes too: a Decimal has none, and passes for an object without any field.
        message = "body: must be a JSON object."
        raise InvalidRequestError(message, "body")
    return value


def _check_content_type(request: HttpRequest) -> None:
    message = email.message.Message()
    message["content-type"] = request.headers.get("content-type", "text/plain")
    kind = message.get_content_type()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        detail = "The body must be JSON, declared by the header Content-Type: application/json."
        raise UnsupportedMediaTypeError(detail)
    if str(message.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8"):
        detail = "The body must be JSON in UTF-8; leave charset out of the header Content-Type."
        raise UnsupportedMediaTypeError(detail)
