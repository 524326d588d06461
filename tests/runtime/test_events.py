"""Every event of the folder `events`, through the built functions: the answer, and what is in both stores after it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.deployment import EVENTS, event, event_of
from tests.runtime.machine import ROOT

if TYPE_CHECKING:
    from tests.runtime.deployment import Deployment
    from tests.runtime.stores import Stores

pytestmark = pytest.mark.runtime

KEY = "3f0a2a52-8c1e-4b57-9b1e-0d9f3f6f2b11"
# As in the claims of the events.
TRADER, OPERATOR = "1trader23456789", "1operator23456789"
# Of the 1 at 50000 that account 3 holds with 15000, at a mark of 36000.
LEFT_OPEN = "0.25252525"
PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "request_id"}


def contents(stores: Stores) -> tuple[dict[str, Any], dict[str, int]]:
    """What both stores hold: equal before and after means that nothing was written.

    Without the moments of the rate limits, which every request moves and which end by themselves.
    """
    names = sorted(name for name in stores.redis.scan_iter() if not name.startswith("rate:"))
    return {name: stores.redis.dump(name) for name in names}, stores.counts()


def set_mark_unseen(stores: Stores, price: str) -> None:
    """Change the mark price as if the function that took it had died before it looked at anybody."""
    stores.redis.hset("mark_prices", "BTC-PERP", price)


def test_every_event_is_sent() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert set(re.findall(r'event\("(\w+)"\)', sources)) == {path.stem for path in EVENTS.glob("*.json")}


# --- trades ---


def test_trade_accepted_is_in_redis_and_in_history(market: Deployment, stores: Stores) -> None:
    reply = market.send(event("trade_accepted"))
    assert reply.status == 200, reply.text
    trade = reply.json
    assert trade["success"] is True
    assert (trade["quantity"], trade["price"], trade["notional"]) == ("0.1", "50000", "5000")
    assert (trade["balance"], trade["equity"]) == ("100000", "100000")
    assert (trade["initial_margin_required"], trade["maintenance_margin_required"]) == ("1000", "500")
    assert stores.redis.hgetall("position:1:BTC-PERP") == {
        "quantity": "0.1",
        "entry_price": "50000",
        "entry_cost": "5000",
    }
    assert stores.redis.hget("balances", "1") == "100000"
    assert stores.redis.exists("pending", "pending:1") == 0
    ((identity, *stored),) = stores.rows("select id, account_id, symbol, side, quantity, price from trades")
    assert str(identity) == str(trade["trade_id"])
    assert [str(value) for value in stored] == ["1", "BTC-PERP", "BUY", "0.1", "50000"]
    sent_by = stores.rows("select subject, source_ip from events where type = 'TRADE'")
    assert sent_by == [(TRADER, "203.0.113.7")]


def test_trade_rejected_changes_nothing(market: Deployment, stores: Stores) -> None:
    before = contents(stores)
    reply = market.send(event("trade_rejected"))
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json
    assert set(problem) == PROBLEM_FIELDS
    assert problem["code"] == "INSUFFICIENT_MARGIN"
    assert problem["detail"] == "Insufficient equity. Required: 10000, Available: 5000"
    assert contents(stores) == before


def test_trade_preview_tells_the_refusal_and_changes_nothing(market: Deployment, stores: Stores) -> None:
    before = contents(stores)
    reply = market.send(event("trade_preview"))
    assert reply.status == 200, reply.text
    preview = reply.json
    assert (preview["accepted"], preview["trade"]) == (False, None)
    assert preview["refusal"]["detail"] == market.send(event("trade_rejected")).json["detail"]
    assert (preview["before"]["equity"], preview["after"]["initial_margin_required"]) == ("5000", "10000")
    assert preview["largest"] == {"buy": "0.5", "sell": "0.5"}
    assert contents(stores) == before


def test_retry_with_the_same_key_is_answered_byte_for_byte_and_executed_once(
    market: Deployment, stores: Stores
) -> None:
    first = market.send(event("trade_with_key"))
    assert first.status == 200, first.text
    assert "idempotent-replayed" not in first.headers
    before = contents(stores)
    another_environment = market.fresh("TradeFunction")
    for environment in (None, another_environment):
        again = market.send(event("trade_retry"), to=environment)
        assert (again.status, again.text) == (200, first.text)
        assert again.headers["idempotent-replayed"] == "true"
    assert contents(stores) == before
    assert stores.rows("select account_id, key from events where type = 'TRADE'") == [(3, KEY)]
    assert stores.one("select count(*) from trades") == 1


# --- money ---


def test_deposit_opens_the_account(functions: Deployment, stores: Stores) -> None:
    reply = functions.send(event("deposit"))
    assert reply.status == 200, reply.text
    answer = reply.json
    assert (answer["account_id"], answer["balance"], answer["withdrawable"]) == (1, "100000", "100000")
    assert stores.redis.hget("balances", "1") == "100000"
    lines = stores.rows("select ledger_account, amount::text from ledger_lines order by line")
    assert lines == [("cash", "100000"), ("external", "-100000")]
    assert stores.rows("select account_id, n, balance::text from accounts") == [(1, 1, "100000")]


def test_withdrawal_debits_the_account(market: Deployment, stores: Stores) -> None:
    reply = market.send(event("withdrawal"))
    assert reply.status == 200, reply.text
    assert (reply.json["balance"], reply.json["withdrawable"]) == ("97499.5", "97499.5")
    assert stores.redis.hget("balances", "1") == "97499.5"
    assert stores.one("select balance::text from accounts where account_id = 1") == "97499.5"
    assert stores.one("select sum(amount) from ledger_lines") == 0


# --- mark prices ---


def test_mark_price_is_stored_and_harms_nobody(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    before = stores.counts()
    reply = market.send(event("mark_price"))
    assert reply.status == 200, reply.text
    assert (reply.json["symbol"], reply.json["price"], reply.json["at_risk"]) == ("BTC-PERP", "51000", 0)
    assert stores.redis.hget("mark_prices", "BTC-PERP") == "51000"
    assert stores.counts() == before


def test_mark_prices_of_one_call_are_stored_together_or_not_at_all(market: Deployment, stores: Stores) -> None:
    refusal = market.send(event("mark_prices"))
    assert (refusal.status, refusal.json["code"]) == (409, "OLDER_MARK_PRICE")
    assert stores.redis.hgetall("mark_prices") == {"BTC-PERP": "50000"}
    stamp = stores.redis.hget("mark_stamps", "BTC-PERP")
    stores.redis.hset("mark_times", "BTC-PERP", f"{stamp}:1738324800000000")  # 2025-01-31T12:00:00Z, as the event says
    reply = market.send(event("mark_prices"))
    assert reply.status == 200, reply.text
    assert [(price["symbol"], price["price"]) for price in reply.json["prices"]] == [
        ("BTC-PERP", "51000"),
        ("ETH-PERP", "2500.5"),
    ]
    assert stores.redis.hgetall("mark_prices") == {"BTC-PERP": "51000", "ETH-PERP": "2500.5"}


def test_liquidating_mark_price_closes_the_account_below_maintenance_margin(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    reply = market.send(event("mark_price_liquidating"))
    assert reply.status == 200, reply.text
    assert reply.json["at_risk"] == 1
    assert stores.redis.hget("position:3:BTC-PERP", "quantity") == LEFT_OPEN
    assert stores.redis.exists("position:1:BTC-PERP") == 1
    ((account_id, equity, maintenance_margin),) = stores.rows(
        "select account_id, equity, maintenance_margin from liquidations"
    )
    assert (account_id, equity, maintenance_margin) == (3, 1000, 3600)
    assert stores.one("select sum(amount) from ledger_lines") == 0


# --- funding ---


def test_funding_is_in_history_and_moves_the_index_once(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    reply = market.send(event("funding"))
    assert reply.status == 200, reply.text
    assert (reply.json["funding_index"], reply.json["n"], reply.json["effective"]) == ("5", 1, True)
    again = market.send(event("funding"))
    assert (again.status, again.json, again.headers["idempotent-replayed"]) == (200, reply.json, "true")
    stored = stores.rows("select symbol, n, funding_index, subject, source_ip, applied_at is null from funding_rates")
    assert stored == [("BTC-PERP", 1, 5, OPERATOR, "203.0.113.7", False)]
    assert stores.redis.hget("funding", "BTC-PERP").startswith("1 5 ")
    owed = market.get("/funding/1")
    assert [one["amount"] for one in owed["pending"]] == ["-0.5"]


# --- pause switches ---


def test_pause_is_in_redis_and_in_history_and_stops_the_next_trade(market: Deployment, stores: Stores) -> None:
    reply = market.send(event("controls_pause"))
    assert reply.status == 200, reply.text
    assert (reply.json["name"], reply.json["state"], reply.json["effective"]) == ("engine", "paused", True)
    assert stores.redis.hgetall("controls") == {"engine": "paused"}
    stored = stores.rows("select name, state, reason, subject, source_ip from control_changes")
    assert stored == [("engine", "paused", "the oracle sends wrong prices", OPERATOR, "203.0.113.7")]
    refusal = market.send(event("trade_accepted"))
    assert (refusal.status, refusal.json["code"]) == (400, "NOT_ACTIVE")
    listed = market.send(event("controls"))
    assert listed.status == 200, listed.text
    assert [(control["name"], control["state"]) for control in listed.json["controls"]] == [("engine", "paused")]


# --- instruments ---


def test_rules_of_a_symbol_are_in_history_and_in_force(market: Deployment, stores: Stores) -> None:
    reply = market.send(event("instrument_tiers"))
    assert reply.status == 200, reply.text
    assert (reply.json["symbol"], reply.json["version"], reply.json["effective"]) == ("BTC-PERP", 1, True)
    stored = stores.rows("select symbol, version, subject, source_ip, effective_at is null from instruments")
    assert stored == [("BTC-PERP", 1, OPERATOR, "203.0.113.7", False)]
    read = market.send(event("instrument"))
    assert read.status == 200, read.text
    assert [tier["maintenance_amount"] for tier in read.json["tiers"]] == ["0", "15000"]
    listed = market.send(event("instruments"))
    assert listed.status == 200, listed.text
    assert listed.json["instruments"] == [read.json]


# --- who may ---


def test_event_without_the_claims_of_an_authorizer_is_refused_but_for_health(
    market: Deployment, stores: Stores
) -> None:
    before = contents(stores)
    for path in sorted(EVENTS.glob("*.json")):
        request = event_of(path)
        if request.get("requestContext", {}).pop("authorizer", None) is None:
            continue
        reply = market.send(request)
        assert (reply.status, reply.json["code"]) == (401, "UNAUTHENTICATED"), path.name
        assert reply.headers["www-authenticate"].startswith("Bearer"), path.name
    assert contents(stores) == before
    health = event("health")
    assert "authorizer" not in health["requestContext"]
    assert market.send(health).status == 200


def test_event_of_a_token_without_its_scope_or_its_account_is_refused(market: Deployment, stores: Stores) -> None:
    before = contents(stores)
    request = event("trade_accepted")
    claims = request["requestContext"]["authorizer"]["jwt"]["claims"]
    unscoped = claims.pop("scope")
    reply = market.send(request)
    assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")
    claims |= {"scope": unscoped, "account_ids": "2 3"}
    reply = market.send(request)
    assert (reply.status, reply.json["code"]) == (404, "UNKNOWN_ACCOUNT")
    assert contents(stores) == before


# --- reading ---


def test_positions_are_exact(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("mark_price"))
    before = contents(stores)
    reply = market.send(event("positions"))
    assert reply.status == 200, reply.text
    answer = reply.json
    assert (answer["balance"], answer["equity"]) == ("100000", "100100")
    (position,) = answer["positions"]
    assert (position["quantity"], position["mark_price"], position["unrealised_pnl"]) == ("0.1", "51000", "100")
    assert contents(stores) == before


def test_report_has_two_pages_of_one_snapshot(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    first = market.send(event("margin_report"))
    assert first.status == 200, first.text
    assert first.json["total_accounts"] == 3
    assert [account["account_id"] for account in first.json["accounts_detail"]] == [3, 1]

    page_2 = event("margin_report_page_2")
    old, new = page_2["queryStringParameters"]["cursor"], first.json["next_cursor"]
    assert sorted(_cursor(old)) == sorted(_cursor(new)), "the event shows a cursor of another form than the present"
    page_2["queryStringParameters"]["cursor"] = new
    page_2["rawQueryString"] = page_2["rawQueryString"].replace(old, new)
    market.send(event("mark_price"))
    second = market.send(page_2)
    assert second.status == 200, second.text
    assert [account["account_id"] for account in second.json["accounts_detail"]] == [2]
    assert (second.json["as_of"], second.json["next_cursor"]) == (first.json["as_of"], None)


def test_ladder_and_shocks_name_whom_a_price_would_liquidate_and_change_nothing(
    market: Deployment, stores: Stores
) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    before = contents(stores)
    ladder = market.send(event("risk_ladder"))
    assert ladder.status == 200, ladder.text
    counts = {step["move"]: step["accounts_liquidated"] for step in ladder.json["steps"]}
    assert (len(counts), counts["-0.3"], counts["0"], counts["0.5"]) == (23, 1, 0, 0)
    shocks = market.send(event("risk_shocks"))
    assert shocks.status == 200, shocks.text
    (crash,) = shocks.json["shocks"]
    assert (crash["name"], crash["accounts_liquidated"]) == ("crash", 1)
    assert crash["prices"] == [{"symbol": "BTC-PERP", "move": "-0.3", "price": "35000"}]
    assert contents(stores) == before


def _cursor(text: str) -> list[str]:
    """What kinds of values a cursor holds."""
    held = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    return [kind for kind in re.findall(r'"report"|"[0-9a-f]{32}"|\d+', re.sub(r'"[0-9a-f]{32}"', "0", held)) if kind]


def test_report_page_of_a_forgotten_snapshot_says_so(market: Deployment) -> None:
    reply = market.send(event("margin_report_page_2"))
    assert (reply.status, reply.json["code"]) == (404, "SNAPSHOT_EXPIRED")


def test_trade_history_is_that_of_the_account(market: Deployment) -> None:
    made = market.send(event("trade_accepted")).json
    market.send(event("trade_with_key"))
    reply = market.send(event("trades"))
    assert reply.status == 200, reply.text
    (trade,) = reply.json["trades"]
    assert (trade["id"], trade["account_id"], trade["notional"]) == (made["trade_id"], 1, "5000")
    assert reply.json["next_cursor"] is None


def test_mark_prices_are_listed_and_those_before_are_in_their_history(market: Deployment, stores: Stores) -> None:
    reply = market.send(event("mark_price_list"))
    assert reply.status == 200, reply.text
    assert [(price["symbol"], price["price"]) for price in reply.json["mark_prices"]] == [("BTC-PERP", "50000")]
    market.warm("JournalDrainFunction").invoke(event("journal_drain"))
    reply = market.send(event("mark_price_history"))
    assert reply.status == 200, reply.text
    assert [(price["symbol"], price["price"]) for price in reply.json["mark_prices"]] == [("BTC-PERP", "50000")]
    assert stores.redis.hgetall("mark_prices") == {"BTC-PERP": "50000"}


def test_liquidation_history_is_that_of_the_account(market: Deployment) -> None:
    market.send(event("trade_with_key"))
    market.send(event("mark_price_liquidating"))
    reply = market.send(event("liquidations"))
    assert reply.status == 200, reply.text
    (liquidation,) = reply.json["liquidations"]
    assert (liquidation["account_id"], liquidation["equity"], liquidation["maintenance_margin"]) == (3, "1000", "3600")
    assert [position["symbol"] for position in liquidation["positions"]] == ["BTC-PERP"]


# --- status ---


def test_health(functions: Deployment) -> None:
    reply = functions.send(event("health"))
    assert (reply.status, reply.json) == (200, {"status": "healthy"})


def test_api_document_is_the_one_in_the_repository(functions: Deployment) -> None:
    reply = functions.send(event("openapi"))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.text == (ROOT / "functions" / "status" / "openapi.json").read_text(encoding="utf-8")


def test_docs_show_the_api_document(functions: Deployment) -> None:
    reply = functions.call("GET", "/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'url: "/openapi.json"' in reply.text


# --- schedules ---


def test_scheduled_scan_liquidates_whom_no_mark_price_brought_to_evaluation(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    set_mark_unseen(stores, "36000")
    report = market.warm("LiquidationScanFunction").invoke(event("liquidation_scan"))
    assert (report["crossed"], report["swept"], report["missed"]) == (1, 3, [])
    assert (report["liquidated"], report["complete"]) == ([3], True)
    assert stores.redis.hget("position:3:BTC-PERP", "quantity") == LEFT_OPEN
    assert stores.rows("select account_id from liquidations") == [(3,)]
    again = market.warm("LiquidationScanFunction").invoke(event("liquidation_scan"))
    assert (again["crossed"], again["missed"], again["liquidated"]) == (0, [], [])


def test_scheduled_drain_moves_pending_events_to_history(market: Deployment, stores: Stores) -> None:
    with stores.connect() as other:
        # PostgreSQL answers, but not this statement: the deposit is executed and not yet history.
        other.execute("begin")
        other.execute("lock table events in access exclusive mode")
        reply = market.call("POST", "/accounts/2/deposits", {"amount": "1"})
        assert reply.status == 202, reply.text
        assert stores.redis.llen("pending:2") == 1
        stores.end_postgres_sessions()
        other.execute("rollback")
    assert stores.one("select balance from accounts where account_id = 2") == 5000
    report = market.warm("JournalDrainFunction").invoke(event("journal_drain"))
    assert (report["stored"], report["accounts"], report["waiting_accounts"]) == (1, 1, 0)
    assert stores.one("select balance from accounts where account_id = 2") == 5001
    assert stores.redis.exists("pending", "pending:2") == 0


def test_scheduled_reconciling_lists_what_differs_and_changes_nothing(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    environment = market.fresh("ReconcileFunction")
    sound = environment.invoke(event("reconcile_schedule"))
    assert (sound["accounts"], sound["events"], sound["differences"], sound["complete"]) == (3, 4, [], True)
    stores.redis.hset("balances", "2", "5001")
    before = contents(stores)
    report = environment.invoke(event("reconcile_schedule"))
    assert report["differences"] == [
        {"account_id": 2, "what": "Redis holds another balance", "expected": "5000", "found": "5001"}
    ]
    after = contents(stores)
    assert {**after[0], "reconcile": None} == {**before[0], "reconcile": None}
    assert after[1] == before[1]
    assert environment.metrics("ReconcileDifferences") == [1]
    assert len(environment.metrics("ReconcileAgeS")) == 2


def test_money_for_the_fund_pays_a_shortfall_and_deleveraging_the_rest(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_with_key"))
    short = {"account_id": 1, "symbol": "BTC-PERP", "side": "SELL", "quantity": 1, "price": 50000}
    assert market.call("POST", "/trade", short).status == 200
    reply = market.send(event("insurance_contribution"))
    assert (reply.status, reply.json["balance"]) == (200, "97499.5"), reply.text
    # Account 3 has bought one at 50000 with 15000.
    assert market.call("POST", "/mark-price", {"symbol": "BTC-PERP", "price": 30000}).status == 200
    fund = market.send(event("insurance_fund")).json
    assert (fund["balance"], fund["uncovered"]) == ("2500.5", "5000")
    assert [one["account_id"] for one in fund["open_shortfalls"]] == [3]
    environment = market.fresh("SettleFunction")
    report = environment.invoke(event("settle"))
    assert (report["settlements"], report["deleveragings"], report["settled"]) == (2, 1, "5000")
    assert (report["uncovered"], report["complete"]) == ("0", True)
    assert stores.rows("select account_id, reason from liquidations where shortfall = 0") == [(1, "AUTO_DELEVERAGING")]
    assert stores.one("select sum(amount) from ledger_lines where ledger_account = 'uncovered'") == 0
    assert environment.metrics("Deleveragings") == [1]
    assert environment.metrics("UncoveredShortfallsQuote") == [0]


# --- an operator ---


def test_account_that_was_changed_by_hand_is_rebuilt(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    before = contents(stores)
    stores.redis.hset("balances", "1", "1")
    stores.redis.delete("position:1:BTC-PERP", "positions:1")
    stores.redis.zrem("triggers:BTC-PERP:floor", "1")
    answer = market.warm("RebuildFunction").invoke(event("rebuild_account"))
    assert (answer["rebuilt"]["account_id"], answer["loaded"], answer["complete"]) == (1, 1, True)
    after = contents(stores)
    assert after[0].pop("holds")
    assert after == before


def test_everything_is_rebuilt_in_an_empty_redis(market: Deployment, stores: Stores) -> None:
    first = market.send(event("trade_with_key"))
    names = ("balances", "versions", "chain_hashes", "position:3:BTC-PERP")
    before = {name: stores.redis.hgetall(name) for name in names}
    stores.redis.flushall()
    assert market.send(event("trade_accepted")).status == 503
    answer = market.warm("RebuildFunction").invoke(event("rebuild_all"))
    assert (answer["rebuilt"], answer["accounts"], answer["loaded"]) == ({"partitions": [0]}, 3, 3)
    assert {name: stores.redis.hgetall(name) for name in names} == before
    again = market.send(event("trade_retry"))
    assert (again.status, again.text, again.headers["idempotent-replayed"]) == (200, first.text, "true")


def test_rebuild_of_nothing_in_particular_is_refused_with_a_code(functions: Deployment) -> None:
    answer = functions.warm("RebuildFunction").invoke({"account": 1})
    assert answer["errorType"] == "RebuildError"
    assert answer["errorMessage"].startswith("INVALID_REQUEST: Give one of")


# --- the queue ---


def test_poisoned_message_fails_alone(market: Deployment, stores: Stores) -> None:
    market.send(event("trade_accepted"))
    market.send(event("trade_with_key"))
    market.post("/trade", account_id=2, symbol="BTC-PERP", side="BUY", quantity="0.1", price=50000)
    batch = event("liquidate_batch")
    (poison,) = [record["messageId"] for record in batch["Records"] if '"none"' in record["body"]]
    set_mark_unseen(stores, "36000")
    environment = market.fresh("LiquidateFunction")
    answer = environment.invoke(batch)
    assert answer == {"batchItemFailures": [{"itemIdentifier": poison}]}
    # All three accounts were looked at, also 3, whose message comes after the poison.
    assert environment.metrics("AccountsEvaluated") == [3]
    assert stores.redis.hget("position:3:BTC-PERP", "quantity") == LEFT_OPEN
    assert stores.rows("select account_id from liquidations") == [(3,)]
