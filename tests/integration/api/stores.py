"""All that the stores of a test hold, seen from beside the engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import psycopg
import redis
from psycopg import sql

from migrate_schema import migrate
from tests import acl
from tests.database import ALL_TABLES, OWNER, PAST_THE_GUARD

if TYPE_CHECKING:
    from margin.config import Settings


class Stores:
    """Plain connections to one Redis database and one PostgreSQL database, which is made and migrated."""

    def __init__(self, settings: Settings) -> None:
        address: dict[str, Any] = {"host": settings.postgres_host, "port": settings.postgres_port, "user": OWNER}
        # A test that has locked itself out fails instead of hanging.
        address["options"] = f"-c statement_timeout=10s {PAST_THE_GUARD}"
        with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:
            named = connection.execute("select 1 from pg_database where datname = %s", [settings.postgres_database])
            if named.fetchone() is None:
                name = sql.Identifier(settings.postgres_database)
                connection.execute(sql.SQL("create database {}").format(name))
        migrate(dataclasses.replace(settings, postgres_user=OWNER))
        self._address = {**address, "dbname": settings.postgres_database}
        # As the default user, who has no password unless the engine is that user.
        password = None if settings.redis_username else settings.redis_password or None
        self.redis = redis.Redis(
            host=settings.redis_host, port=settings.redis_port, db=settings.redis_db, password=password
        )
        if settings.redis_username:
            acl.make_user(self.redis)
        self.postgres = self.connect()
        # Events refer to accounts. To delete a few rows takes a fraction of what to truncate does.
        names = [row[0] for row in self.postgres.execute(ALL_TABLES)]
        self._tables = sorted(names, key=lambda name: name == "accounts")

    def connect(self) -> psycopg.Connection[Any]:
        """Open one more connection, in autocommit mode."""
        return psycopg.connect(**self._address, autocommit=True)

    def close(self) -> None:
        self.redis.close()
        self.postgres.close()

    def clear(self) -> None:
        """Forget everything but the schema."""
        self.redis.flushdb()
        for table in self._tables:
            self.postgres.execute(sql.SQL("delete from {}").format(sql.Identifier(table)))

    def keys(self) -> dict[str, bytes]:
        """Every Redis key with its serialised value."""
        names = sorted(self.redis.scan_iter(count=1000))
        pipeline = self.redis.pipeline(transaction=True)
        for name in names:
            pipeline.dump(name)
        return {name.decode(): value for name, value in zip(names, pipeline.execute(), strict=True)}

    def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        counts = sql.SQL("select ") + sql.SQL(", ").join(
            sql.SQL("(select count(*) from {})").format(sql.Identifier(table)) for table in self._tables
        )
        row = self.postgres.execute(counts).fetchone()
        assert row is not None
        return dict(zip(self._tables, row, strict=True))

    def contents(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """Both: equal before and after means that nothing was written."""
        return self.keys(), self.rows()
