"""`make sam-invoke`: a route, and the functions that have none, each in a container of its own on an event."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.sam_local.containers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sam_local.containers import SamLocal

pytestmark = pytest.mark.sam_local

EVENTS = ROOT / "events"


def test_a_route_is_called_without_its_api(sam_local: SamLocal) -> None:
    answer = sam_local.invoke("PositionsFunction", EVENTS / "positions.json")
    assert answer["statusCode"] == 200, answer
    assert json.loads(answer["body"])["account_id"] == 1


def test_the_first_scan_sweeps_every_account(sam_local: SamLocal) -> None:
    answer = sam_local.invoke("LiquidationScanFunction", EVENTS / "liquidation_scan.json")
    assert answer["swept"] == sam_local.get("/margin-report").body["total_accounts"], answer
    assert (answer["missed"], answer["complete"]) == ([], True), answer


def test_the_drain_finds_nothing_pending(sam_local: SamLocal) -> None:
    answer = sam_local.invoke("JournalDrainFunction", EVENTS / "journal_drain.json")
    assert (answer["stored"], answer["waiting_accounts"]) == (0, 0), answer


def test_the_stores_are_found_to_agree(sam_local: SamLocal) -> None:
    answer = sam_local.invoke("ReconcileFunction", EVENTS / "reconcile_schedule.json")
    assert (answer["differences"], answer["complete"]) == ([], True), answer


def test_there_is_nothing_to_settle(sam_local: SamLocal) -> None:
    answer = sam_local.invoke("SettleFunction", EVENTS / "settle.json")
    assert (answer["settlements"], answer["uncovered"], answer["complete"]) == (0, "0", True), answer


def test_the_queue_gets_its_poison_back(sam_local: SamLocal) -> None:
    event = EVENTS / "liquidate_batch.json"
    poison = json.loads(event.read_text())["Records"][1]["messageId"]
    answer = sam_local.invoke("LiquidateFunction", event)
    assert answer == {"batchItemFailures": [{"itemIdentifier": poison}]}


def test_the_migration_leaves_a_schema_that_is_there(sam_local: SamLocal, tmp_path: Path) -> None:
    event = tmp_path / "migrate.json"
    event.write_text(json.dumps({"command": "migrate"}))
    answer = sam_local.invoke("MigrateFunction", event)
    assert answer["revision"]
    assert "state" not in answer, answer
