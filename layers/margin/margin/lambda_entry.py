"""Where Lambda calls the engine: one event loop for each execution environment, and a handler around each function.

Connections live on the loop they were opened on and are kept between invocations, so all invocations of an execution
environment must run on one loop. This module owns it. ``asyncio.run`` anywhere in the process would unset it for
Mangum, which looks it up on every call; the handlers therefore set it again each time.

FastAPI and Mangum are imported only when an HTTP handler is built: scheduled and queue functions never load them.
"""

from __future__ import annotations

from margin.loading import loaded  # first, before all that takes long

# isort: split
import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from margin import time_budget
from margin.config import Settings
from margin.errors import OutcomeUnknownError, UnavailableError
from margin.observability import correlation_id, flush_metrics, logger
from margin.time_budget import TimeBudgetExceededError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What is kept of the remaining time for answering, logging and flushing after work was cut off.
RESERVE_S = 0.5
# How long cancelled work may take to clean up before it is left behind (a driver may hold on for many seconds).
CANCEL_GRACE_S = 0.1

IN_LAMBDA = "AWS_LAMBDA_FUNCTION_NAME"

Event = dict[str, Any]
_ADDRESS = {"host": re.compile(r"[^:]*(:[0-9]{1,5})?"), "x-forwarded-port": re.compile(r"[0-9]{1,5}")}
Handler = Callable[[Event, Any], Any]
BatchAnswer = dict[str, list[dict[str, str]]]
Result = TypeVar("Result")

LOOP = asyncio.new_event_loop()


class LambdaContext(Protocol):
    """What the handlers use of Lambda's context object."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda kills the invocation."""


def http_handler(app: FastAPI, *, reserve_s: float = RESERVE_S) -> Handler:
    """Make the Lambda handler of an HTTP function: API Gateway v2 events in, API Gateway v2 answers out.

    Parameters
    ----------
    app : FastAPI
        What ``margin.http.create_app`` returned. Its callers are those whom the gateway names; in Lambda the settings
        are asked, and say so too but under ``sam local``.
    reserve_s : float
        Seconds of the invocation's remaining time that the request may not use.

    Raises
    ------
    SettingError
        A setting is wrong, and the function does not start.

    Notes
    -----
    The handler is synchronous, as Lambda requires, and cannot be called while an event loop is running in the thread.
    """
    from mangum import Mangum  # noqa: PLC0415  (only HTTP functions pay for it)

    if IN_LAMBDA in os.environ:
        from margin.http import authenticator  # noqa: PLC0415

        app.state.authenticate = authenticator(Settings.from_environment(os.environ))
    asyncio.set_event_loop(LOOP)
    adapter = Mangum(
        _TimeBounded(app, reserve_s),
        lifespan="off",
        text_mime_types=["application/json", "application/problem+json", "text/"],
    )

    def answer(event: Event, context: LambdaContext) -> Any:
        return adapter(_with_readable_address(event), context)  # type: ignore[arg-type]  # Mangum's own protocol names more than it uses

    return _invocation(answer)


def _with_readable_address(event: Event) -> Event:
    """Take headers away that Mangum would fail to read an address in: "[::1]:3000" is one. Nothing here asks for it."""
    headers = event.get("headers") or {}
    unreadable = {name for name, form in _ADDRESS.items() if name in headers and not form.fullmatch(headers[name])}
    if not unreadable:
        return event
    return {**event, "headers": {name: value for name, value in headers.items() if name not in unreadable}}


def event_handler(
    function: Callable[[Event], Awaitable[Result]], *, reserve_s: float = RESERVE_S
) -> Callable[[Event, Any], Result]:
    """Make the Lambda handler of a function that is started by a schedule, a queue or another event.

    Parameters
    ----------
    function : Callable[[Event], Awaitable[Result]]
        The use case; its result is the handler's.
    reserve_s : float
        Seconds of the invocation's remaining time that the function may not use.

    Notes
    -----
    An error propagates after it was logged, so that Lambda retries the event. A function that runs out of time is
    cancelled and raises `TimeBudgetExceededError`.
    """

    async def work(event: Event, budget_s: float) -> Result:
        time_budget.start(budget_s)
        return await _bounded(function(event), budget_s)

    def answer(event: Event, context: LambdaContext) -> Result:
        try:
            return LOOP.run_until_complete(work(event, _budget_s(context, reserve_s)))
        except Exception:
            logger.exception("event_failed")
            raise

    return _invocation(answer)


def queue_handler(
    function: Callable[[str], Awaitable[None]], *, reserve_s: float = RESERVE_S
) -> Callable[[Event, Any], BatchAnswer]:
    """Make the Lambda handler of a function that works an SQS queue, message by message.

    Parameters
    ----------
    function : Callable[[str], Awaitable[None]]
        Takes the body of one message; an error makes the queue deliver that message again, and that one alone.
    reserve_s : float
        Seconds of the invocation's remaining time that the messages together may not use.

    Notes
    -----
    The queue must not be a FIFO queue, and its event source must have ReportBatchItemFailures: the answer names the
    messages that failed. Powertools' batch processor answers the same, but loads all event sources of AWS to do so.
    """

    async def work(body: str, budget_s: float) -> None:
        time_budget.start(budget_s)
        await _bounded(function(body), budget_s)

    def is_done(record: Event, context: LambdaContext) -> bool:
        try:
            LOOP.run_until_complete(work(record["body"], _budget_s(context, reserve_s)))
        except Exception:  # noqa: BLE001 - the queue delivers this message again, whatever the error, and no other one
            logger.exception("message_failed", message_id=record["messageId"])
            return False
        return True

    def answer(event: Event, context: LambdaContext) -> BatchAnswer:
        failed = [record["messageId"] for record in event["Records"] if not is_done(record, context)]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    return _invocation(answer)


def _invocation(answer: Callable[[Event, Any], Result]) -> Callable[[Event, Any], Result]:
    """Wrap what every invocation needs: the loop in place, ids in each log line, metrics flushed whatever happens."""
    loaded()

    @logger.inject_lambda_context(clear_state=True, log_event=False)
    def handler(event: Event, context: LambdaContext) -> Result:
        logger.set_correlation_id(correlation_id(event) or context.aws_request_id)
        asyncio.set_event_loop(LOOP)
        try:
            return answer(event, context)
        finally:
            flush_metrics()

    return handler


def _budget_s(context: LambdaContext, reserve_s: float) -> float:
    return max(0.0, context.get_remaining_time_in_millis() / 1000 - reserve_s)


async def _bounded(work: Awaitable[Result], budget_s: float) -> Result:
    """Await ``work`` for at most ``budget_s`` seconds, even if it does not let itself be cancelled."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=budget_s)
    if task.done():
        return task.result()
    task.add_done_callback(_retrieve)
    task.cancel()
    await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
    raise TimeBudgetExceededError(budget_s)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Take a left-behind task's error, which asyncio would else report as never retrieved."""
    if not task.cancelled():
        task.exception()


class _TimeBounded:
    """An ASGI application that answers 503 when the inner one does not answer in the time that is left."""

    def __init__(self, app: ASGIApp, reserve_s: float) -> None:
        self._app = app
        self._reserve_s = reserve_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        budget_s = _budget_s(scope["aws.context"], self._reserve_s)
        time_budget.start(budget_s)
        gate = _Gate(send)
        try:
            await _bounded(self._app(scope, receive, gate), budget_s)
        except TimeBudgetExceededError:
            from margin.http import problem_response  # noqa: PLC0415  (loaded already, by the application)

            logger.exception("time_budget_exceeded")
            gate.close()
            if gate.started:
                raise  # half an answer: Mangum makes it a 500
            await problem_response(_out_of_time(scope["method"]), scope)(scope, receive, send)


def _out_of_time(method: str) -> UnavailableError:
    if method == "GET":
        return UnavailableError("The time for this request ran out. Send it again.")
    return OutcomeUnknownError(
        "The time for this request ran out, and it may or may not have been executed. "
        "If it carried an Idempotency-Key, send it again with the same one to learn which."
    )


class _Gate:
    """Passes an answer on until it is closed: work that was left behind must not answer a later request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._closed = False
        self.started = False

    def close(self) -> None:
        """Let nothing through any more."""
        self._closed = True

    async def __call__(self, message: Message) -> None:
        if self._closed:
            return
        self.started = True
        await self._send(message)
