"""The function of pause switches on stores in memory: what is answered when one of them is down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import controls_api
from margin import runtime
from margin.errors import OutcomeUnknownError, PostgresUnavailableError, RedisUnavailableError
from margin.lambda_entry import LOOP
from tests.events import LambdaContext, api_gateway_event
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin.errors import UnavailableError

BODY = {"state": "paused", "reason": "wrong prices \u2013 see the incident"}


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    exchange = LOOP.run_until_complete(Exchange().open())
    runtime.use(exchange)  # type: ignore[arg-type]  # the same services on other stores
    yield exchange
    runtime.use(None)


def _put(path: str = "/controls/engine", **options: Any) -> tuple[int, Any]:
    answer = controls_api.handler(api_gateway_event("PUT", path, BODY, **options), LambdaContext())
    return answer["statusCode"], json.loads(answer["body"])


def test_switch_that_is_in_force_is_200_with_its_change(exchange: Exchange) -> None:
    exchange.clock.now_us = 1_769_860_800_123_456
    status, answer = _put("/controls/symbols/BTC-PERP")
    assert (status, answer) == (
        200,
        {
            "name": "symbol:BTC-PERP",
            **BODY,
            "change_id": 1,
            "changed_at": "2026-01-31T12:00:00.123456Z",
            "effective": True,
        },
    )


def test_who_set_it_is_written_down(exchange: Exchange) -> None:
    _put()
    assert [change.subject for change in exchange.control_history.recorded] == ["operator"]


def test_switch_that_redis_did_not_take_is_202(exchange: Exchange) -> None:
    exchange.faults.take_down("controls.put", RedisUnavailableError("Redis is down."))
    status, answer = _put("/controls/accounts/7")
    assert (status, answer["name"], answer["effective"]) == (202, "account:7", False)


@pytest.mark.parametrize(
    ("error", "code"),
    [(PostgresUnavailableError("down"), "POSTGRES_UNAVAILABLE"), (OutcomeUnknownError("lost"), "OUTCOME_UNKNOWN")],
)
def test_switch_that_history_did_not_take_is_503(exchange: Exchange, error: UnavailableError, code: str) -> None:
    exchange.faults.take_down("controls.record", error)
    status, answer = _put()
    assert (status, answer["code"]) == (503, code)
    assert exchange.redis.controls == {}
