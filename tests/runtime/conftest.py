"""Fixtures: the functions that `sam build` made, on real stores that ask for the passwords in moto's secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runtime import artefact as artefacts
from tests.runtime.aws import Aws
from tests.runtime.deployment import Deployment
from tests.runtime.machine import UnfitMachineError, prepare
from tests.runtime.stores import OWNER, USER, Stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin_local.servers import EmbeddedPostgres, EmbeddedValkey
    from tests.runtime.artefact import Artefact
    from tests.runtime.machine import Machine

REDIS_SECRET = "margin/redis"
POSTGRES_SECRET = "margin/postgres"
OWNER_SECRET = "margin/owner"


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Return what functions run on, or skip the test and say why."""
    try:
        return prepare()
    except UnfitMachineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def artefact(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """Build once for all tests."""
    return artefacts.build(machine, tmp_path_factory.mktemp("sam") / "build")


@pytest.fixture(scope="session")
def aws(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """Yield Secrets Manager, SQS and DynamoDB."""
    aws = Aws(tmp_path_factory.mktemp("aws") / "moto.log")
    yield aws
    aws.stop()


@pytest.fixture(scope="session")
def kept_stores(
    machine: Machine, aws: Aws, valkey_server: EmbeddedValkey, postgres_server: EmbeddedPostgres
) -> Iterator[Stores]:
    """Yield stores whose passwords are in the secrets."""
    stores = Stores(valkey_server, postgres_server)
    aws.put_secret(REDIS_SECRET, username=USER, password=stores.redis_password)
    aws.put_secret(POSTGRES_SECRET, username=USER, password=stores.postgres_password)
    aws.put_secret(OWNER_SECRET, username=OWNER, password=stores.owner_password)
    yield stores
    stores.close()


@pytest.fixture(scope="session")
def queue_url(aws: Aws) -> str:
    """Return where crossed accounts are queued."""
    return aws.make_queue("liquidations")


@pytest.fixture(scope="session")
def parameters(valkey_server: EmbeddedValkey, postgres_server: EmbeddedPostgres, queue_url: str) -> dict[str, str]:
    """Return the template's parameters for these stores; of a resource it is the reference."""
    return {
        "AWS::StackName": "margin-runtime",
        "RedisHost": valkey_server.host,
        "RedisPort": str(valkey_server.port),
        "RedisTls": "false",
        "RedisSecretName": REDIS_SECRET,
        "PostgresHost": postgres_server.host,
        "PostgresPort": str(postgres_server.port),
        "PostgresUser": USER,
        "PostgresDatabase": USER,
        "PostgresSslMode": "disable",
        "PostgresSecretName": POSTGRES_SECRET,
        "PostgresOwner": OWNER,
        "PostgresOwnerSecretName": OWNER_SECRET,
        "LiquidationsQueue": queue_url,
    }


@pytest.fixture(scope="session")
def kept_functions(
    machine: Machine,
    artefact: Artefact,
    aws: Aws,
    kept_stores: Stores,
    parameters: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """Yield the functions, on a database that they have migrated themselves."""
    outside = {"AWS_ENDPOINT_URL": aws.url}
    logs = tmp_path_factory.mktemp("logs")
    functions = Deployment(machine, artefact, parameters=parameters, outside=outside, logs=logs)
    try:
        assert functions.warm("MigrateFunction").invoke({"command": "migrate"})["revision"]
        yield functions
    finally:
        functions.end()


@pytest.fixture
def stores(kept_stores: Stores, kept_functions: Deployment) -> Stores:
    """Return the stores, emptied and opened."""
    kept_stores.clear()
    answer = kept_functions.warm("MigrateFunction").invoke({"command": "open"})
    assert answer.get("opened") == 1, answer
    return kept_stores


@pytest.fixture
def functions(kept_functions: Deployment, stores: Stores) -> Iterator[Deployment]:
    """Yield the functions, on stores that hold nothing."""
    yield kept_functions
    kept_functions.end_fresh()


@pytest.fixture
def market(functions: Deployment) -> Deployment:
    """Return the functions with what the events are about: a mark price and three accounts."""
    functions.post("/mark-price", symbol="BTC-PERP", price=50000)
    for account_id, amount in {1: "100000", 2: "5000", 3: "15000"}.items():
        functions.post(f"/accounts/{account_id}/deposits", amount=amount)
    return functions
