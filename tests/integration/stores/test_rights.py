"""What the database itself refuses: to change history, and all that the functions have no use for."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import migrate_schema
from margin.domain.controls import ENGINE_CONTROL, ControlState
from margin.domain.instrument import default_instrument
from margin.domain.instrument_terms import instrument_of, terms_of
from margin.errors import PostgresUnavailableError
from tests.actions import ALICE, BTC, buy, deposit, fund, mark, switch
from tests.database import FUNCTIONS, OWNER, connect
from tests.integration.conftest import GRANTS, admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


def _adding(*columns: str) -> set[str]:
    """All that reads a table and adds rows to it, of which it says these columns alone."""
    return {"select", *(f"insert {column}" for column in columns)}


RIGHTS: dict[str, set[str]] = {
    "account_rebuilds": _adding("account_id", "dropped", "restored", "subject", "source_ip"),
    "accounts": {
        *READ_AND_ADD,
        *(f"update {name}" for name in ("n", "event_id", "chain_hash", "balance", "positions", "changed_at")),
    },
    "alembic_version": {"select"},
    "chain_heads": {"select"},
    "control_changes": _adding("name", "state", "reason", "subject", "source_ip"),
    "events": READ_AND_ADD,
    "fences": {*READ_AND_ADD, "update epoch"},
    "funding_rates": {
        *_adding("symbol", "n", "rate", "mark_price", "rise", "funding_index", "occurred_at", "key", "request_hash"),
        *("insert subject", "insert source_ip", "update applied_at", "update at_risk"),
    },
    "instruments": {
        *_adding("symbol", "version", "terms", "subject", "source_ip"),
        "update effective_at",
    },
    "ledger_lines": READ_AND_ADD,
    "liquidations": {*READ_AND_ADD, "update settled"},
    "mark_price_samples": {*READ_AND_ADD, "delete", "update source"},
    "mark_prices": {*READ_AND_ADD, "update price", "update stamp_us"},
    "openings": _adding(*("epoch", "partition", "partitions", "run_id", "accounts", "loaded", "subject", "source_ip")),
    "schema_changes": {"select"},
    "settlement_outcomes": {"select"},
    "settlement_place": {*READ_AND_ADD, "update at_us", "update liquidation_id"},
    "settlement_steps": {*READ_AND_ADD, "update spent", "update outcome", "update event_id"},
    "trades": READ_AND_ADD,
}
"""Every table and view of the schema, with all that the functions may do to it."""

SEQUENCES = {"epochs": {"usage"}}
AS_OWNER = {"skip_control_ids"}
"""Functions that run with the rights of the owner of history, whoever calls them, and that the functions may call."""

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
    "drop schema public cascade",
    "select setval('epochs', 1)",
    "select setval('control_changes_id_seq', 9223372036854775807)",
    "select nextval('control_changes_id_seq')",
    (
        "insert into control_changes (id, name, state, reason) overriding system value"
        " values (9223372036854775807, 'engine', 'active', '')"
    ),
    "insert into control_changes (name, state, reason, changed_at) values ('engine', 'active', '', now())",
    "insert into control_changes (name, state, reason, hash) values ('engine', 'active', '', '')",
    "create temporary table more (n int)",
    "create type pg_temp.more as (n int)",
    "create schema more",
    "alter database margin_tests set default_transaction_read_only = on",
    "select lo_import('/etc/passwd')",
    "copy events to '/tmp/events'",
    "copy events from program 'true'",
    "alter system set fsync = off",
    "update alembic_version set version_num = '0001'",
    "delete from accounts",
    "update accounts set account_id = 7",
    "update accounts set opened_at = now()",
]


_EVIL = (
    "create function pg_temp.evil(anything text) returns boolean language plpgsql as $$ begin"
    " if current_user <> 'margin_functions' then"
    " execute 'alter table public.events disable trigger user';"
    " execute 'grant all on public.events to margin_functions';"
    " end if; return true; end $$"
)
INTRUSIONS = {
    "code of one's own where a hash is assigned": (
        _EVIL,
        "create domain pg_temp.hashed as text check (pg_temp.evil(value))",
        "create temporary table own (name text, id bigint, previous_hash text, hash pg_temp.hashed)",
        (
            "create function pg_temp.turned(own pg_temp.own) returns public.control_changes language sql"
            " as 'select null::public.control_changes'"
        ),
        "create cast (pg_temp.own as public.control_changes) with function pg_temp.turned(pg_temp.own) as implicit",
        "create trigger own before insert on own for each row execute function public.link_change('name', 'id')",
        "grant all on own to public",
        "insert into own (name, id) values ('engine', 1)",
    ),
    "code of one's own where a row becomes json": (
        _EVIL,
        "create type pg_temp.one as enum ('a')",
        (
            "create function pg_temp.turned(one pg_temp.one) returns json language plpgsql"
            " as 'begin perform pg_temp.evil(null); return to_json(1); end'"
        ),
        "create cast (pg_temp.one as json) with function pg_temp.turned(pg_temp.one)",
        "create temporary table own (name text, id bigint, previous_hash text, hash text, one pg_temp.one)",
        (
            "create function pg_temp.turned(own pg_temp.own) returns public.control_changes language sql"
            " as 'select null::public.control_changes'"
        ),
        "create cast (pg_temp.own as public.control_changes) with function pg_temp.turned(pg_temp.own) as implicit",
        "create trigger own before insert on own for each row execute function public.link_change('name', 'id')",
        "grant all on own to public",
        "insert into own (name, id, one) values ('engine', 1, 'a')",
    ),
    "a table that has the name of a chain": (
        "create temporary table control_changes (name text, id bigint, previous_hash text, hash text)",
        (
            "create trigger own after insert on pg_temp.control_changes"
            " for each row execute function public.move_chain_head('name', 'id')"
        ),
        "insert into pg_temp.control_changes values ('engine', 9223372036854775807, '', 'forged')",
    ),
    "a migration that never was": (
        "create temporary table own (version_num text)",
        "create trigger own after insert on own for each row execute function public.record_schema_change()",
        "insert into own values ('9999')",
    ),
}
OPENED = {
    "as it is": ("", "create"),
    "and one may make temporary tables": (
        "grant temporary on database {database} to public",
        "create trigger",
    ),
    "and one may call what runs with the owner's rights": (
        (
            "grant temporary on database {database} to public;"
            " grant execute on function link_change(), move_chain_head(), record_schema_change() to margin_functions"
        ),
        "insert",
    ),
}
"""What somebody has given away by mistake, and which of the statements is refused all the same."""


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
        " d as (insert into instruments (symbol, version, terms) values ('BTC-PERP', 1, %s)),"
        " e as (insert into account_rebuilds (account_id, dropped, restored) values (1, '', '')),"
        " f as (insert into schema_changes (revision) values ('0000'))"
        " insert into settlement_steps (id, account_id, liquidation_id, number, type, key, executed_on, after_n,"
        " after_event_id, epoch, hold, amount, uncovered)"
        " values (1, 1, 5, 1, 'SETTLEMENT', 'k', 1, 9, 9, 1, '', 1, 1)",
        [json.dumps({**terms_of(default_instrument(BTC)), "version": 1})],
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


def test_nobody_calls_what_runs_with_the_owners_rights_but_the_functions_what_is_listed_here(query: Query) -> None:
    callable_by = (
        "select proname from pg_proc where pronamespace = 'public'::regnamespace and prosecdef"
        " and has_function_privilege(%(role)s, oid, 'execute')"
    )
    assert query(callable_by, role="public") == []
    assert {name for (name,) in query(callable_by, role=FUNCTIONS)} == AS_OWNER
    # Whose names are looked up where nobody else can put anything.
    settings_of = query("select proconfig from pg_proc where pronamespace = 'public'::regnamespace and prosecdef")
    assert settings_of == [(["search_path=pg_catalog, public, pg_temp"],)] * 4


def test_nobody_puts_objects_of_their_own_into_the_database(settings: Settings, query: Query) -> None:
    for role in (FUNCTIONS, "public"):
        for privilege in ("temporary", "create"):
            assert query(
                "select has_database_privilege(%(role)s, %(database)s, %(privilege)s)",
                role=role,
                database=settings.postgres_database,
                privilege=privilege,
            ) == [(False,)]
        assert query("select has_schema_privilege(%(role)s, 'public', 'create')", role=role) == [(False,)]


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("intrusion", INTRUSIONS)
def test_functions_do_not_become_the_owner(
    settings: Settings,
    as_owner: psycopg.Connection[Any],
    as_functions: psycopg.Connection[Any],
    query: Query,
    intrusion: str,
    opened: str,
) -> None:
    given, refused = OPENED[opened]
    as_owner.execute(given.format(database=settings.postgres_database).encode())
    look = (
        "select (select array_agg(one::text order by one::text) from chain_heads as one), count(*) from schema_changes"
    )
    before = query(look)
    try:
        statement = _refused_of(as_functions, INTRUSIONS[intrusion])
        assert statement is not None
        assert statement.startswith(refused)
        assert query(look) == before
        assert (
            query("select from pg_trigger where tgrelid = 'events'::regclass and not tgisinternal and tgenabled <> 'O'")
            == []
        )
        assert {right for name, right in query(_RIGHTS, role=FUNCTIONS) if name == "events"} == READ_AND_ADD
    finally:
        # All of it is taken away by the next migration.
        migrate_schema.migrate(dataclasses.replace(settings, postgres_user=OWNER))
    test_nobody_puts_objects_of_their_own_into_the_database(settings, query)
    test_nobody_calls_what_runs_with_the_owners_rights_but_the_functions_what_is_listed_here(query)


@pytest.mark.parametrize(
    "statement",
    [
        (
            "insert into openings (epoch, partition, partitions, run_id, accounts, loaded)"
            " values (nextval('epochs') + 1, 0, 1, 'x', 0, 0)"
        ),
        (
            "insert into openings (epoch, partition, partitions, run_id, accounts, loaded)"
            " values (9223372036854775807, 0, 1, 'x', 0, 0)"
        ),
        "insert into instruments (symbol, version, terms) values ('BTC-PERP', 3, '{}')",
        "insert into instruments (symbol, version, terms) values ('ETH-PERP', 2, '{}')",
        (
            "insert into funding_rates"
            " (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash)"
            " values ('BTC-PERP', 3, 1, 1, 1, 1, now(), 'another', 'h')"
        ),
        (
            "insert into funding_rates"
            " (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash)"
            " select 'ETH-PERP', n, 1, 1, 1, 1, now(), n::text, 'h' from unnest(array[1, 2, 4]) as n"
        ),
    ],
)
async def test_functions_leave_no_gap_behind_which_nobody_can_go_on(
    history: Engine, as_functions: psycopg.Connection[Any], query: Query, statement: str
) -> None:
    as_functions.execute("update instruments set effective_at = now()")
    before = query("select * from chain_heads order by chain, name")
    with pytest.raises(psycopg.DatabaseError, match="is ahead of its chain") as raised:
        as_functions.execute(statement.encode())
    assert raised.value.sqlstate == "MA002"
    assert query("select * from chain_heads order by chain, name") == before
    await fund(history, "0.0001", key="the next one")
    await history.instruments.put(instrument_of({**terms_of(default_instrument(BTC)), "mark_jump_max": "0.1"}), ALICE)
    epochs = query("select max(epoch) from openings")
    await history.rebuilding.rebuild()
    assert query("select max(n) from funding_rates") == [(2,)]
    assert query("select max(version) from instruments") == [(2,)]
    assert query("select max(epoch) from openings") > epochs


async def test_functions_skip_no_more_ids_of_switches_than_an_exchange_can_have_lost(
    history: Engine, as_functions: psycopg.Connection[Any], query: Query
) -> None:
    ((newest,),) = query("select max(id) from control_changes")
    most = newest + 2**24
    for far in (most + 1, 2**53, 2**63 - 1):
        with pytest.raises(psycopg.DatabaseError, match="more than an exchange can have lost") as raised:
            as_functions.execute("select skip_control_ids(%s)", [far])
        assert raised.value.sqlstate == "MA002"
    for _ in range(3):
        as_functions.execute("select skip_control_ids(%s)", [most])
    # Not even step by step, because nothing was written down meanwhile.
    with pytest.raises(psycopg.DatabaseError, match="more than an exchange can have lost"):
        as_functions.execute("select skip_control_ids(%s)", [most + 2**20])
    outcome = await switch(history, ENGINE_CONTROL, ControlState.PAUSED)
    assert outcome.effective
    assert most < outcome.change.id < most + 100
    as_functions.execute("select skip_control_ids(%s)", [newest])
    again = await switch(history, ENGINE_CONTROL, ControlState.ACTIVE)
    assert again.change.id > outcome.change.id


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
    query("insert into mark_price_samples values ('BTC-PERP', now() - interval '25 hours', 1, 'a') returning 1")
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


def test_right_to_what_is_no_table_is_taken_away_as_well(
    settings: Settings, as_owner: psycopg.Connection[Any], query: Query
) -> None:
    as_owner.execute("create materialized view later as select 1 as n")
    as_owner.execute("create function later_too(n int) returns int language sql as 'select 1'")
    as_owner.execute("create procedure last() language sql as 'select 1'")
    try:
        as_owner.execute("revoke execute on function later_too(int) from public")
        as_owner.execute("revoke execute on procedure last() from public")
        as_owner.execute(f"grant select on later to {FUNCTIONS}")
        as_owner.execute(f"grant execute on function later_too(int) to {FUNCTIONS}")
        as_owner.execute(f"grant execute on procedure last() to {FUNCTIONS}")
        as_owner.execute(f"grant create, temporary on database {settings.postgres_database} to {FUNCTIONS}, public")
        as_owner.execute(f"grant create on schema public to {FUNCTIONS}, public")
        migrate_schema.migrate(dataclasses.replace(settings, postgres_user=OWNER))
        assert query(
            "select has_table_privilege(%(role)s, 'later', 'select'),"
            " has_function_privilege(%(role)s, 'later_too(int)', 'execute'),"
            " has_function_privilege(%(role)s, 'last()', 'execute')",
            role=FUNCTIONS,
        ) == [(False, False, False)]
        test_nobody_puts_objects_of_their_own_into_the_database(settings, query)
    finally:
        as_owner.execute("drop materialized view later")
        as_owner.execute("drop function later_too(int)")
        as_owner.execute("drop procedure last()")


def test_defaults_that_the_role_gave_its_own_sessions_are_taken_back(
    settings: Settings, as_functions: psycopg.Connection[Any], query: Query
) -> None:
    own = "select from pg_db_role_setting where setrole = to_regrole(%(role)s)"
    try:
        as_functions.execute(f"alter role {FUNCTIONS} set default_transaction_read_only = on")
        as_functions.execute(
            f"alter role {FUNCTIONS} in database {settings.postgres_database} set lock_timeout = '1ms'".encode()
        )
        with connect(settings, user=FUNCTIONS) as another, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            another.execute("insert into fences values (3, 4, 1)")
    finally:
        migrate_schema.migrate(dataclasses.replace(settings, postgres_user=OWNER))
    assert query(own, role=FUNCTIONS) == []
    with connect(settings, user=FUNCTIONS) as another:
        assert another.execute("insert into fences values (3, 4, 1)").rowcount == 1
        assert another.execute("show lock_timeout").fetchone() == ("3s",)


def test_owner_who_may_not_close_the_database_is_told_so_and_migrates(
    settings: Settings, as_owner: psycopg.Connection[Any], as_functions: psycopg.Connection[Any], query: Query
) -> None:
    owner = "margin_migrator"
    as_owner.execute(f"create role {owner} login")
    as_owner.execute(f"create database {owner}")
    own = dataclasses.replace(settings, postgres_user=owner, postgres_database=owner)
    theirs = dataclasses.replace(own, postgres_user=OWNER)
    told: list[str] = []
    try:
        with connect(theirs) as connection:
            # As in a database of before PostgreSQL 15.
            connection.execute("grant create on schema public to public")
        as_functions.execute(f"alter role {FUNCTIONS} set work_mem = '2MB'")
        migrate_schema.migrate(own)
        with connect(own, user=owner) as connection:
            connection.add_notice_handler(lambda diagnostic: told.append(str(diagnostic.message_primary)))
            connection.execute(GRANTS.read_bytes())
        assert sum("may make temporary tables" in one for one in told) == 1
        assert sum("may make objects in the schema public" in one for one in told) == 1
        assert sum("has defaults of its own: work_mem=2MB" in one for one in told) == 1
        told.clear()
        with connect(theirs) as connection:
            connection.add_notice_handler(lambda diagnostic: told.append(str(diagnostic.message_primary)))
            connection.execute(GRANTS.read_bytes())
        assert told == []
        assert query("select from pg_db_role_setting where setrole = to_regrole(%(role)s)", role=FUNCTIONS) == []
        with connect(own, user=FUNCTIONS) as connection:
            assert connection.execute("select count(*) from events").fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("create temporary table more (n int)")
    finally:
        as_owner.execute(f"alter role {FUNCTIONS} reset all")
        as_owner.execute(f"drop database {owner} (force)")
        as_owner.execute(f"drop role {owner}")


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


def _refused_of(connection: psycopg.Connection[Any], statements: Sequence[str]) -> str | None:
    """Execute statements up to the one that its user has no right to, and tell which that is."""
    for statement in statements:
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return statement
    return None


def _another(query: Query, table: str) -> str:
    """Write a value of the table's column that none of its rows has."""
    ((kind,),) = query(
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = to_regclass(%(table)s) and attname = %(column)s",
        table=table,
        column=COLUMN[table],
    )
    return {"text": "'other'", "jsonb": "'[1]'"}.get(kind, "77")
