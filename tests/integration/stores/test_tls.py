"""TLS to the stores: believed is who has the right name from the right authority at the right time, and nobody else."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.tls import public_roots, redis_tls
from margin.config import Settings
from margin.errors import PostgresUnavailableError, RedisUnavailableError
from migrate_schema import migrate
from tests.certificates import Authority
from tests.tls_front import TlsFront

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Fronts = Callable[..., contextlib.AbstractAsyncContextManager[dict[str, Any]]]

RIGHT, WRONG = "localhost", "localhost.example"
STRANGERS: dict[str, dict[str, Any]] = {
    "another name": {"name": WRONG},
    "another authority": {"believed": "another"},
    "the public authorities": {"believed": ""},
    "a file that is not there": {"believed": "missing"},
    "an expired certificate": {"expired": True},
    "no TLS": {"speaks": False},
}


@pytest.fixture
def fronts(settings: Settings, tmp_path: Path) -> Fronts:
    """Return a function that puts TLS before both stores, and says with which settings an engine comes by it."""
    own, another = Authority(tmp_path, "own"), Authority(tmp_path, "another")
    files = {"own": str(own.path), "another": str(another.path), "": "", "missing": str(tmp_path / "missing.pem")}

    @contextlib.asynccontextmanager
    async def stand(
        *, name: str = RIGHT, believed: str = "own", expired: bool = False, speaks: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        context = own.server_context(name, expired=expired)
        async with (
            TlsFront(settings.redis_port, context) as redis,
            TlsFront(settings.postgres_port, context, asks_first=True) as postgres,
        ):
            ports = {"redis_port": redis.port, "postgres_port": postgres.port} if speaks else {}
            yield {
                "redis_host": RIGHT,
                "postgres_host": RIGHT,
                "redis_tls": True,
                "redis_ca": files[believed],
                "postgres_sslmode": "verify-full",
                "postgres_sslrootcert": files[believed],
                **ports,
            }

    return stand


READS: dict[str, tuple[type[Exception], Callable[[Engine], Awaitable[object]]]] = {
    "redis": (RedisUnavailableError, lambda engine: engine.margin.account_margin(1)),
    "postgres": (PostgresUnavailableError, lambda engine: engine.history_store.accounts(0, 1)),
}


async def test_engine_works_over_tls_with_the_right_name(make_engine: MakeEngine, fronts: Fronts) -> None:
    async with fronts() as settings:
        engine = await make_engine(**settings)
        assert await engine.history_store.accounts(0, 1) == []
        async with engine.history_store._pool.lease() as lease:
            assert lease.connection.pgconn.ssl_in_use
        await engine.close()


@pytest.mark.parametrize("store", READS)
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_stranger_is_not_spoken_to(make_engine: MakeEngine, fronts: Fronts, store: str, stranger: str) -> None:
    error, read = READS[store]
    async with fronts(**STRANGERS[stranger]) as settings:
        engine = await make_engine(opened=False, **settings)
        with pytest.raises(error):
            await read(engine)
        await engine.close()


async def test_name_is_not_compared_only_where_somebody_asked_for_that(make_engine: MakeEngine, fronts: Fronts) -> None:
    async with fronts(name=WRONG) as settings:
        engine = await make_engine(opened=False, **{**settings, "postgres_sslmode": "verify-ca"})
        assert await engine.history_store.accounts(0, 1) == []
        await engine.close()


def test_migration_believes_nobody_else_either(settings: Settings) -> None:
    with pytest.raises(PostgresUnavailableError):
        migrate(Settings(postgres_port=settings.postgres_port, postgres_sslmode="verify-full"))


def test_redis_is_spoken_to_in_nothing_older_than_tls_1_2_and_by_its_name() -> None:
    context = redis_tls("")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.cert_store_stats()["x509_ca"] > 0


def test_file_of_authorities_replaces_the_public_ones(tmp_path: Path) -> None:
    context = redis_tls(str(Authority(tmp_path, "only").path))
    assert context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}


def test_public_authorities_are_a_file_of_this_machine() -> None:
    assert "BEGIN CERTIFICATE" in Path(public_roots()).read_text(encoding="utf-8")
