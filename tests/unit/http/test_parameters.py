"""Path, query and header parameters that are right arrive; ids and callers are known."""

from __future__ import annotations

import pytest
from fastapi import Depends
from starlette.datastructures import Headers

from margin.http import BODY_BYTES_MAX, Answer, Router, anyone, create_app, open_to_all
from margin.lambda_entry import http_handler
from tests.events import LambdaContext, api_gateway_event
from tests.unit.http.exchange import TRADE, call, handler, router

open_app = create_app(router, title="t", version="1", description="d", authenticate=anyone)


class Depth(Answer):
    depth: int


def test_defaults_are_used_when_the_query_is_empty() -> None:
    assert call("GET", "/trades/7").json == {
        "account_id": 7,
        "limit": 100,
        "cursor": None,
        "symbol": None,
        "since": None,
    }


def test_the_largest_account_arrives_from_the_path() -> None:
    assert call("GET", f"/trades/{2**63 - 1}").json["account_id"] == 2**63 - 1


def test_all_parameters_arrive() -> None:
    query = {"limit": "1000", "cursor": "aZ0_-aZ0_-==", "symbol": "BTC-PERP", "since": "2026-01-31T12:00:00+01:00"}
    assert call("GET", "/trades/7", query=query).json == {
        "account_id": 7,
        "limit": 1000,
        "cursor": "aZ0_-aZ0_-==",
        "symbol": "BTC-PERP",
        "since": "2026-01-31T11:00:00.000000Z",
    }


@pytest.mark.parametrize(
    ("since", "utc"),
    [
        ("2026-01-31T12:00Z", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31T12:00:00.5-02:30", "2026-01-31T14:30:00.500000Z"),
        ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.123456Z"),
    ],
)
def test_a_timestamp_arrives_in_utc(since: str, utc: str) -> None:
    assert call("GET", "/trades/7", query={"since": since}).json["since"] == utc


@pytest.mark.parametrize("key", ["a", "3f0a2a52-8c1e-4b57-9b1e-0d9f3f6f2b11", "order:7.2_b", "x" * 128])
def test_an_idempotency_key_arrives(key: str) -> None:
    assert call("POST", "/trade", TRADE, headers={"Idempotency-Key": key}).json["idempotency_key"] == key


def test_no_idempotency_key_is_none() -> None:
    assert call("POST", "/trade", TRADE).json["idempotency_key"] is None


def test_two_idempotency_keys_are_refused_as_the_gateway_joins_them() -> None:
    reply = call("POST", "/trade", TRADE, headers={"Idempotency-Key": "a,b"})
    assert (reply.status, reply.json["field"]) == (422, "header.Idempotency-Key")


async def test_two_idempotency_keys_are_refused_as_a_server_passes_them() -> None:
    headers = Headers(
        raw=[(b"content-type", b"application/json"), (b"idempotency-key", b"a"), (b"idempotency-key", b"b")]
    )
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/trade", "query_string": b"", "headers": headers.raw}
    await open_app(scope, receive, send)
    assert sent[0]["status"] == 422
    assert b'"field":"header.Idempotency-Key"' in sent[1]["body"]


async def test_a_body_that_never_ends_is_refused_at_the_limit() -> None:
    chunks = 0
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await open_app(
        {"type": "http", "method": "POST", "path": "/trade", "query_string": b"", "headers": []}, receive, send
    )
    assert (sent[0]["status"], chunks) == (413, BODY_BYTES_MAX // 1024 + 1)


def test_a_query_parameter_of_a_dependency_is_known() -> None:
    router = Router()

    async def depth(depth: int = 1) -> int:
        return depth

    @router.get("/depth")
    @open_to_all
    async def read_depth(value: int = Depends(depth)) -> Depth:
        return Depth(depth=value)

    handle = http_handler(create_app(router, title="t", version="1", description="d"))
    answer = handle(api_gateway_event("GET", "/depth", query="depth=3"), LambdaContext())
    assert answer["body"] == '{"depth":3}'


def test_every_answer_carries_lambdas_request_id() -> None:
    for method, path in (("GET", "/trades/1"), ("GET", "/trades/0"), ("GET", "/nothing"), ("PUT", "/trade")):
        context = LambdaContext(aws_request_id=f"id-of-{method}-{len(path)}")
        answer = handler(api_gateway_event(method, path), context)
        assert answer["headers"]["x-request-id"] == context.aws_request_id
