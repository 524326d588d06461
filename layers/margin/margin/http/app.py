"""The application around the routes: error handlers, request ids, the API document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Match

from margin.caller import ACCOUNTS_MAX, Caller
from margin.errors import (
    ForbiddenError,
    InvalidRequestError,
    MarginError,
    RateLimitedError,
    UnauthenticatedError,
    UnavailableError,
)
from margin.http.access import ForeignAccountError
from margin.http.authentication import Authenticator, authenticated, by_gateway, present_caller, source_ip
from margin.http.docs import DOCS_PATH, DOCUMENT_PATH, docs_page, document
from margin.http.problem import (
    FieldError,
    InternalError,
    MethodNotAllowedError,
    Problem,
    UnknownPathError,
    field_name,
    problem_response,
    request_id,
)
from margin.http.route import SECURITY_SCHEME, ExactRoute
from margin.http.wire import Answer
from margin.observability import MetricName, count, logger

if TYPE_CHECKING:
    from fastapi import Response
    from fastapi.routing import APIRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Pydantic's words are for programmers, and some repeat what was sent.
_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON array",
    "too_short": "must have at least {min_length} of them",
    "too_long": "must have at most {max_length} of them",
    "string_type": "must be a string",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "is not one of the known kinds",
}


# Answers are data for programs: a browser that is tricked into showing one must not run, frame, keep or guess anything.
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=63072000",
    "X-Content-Type-Options": "nosniff",
}
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": (
        "An access token of the deployment's issuer. An operation names the scopes of which the token needs one. The "
        f"claim `account_ids` says for which accounts it is: at most {ACCOUNTS_MAX} numbers between spaces, or `*` for "
        "all. Another's account is answered as one that does not exist."
    ),
}


def _operation_id(route: APIRoute) -> str:
    return route.name


class Router(APIRouter):
    """The routes of one function; each is an `ExactRoute`, and its operation id is the endpoint's name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=ExactRoute, generate_unique_id_function=_operation_id, **options)


async def caller() -> Caller:
    """Return who sent the request."""
    return present_caller.get()


CallerOf = Annotated[Caller, Depends(caller)]


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            document = super().openapi()
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas |= {**schema.pop("$defs", {}), "Problem": schema}
            document["components"]["securitySchemes"] = {SECURITY_SCHEME: _BEARER}
        return super().openapi()


def create_app(
    *routers: APIRouter,
    title: str,
    version: str,
    description: str,
    docs: bool = False,
    authenticate: Authenticator | None = None,
) -> FastAPI:
    """Make the application of one function, or of several at once for the local server.

    Parameters
    ----------
    *routers : APIRouter
        The routes; every one must be an `ExactRoute`, and endpoint names must be unique.
    title, version, description : str
        Head of the API document.
    docs : bool
        Serve the API document and its pages (/openapi.json, /docs).
    authenticate : Authenticator or None
        Says who sent a request; by default the gateway does, as `margin.lambda_entry.http_handler` sets it up.

    Raises
    ------
    TypeError
        A route is not an `ExactRoute`, which would take inexact numbers, or returns no `Answer`, which would show them.
    ValueError
        Two endpoints have the same name, and so the same operation id.
    """
    app = _Application(
        title=title,
        version=version,
        description=description,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        generate_unique_id_function=_operation_id,
    )
    app.state.authenticate = authenticate or by_gateway()
    app.state.routes = []
    names: set[str] = set()
    for router in routers:
        for route in router.routes:
            if not isinstance(route, ExactRoute):
                message = f"{route!r} is not an ExactRoute: make its router with Router()"
                raise TypeError(message)
            if not (isinstance(route.response_model, type) and issubclass(route.response_model, Answer)):
                message = f"{route.name} must return an Answer, annotated with a class that is imported at run time"
                raise TypeError(message)
            if route.name in names:
                message = f"two endpoints are called {route.name}: operation ids must be unique"
                raise ValueError(message)
            names.add(route.name)
            app.state.routes.append(route)
        app.include_router(router)
    if docs:
        app.add_route(DOCUMENT_PATH, authenticated(document), methods=["GET"], include_in_schema=False)
        app.add_route(DOCS_PATH, authenticated(docs_page), methods=["GET"], include_in_schema=False)
    app.add_middleware(_Outermost)
    app.exception_handler(MarginError)(_on_margin_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_http_exception)
    return app


async def _on_margin_error(request: HttpRequest, error: MarginError) -> Response:
    if isinstance(error, UnavailableError):
        count(MetricName.STORE_UNAVAILABLE)
        logger.warning("unavailable", code=error.code)
    elif isinstance(error, UnauthenticatedError | ForbiddenError | ForeignAccountError):
        count(MetricName.ACCESS_REFUSED)
        operation = getattr(request.scope.get("route"), "name", None)
        address = source_ip(request)
        logger.warning("access_refused", code=error.code, detail=error.detail, operation=operation, source_ip=address)
    elif isinstance(error, RateLimitedError):
        count(MetricName.REQUESTS_LIMITED)
        logger.info("rate_limited", detail=error.detail)
    elif error.status >= InternalError.status:
        raise error
    return problem_response(error, request.scope)


async def _on_invalid_request(request: HttpRequest, error: RequestValidationError) -> Response:
    errors = [FieldError(field=field_name(item["loc"]), message=_message(item)) for item in error.errors()]
    first = errors[0]
    detail = f"{first.field}: {first.message}."
    if len(errors) > 1:
        detail = f"{len(errors)} fields are malformed; the first is {detail}"
    return problem_response(InvalidRequestError(detail, first.field), request.scope, errors=errors)


def _message(item: dict[str, Any]) -> str:
    template = _MESSAGES.get(item["type"])
    return str(item["msg"]) if template is None else template.format_map(item.get("ctx", {}))


async def _on_http_exception(request: HttpRequest, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == UnknownPathError.status:
        return problem_response(UnknownPathError("This API has no such path."), request.scope, headers=headers)
    if error.status_code == MethodNotAllowedError.status:
        # The framework names the methods of the first route alone.
        here = (route for route in request.app.state.routes if route.matches(request.scope)[0] is Match.PARTIAL)
        methods = {method for route in here for method in route.methods}
        headers["Allow"] = ", ".join(sorted(methods)) or headers.get("Allow", "")
        detail = f"Allowed here: {headers['Allow']}."
        return problem_response(MethodNotAllowedError(detail), request.scope, headers=headers)
    raise error  # nothing of ours raises others: a 500, with its stack trace in the log


class _Outermost:
    """Puts the request id and the headers for browsers on every answer, and answers 500 for an unforeseen error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id(scope)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            _log(error, request_id(scope))
            if started:
                raise
            failure = InternalError("The engine failed. The request id finds the cause in the log.")
            await problem_response(failure, scope)(scope, receive, send)


def _log(error: Exception, identity: str) -> None:
    if isinstance(error, ResponseValidationError):
        # Its text repeats the whole answer, which is not for the log.
        fields = [field_name(item["loc"]) for item in error.errors()]
        logger.error("answer_invalid", request_id=identity, fields=fields)
        return
    logger.exception("request_failed", request_id=identity)
