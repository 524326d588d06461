"""Chains of changes on real stores: how they come about, whoever inserts, and that mark prices say who sent them."""

from __future__ import annotations

import asyncio
import dataclasses
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config

import migrate_schema
from margin.caller import Caller
from margin.clients.audit_postgres import AuditPostgresClient
from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control
from margin.domain.instrument import default_instrument
from margin.domain.instrument_terms import instrument_of, terms_of
from tests.actions import ALICE, BTC, ETH, deposit, fund, mark, switch
from tests.database import OWNER, connect
from tests.integration.conftest import admin
from tests.integration.stores.verifying import breaks, verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from margin.config import Settings
    from margin.runtime import Engine
    from margin_local.servers import EmbeddedPostgres
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
async def history(settings: Settings) -> AsyncIterator[AuditPostgresClient]:
    client = AuditPostgresClient(settings)
    yield client
    await client.close()


async def test_nothing_breaks_while_others_trade_and_switch(engine: Engine, history: AuditPostgresClient) -> None:
    async def trade(account_id: int) -> None:
        for _ in range(40):
            await deposit(engine, account_id, "1")
            await switch(engine, account_control(account_id), ControlState.PAUSED)
            await switch(engine, account_control(account_id), ControlState.ACTIVE)

    async def open_accounts() -> None:
        for account_id in range(100, 160):
            await deposit(engine, account_id, "1")

    work = asyncio.gather(trade(1), trade(1), trade(2), open_accounts())
    looks = 0
    while not work.done():
        assert await breaks(history) == []
        looks += 1
    await work
    assert looks > 1, "nobody traded while it looked"
    assert await breaks(history) == []


async def test_changes_that_come_at_once_make_one_chain(engine: Engine, history: AuditPostgresClient) -> None:
    await asyncio.gather(*(switch(engine, ENGINE_CONTROL, ControlState.REDUCE_ONLY) for _ in range(30)))
    await asyncio.gather(*(mark(engine, "50000") for _ in range(3)))
    await asyncio.gather(*(fund(engine, "0.0001", key=f"at once {n}") for n in range(10)), return_exceptions=True)
    assert await breaks(history) == []


def test_statement_of_an_older_release_is_chained_too(settings: Settings, query: Query) -> None:
    with connect(settings) as connection:
        connection.execute("set session_replication_role = origin")
        for _ in range(2):
            connection.execute("insert into control_changes (name, state, reason) values ('engine', 'paused', 'r')")
        connection.execute(
            "insert into control_changes (name, state, reason)"
            " select 'engine', 'paused', 'r' from generate_series(1, 3)"
        )
    rows = query("select previous_hash, hash from control_changes order by id")
    assert [previous for previous, _ in rows] == ["", *(own for _, own in rows[:-1])]
    assert query("select hash, changes from chain_heads") == [(rows[-1][1], 5)]


def test_insertion_that_does_nothing_moves_no_head(settings: Settings, query: Query) -> None:
    insert = (
        "insert into funding_rates (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash)"
        " values ('BTC-PERP', %(n)s, 0.1, 10, 1.0, 1, now(), 'k', 'h') on conflict do nothing"
    )
    with connect(settings) as connection:
        connection.execute("set session_replication_role = origin")
        connection.execute(insert, {"n": 1})
        before = query("select * from chain_heads")
        assert connection.execute(insert, {"n": 1}).rowcount == 0
        assert connection.execute(insert, {"n": 2}).rowcount == 0
    assert query("select * from chain_heads") == before


def test_change_that_would_be_put_behind_the_end_is_refused(settings: Settings) -> None:
    insert = (
        "insert into openings (epoch, partition, partitions, run_id, accounts, loaded) values (%s, 0, 1, 'r', 0, 0)"
    )
    with connect(settings) as connection:
        connection.execute("select setval('epochs', 5)")
        connection.execute("set session_replication_role = origin")
        connection.execute(insert, [5])
        with pytest.raises(psycopg.errors.SerializationFailure, match="not linked to the end"):
            connection.execute(insert, [4])


def test_hash_that_a_client_brings_along_is_not_taken(settings: Settings, query: Query) -> None:
    with connect(settings) as connection:
        connection.execute("set session_replication_role = origin")
        connection.execute(
            "insert into control_changes (name, state, reason, previous_hash, hash)"
            " values ('engine', 'paused', 'r', 'mine', 'mine')"
        )
    ((previous, own),) = query("select previous_hash, hash from control_changes")
    assert (previous, len(own)) == ("", 64)


async def test_reconciling_looks_at_chains_of_changes_too(engine: Engine, query: Query) -> None:
    for _ in range(3):
        await switch(engine, ENGINE_CONTROL, ControlState.ACTIVE)
    assert (await engine.reconcile.reconcile()).differences == []
    ((change_id, own),) = query(
        "update control_changes set reason = 'another' where id = (select max(id) - 1 from control_changes)"
        " returning id, hash"
    )
    (difference,) = (await engine.reconcile.reconcile()).differences
    assert (difference.account_id, difference.found) == (None, own)
    assert difference.what == (
        f"change {change_id} of engine in control_changes: it does not have the hash of what it says"
    )


# --- mark prices ---


async def test_mark_prices_say_who_sent_them(engine: Engine, query: Query) -> None:
    oracle = Caller(subject="oracle 1", source_ip="2001:db8::7")
    await engine.marks.set_marks({BTC: Decimal(50000), ETH: Decimal(2000)}, caller=oracle)
    await engine.mark_records.save()
    assert query("select symbol, subject, source_ip from mark_price_samples order by symbol") == [
        (BTC, "oracle 1", "2001:db8::7"),
        (ETH, "oracle 1", "2001:db8::7"),
    ]
    await engine.marks.set_marks({BTC: Decimal(50000)}, caller=Caller(subject=None, source_ip="192.0.2.9"))
    await engine.mark_records.save()
    await mark(engine, "50000")
    await engine.mark_records.save()
    assert query("select subject, source_ip from mark_price_samples where symbol = 'BTC-PERP' order by at") == [
        ("oracle 1", "2001:db8::7"),
        (None, "192.0.2.9"),
        (None, None),
    ]


@pytest.mark.parametrize("partitions", [1, 3])
async def test_price_that_waited_is_of_its_own_sender_when_it_is_confirmed(
    make_engine: MakeEngine, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    terms = {**terms_of(default_instrument(BTC)), "mark_jump_max": "0.1"}
    await engine.instruments.put(instrument_of(terms), ALICE)
    await mark(engine, "50000")
    first, second = (Caller(subject=f"oracle {n}", source_ip=f"192.0.2.{n}") for n in (1, 2))
    await engine.marks.set_marks({BTC: Decimal(60000)}, sources={BTC: "one"}, caller=first)
    await engine.mark_records.save()
    # Both say that it moved; the nearer one, the first, is the mark, and the second one waits.
    await engine.marks.set_marks({BTC: Decimal(90000)}, sources={BTC: "two"}, caller=second)
    await engine.mark_records.save()
    await engine.marks.set_marks({BTC: Decimal(90001)}, sources={BTC: "one"}, caller=first)
    await engine.mark_records.save()
    rows = query("select price::text, subject, source_ip, source from mark_price_samples order by at")
    assert rows == [
        ("50000", None, None, None),
        ("60000", "oracle 1", "192.0.2.1", "one"),
        ("90001", "oracle 1", "192.0.2.1", "one"),
    ]


# --- the migration ---


def upgrade(settings: Settings, revision: str) -> None:
    """Bring a database to a revision, as its owner."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate_schema.__file__).parent / "migrations"))
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=OWNER,
        host=settings.postgres_host,
        port=settings.postgres_port,
        database=settings.postgres_database,
    )
    database = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@pytest.fixture
def of_before(settings: Settings, postgres_server: EmbeddedPostgres) -> Iterator[Settings]:
    """Yield the settings of a database as the release before the chains left it."""
    older = dataclasses.replace(settings, postgres_user=OWNER, postgres_database="margin_of_before")
    with admin(postgres_server) as connection:
        connection.execute("create database margin_of_before")
    upgrade(older, "0007")
    yield older
    with admin(postgres_server) as connection:
        connection.execute("drop database margin_of_before with (force)")


async def test_what_was_there_before_the_migration_is_chained_by_it(of_before: Settings) -> None:
    insertions = """
        insert into control_changes (name, state, reason, subject)
        select 'account:' || n % 3, 'paused', 'r', 'me' from generate_series(1, 20) as n;
        insert into openings (epoch, partition, partitions, run_id, accounts, loaded)
        select n, n % 2, 2, 'r', 0, 0 from generate_series(1, 9) as n;
        insert into instruments (symbol, version, terms, effective_at)
        select 'S' || n % 3, n, '{"a": 1.50}', now() from generate_series(1, 9) as n;
        insert into funding_rates (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash)
        select 'S' || n % 3, n, 0.10, 10, 1.0, n, now(), n::text, 'h' from generate_series(1, 9) as n;
    """
    with connect(of_before) as connection:
        connection.execute(insertions)
    upgrade(of_before, "head")
    client = AuditPostgresClient(of_before)
    try:
        report, found = await verified(client)
        assert found == []
        assert report.changes == 20 + 9 + 9 + 9 + 1
        # The release before goes on inserting as it always did; what was there is guarded as before.
        with connect(of_before) as connection:
            connection.execute("set session_replication_role = origin")
            connection.execute("insert into control_changes (name, state, reason) values ('account:1', 'paused', 'r')")
            with pytest.raises(psycopg.Error, match="append-only"):
                connection.execute("update control_changes set reason = 'another'")
            with pytest.raises(psycopg.Error, match="append-only"):
                connection.execute("delete from chain_heads")
        assert await breaks(client) == []
    finally:
        await client.close()
