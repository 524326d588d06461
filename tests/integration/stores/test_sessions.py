"""What holds for every session of the database: when it gives up, when it ends, and which locks there are."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import margin
import migrate_schema
from margin.clients import control_postgres, postgres
from margin.config import Settings
from tests.database import connect
from tests.integration.conftest import SESSION_DEFAULTS, admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin.runtime import Engine
    from margin_local.servers import EmbeddedPostgres

    Query = Callable[..., list[tuple[Any, ...]]]

EXPECTED = {
    "client_connection_check_interval": "1s",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "1min",
    "lock_timeout": "3s",
    "tcp_keepalives_count": "3",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_user_timeout": "25000",
}
PATIENCE_S = 10.0
MIGRATED, ROLE = "margin_sessions", "margin_guest"
_SHOW = "select name, current_setting(name) from pg_settings where name = any(%(names)s)"


async def test_session_of_the_engine_has_every_default(engine: Engine) -> None:
    rows = await engine.history_store._pool.query(
        "select name, current_setting(name) as value from pg_settings where name = any(%s)", [list(EXPECTED)]
    )
    assert {row["name"]: row["value"] for row in rows} == EXPECTED


@pytest.fixture
def database_of_another(postgres_server: EmbeddedPostgres) -> Iterator[Settings]:
    """Yield settings of a role that may make tables in a database which it does not own."""
    with admin(postgres_server) as connection:
        connection.execute(f"create database {MIGRATED}")
        connection.execute(f"create role {ROLE} login")
    with admin(postgres_server, MIGRATED) as connection:
        connection.execute(f"grant create on schema public to {ROLE}")
    yield Settings(
        postgres_host=postgres_server.host,
        postgres_port=postgres_server.port,
        postgres_user=ROLE,
        postgres_database=MIGRATED,
    )
    with admin(postgres_server) as connection:
        connection.execute(f"drop database {MIGRATED} (force)")
        connection.execute(f"drop role {ROLE}")


def test_role_that_does_not_own_the_database_migrates_and_leaves_it_as_it_is(
    database_of_another: Settings, postgres_server: EmbeddedPostgres
) -> None:
    newest = max(path.name[:4] for path in SESSION_DEFAULTS.parent.glob("0*.py"))
    assert migrate_schema.migrate(database_of_another) == newest
    with admin(postgres_server, MIGRATED) as connection:
        assert connection.execute("show lock_timeout").fetchone() == ("0",)


def test_migration_of_an_owner_sets_the_database(
    database_of_another: Settings, postgres_server: EmbeddedPostgres
) -> None:
    with admin(postgres_server) as connection:
        connection.execute(f"alter database {MIGRATED} owner to {ROLE}")
    migrate_schema.migrate(database_of_another)
    with admin(postgres_server, MIGRATED) as connection:
        assert dict(connection.execute(_SHOW, {"names": list(EXPECTED)}).fetchall()) == EXPECTED


def test_defaults_can_be_set_twice(query: Query, engine: Engine, postgres_server: EmbeddedPostgres) -> None:
    with admin(postgres_server, engine.settings.postgres_database) as connection:
        connection.execute(SESSION_DEFAULTS.read_text(encoding="utf-8").encode())
    assert dict(query(_SHOW, names=list(EXPECTED))) == EXPECTED


async def test_statement_whose_client_hung_up_ends_while_it_waits(engine: Engine, query: Query) -> None:
    with connect(engine.settings, autocommit=False) as holder:
        holder.execute("select pg_advisory_xact_lock(1)")
        async with engine.history_store._pool.lease() as lease:
            await lease.fetch("set lock_timeout = 0")
            lease.connection.pgconn.send_query(b"select pg_advisory_lock(1)")
            lease.connection.pgconn.flush()
            pid = lease.connection.info.backend_pid
            lease.discard()
        async with asyncio.timeout(PATIENCE_S):
            while query("select from pg_stat_activity where pid = %(pid)s", pid=pid):  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.05)


def test_no_two_advisory_locks_have_one_number() -> None:
    numbers = [migrate_schema._LOCK, control_postgres._ONE_AT_A_TIME, postgres._OPENING_LOCK]
    assert len(set(numbers)) == len(numbers)
    # Locks of two numbers are apart from those of one. Every place that takes a lock is one of these.
    roots = (Path(margin.__file__).parent, Path(migrate_schema.__file__).parent)
    files = [path for root in roots for suffix in ("py", "sql") for path in root.rglob(f"*.{suffix}")]
    taken = re.compile(r"pg_(?:try_)?advisory_(?:xact_)?(?:lock|lock_shared|xact_lock_shared)\(([^)]*)\)")
    texts = [path.read_text(encoding="utf-8") for path in files]
    first = {arguments.split(",")[0] for text in texts for arguments in taken.findall(text)}
    switches = str(control_postgres._ONE_AT_A_TIME)
    assert first == {"{_LOCK}", "%(lock", "%s", switches, "730546121", "730546122"}
