"""Verifying real history: clean while nobody has touched it, and whatever is touched is found and named."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis

from margin.caller import operator
from margin.clients.audit_postgres import AuditPostgresClient
from margin.config import Settings
from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control
from margin.domain.event import EventType, canonical, digest
from margin.domain.instrument import default_instrument
from margin.domain.instrument_terms import instrument_of, terms_of
from margin.errors import PostgresUnavailableError, UnknownAccountError
from margin.ports.audit import ChangeChain
from margin.runtime import Engine
from margin.services.verification import VerificationService
from tests import acl
from tests.actions import ALICE, BTC, ETH, buy, contribute, deposit, fund, mark, sell, switch, withdraw
from tests.database import FUNCTIONS, connect
from tests.integration.conftest import admin
from tests.integration.stores.verifying import SIZES, breaks, differences, verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from margin_local.servers import EmbeddedPostgres, EmbeddedValkey

    Query = Callable[..., list[tuple[Any, ...]]]
    Reconciled = Callable[[], Awaitable[list[tuple[int | None, str]]]]

BANKRUPT, SHORT, SMALL, DONOR = 1, 2, 3, 4


async def live(engine: Engine) -> None:
    """Make every kind of event happen, and every kind of change."""
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    for account_id, amount in {BANKRUPT: "15000", SHORT: "50000", SMALL: "10000", DONOR: "9000"}.items():
        await deposit(engine, account_id, amount)
    await contribute(engine, DONOR, "1000")
    await withdraw(engine, DONOR, "100.12345678")
    await sell(engine, SHORT, "1", "50000")
    await buy(engine, SMALL, "0.2", "50000")
    await buy(engine, SMALL, "1", "2000", symbol=ETH)
    await sell(engine, SMALL, "1", "2000", symbol=ETH)
    await buy(engine, BANKRUPT, "1", "50000")
    for rate in ("0.0001", "-0.0001", "0.0002"):
        await fund(engine, rate)
    await mark(engine, "40000")
    await engine.scans.scan()
    assert BANKRUPT in (await mark(engine, "30000")).liquidated
    assert (await engine.settlement.settle()).complete
    for state in (ControlState.PAUSED, ControlState.REDUCE_ONLY, ControlState.ACTIVE):
        for name in (account_control(SHORT), ENGINE_CONTROL):
            await switch(engine, name, state)
    for age_s in (60, 120, 180):
        terms = {**terms_of(default_instrument(ETH)), "mark_max_age_s": age_s}
        await engine.instruments.put(instrument_of(terms), ALICE)
    for _ in range(3):
        await engine.rebuilding.rebuild_account(SHORT, caller=operator("night"))
        await engine.rebuilding.rebuild([0], caller=operator("night"))


@pytest.fixture(scope="module")
def lived(valkey_server: EmbeddedValkey, postgres_server: EmbeddedPostgres, template_copy: str) -> Iterator[Settings]:
    """Yield the settings of a database in which all that has happened once; tests are given copies of it."""
    with redis.Redis(host=valkey_server.host, port=valkey_server.port) as client:
        client.flushall()
        acl.make_user(client)
    settings = Settings(
        redis_host=valkey_server.host,
        redis_port=valkey_server.port,
        redis_username=acl.USERNAME,
        redis_password=acl.PASSWORD,
        postgres_host=postgres_server.host,
        postgres_port=postgres_server.port,
        postgres_user=FUNCTIONS,
        postgres_database="margin_lived",
        margin_warning_pct=Decimal(80),
    )
    with admin(postgres_server) as connection:
        connection.execute(f"create database {settings.postgres_database} template {template_copy}")
    with asyncio.Runner() as runner:
        runner.run(live_on(settings))
    # A database that was emptied has forgotten which migrations there were.
    with connect(settings) as connection:
        connection.execute("set session_replication_role = origin")
        for revision in ("0008", "0009", "0010"):
            connection.execute("insert into schema_changes (revision) values (%s)", [revision])
    yield settings
    with admin(postgres_server) as connection:
        connection.execute(f"drop database {settings.postgres_database} with (force)")


async def live_on(settings: Settings) -> None:
    engine = Engine(settings)
    try:
        await engine.opening.open()
        await live(engine)
    finally:
        await engine.close()


@pytest.fixture
def settings(lived: Settings, postgres_server: EmbeddedPostgres) -> Iterator[Settings]:
    """Yield the settings of a copy that a test may tamper with."""
    with admin(postgres_server) as connection:
        connection.execute(f"create database margin_tampered template {lived.postgres_database}")
    yield dataclasses.replace(lived, postgres_database="margin_tampered")
    with admin(postgres_server) as connection:
        connection.execute("drop database margin_tampered with (force)")


@pytest.fixture
async def history(settings: Settings) -> AsyncIterator[AuditPostgresClient]:
    client = AuditPostgresClient(settings)
    yield client
    await client.close()


@pytest.fixture
def reconciled(settings: Settings) -> Reconciled:
    """Reconcile once from the beginning, in small pages: of whom something differs, and what."""

    async def reconcile() -> list[tuple[int | None, str]]:
        return await differences(settings)

    return reconcile


# --- untouched ---


async def test_history_of_every_kind_verifies_clean(history: AuditPostgresClient, query: Query) -> None:
    assert {kind for (kind,) in query("select distinct type from events")} == {str(kind) for kind in EventType}
    report, found = await verified(history)
    assert found == []
    ((events, accounts),) = query("select (select count(*) from events), (select count(*) from accounts)")
    counted = [query(f"select count(*) from {chain}")[0][0] for chain in ChangeChain]  # noqa: S608 - of our own tables
    assert min(counted) >= 3
    assert (report.events, report.accounts, report.changes) == (events, accounts, sum(counted))


async def test_one_account_verifies_with_its_switches_and_rebuilds(history: AuditPostgresClient) -> None:
    report, found = await verified(history, SHORT)
    assert found == []
    assert (report.accounts, report.changes) == (1, 6)
    assert report.events > 2


async def test_account_that_nobody_knows_is_said_to_be_unknown(history: AuditPostgresClient) -> None:
    with pytest.raises(UnknownAccountError):
        await verified(history, 77)


async def test_switch_of_an_account_that_was_never_opened_is_verified(
    history: AuditPostgresClient, settings: Settings, query: Query
) -> None:
    with connect(settings) as connection:
        connection.execute("set session_replication_role = origin")
        connection.execute("insert into control_changes (name, state, reason) values ('account:77', 'paused', 'r')")
    assert await breaks(history, 77) == []
    query("update control_changes set subject = 'mallory' where name = 'account:77' returning 1")
    ((where, what),) = await breaks(history, 77)
    assert where.startswith("control_changes account:77, change ")
    assert what == "it does not have the hash of what it says"


async def test_schema_of_an_older_release_is_said_to_be_that(history: AuditPostgresClient, settings: Settings) -> None:
    with connect(settings) as connection:
        connection.execute("alter table chain_heads rename to of_before")
        try:
            with pytest.raises(PostgresUnavailableError, match="no schema of this release"):
                await verified(history)
        finally:
            connection.execute("alter table of_before rename to chain_heads")


# --- events and what is derived from them ---


def event_id(query: Query, account_id: int, n: int) -> int:
    ((found,),) = query("select event_id from events where (account_id, n) = (%(a)s, %(n)s)", a=account_id, n=n)
    return int(found)


HASH = "does not have the hash of its body"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "update events set body = jsonb_set(body, '{balance}', '\"10001\"') where (account_id, n) = (3, 2)",
            [(2, f"event 2 {HASH}")],
        ),
        (
            """update events set body = jsonb_set(body, '{subject}', '"mallory"'), subject = 'mallory'
            where (account_id, n) = (3, 3)""",
            [(3, f"event 3 {HASH}")],
        ),
        (
            "update events set body = jsonb_set(body, '{source_ip}', 'null') where (account_id, n) = (3, 3)",
            [(3, f"event 3 {HASH}")],
        ),
        (
            "update events set subject = 'mallory' where (account_id, n) = (3, 3)",
            [(3, "column subject of event 3 is not what its body says")],
        ),
        (
            "update events set source_ip = '198.51.100.66' where (account_id, n) = (3, 3)",
            [(3, "column source_ip of event 3 is not what its body says")],
        ),
        (
            "update events set occurred_at = occurred_at - interval '1 day' where (account_id, n) = (3, 3)",
            [(3, "column at_us of event 3 is not what its body says")],
        ),
        (
            "update events set type = 'DEPOSIT' where (account_id, n) = (3, 3)",
            [(3, "column type of event 3 is not what its body says")],
        ),
        (
            "update events set key = 'another' where (account_id, n) = (3, 3)",
            [(3, "column key of event 3 is not what its body says")],
        ),
        ("delete from events where (account_id, n) = (3, 2)", [(None, "event 2 is missing")]),
        ("delete from events where account_id = 3 and n >= 3", [(None, "events 3 to")]),
        (
            "update events set hash = 'none' where (account_id, n) = (3, 1)",
            [(1, f"event 1 {HASH}")],
        ),
        (
            "update trades set price = price + 1 where account_id = 3",
            [(n, f"the row in trades is not what event {n} says") for n in (2, 3, 4)],
        ),
        (
            """update ledger_lines set amount = 2 * amount
            where account_id = 3 and event_id = (select event_id from events where (account_id, n) = (3, 1))""",
            [(1, "ledger lines of event 1 are not those of its body")],
        ),
        ("update accounts set balance = balance + 1 where account_id = 3", [(None, "the balance in accounts")]),
        ("update accounts set chain_hash = 'none' where account_id = 3", [(None, "the chain hash in accounts")]),
    ],
)
async def test_event_that_was_touched_is_found_and_named(
    history: AuditPostgresClient,
    query: Query,
    statement: str,
    expected: list[tuple[int | None, str]],
) -> None:
    ids = {n: event_id(query, SMALL, n) for n in (1, 2, 3, 4)}
    assert query(f"{statement} returning 1")
    for account_id in (None, SMALL):
        _, found = await verified(history, account_id)
        of_account = [one for one in found if one.account_id == SMALL]
        assert [(one.n if one.event_id else None, one.event_id) for one in of_account] == [
            (n, ids.get(n) if n else None) for n, _ in expected
        ]
        for one, (_, what) in zip(of_account, expected, strict=True):
            assert one.what.startswith(what)
            assert one.where.startswith("account 3")
        assert found == of_account or account_id is None


async def test_two_events_that_were_swapped_are_found(history: AuditPostgresClient, query: Query) -> None:
    for n, place in ((3, -3), (4, 3), (-3, 4)):
        query("update events set n = %(to)s where (account_id, n) = (3, %(n)s) returning 1", n=n, to=place)
    _, found = await verified(history, SMALL)
    assert [(one.n, one.what) for one in found[:2]] == [
        (3, "event 3 does not name the one before it"),
        (4, "event 4 does not name the one before it"),
    ]


async def test_event_that_was_forged_with_the_hash_of_its_body_is_found(
    history: AuditPostgresClient, query: Query
) -> None:
    """Whoever knows the engine writes a body with its right hash; the one before, or the row of the account, tells."""
    ((body, n, last_id),) = query("select body, n, event_id from events where account_id = 4 order by n desc limit 1")
    forged = {**body, "n": n + 1, "previous_event_id": last_id, "subject": "mallory"}
    insert = (
        "insert into events (account_id, n, event_id, previous_event_id, hash, type, key, request_hash, subject,"
        " source_ip, occurred_at, body) select account_id, n + 1, event_id + 1, event_id, %(hash)s, type, 'forged',"
        " request_hash, 'mallory', source_ip, occurred_at, %(body)s::jsonb from events"
        " where account_id = 4 order by n desc limit 1 returning 1"
    )
    query(insert, hash=digest(canonical(forged)), body=json.dumps(forged))
    assert await breaks(history) == [("account 4", "events go on behind the row in accounts")]
    query(
        "update accounts set n = %(n)s, event_id = event_id + 1, chain_hash = %(hash)s"
        " where account_id = 4 returning 1",
        n=n + 1,
        hash=digest(canonical(forged)),
    )
    _, (one, *_) = await verified(history)
    assert (one.account_id, one.n, one.event_id) == (4, n + 1, last_id + 1)
    assert one.what == f"event {n + 1} does not name the one before it"


async def test_body_that_was_rewritten_with_its_hash_is_found_by_the_next_one(
    history: AuditPostgresClient, query: Query
) -> None:
    ((body,),) = query("select body from events where (account_id, n) = (3, 2)")
    changed = {**body, "subject": None}
    query(
        "update events set body = %(body)s::jsonb, hash = %(hash)s, subject = null where (account_id, n) = (3, 2)"
        " returning 1",
        body=json.dumps(changed),
        hash=digest(canonical(changed)),
    )
    _, (one, *_) = await verified(history, SMALL)
    assert (one.n, one.what) == (3, "event 3 does not name the one before it")


async def test_rows_that_an_account_left_behind_are_found(history: AuditPostgresClient, query: Query) -> None:
    query("delete from accounts where account_id = 3 returning 1")
    expected = [
        ("account 3", f"rows in {table} are of an account that has none in accounts")
        for table in ("events", "trades", "liquidations", "ledger_lines")
        if query(f"select from {table} where account_id = 3 limit 1")
    ]
    assert len(expected) >= 3
    assert await breaks(history) == expected
    assert await breaks(history, SMALL) == expected


async def test_lines_of_no_account_are_found_though_they_sum_to_zero(
    history: AuditPostgresClient, query: Query
) -> None:
    query("insert into ledger_lines values (77, 1, 1, 'fees', 5), (77, 1, 2, 'external', -5) returning 1")
    assert await breaks(history) == [("account 77", "rows in ledger_lines are of an account that has none in accounts")]
    query("delete from ledger_lines where account_id = 77 and line = 2 returning 1")
    assert ("the ledger", "all its lines do not sum to zero") in await breaks(history)


LEAST = -(2**63)
NO_ACCOUNTS = (LEAST, -1, 0)
"""Ids that no account can have."""

STRAY_ROWS = {
    "trades": "({id}, 1, 'BTC-PERP', 'BUY', 1, 1, 1, 0, 0, now())",
    "liquidations": "({id}, {least}, 1, 1, 'MARK_PRICE', '[]', 0, now())",
    "ledger_lines": "({id}, {least}, -32768, 'insurance', 1000000)",
}


@pytest.mark.parametrize("table", STRAY_ROWS)
@pytest.mark.parametrize("account_id", NO_ACCOUNTS)
async def test_functions_cannot_add_rows_of_what_cannot_be_an_account(
    settings: Settings, table: str, account_id: int
) -> None:
    values = STRAY_ROWS[table].format(id=account_id, least=LEAST)
    with connect(settings, user=FUNCTIONS) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"insert into {table} values {values}".encode())  # noqa: S608 - of our own tables


@pytest.mark.parametrize("table", STRAY_ROWS)
@pytest.mark.parametrize("account_id", NO_ACCOUNTS)
async def test_rows_of_what_cannot_be_an_account_are_found(
    history: AuditPostgresClient,
    settings: Settings,
    query: Query,
    reconciled: Reconciled,
    table: str,
    account_id: int,
) -> None:
    with without_checks(settings, table):
        query(f"insert into {table} values {STRAY_ROWS[table].format(id=account_id, least=LEAST)} returning 1")  # noqa: S608
    what = f"rows in {table} are of an account that has none in accounts"
    found = await breaks(history)
    assert found[0] == (f"account {account_id}", what)
    assert len(found) == (2 if table == "ledger_lines" else 1)
    assert (account_id, what) in await reconciled()
    if table == "ledger_lines":
        assert found[1] == ("the ledger", "all its lines do not sum to zero")
        assert (None, "the whole ledger does not sum to zero") in await reconciled()


async def test_lines_that_functions_forge_of_an_account_are_found_though_they_sum_to_zero(
    history: AuditPostgresClient, settings: Settings, reconciled: Reconciled
) -> None:
    with connect(settings, user=FUNCTIONS) as connection:
        connection.execute("insert into ledger_lines values (4, 1, 1, 'insurance', 5), (4, 1, 2, 'external', -5)")
    assert await breaks(history) == [("account 4", "ledger_lines has rows that belong to no event")]
    assert await reconciled() == [(4, "ledger_lines has rows that belong to no event")]


async def test_lines_that_functions_forge_of_no_account_are_found_by_reconcile_too(
    settings: Settings, reconciled: Reconciled
) -> None:
    with connect(settings, user=FUNCTIONS) as connection:
        connection.execute("insert into ledger_lines values (77, 1, 1, 'insurance', 5), (77, 1, 2, 'external', -5)")
    assert await reconciled() == [(77, "rows in ledger_lines are of an account that has none in accounts")]


# --- how shortfalls are settled, which is planned outside of the chains ---

FROM_THE_FUND, RAISED, PASSED_ON = 1, 2, 3
"""The steps that there are: what the fund had is paid, somebody is deleveraged, and what that raised is paid."""


def liquidation_of(query: Query) -> int:
    ((liquidation_id,),) = query("select id from liquidations where shortfall > 0")
    return int(liquidation_id)


@pytest.mark.parametrize(
    ("number", "change", "column"),
    [
        (FROM_THE_FUND, "amount = amount + 1", "amount"),
        (FROM_THE_FUND, "uncovered = uncovered + 1", "uncovered"),
        (FROM_THE_FUND, "after_event_id = after_event_id - 1", "after_event_id"),
        (FROM_THE_FUND, "symbol = 'BTC-PERP', quantity = 1, type = 'DELEVERAGING'", "type"),
        (FROM_THE_FUND, "symbol = 'BTC-PERP', quantity = 1, type = 'DELEVERAGING'", "quantity"),
        (FROM_THE_FUND, "number = 1 + 10", "number"),
        (FROM_THE_FUND, "liquidation_price = 1", "liquidation_price"),
        (FROM_THE_FUND, "bankruptcy_price = 1", "bankruptcy_price"),
        (FROM_THE_FUND, "shared_notional = 1", "shared_notional"),
        (FROM_THE_FUND, "source_number = 2", "source"),
        (FROM_THE_FUND, "source_number = 1", "source"),
        (FROM_THE_FUND, "source_number = 77", "source"),
        (PASSED_ON, "source_number = null", "source"),
        (PASSED_ON, "source_number = 1", "source"),
        (RAISED, "amount = amount + 1", "amount"),
        (RAISED, "uncovered = uncovered + 1", "uncovered"),
        (RAISED, "account_id = 3", "account_id"),
        (RAISED, "symbol = 'ETH-PERP'", "symbol"),
        (RAISED, "quantity = quantity * 2", "quantity"),
        (RAISED, "liquidation_price = liquidation_price + 1", "liquidation_price"),
        (RAISED, "bankruptcy_price = null", "bankruptcy_price"),
        (RAISED, "shared_notional = 1 + coalesce(shared_notional, 0)", "shared_notional"),
        (RAISED, "source_number = 1", "source"),
    ],
)
async def test_step_that_is_not_what_happened_is_found(
    history: AuditPostgresClient, query: Query, reconciled: Reconciled, number: int, change: str, column: str
) -> None:
    ((account_id, now),) = query(
        f"update settlement_steps set {change} where number = %(number)s returning account_id, number",  # noqa: S608
        number=number,
    )
    what = f"the {column} of step {now} of liquidation {liquidation_of(query)} is not what its event says"
    assert (f"account {account_id}", what) in await breaks(history)
    assert (account_id, what) in await reconciled()


@pytest.mark.parametrize(
    "change",
    [
        "executed_on = 3",
        "after_n = after_n + 1",
        "key = 'another'",
        "event_id = 7",
        "outcome = 'void', event_id = null",
    ],
)
async def test_step_that_is_put_where_nothing_happened_is_found(
    history: AuditPostgresClient, query: Query, reconciled: Reconciled, change: str
) -> None:
    query(f"update settlement_steps set {change} where number = %(number)s returning 1", number=FROM_THE_FUND)  # noqa: S608
    found = f"events of liquidation {liquidation_of(query)} happened that no step planned"
    assert ("account 1", found) in await breaks(history)
    assert (BANKRUPT, found) in await reconciled()


async def test_shortfall_that_is_noted_as_settled_and_is_not_is_found(
    history: AuditPostgresClient, settings: Settings, query: Query, reconciled: Reconciled
) -> None:
    """Whoever notes it keeps the fund from ever paying it."""
    query("update liquidations set shortfall = shortfall + 1 where shortfall > 0 returning 1")
    what = f"liquidation {liquidation_of(query)} is noted as settled and is not paid"
    assert ("account 1", what) not in await breaks(history)
    with connect(settings, user=FUNCTIONS) as connection:
        connection.execute("update liquidations set settled = true where shortfall > 0")
    assert ("account 1", what) in await breaks(history)
    assert (BANKRUPT, what) in await reconciled()


@pytest.mark.parametrize("noted", [True, False])
async def test_shortfall_that_is_paid_is_sound_noted_or_not(
    history: AuditPostgresClient, query: Query, reconciled: Reconciled, noted: bool
) -> None:
    query("update liquidations set settled = %(noted)s where shortfall > 0 returning 1", noted=noted)
    query("update settlement_steps set spent = %(noted)s where type = 'DELEVERAGING' returning 1", noted=noted)
    if not noted:
        query("update settlement_steps set outcome = null, event_id = null where number = 3 returning 1")
    assert await breaks(history) == []
    assert await reconciled() == []


@pytest.mark.parametrize(
    ("number", "tamper"),
    [
        (FROM_THE_FUND, "update settlement_steps set spent = true where number = 1"),
        (RAISED, "update settlement_steps set spent = true, account_id = 3 where number = 2"),
    ],
)
async def test_step_that_is_noted_as_spent_and_was_not_paid_out_is_found(
    history: AuditPostgresClient, query: Query, reconciled: Reconciled, number: int, tamper: str
) -> None:
    ((account_id,),) = query(f"{tamper} returning account_id")
    what = f"step {number} of liquidation {liquidation_of(query)} is noted as spent and was not paid out"
    assert (f"account {account_id}", what) in await breaks(history)
    assert (account_id, what) in await reconciled()


async def test_step_whose_event_was_made_unreadable_is_found(
    history: AuditPostgresClient, query: Query, reconciled: Reconciled
) -> None:
    what = f"the event of step 2 of liquidation {liquidation_of(query)} cannot be read"
    for body in ("[]", "7", '{"type": "DELEVERAGING", "detail": {"positions": 3}}'):
        query("update events set body = %(body)s::jsonb where type = 'DELEVERAGING' returning 1", body=body)
        assert ("account 1", what) in await breaks(history)
        assert (BANKRUPT, what) in await reconciled()


async def test_step_that_functions_plan_of_no_shortfall_is_found(
    history: AuditPostgresClient, settings: Settings, query: Query, reconciled: Reconciled
) -> None:
    """It would withhold what the fund has from those who are owed it."""
    with connect(settings, user=FUNCTIONS) as connection:
        connection.execute(
            "insert into settlement_steps (id, account_id, liquidation_id, number, type, key, executed_on, after_n,"
            " after_event_id, epoch, hold, amount, uncovered)"
            " select max(id) + 1, 77, 5, 1, 'SETTLEMENT', 'k', 77, 1, 1, 1, '', 1000000, 0 from settlement_steps"
        )
    what = "step 1 is planned of liquidation 5, which left nothing unpaid"
    assert await breaks(history) == [("account 77", what)]
    assert await reconciled() == [(77, what)]


# --- chains of changes ---

PLACES = {
    ChangeChain.CONTROLS: ("name", "id", account_control(SHORT)),
    ChangeChain.INSTRUMENTS: ("symbol", "version", ETH),
    ChangeChain.FUNDING: ("symbol", "n", BTC),
    ChangeChain.OPENINGS: ("partition", "epoch", "0"),
    ChangeChain.REBUILDS: ("account_id", "id", str(SHORT)),
    ChangeChain.SCHEMA: ("name", "id", "schema"),
}

AFTER_THE_FACT = {
    ChangeChain.INSTRUMENTS: ("effective_at",),
    ChangeChain.FUNDING: ("applied_at", "at_risk"),
}
"""What may be set once, after the fact, and is not hashed."""

ANOTHER = {
    "text": "coalesce({column}, '') || 'x'",
    "jsonb": "'[]'",
    "timestamp with time zone": "{column} + interval '1 microsecond'",
    "numeric": "{column} * 1.0",
    "integer": "{column} + 1",
    "bigint": "{column} + 1",
}
"""By type of column, another value than the one that is there."""


@dataclasses.dataclass(frozen=True)
class Chained:
    """A chain of a kind with three changes at least."""

    chain: ChangeChain
    query: Query

    @property
    def name(self) -> str:
        return PLACES[self.chain][2]

    @property
    def numbers(self) -> list[int]:
        name, n, _ = PLACES[self.chain]
        statement = f"select {n} from {self.chain} where {name}::text = %(name)s order by 1"  # noqa: S608
        return [number for (number,) in self.query(statement, name=self.name)]

    @property
    def unique(self) -> dict[str, str]:
        """What another change of the chain must not have too."""
        return {"key": "forged"} if self.chain is ChangeChain.FUNDING else {}

    def do(self, statement: str, number: int, **parameters: Any) -> list[tuple[Any, ...]]:
        """Execute a statement with {table} and {here}, which finds one change; it answers one row."""
        name, n, _ = PLACES[self.chain]
        here = f"{name}::text = %(name)s and {n} = %(number)s"
        text = statement.replace("{table}", self.chain).replace("{here}", here)
        answered = self.query(text, name=self.name, number=number, **parameters)
        assert len(answered) == 1
        return answered

    def delete(self, number: int) -> None:
        self.do("delete from {table} where {here} returning 1", number)

    def rehash(self, number: int) -> None:
        """Make a change consistent in itself, as one who knows the engine would."""
        hashed = "chained_hash(previous_hash, chained_text(change))"
        self.do(f"update {{table}} as change set hash = {hashed} where {{here}} returning 1", number)  # noqa: S608

    def put(self, number: int, like: int, **fields: Any) -> None:
        """Insert a change past the triggers, like another one but for its number and some fields, self-consistent."""
        name, n, _ = PLACES[self.chain]
        self.query(
            f"insert into {self.chain} overriding system value"  # noqa: S608
            f" select (jsonb_populate_record(change, %(fields)s::jsonb)).* from {self.chain} as change"
            f" where {name}::text = %(name)s and {n} = %(like)s returning 1",
            name=self.name,
            like=like,
            fields=json.dumps({n: number, **fields}),
        )
        self.rehash(number)

    def where(self, number: int) -> str:
        return f"{self.chain} {self.name}, change {number}"


@pytest.fixture(params=list(ChangeChain), ids=str)
def chained(request: pytest.FixtureRequest, query: Query) -> Chained:
    return Chained(request.param, query)


UNHASHED = "it does not have the hash of what it says"
UNLINKED = "it does not name the one before it"


async def test_change_that_was_edited_is_found_whatever_column(
    chained: Chained, history: AuditPostgresClient, query: Query, settings: Settings
) -> None:
    middle = chained.numbers[1]
    kinds = dict(
        query(
            "select column_name, data_type from information_schema.columns where table_name = %(table)s",
            table=chained.chain,
        )
    )
    name, n, _ = PLACES[chained.chain]
    for column in kinds.keys() - {name, n, *AFTER_THE_FACT.get(chained.chain, ())}:
        ((before,),) = chained.do(f"select {column}::text from {{table}} where {{here}}", middle)  # noqa: S608
        edit = f"update {{table}} set {column} = {{value}} where {{here}} returning 1"  # noqa: S608
        with without_checks(settings, chained.chain):
            chained.do(edit.replace("{value}", ANOTHER[kinds[column]].format(column=column)), middle)
            found = await breaks(history)
            assert (chained.where(middle), UNHASHED) in found, column
            assert column == "hash" or len(found) == 1, column
            chained.do(edit.replace("{value}", f"%(before)s::{kinds[column]}"), middle, before=before)
    assert await breaks(history) == []


@contextlib.contextmanager
def without_checks(settings: Settings, table: str) -> Iterator[None]:
    """Let an owner write what the table's checks forbid, as one can who wants to."""
    with connect(settings) as connection:
        checks = connection.execute(
            "select conname, pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid = %s::regclass and contype = 'c'",
            [table],
        ).fetchall()
        for name, _ in checks:
            connection.execute(f"alter table {table} drop constraint {name}")
        try:
            yield
        finally:
            for name, definition in checks:
                again = f"{definition.removesuffix(' NOT VALID')} not valid"
                connection.execute(f"alter table {table} add constraint {name} {again}")


async def test_change_that_was_deleted_in_the_middle_is_found(chained: Chained, history: AuditPostgresClient) -> None:
    _, middle, after, *_ = chained.numbers
    chained.delete(middle)
    assert (chained.where(after), UNLINKED) in await breaks(history)


async def test_first_change_that_was_deleted_is_found(chained: Chained, history: AuditPostgresClient) -> None:
    first, second, *_ = chained.numbers
    chained.delete(first)
    assert (chained.where(second), "the ones before it are missing") in await breaks(history)


async def test_last_change_that_was_deleted_is_found_by_the_head(
    chained: Chained, history: AuditPostgresClient
) -> None:
    *_, before, last = chained.numbers
    chained.delete(last)
    assert await breaks(history) == [(chained.where(before), "the end of this chain is missing")]


async def test_chain_that_was_deleted_as_a_whole_is_found_by_the_head(
    chained: Chained, history: AuditPostgresClient
) -> None:
    numbers = chained.numbers
    for number in numbers:
        chained.delete(number)
    assert await breaks(history) == [(chained.where(numbers[-1]), "nothing is left of this chain")]


async def test_two_changes_that_were_swapped_are_found(
    chained: Chained, history: AuditPostgresClient, query: Query
) -> None:
    _, *_, one, other = chained.numbers
    name, n, _ = PLACES[chained.chain]
    rows = dict(
        query(f"select {n}, to_jsonb(change) from {chained.chain} as change where {name}::text = %(c)s", c=chained.name)  # noqa: S608
    )
    for number in (one, other):
        chained.delete(number)
    for number, like in ((one, other), (other, one)):
        query(
            f"insert into {chained.chain} overriding system value"
            f" select (jsonb_populate_record(null::{chained.chain}, %(row)s::jsonb)).* returning 1",
            row=json.dumps({**rows[like], n: number}),
        )
    found = await breaks(history)
    assert (chained.where(one), UNHASHED) in found
    assert (chained.where(other), UNHASHED) in found


async def test_change_that_was_forged_in_the_middle_is_found(chained: Chained, history: AuditPostgresClient) -> None:
    _, middle, after, *_ = chained.numbers
    chained.delete(middle)
    chained.put(middle, after, previous_hash="0" * 64, **chained.unique)
    assert (chained.where(middle), UNLINKED) in await breaks(history)


async def test_change_that_was_forged_at_the_end_is_found(
    chained: Chained, history: AuditPostgresClient, query: Query
) -> None:
    last = chained.numbers[-1]
    ((last_hash,),) = query(
        "select hash from chain_heads where (chain, name) = (%(chain)s, %(name)s)",
        chain=chained.chain,
        name=chained.name,
    )
    chained.put(last + 1000, last, previous_hash=last_hash, subject="mallory", **chained.unique)
    assert await breaks(history) == [(chained.where(last + 1000), "the end of this chain is missing")]
    chained.do("update {table} set previous_hash = 'x' where {here} returning 1", last + 1000)
    chained.rehash(last + 1000)
    assert await breaks(history) == [(chained.where(last + 1000), UNLINKED)]


async def test_change_that_was_rewritten_with_its_hash_is_found_by_the_next_one(
    chained: Chained, history: AuditPostgresClient
) -> None:
    _, middle, after, *_ = chained.numbers
    chained.do("update {table} set subject = null where {here} returning 1", middle)
    chained.rehash(middle)
    assert await breaks(history) == [(chained.where(after), UNLINKED)]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("update chain_heads set hash = 'none' where {here}", "the end of this chain is missing"),
        ("update chain_heads set n = n + 1 where {here}", "the end of this chain is missing"),
        ("update chain_heads set changes = changes + 1 where {here}", "this chain has another number of changes"),
        ("delete from chain_heads where {here}", "nothing says where this chain ends"),
    ],
)
async def test_head_that_was_touched_is_found(
    history: AuditPostgresClient, query: Query, statement: str, what: str
) -> None:
    assert query(
        f"{statement.format(here='chain = %(chain)s and name = %(name)s')} returning 1", chain="funding_rates", name=BTC
    )
    ((where, said),) = await breaks(history)
    assert (where, said) == ("funding_rates BTC-PERP, change 3", what)


# --- what happened to an account ---


async def test_story_tells_events_switches_and_rebuilds_in_order(history: AuditPostgresClient) -> None:
    lines = [line async for line in VerificationService(history, SIZES).story(SHORT)]
    assert [line.at_us for line in lines] == sorted(line.at_us for line in lines)
    told = [(line.what.split(",")[0], line.subject, line.source_ip) for line in lines]
    assert told[0] == ("DEPOSIT 50000", "-", "-")
    assert ("TRADE SELL 1 BTC-PERP at 50000", "alice", "192.0.2.1") in told
    assert ("SWITCH paused: a test", "alice", "192.0.2.1") in told
    assert [subject for what, subject, _ in told if what.startswith("DELEVERAGING")] == ["engine"]
    assert [subject for what, subject, _ in told if what.startswith("REBUILT")] == ["operator:night"] * 3


async def test_engine_signs_what_nobody_asked_for(query: Query) -> None:
    rows = query(
        "select distinct subject, source_ip from events"
        " where type in ('LIQUIDATION', 'SETTLEMENT', 'DELEVERAGING', 'MARGIN_WARNING')"
    )
    assert rows == [("engine", None)]


async def test_openings_say_for_whom(query: Query) -> None:
    assert query("select subject from openings order by epoch") == [("engine",), *[("operator:night",)] * 3]
