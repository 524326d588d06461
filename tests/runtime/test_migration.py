"""The migration as CloudFormation calls it: a custom resource, which answers whatever happens."""

from __future__ import annotations

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from margin_local.servers.ports import HOST, choose_port
from tests.runtime.deployment import event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.deployment import Deployment
    from tests.runtime.emulator import Emulator
    from tests.runtime.stores import Stores

pytestmark = pytest.mark.runtime

NEWEST = "0008"


@dataclasses.dataclass
class CloudFormation:
    """Takes the answers of custom resources."""

    url: str
    answers: list[dict[str, Any]]

    def calls(self, function: Emulator, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the one answer to it, after checking what every answer must have."""
        self.answers.clear()
        self.result = function.invoke({**request, "ResponseURL": self.url})
        (answer,) = self.answers
        for name in ("StackId", "RequestId", "LogicalResourceId"):
            assert answer[name] == request[name]
        assert answer["PhysicalResourceId"] == "margin-schema", "another id would make an update a replacement"
        return answer


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    """Yield a server in the place of the bucket that CloudFormation reads answers from."""
    taken: list[dict[str, Any]] = []

    class Take(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            assert self.headers["Content-Type"] == "", "the address is signed without one"
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    with HTTPServer((HOST, 0), Take) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield CloudFormation(f"http://{HOST}:{server.server_port}/answer?signed", taken)
        server.shutdown()
        thread.join()


@pytest.fixture
def migrate(functions: Deployment) -> Emulator:
    return functions.warm("MigrateFunction")


def test_creation_makes_the_schema_and_opens_the_exchange(
    functions: Deployment, migrate: Emulator, stores: Stores, cloudformation: CloudFormation
) -> None:
    stores.drop_schema()
    assert functions.call("GET", "/health").status == 503
    answer = cloudformation.calls(migrate, event("migrate_create"))
    assert answer["Status"] == "SUCCESS", answer
    assert answer["Data"] == {"revision": NEWEST, "opened": 1, "accounts": 0, "loaded": 0}
    assert cloudformation.result == answer["Data"]
    assert stores.rows("select version_num from alembic_version") == [(NEWEST,)]
    assert set(stores.redis.hgetall("marker")) == {"epoch", "partitions", "run_id"}
    assert functions.call("GET", "/health").status == 200
    assert functions.send(event("deposit")).status == 200


def test_update_leaves_a_running_exchange_as_it_is(
    market: Deployment, migrate: Emulator, stores: Stores, cloudformation: CloudFormation
) -> None:
    marker, rows = stores.redis.hgetall("marker"), stores.counts()
    answer = cloudformation.calls(migrate, event("migrate_update"))
    assert (answer["Status"], answer["Data"]) == ("SUCCESS", {"revision": NEWEST})
    assert (stores.redis.hgetall("marker"), stores.counts()) == (marker, rows)


def test_update_without_the_state_names_the_command_that_loads_it(
    market: Deployment, migrate: Emulator, stores: Stores, cloudformation: CloudFormation
) -> None:
    stores.redis.flushall()
    answer = cloudformation.calls(migrate, event("migrate_update"))
    assert answer["Status"] == "SUCCESS"
    assert """--payload '{"command": "open"}'""" in answer["Data"]["state"]
    assert stores.redis.exists("marker") == 0
    opened = migrate.invoke({"command": "open"})
    assert (opened["opened"], opened["loaded"]) == (1, 3)
    assert stores.redis.hgetall("balances") == {"1": "100000", "2": "5000", "3": "15000"}


def test_schema_of_a_later_release_is_left_as_it_is(
    functions: Deployment, migrate: Emulator, stores: Stores, cloudformation: CloudFormation
) -> None:
    stores.postgres.execute("update alembic_version set version_num = '9999'")
    try:
        answer = cloudformation.calls(migrate, event("migrate_update"))
        assert (answer["Status"], answer["Data"]["revision"]) == ("SUCCESS", "9999")
        assert functions.send(event("deposit")).status == 200
    finally:
        stores.postgres.execute("update alembic_version set version_num = %s", [NEWEST])


def kept_keys(stores: Stores) -> set[str]:
    """Names of the keys in Redis, but for counted requests, which are soon forgotten."""
    return {name for name in stores.redis.scan_iter() if not name.startswith("rate:")}


def test_deletion_touches_nothing_and_needs_no_database(
    market: Deployment, stores: Stores, cloudformation: CloudFormation
) -> None:
    before = stores.counts(), kept_keys(stores)
    cut_off = market.fresh("MigrateFunction", parameters={"PostgresPort": str(choose_port())})
    answer = cloudformation.calls(cut_off, event("migrate_delete"))
    assert (answer["Status"], answer["Data"]) == ("SUCCESS", {})
    assert (stores.counts(), kept_keys(stores)) == before


def test_database_that_cannot_be_reached_fails_the_deployment_with_the_reason(
    functions: Deployment, cloudformation: CloudFormation
) -> None:
    cut_off = functions.fresh("MigrateFunction", parameters={"PostgresPort": str(choose_port())})
    answer = cloudformation.calls(cut_off, event("migrate_create"))
    assert answer["Status"] == "FAILED"
    assert answer["Reason"] == "PostgresUnavailableError: PostgreSQL cannot be reached to migrate its schema."
    assert cloudformation.result["errorType"] == "PostgresUnavailableError"


def test_migration_that_fails_fails_the_deployment_with_the_reason(
    functions: Deployment, migrate: Emulator, stores: Stores, cloudformation: CloudFormation
) -> None:
    stores.drop_schema()
    try:
        stores.postgres.execute("create table trades (of_somebody_else int)")
        answer = cloudformation.calls(migrate, event("migrate_create"))
        assert answer["Status"] == "FAILED"
        assert 'relation "trades" already exists' in answer["Reason"]
        tables = "select count(*) from pg_tables where schemaname = 'public' and tablename = 'events'"
        assert stores.one(tables) == 0, "half a migration"
    finally:
        stores.drop_schema()
        assert migrate.invoke({"command": "migrate"})["revision"] == NEWEST
