"""What only happens in Lambda: environments that were frozen, time that runs out, secrets that change, the queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from margin.clients.rotating_secret import REFUSED_FOR_S
from margin_local.servers.ports import choose_port
from tests.runtime.conftest import POSTGRES_SECRET, REDIS_SECRET
from tests.runtime.deployment import event
from tests.runtime.stores import USER, new_password

if TYPE_CHECKING:
    from tests.runtime.aws import Aws
    from tests.runtime.deployment import Deployment
    from tests.runtime.stores import Stores

pytestmark = pytest.mark.runtime

# The engine asks whether its connections live only after a pause as long as this.
PAUSE_S = 1.1
# A function's time, and more patience with Redis than fits into it.
TIMEOUT_S = 2
PATIENT = {"REDIS_TIMEOUT_S": "5"}


# --- frozen and thawed ---


@pytest.mark.parametrize("name", ["trade_accepted", "positions", "trades", "health"])
def test_request_after_a_thaw_finds_its_connections_dead_and_succeeds(
    market: Deployment, stores: Stores, name: str
) -> None:
    request = event(name)
    http = request["requestContext"]["http"]
    environment = market.warm(market.artefact.function_of(http["method"], http["path"]))
    assert market.send(request).status == 200
    before = stores.one("select count(*) from trades")
    with environment.frozen():
        time.sleep(PAUSE_S)
        assert stores.end_redis_connections() + stores.end_postgres_sessions() > 0
    reply = market.send(request)
    assert reply.status == 200, reply.text
    executed = stores.one("select count(*) from trades") - before
    assert executed == (1 if name == "trade_accepted" else 0)


def test_queue_and_schedules_survive_a_thaw(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_with_key"))
    batch = event("liquidate_batch")
    batch["Records"] = batch["Records"][2:]
    calls = {
        "LiquidateFunction": batch,
        "LiquidationScanFunction": event("liquidation_scan"),
        "JournalDrainFunction": event("journal_drain"),
        "ReconcileFunction": event("reconcile_schedule"),
        "SettleFunction": event("settle"),
    }
    for name, request in calls.items():
        market.warm(name).invoke(request)
        with market.warm(name).frozen():
            time.sleep(PAUSE_S)
            stores.end_redis_connections()
            stores.end_postgres_sessions()
        if name == "LiquidateFunction":
            stores.redis.hset("mark_prices", "BTC-PERP", "36000")
        answer = market.warm(name).invoke(request)
        assert "errorType" not in answer, answer
        assert answer.get("batchItemFailures", []) == []
    assert stores.rows("select account_id from liquidations") == [(3,)]


# --- time that runs out ---


@pytest.mark.parametrize(
    ("name", "code"), [("positions", "UNAVAILABLE"), ("trade_accepted", "OUTCOME_UNKNOWN"), ("health", "UNAVAILABLE")]
)
def test_request_that_cannot_finish_in_time_is_answered_before_lambda_ends_it(
    market: Deployment, stores: Stores, name: str, code: str
) -> None:
    request = event(name)
    http = request["requestContext"]["http"]
    function = market.artefact.function_of(http["method"], http["path"])
    environment = market.fresh(function, timeout_s=TIMEOUT_S, **PATIENT)
    # The emulator takes loading out of the first invocation's time, which Lambda does not.
    while market.send(request, to=environment).status == 503:
        pass
    before = stores.one("select count(*) from trades")
    with stores.redis_frozen():
        started = time.monotonic()
        reply = market.send(request, to=environment)
        waited_s = time.monotonic() - started
    assert reply.status == 503, reply.text
    assert reply.headers["retry-after"]
    assert TIMEOUT_S - 1 < waited_s < TIMEOUT_S
    assert reply.json["code"] == code
    assert reply.json["detail"].startswith("The time for this request ran out")
    assert environment.lines("time_budget_exceeded")
    # The same environment goes on, and what was cut off has not been executed beside it.
    assert market.send(request, to=environment).status == 200
    executed = stores.one("select count(*) from trades") - before
    assert executed == (1 if name == "trade_accepted" else 0)


def test_schedule_that_cannot_finish_in_time_fails_before_lambda_ends_it(market: Deployment, stores: Stores) -> None:
    environment = market.fresh("JournalDrainFunction", timeout_s=TIMEOUT_S, **PATIENT)
    while "errorType" in environment.invoke(event("journal_drain")):
        pass
    with stores.redis_frozen():
        answer = environment.invoke(event("journal_drain"))
    assert answer["errorType"] == "TimeBudgetExceededError"
    assert "errorType" not in environment.invoke(event("journal_drain"))


def test_store_that_is_down_is_named_and_blamed_in_bounded_time(functions: Deployment) -> None:
    environment = functions.fresh("StatusFunction", parameters={"PostgresPort": str(choose_port())})
    reply = functions.send(event("health"), to=environment)
    assert (reply.status, reply.json["code"]) == (503, "POSTGRES_UNAVAILABLE")


# --- secrets ---


def test_secrets_are_read_when_the_first_connection_is_made_and_not_before(functions: Deployment, aws: Aws) -> None:
    environment = functions.fresh("StatusFunction", parameters={"RedisSecretName": "margin/none"})
    assert functions.send(event("openapi"), to=environment).status == 200
    reply = functions.send(event("health"), to=environment)
    assert (reply.status, reply.json["code"]) == (503, "SECRET_UNAVAILABLE")
    assert "margin/none" not in reply.text
    aws.put_secret("margin/none", username=USER, password="wrong")
    deadline = time.monotonic() + 2 * REFUSED_FOR_S
    # For a while after a call that failed there is none.
    while (reply := functions.send(event("health"), to=environment)).json.get("code") == "SECRET_UNAVAILABLE":
        assert time.monotonic() < deadline
    # And not 200 by the connection that was half made before.
    assert (reply.status, reply.json.get("code")) == (503, "REDIS_UNAVAILABLE")


def test_rotated_secrets_are_picked_up_when_the_kept_ones_are_refused(
    market: Deployment, stores: Stores, aws: Aws
) -> None:
    environment = market.fresh("TradeFunction", SECRET_TTL_S="300")
    order = event("trade_accepted")
    assert market.send(order, to=environment).status == 200
    stores.set_redis_password(new_password())
    stores.set_postgres_password(new_password())
    aws.put_secret(REDIS_SECRET, username=USER, password=stores.redis_password)
    aws.put_secret(POSTGRES_SECRET, username=USER, password=stores.postgres_password)
    try:
        reply = market.send(order, to=environment)
        assert reply.status == 200, reply.text
        assert stores.one("select count(*) from trades") == 2
    finally:
        # The other environments keep theirs for minutes.
        market.end_kept()


# --- the queue ---


def test_crossed_accounts_beyond_those_evaluated_at_once_go_through_the_queue(
    functions: Deployment, stores: Stores, aws: Aws, queue_url: str
) -> None:
    functions.post("/mark-price", symbol="BTC-PERP", price=50000)
    for account_id in range(1, 6):
        functions.post(f"/accounts/{account_id}/deposits", amount=15000)
        functions.post("/trade", account_id=account_id, symbol="BTC-PERP", side="BUY", quantity=1, price=50000)
    environment = functions.fresh("MarkPriceFunction", CROSSED_INLINE_MAX="2")
    reply = functions.send(event("mark_price_liquidating"), to=environment)
    assert (reply.status, reply.json["at_risk"]) == (200, 5)
    at_once = {account_id for (account_id,) in stores.rows("select account_id from liquidations")}
    assert len(at_once) == 2
    batch = aws.receive(queue_url)
    assert len(batch["Records"]) == 1
    assert functions.warm("LiquidateFunction").invoke(batch) == {"batchItemFailures": []}
    liquidated = [account_id for (account_id,) in stores.rows("select account_id from liquidations")]
    assert sorted(liquidated) == [1, 2, 3, 4, 5]
    left = {stores.redis.hget(f"position:{account_id}:BTC-PERP", "quantity") for account_id in range(1, 6)}
    assert left == {"0.25252525"}


def test_mark_price_is_stored_and_answered_although_the_queue_is_gone(functions: Deployment, stores: Stores) -> None:
    functions.post("/mark-price", symbol="BTC-PERP", price=50000)
    for account_id in (1, 2):
        functions.post(f"/accounts/{account_id}/deposits", amount=15000)
        functions.post("/trade", account_id=account_id, symbol="BTC-PERP", side="BUY", quantity=1, price=50000)
    gone = {"LiquidationsQueue": f"http://127.0.0.1:{choose_port()}/123456789012/gone"}
    environment = functions.fresh("MarkPriceFunction", parameters=gone, CROSSED_INLINE_MAX="1")
    reply = functions.send(event("mark_price_liquidating"), to=environment)
    assert (reply.status, reply.json["at_risk"]) == (200, 2)
    assert stores.one("select count(*) from liquidations") == 1
    assert [line["accounts"] for line in environment.lines("crossed_accounts_not_queued")] == [1]
    report = functions.warm("LiquidationScanFunction").invoke(event("liquidation_scan"))
    assert len(report["liquidated"]) == 1
