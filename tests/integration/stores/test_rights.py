"""What the database itself refuses: to change history, and all that the functions have no use for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import migrate_schema
from margin.errors import PostgresUnavailableError
from tests.actions import buy, deposit, mark
from tests.database import FUNCTIONS, OWNER, connect
from tests.integration.conftest import admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin.config import Settings
    from margin.runtime import Engine
    from margin_local.servers import EmbeddedPostgres

    Query = Callable[..., list[tuple[Any, ...]]]

HISTORY = (
    "events",
    "trades",
    "ledger_lines",
    "liquidations",
    "control_changes",
    "openings",
    "funding_rates",
    "instruments",
    "settlement_steps",
    "account_rebuilds",
    "schema_changes",
)
"""Never changed once written, but for the columns below."""

READ_AND_ADD = {"select", "insert"}
RIGHTS: dict[str, set[str]] = {
    "account_rebuilds": READ_AND_ADD,
    "accounts": {
        *READ_AND_ADD,
        *(f"update {name}" for name in ("n", "event_id", "chain_hash", "balance", "positions", "changed_at")),
    },
    "alembic_version": {"select"},
    "chain_heads": {"select"},
    "control_changes": READ_AND_ADD,
    "events": READ_AND_ADD,
    "fences": {*READ_AND_ADD, "update epoch"},
    "funding_rates": {*READ_AND_ADD, "update applied_at", "update at_risk"},
    "instruments": {*READ_AND_ADD, "update effective_at"},
    "ledger_lines": READ_AND_ADD,
    "liquidations": {*READ_AND_ADD, "update settled"},
    "mark_price_samples": {*READ_AND_ADD, "delete", "update source"},
    "mark_prices": {*READ_AND_ADD, "update price", "update stamp_us"},
    "openings": READ_AND_ADD,
    "schema_changes": {"select"},
    "settlement_outcomes": {"select"},
    "settlement_place": {*READ_AND_ADD, "update at_us", "update liquidation_id"},
    "settlement_steps": {*READ_AND_ADD, "update spent", "update outcome", "update event_id"},
    "trades": READ_AND_ADD,
}
"""Every table and view of the schema, with all that the functions may do to it."""

SEQUENCES = {"control_changes_id_seq": {"usage", "update"}, "epochs": {"usage"}}

_RIGHTS = """
    select relation.relname, lower(privilege)
    from pg_class as relation
    cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'])
        as privilege
    where relation.relnamespace = 'public'::regnamespace and relation.relkind in ('r', 'p', 'v', 'm', 'f')
        and has_table_privilege(%(role)s, relation.oid, privilege)
    union all
    select relation.relname, lower(privilege) || ' ' || attribute.attname
    from pg_class as relation
    join pg_attribute as attribute on attribute.attrelid = relation.oid and attnum > 0 and not attisdropped
    cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) as privilege
    where relation.relnamespace = 'public'::regnamespace and relation.relkind in ('r', 'p', 'v', 'm', 'f')
        and has_column_privilege(%(role)s, relation.oid, attribute.attname, privilege)
        and not has_table_privilege(%(role)s, relation.oid, privilege)
"""
_SEQUENCE_RIGHTS = """
    select relname, lower(privilege)
    from pg_class
    cross join unnest(array['USAGE', 'UPDATE']) as privilege
    where relnamespace = 'public'::regnamespace and relkind = 'S' and has_sequence_privilege(%(role)s, oid, privilege)
"""

TAMPERING = {
    "update": "update {0} set {1} = {1}",
    "delete": "delete from {0}",
    "truncate": "truncate {0} cascade",
    "disable trigger": "alter table {0} disable trigger append_only",
    "disable all triggers": "alter table {0} disable trigger all",
    "drop trigger": "drop trigger append_only on {0}",
    "drop": "drop table {0} cascade",
    "rename": "alter table {0} rename to elsewhere",
    "take": "alter table {0} owner to margin_functions",
    "rule": "create rule nothing as on insert to {0} do instead nothing",
    "trigger": "create trigger other before insert on {0} for each row execute function refuse_change()",
    "policy": "alter table {0} enable row level security",
    "merge": "merge into {0} using (select 1) as one on true when matched then delete",
}
COLUMN = dict.fromkeys(HISTORY, "account_id") | {
    "control_changes": "reason",
    "openings": "run_id",
    "funding_rates": "rate",
    "instruments": "terms",
    "schema_changes": "revision",
}
"""One that nothing ever changes."""

ELSEWHERE = [
    "set role postgres",
    "set session authorization postgres",
    "set session_replication_role = replica",
    "create or replace function refuse_change() returns trigger language plpgsql as 'begin return null; end'",
    "drop function refuse_change()",
    "drop function append_events(integer, integer, bigint, bigint[], text[], jsonb[])",
    "alter role margin_functions superuser",
    "create role another",
    "grant pg_write_all_data to margin_functions",
    "create table more (n int)",
    "create function more() returns int language sql as 'select 1'",
    "create schema more",
    "drop schema public cascade",
    "select setval('epochs', 1)",
    "select lo_import('/etc/passwd')",
    "copy events to '/tmp/events'",
    "copy events from program 'true'",
    "alter system set fsync = off",
    "update alembic_version set version_num = '0001'",
    "delete from accounts",
    "update accounts set account_id = 7",
    "update accounts set opened_at = now()",
]


@pytest.fixture
def as_functions(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection of whoever has the functions' credentials."""
    with connect(settings, user=FUNCTIONS) as connection:
        yield connection


@pytest.fixture
def as_owner(settings: Settings, postgres_server: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection of the owner of all tables, a superuser even, who does not go past the guard."""
    with admin(postgres_server, settings.postgres_database) as connection:
        yield connection


@pytest.fixture
async def history(engine: Engine, as_owner: psycopg.Connection[Any]) -> Engine:
    """Return an engine whose history has a row in every table."""
    await deposit(engine, 1, "100000")
    await mark(engine, "50000")
    await buy(engine, 1, "0.1", "50000")
    as_owner.execute(
        "with a as (insert into control_changes (name, state, reason) values ('engine', 'active', '')),"
        " b as (insert into liquidations values (1, 5, 0, 0, 'x', '[]', 1, now())),"
        " c as (insert into funding_rates (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key,"
        " request_hash) values ('BTC-PERP', 1, 1, 1, 1, 1, now(), 'k', 'h')),"
        " d as (insert into instruments (symbol, version, terms) values ('BTC-PERP', 1, '{}')),"
        " e as (insert into account_rebuilds (account_id, dropped, restored) values (1, '', '')),"
        " f as (insert into schema_changes (revision) values ('0000'))"
        " insert into settlement_steps (id, account_id, liquidation_id, number, type, key, executed_on, after_n,"
        " after_event_id, epoch, hold, amount, uncovered)"
        " values (1, 1, 5, 1, 'SETTLEMENT', 'k', 1, 9, 9, 1, '', 1, 1)"
    )
    return engine


# --- the functions' role


def test_every_table_has_exactly_the_rights_that_are_listed_here(settings: Settings, query: Query) -> None:
    assert settings.postgres_user == FUNCTIONS
    found: dict[str, set[str]] = {}
    for name, right in query(_RIGHTS, role=FUNCTIONS):
        found.setdefault(name, set()).add(right)
    assert found == RIGHTS
    relations = query(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = any(%(kinds)s)",
        kinds=["r", "p", "v", "m", "f"],
    )
    assert {name for (name,) in relations} == set(RIGHTS)
    sequences: dict[str, set[str]] = {}
    for name, right in query(_SEQUENCE_RIGHTS, role=FUNCTIONS):
        sequences.setdefault(name, set()).add(right)
    assert sequences == SEQUENCES


def test_role_is_nothing_special_on_the_server(query: Query) -> None:
    flags = "rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls"
    assert query(f"select {flags} from pg_roles where rolname = %(role)s", role=FUNCTIONS) == [  # noqa: S608
        (False, True, False, False, True, False, False)
    ]
    assert query("select from pg_auth_members where member = to_regrole(%(role)s)", role=FUNCTIONS) == []


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("tampering", TAMPERING)
def test_functions_cannot_tamper_with_history(as_functions: psycopg.Connection[Any], tampering: str) -> None:
    for table in HISTORY:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_functions.execute(TAMPERING[tampering].format(table, COLUMN[table]).encode())


@pytest.mark.parametrize("statement", ELSEWHERE)
def test_functions_cannot_get_around_their_rights(as_functions: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_functions.execute(statement.encode())


def test_functions_cannot_give_away_what_they_have_nor_take_more(
    as_functions: psycopg.Connection[Any], query: Query
) -> None:
    before = set(query(_RIGHTS, role=FUNCTIONS)), set(query(_RIGHTS, role="public"))
    for table in HISTORY:
        for role in (FUNCTIONS, "public"):
            # A warning is all that the server has to say.
            as_functions.execute(f"grant all on {table} to {role}".encode())
    assert (set(query(_RIGHTS, role=FUNCTIONS)), set(query(_RIGHTS, role="public"))) == before


@pytest.mark.usefixtures("engine")
def test_functions_may_forget_samples_of_marks_but_not_alter_them(
    as_functions: psycopg.Connection[Any], query: Query
) -> None:
    query("insert into mark_price_samples values ('BTC-PERP', now(), 1, 'a') returning 1")
    with pytest.raises(psycopg.DatabaseError, match="mark_price_samples is append-only: update is refused"):
        as_functions.execute("update mark_price_samples set source = 'b'")
    assert as_functions.execute("delete from mark_price_samples").rowcount == 1


def test_table_of_a_later_migration_is_out_of_reach_without_a_line_of_its_own(
    as_owner: psycopg.Connection[Any], as_functions: psycopg.Connection[Any]
) -> None:
    as_owner.execute("create table later (n int)")
    try:
        for statement in (b"select from later", b"insert into later values (1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                as_functions.execute(statement)
    finally:
        as_owner.execute("drop table later")


# --- everybody


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("tampering", ["update", "delete", "truncate", "merge"])
def test_owner_is_refused_to_change_history(as_owner: psycopg.Connection[Any], query: Query, tampering: str) -> None:
    for table in HISTORY:
        before = query(f"select * from {table} as one order by one::text")  # noqa: S608
        assert before
        statement = TAMPERING[tampering].format(table, COLUMN[table])
        if tampering == "update":
            statement = f"update {table} set {COLUMN[table]} = {_another(query, table)}"  # noqa: S608
        with pytest.raises(psycopg.DatabaseError, match="append-only") as raised:
            as_owner.execute(statement.encode())
        assert raised.value.sqlstate == "MA001"
        assert query(f"select * from {table} as one order by one::text") == before  # noqa: S608


@pytest.mark.usefixtures("history")
def test_owner_is_refused_to_empty_accounts_because_of_their_events(as_owner: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.DatabaseError, match="events is append-only: truncate"):
        as_owner.execute("truncate accounts cascade")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        as_owner.execute("delete from accounts")


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize(
    ("table", "column", "value", "another"),
    [
        ("liquidations", "settled", "true", "false"),
        ("funding_rates", "applied_at", "now()", "now() + interval '1 hour'"),
        ("funding_rates", "at_risk", "3", "4"),
        ("instruments", "effective_at", "now()", "null"),
        ("settlement_steps", "spent", "true", "false"),
        ("settlement_steps", "outcome", "'void'", "'executed'"),
        ("settlement_steps", "event_id", "3", "4"),
    ],
)
def test_what_is_noted_after_the_fact_is_noted_once(
    as_functions: psycopg.Connection[Any],
    as_owner: psycopg.Connection[Any],
    table: str,
    column: str,
    value: str,
    another: str,
) -> None:
    as_functions.execute(f"update {table} set {column} = {value}".encode())  # noqa: S608
    for connection in (as_functions, as_owner):
        with pytest.raises(psycopg.DatabaseError, match=f"{table}.{column} is set already: history is append-only"):
            connection.execute(f"update {table} set {column} = {another}".encode())  # noqa: S608


@pytest.mark.usefixtures("history")
def test_scale_of_an_amount_is_not_changed_either(as_owner: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.DatabaseError, match="liquidations is append-only"):
        as_owner.execute("update liquidations set shortfall = 1.00, settled = true")


@pytest.mark.usefixtures("history")
def test_owner_goes_past_the_guard_only_by_a_definition_that_the_server_can_log(
    as_owner: psycopg.Connection[Any], query: Query
) -> None:
    with as_owner.transaction(force_rollback=True):
        as_owner.execute("alter table events disable trigger append_only")
        as_owner.execute("update events set subject = 'erased'")
    assert query("select count(*) from events where subject = 'erased'") == [(0,)]
    assert (
        query("select tgrelid::regclass::text from pg_trigger where tgname = 'append_only' and tgenabled <> 'O'") == []
    )


# --- migrating


def test_role_that_nobody_made_is_said_to_be_missing_and_served_when_it_is_there(
    settings: Settings, as_owner: psycopg.Connection[Any], query: Query
) -> None:
    owner = "margin_migrator"
    as_owner.execute(f"create role {owner} login")
    as_owner.execute(f"create database {owner} owner {owner}")
    as_owner.execute(f"alter role {FUNCTIONS} rename to margin_elsewhere")
    own = dataclasses.replace(settings, postgres_user=owner, postgres_database=owner)
    try:
        migrate_schema.migrate(own)
        assert query("select from pg_roles where rolname = %(role)s", role=FUNCTIONS) == []
        as_owner.execute(f"alter role margin_elsewhere rename to {FUNCTIONS}")
        migrate_schema.migrate(own)
        with connect(own, user=FUNCTIONS) as connection:
            assert connection.execute("select count(*) from events").fetchone() == (0,)
    finally:
        if query("select from pg_roles where rolname = 'margin_elsewhere'"):
            as_owner.execute(f"alter role margin_elsewhere rename to {FUNCTIONS}")
        as_owner.execute(f"drop database {owner} (force)")
        as_owner.execute(f"drop role {owner}")


def test_right_that_a_former_release_gave_is_taken_away(
    settings: Settings, as_owner: psycopg.Connection[Any], query: Query
) -> None:
    as_owner.execute(f"grant update, delete on trades to {FUNCTIONS}")
    as_owner.execute(f"grant update (body) on events to {FUNCTIONS}")
    as_owner.execute(f"grant update on sequence epochs to {FUNCTIONS}")
    migrate_schema.migrate(dataclasses.replace(settings, postgres_user=OWNER))
    rights = query(_RIGHTS, role=FUNCTIONS)
    assert {right for name, right in rights if name in {"trades", "events"}} == READ_AND_ADD
    assert ("epochs", "update") not in query(_SEQUENCE_RIGHTS, role=FUNCTIONS)


def test_functions_find_nothing_to_migrate(settings: Settings) -> None:
    assert migrate_schema.migrate(settings) == migrate_schema.migrate(
        dataclasses.replace(settings, postgres_user=OWNER)
    )


def test_functions_may_not_make_a_schema(settings: Settings, as_owner: psycopg.Connection[Any]) -> None:
    as_owner.execute("create database margin_unmade")
    try:
        with pytest.raises(PostgresUnavailableError, match=f"{FUNCTIONS} may not migrate the schema"):
            migrate_schema.migrate(dataclasses.replace(settings, postgres_database="margin_unmade"))
    finally:
        as_owner.execute("drop database margin_unmade (force)")


async def test_engine_without_a_right_leaves_the_event_waiting(
    engine: Engine, as_owner: psycopg.Connection[Any]
) -> None:
    as_owner.execute(f"revoke insert on events from {FUNCTIONS}")
    try:
        assert not (await deposit(engine, 1, "1")).final
    finally:
        as_owner.execute(f"grant insert on events to {FUNCTIONS}")
    assert (await engine.drain.drain()).stored == 1


def _another(query: Query, table: str) -> str:
    """Write a value of the table's column that none of its rows has."""
    ((kind,),) = query(
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = to_regclass(%(table)s) and attname = %(column)s",
        table=table,
        column=COLUMN[table],
    )
    return {"text": "'other'", "jsonb": "'[1]'"}.get(kind, "77")
