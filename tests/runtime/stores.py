"""The two stores as a deployment finds them: each asks for a password, and the schema is not there yet."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import redis
from psycopg import sql

from tests import acl
from tests.database import EMPTY_ALL_TABLES, FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin_local.servers import EmbeddedPostgres, EmbeddedValkey

USER = "margin_runtime"
"""Of Redis and of PostgreSQL, and the database: it may what functions may."""
OWNER = "margin_runtime_owner"
"""Of the database, and of the migration."""
TABLES = ("ledger_lines", "liquidations", "trades", "events", "accounts")


class Stores:
    """Plain connections to both stores, past the engine, by those who need no password."""

    def __init__(self, valkey: EmbeddedValkey, postgres: EmbeddedPostgres) -> None:
        self.valkey = valkey
        self.redis = redis.Redis(host=valkey.host, port=valkey.port, decode_responses=True)
        self._address: dict[str, Any] = {"host": postgres.host, "port": postgres.port, "user": postgres.user}
        self._address["options"] = "-c statement_timeout=10s"
        with psycopg.connect(**self._address, dbname="postgres", autocommit=True) as connection:
            _ask_for_password(connection)
            # One server's tests share the role, whichever of them come first.
            if connection.execute("select to_regrole(%s)", [FUNCTIONS]).fetchone() == (None,):
                connection.execute(sql.SQL("create role {} login").format(sql.Identifier(FUNCTIONS)))
            self.owner_password = new_password()
            names = {"user": sql.Identifier(USER), "owner": sql.Identifier(OWNER), "role": sql.Identifier(FUNCTIONS)}
            connection.execute(sql.SQL("create role {user} login in role {role}").format(**names))
            made = sql.SQL("create role {owner} login password {password}")
            connection.execute(made.format(**names, password=sql.Literal(self.owner_password)))
            connection.execute(sql.SQL("create database {user} owner {owner}").format(**names))
        self.postgres = self.connect()
        self.set_redis_password(new_password())
        self.set_postgres_password(new_password())

    def connect(self) -> psycopg.Connection[Any]:
        """Open one more connection to the database."""
        return psycopg.connect(**self._address, dbname=USER, autocommit=True)

    def set_redis_password(self, password: str) -> None:
        """Change the password of the engine's user, and end the connections that were made with the one before."""
        self.redis.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{password}", *acl.rules())
        self.redis.execute_command("CLIENT", "KILL", "USER", USER)
        self.redis_password = password

    def set_postgres_password(self, password: str) -> None:
        """Do the same there."""
        change = sql.SQL("alter role {} password {}").format(sql.Identifier(USER), sql.Literal(password))
        self.postgres.execute(change)
        self.end_postgres_sessions()
        self.postgres_password = password

    def end_postgres_sessions(self) -> int:
        """End the engine's sessions on the server's side; return how many there were."""
        return self.one("select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = %s", USER)

    def end_redis_connections(self) -> int:
        """End the engine's connections on the server's side; return how many there were."""
        return int(self.redis.execute_command("CLIENT", "KILL", "USER", USER))

    def clear(self) -> None:
        """Forget everything but the schema."""
        self.redis.flushall()
        self.postgres.execute("set lock_timeout = '5s'")
        self.postgres.execute(EMPTY_ALL_TABLES)

    def drop_schema(self) -> None:
        """Forget everything."""
        self.redis.flushall()
        self.postgres.execute("set lock_timeout = '5s'")
        self.postgres.execute("drop schema public cascade")
        self.postgres.execute(sql.SQL("create schema public authorization {}").format(sql.Identifier(OWNER)))

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        return self.postgres.execute(query.encode(), parameters).fetchall()

    def one(self, query: str, *parameters: object) -> Any:
        """Ask the database for one value."""
        ((value,),) = self.rows(query, *parameters)
        return value

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        return {table: self.one(f"select count(*) from {table}") for table in TABLES}  # noqa: S608

    @contextlib.contextmanager
    def redis_frozen(self) -> Iterator[None]:
        """Let Redis take connections and requests and answer none."""
        pid = self.valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()
        self.postgres.close()


def new_password() -> str:
    """Make a password, with characters that a URL would trip over."""
    return f"{secrets.token_urlsafe(12)}@:/%#"


def _ask_for_password(connection: psycopg.Connection[Any]) -> None:
    """Let the server trust everybody but the engine's users."""
    ((path,),) = connection.execute("show hba_file").fetchall()
    rules = Path(path)
    rules.write_text(
        f"host all {USER},{OWNER} 127.0.0.1/32 scram-sha-256\n{rules.read_text(encoding='utf-8')}", encoding="utf-8"
    )
    connection.execute("select pg_reload_conf()")
