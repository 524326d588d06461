"""The API from containers: the README's story, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sam_local.containers import docker

if TYPE_CHECKING:
    from tests.sam_local.containers import Answer, SamLocal

pytestmark = pytest.mark.sam_local

HTTP_FUNCTIONS = 11
CONNECT = """
import os, socket
for store in ("REDIS", "POSTGRES"):
    socket.create_connection((os.environ[store + "_HOST"], int(os.environ[store + "_PORT"])), timeout=5).close()
print(os.environ["AWS_LAMBDA_FUNCTION_NAME"])
"""


def test_every_container_reaches_both_stores(sam_local: SamLocal) -> None:
    containers = sam_local.function_containers()
    reached = {docker("exec", container, "python3.13", "-c", CONNECT).strip() for container in containers}
    assert len(reached) == HTTP_FUNCTIONS, reached


def test_health_is_well(sam_local: SamLocal) -> None:
    answer = sam_local.get("/health")
    assert (answer.status, answer.body) == (200, {"status": "healthy"})


def test_the_api_document_is_served(sam_local: SamLocal) -> None:
    answer = sam_local.get("/openapi.json")
    assert answer.status == 200
    assert "/trade" in answer.body["paths"]


def test_the_story_of_the_readme(sam_local: SamLocal) -> None:
    accepted = trade(sam_local, account_id=1, quantity=0.1)
    assert accepted.status == 200
    assert accepted.body["position"] == {"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"}

    positions = sam_local.get("/positions/1")
    assert positions.status == 200
    assert positions.body["equity"] == "100000"
    assert [position["quantity"] for position in positions.body["positions"]] == ["0.1"]

    mark = sam_local.post("/mark-price", {"symbol": "BTC-PERP", "price": 51000})
    assert (mark.status, mark.body["price"], mark.body["at_risk"]) == (200, "51000", 0)

    rejected = trade(sam_local, account_id=2, quantity=1)
    assert (rejected.status, rejected.body["code"]) == (400, "INSUFFICIENT_MARGIN")
    assert rejected.body["detail"] == "Insufficient equity. Required: 10200, Available: 5000"

    assert trade(sam_local, account_id=3, quantity=1).status == 200
    fall = sam_local.post("/mark-price", {"symbol": "BTC-PERP", "price": 36000})
    assert (fall.status, fall.body["at_risk"]) == (200, 1)

    liquidations = sam_local.get("/liquidations")
    assert liquidations.status == 200
    assert [(row["account_id"], row["equity"]) for row in liquidations.body["liquidations"]] == [(3, "1000")]

    trades = sam_local.get("/trades/1")
    assert trades.status == 200
    assert [(row["id"], row["quantity"]) for row in trades.body["trades"]] == [(accepted.body["trade_id"], "0.1")]

    report = sam_local.get("/margin-report")
    assert report.status == 200
    assert report.body["total_accounts"] == 3


def test_a_lost_reply_is_settled_by_the_same_key(sam_local: SamLocal) -> None:
    first = sam_local.post("/accounts/2/deposits", {"amount": "10"}, key="test-1")
    again = sam_local.post("/accounts/2/deposits", {"amount": "10"}, key="test-1")
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body


def trade(sam_local: SamLocal, *, account_id: int, quantity: float) -> Answer:
    body = {"account_id": account_id, "symbol": "BTC-PERP", "side": "BUY", "quantity": quantity, "price": 50000}
    return sam_local.post("/trade", body)
