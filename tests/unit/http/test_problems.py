"""Every error of the engine becomes one form of answer, and nothing leaks that was not meant to be shown."""

from __future__ import annotations

import re

import pytest
from fastapi import APIRouter, Response
from pydantic import BaseModel

from margin import errors
from margin.errors import (
    InsufficientMarginError,
    InvalidRequestError,
    MarginError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.http import Answer, Router, create_app, open_to_all, problems
from margin.http.problem import request_id
from margin.lambda_entry import http_handler
from margin.observability import configure
from tests.events import LambdaContext, api_gateway_event
from tests.unit.http.exchange import call, fail_with, trade

ALL_ERRORS = sorted(
    (error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, MarginError)),
    key=lambda error: error.__name__,
)


class Two(Answer):
    one: int
    two: int


def test_a_refusal_is_a_problem_with_all_its_fields() -> None:
    fail_with(InsufficientMarginError("Insufficient equity. Required: 10000, Available: 9000"))
    reply = trade()
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json == {
        "type": "urn:margin:problem:insufficient-margin",
        "title": "Insufficient margin",
        "status": 400,
        "detail": "Insufficient equity. Required: 10000, Available: 9000",
        "code": "INSUFFICIENT_MARGIN",
        "request_id": LambdaContext().aws_request_id,
    }


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: error.__name__)
def test_every_error_answers_its_own_status_and_code(error: type[MarginError]) -> None:
    fail_with(error(7) if error is UnknownAccountError else error("A sentence."))
    reply = trade()
    assert (reply.status, reply.json["status"], reply.json["code"]) == (error.status, error.status, error.code)
    assert reply.json["type"] == "urn:margin:problem:" + error.code.lower().replace("_", "-")
    assert ("retry-after" in reply.headers) == (error.status in {429, 503})


def test_a_store_that_is_down_says_when_to_retry_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    configure(publish_metrics=True)
    fail_with(StateNotLoadedError("Redis was restarted."))
    assert trade().headers["retry-after"] == "2"
    configure(publish_metrics=False)
    assert '"StoreUnavailable":[1.0]' in capsys.readouterr().out


def test_an_invalid_request_of_a_service_names_its_field() -> None:
    fail_with(InvalidRequestError("since must not be after until.", "query.since"))
    assert trade().json["field"] == "query.since"


def test_an_error_nobody_foresaw_shows_nothing_and_is_logged_with_its_trace(log: list[dict[str, object]]) -> None:
    fail_with(RuntimeError("password=hunter2"))
    reply = trade()
    assert reply.status == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["x-request-id"] == reply.json["request_id"] == LambdaContext().aws_request_id
    assert reply.json["code"] == "INTERNAL"
    assert "hunter2" not in reply.text
    assert "RuntimeError" not in reply.text
    (line,) = [line for line in log if line["message"] == "request_failed"]
    assert line["level"] == "ERROR"
    assert line["request_id"] == reply.json["request_id"]
    assert "execute_trade" in str(line["exception"])


def test_a_base_error_with_internal_code_does_not_show_its_detail() -> None:
    fail_with(MarginError("row 17 of table accounts is broken"))
    reply = trade()
    assert (reply.status, reply.json["code"]) == (500, "INTERNAL")
    assert "row 17" not in reply.text


def test_an_answer_that_breaks_its_contract_is_a_500_and_is_not_in_the_log(log: list[dict[str, object]]) -> None:
    router = Router()

    @router.get("/two")
    @open_to_all
    async def read_two() -> Two:
        return {"one": "S3CRET", "two": 2}  # type: ignore[return-value]

    handler = http_handler(create_app(router, title="t", version="1", description="d"))
    answer = handler(api_gateway_event("GET", "/two"), LambdaContext())
    assert answer["statusCode"] == 500
    (line,) = [line for line in log if line["message"] == "answer_invalid"]
    assert line["fields"] == ["response.one"]
    assert "S3CRET" not in str(log) + answer["body"]


@pytest.mark.parametrize(
    "path", ["/", "/trades", "/trade/", "/trades/1/", "/TRADE", "/docs", "/openapi.json", "/../etc", "//trade", "/%00"]
)
def test_an_unknown_path_is_a_404(path: str) -> None:
    reply = call("GET", path)
    assert (reply.status, reply.json["code"]) == (404, "UNKNOWN_PATH")
    assert "location" not in reply.headers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
def test_a_wrong_method_is_a_405_that_says_which_is_right(method: str) -> None:
    reply = call(method, "/trade")
    assert (reply.status, reply.json["code"], reply.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")


def test_a_trade_pending_in_history_is_a_202_and_a_replay_says_so() -> None:
    assert (trade().status, trade(symbol="PENDING").status, trade(symbol="REPLAYED").status) == (200, 202, 200)
    assert trade(symbol="PENDING").json["symbol"] == "PENDING"
    assert trade(symbol="REPLAYED").headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in trade().headers


def test_a_request_outside_lambda_has_an_id_of_its_own_that_stays() -> None:
    scope: dict[str, object] = {"type": "http"}
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", request_id(scope))
    assert request_id(scope) == request_id(scope)
    assert request_id(scope) != request_id({"type": "http"})


def test_a_router_that_takes_inexact_numbers_is_not_accepted() -> None:
    router = APIRouter()

    @router.get("/two")
    async def read_two() -> Two: ...

    with pytest.raises(TypeError, match="ExactRoute"):
        create_app(router, title="t", version="1", description="d")


@pytest.mark.parametrize("returned", [None, dict, "Elsewhere", Response, BaseModel, list[Two]])
def test_an_endpoint_without_an_answer_class_is_not_accepted(returned: object) -> None:
    router = Router()

    async def read() -> None: ...

    read.__annotations__["return"] = returned
    router.get("/read")(open_to_all(read))
    with pytest.raises(TypeError, match="read must return an Answer"):
        create_app(router, title="t", version="1", description="d")


def test_two_endpoints_of_one_name_are_not_accepted() -> None:
    first, second = Router(), Router()

    async def same() -> Two: ...

    first.get("/a")(open_to_all(same))
    second.get("/b")(open_to_all(same))
    with pytest.raises(ValueError, match="same"):
        create_app(first, second, title="t", version="1", description="d")


def test_documented_problems_are_grouped_by_status() -> None:
    documented = problems(InsufficientMarginError, errors.OutsidePriceBandError, StateNotLoadedError)
    assert list(documented) == [400, 503]
    examples = documented[400]["content"]["application/problem+json"]["examples"]
    assert list(examples) == ["INSUFFICIENT_MARGIN", "OUTSIDE_PRICE_BAND"]
