"""One loop for all invocations, time kept, ids logged, metrics flushed, errors raised where Lambda must see them."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import types
from typing import Any

import pytest

from margin import lambda_entry, time_budget
from margin.http import Answer, Router, create_app, open_to_all
from margin.lambda_entry import LOOP, event_handler, http_handler
from margin.observability import MetricName, configure, count, counted, logger
from margin.time_budget import TimeBudgetExceededError
from tests.events import REQUEST_ID, LambdaContext, api_gateway_event

SCHEDULE = {"version": "0", "id": "cdc73f9d-aea9-11e3-9d5a-835b769c0d9c", "source": "aws.scheduler", "detail": {}}


class Slept(Answer):
    remaining_s: int


router = Router()
ended: list[str] = []
loops: list[asyncio.AbstractEventLoop] = []


async def stubborn() -> None:
    """Sleep, and for a while do not let itself be cancelled, as a driver that waits for a frozen server."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.5)
        ended.append("stubborn")


@router.get("/loop")
@open_to_all
async def read_loop() -> Slept:
    loops.append(asyncio.get_running_loop())
    return Slept(remaining_s=round(time_budget.remaining_s()))


@router.get("/sleep")
@open_to_all
async def sleep_long() -> Slept:
    try:
        await asyncio.sleep(60)
    finally:
        ended.append("sleep")
    return Slept(remaining_s=0)


@router.post("/sleep")
@open_to_all
async def sleep_and_write() -> Slept:
    await asyncio.sleep(60)
    return Slept(remaining_s=0)


@router.get("/stubborn")
@open_to_all
async def sleep_stubbornly() -> Slept:
    await stubborn()
    return Slept(remaining_s=0)


@router.get("/count")
@open_to_all
async def count_trades() -> Slept:
    count(MetricName.TRADES_EXECUTED, 2)
    count(MetricName.TRADES_EXECUTED)
    return Slept(remaining_s=0)


handler = http_handler(create_app(router, title="Loop", version="1", description="d"))


def get(path: str, context: LambdaContext | None = None, method: str = "GET") -> dict[str, Any]:
    return handler(api_gateway_event(method, path), context or LambdaContext())


@pytest.fixture(autouse=True)
def _clean() -> object:
    ended.clear()
    loops.clear()
    yield
    configure(publish_metrics=False)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_all_invocations_run_on_one_loop_even_after_asyncio_run() -> None:
    async def own() -> None:
        loops.append(asyncio.get_running_loop())

    scheduled = event_handler(lambda event: own())
    get("/loop")
    asyncio.run(asyncio.sleep(0))  # leaves the thread without a loop
    get("/loop")
    asyncio.set_event_loop(None)
    scheduled(SCHEDULE, LambdaContext())
    get("/loop")
    assert loops == [LOOP] * 4


async def test_an_async_test_runs_on_another_loop_than_the_handlers() -> None:
    assert asyncio.get_running_loop() is not LOOP
    with pytest.raises(RuntimeError):
        get("/loop")


def test_the_handler_works_after_an_async_test() -> None:
    assert get("/loop")["statusCode"] == 200


def test_the_result_of_an_event_function_is_the_handlers() -> None:
    async def echo(event: dict[str, Any]) -> dict[str, Any]:
        return {"seen": event["id"]}

    assert event_handler(echo)(SCHEDULE, LambdaContext()) == {"seen": SCHEDULE["id"]}


def test_an_error_of_an_event_function_is_logged_and_reaches_lambda(log: list[dict[str, Any]]) -> None:
    async def fail(event: dict[str, Any]) -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        event_handler(fail)(SCHEDULE, LambdaContext())
    (line,) = log
    assert (line["message"], line["correlation_id"]) == ("event_failed", SCHEDULE["id"])
    assert "LookupError" in line["exception"]


def test_an_event_function_that_runs_out_of_time_is_cancelled_and_fails() -> None:
    async def sleep(event: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("sleep")

    started = time.monotonic()
    with pytest.raises(TimeBudgetExceededError, match=r"0\.1"):
        event_handler(sleep)(SCHEDULE, LambdaContext(timeout_s=lambda_entry.RESERVE_S + 0.1))
    assert time.monotonic() - started < 0.6
    assert ended == ["sleep"]


def test_a_request_that_runs_out_of_time_is_a_503_before_lambda_kills_it(log: list[dict[str, Any]]) -> None:
    context = LambdaContext(timeout_s=lambda_entry.RESERVE_S + 0.1)
    answer = get("/sleep", context)
    assert context.get_remaining_time_in_millis() > 200
    assert answer["statusCode"] == 503
    assert answer["headers"]["retry-after"] == "1"
    assert answer["headers"]["x-request-id"] == context.aws_request_id
    assert json.loads(answer["body"])["code"] == "UNAVAILABLE"
    assert ended == ["sleep"]
    assert [line["message"] for line in log] == ["time_budget_exceeded"]


def test_a_write_that_runs_out_of_time_says_that_its_outcome_is_unknown() -> None:
    answer = get("/sleep", LambdaContext(timeout_s=lambda_entry.RESERVE_S + 0.1), "POST")
    problem = json.loads(answer["body"])
    assert (answer["statusCode"], problem["code"]) == (503, "OUTCOME_UNKNOWN")
    assert "Idempotency-Key" in problem["detail"]


def test_no_time_at_all_is_a_503_at_once() -> None:
    assert get("/sleep", LambdaContext(timeout_s=0))["statusCode"] == 503


def test_work_that_does_not_let_itself_be_cancelled_is_left_behind_and_answers_nobody() -> None:
    started = time.monotonic()
    assert get("/stubborn", LambdaContext(timeout_s=lambda_entry.RESERVE_S + 0.1))["statusCode"] == 503
    assert time.monotonic() - started < 0.45
    assert ended == []
    LOOP.run_until_complete(asyncio.sleep(0.6))
    assert ended == ["stubborn"]
    assert get("/loop")["statusCode"] == 200


def test_work_left_behind_can_neither_answer_nor_complain(caplog: pytest.LogCaptureFixture) -> None:
    complaints: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await stubborn()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        ended.append("sent into the void")
        raise LookupError("late")

    app.state = types.SimpleNamespace()  # type: ignore[attr-defined]
    late = http_handler(app)  # type: ignore[arg-type]
    LOOP.set_exception_handler(lambda loop, context: complaints.append(context))
    try:
        late(api_gateway_event("GET", "/"), LambdaContext(timeout_s=lambda_entry.RESERVE_S + 0.05))
        LOOP.run_until_complete(asyncio.sleep(0.6))
        caplog.clear()  # its records hold the task, which complains when it is freed
        gc.collect()
    finally:
        LOOP.set_exception_handler(None)
    assert ended == ["stubborn", "sent into the void"]
    assert complaints == []


def test_the_remaining_time_is_known_to_the_code_and_infinite_outside() -> None:
    assert json.loads(get("/loop", LambdaContext(timeout_s=20.5))["body"]) == {"remaining_s": 20}
    assert time_budget.remaining_s() == float("inf")


def test_metrics_are_published_once_per_invocation(capsys: pytest.CaptureFixture[str]) -> None:
    configure(publish_metrics=True)
    get("/count")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    metric = json.loads(line)
    assert metric["TradesExecuted"] == [3.0]
    assert metric["service"] == "margin"
    assert metric["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Margin"
    get("/loop")
    assert '"_aws"' not in capsys.readouterr().out


def test_metrics_are_published_when_the_function_fails(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(event: dict[str, Any]) -> None:
        count(MetricName.LIQUIDATIONS)
        raise LookupError("gone")

    configure(publish_metrics=True)
    with pytest.raises(LookupError):
        event_handler(fail)(SCHEDULE, LambdaContext())
    assert '"Liquidations":[1.0]' in capsys.readouterr().out


def test_metrics_stay_silent_unless_configured(capsys: pytest.CaptureFixture[str]) -> None:
    get("/count")
    assert '"_aws"' not in capsys.readouterr().out
    assert counted(MetricName.TRADES_EXECUTED) == 0


def test_log_lines_carry_the_ids_of_their_own_invocation_only(log: list[dict[str, Any]]) -> None:
    async def write(event: dict[str, Any]) -> None:
        logger.info("seen")
        logger.append_keys(account_id=7)

    handle = event_handler(write)
    handle(SCHEDULE, LambdaContext(aws_request_id="first"))
    handle({"Records": [{"messageId": "m-1"}]}, LambdaContext(aws_request_id="second"))
    handle({}, LambdaContext(aws_request_id="third"))
    assert [(line["function_request_id"], line["correlation_id"]) for line in log] == [
        ("first", SCHEDULE["id"]),
        ("second", "m-1"),
        ("third", "third"),
    ]
    assert all("account_id" not in line and line["cold_start"] in (True, False) for line in log)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "abc-1"}, "abc-1"),
        ({"x-request-id": 'x"\n{}'}, REQUEST_ID),
        ({"x-request-id": "x" * 129}, REQUEST_ID),
        ({}, REQUEST_ID),
    ],
)
def test_the_correlation_id_is_the_callers_if_it_is_harmless_else_the_gateways(
    headers: dict[str, str], expected: str, log: list[dict[str, Any]]
) -> None:
    handler(api_gateway_event("GET", "/sleep", headers=headers), LambdaContext(timeout_s=0))
    assert {line["correlation_id"] for line in log} == {expected}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "[::1]:3000"},
        {"Host": "a:b:c"},
        {"Host": "localhost:http"},
        {"Host": "localhost:"},
        {"Host": "localhost:8000"},
        {"Host": ""},
        {"X-Forwarded-Port": "443, 80"},
    ],
)
def test_a_host_that_is_no_address_does_not_fail_the_invocation(headers: dict[str, str]) -> None:
    assert handler(api_gateway_event("GET", "/loop", headers=headers), LambdaContext())["statusCode"] == 200
