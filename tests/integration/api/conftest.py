"""Fixtures of this folder: the engine behind its handlers, in a Redis database and a PostgreSQL database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from margin.config import Settings
from tests import acl
from tests.database import FUNCTIONS
from tests.integration.api.exchange import Exchange
from tests.integration.api.stores import Stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin_local.servers import EmbeddedPostgres, EmbeddedValkey


@pytest.fixture(scope="session")
def api_settings(valkey_server: EmbeddedValkey, postgres_server: EmbeddedPostgres) -> Settings:
    return Settings(
        redis_port=valkey_server.port,
        redis_db=11,
        redis_username=acl.USERNAME,
        redis_password=acl.PASSWORD,
        postgres_port=postgres_server.port,
        postgres_user=FUNCTIONS,
        postgres_database="margin_api",
    )


@pytest.fixture(scope="session")
def stores(api_settings: Settings) -> Iterator[Stores]:
    stores = Stores(api_settings)
    yield stores
    stores.close()


@pytest.fixture
def exchange(api_settings: Settings, stores: Stores) -> Iterator[Exchange]:
    """Yield an engine without accounts or prices."""
    exchange = Exchange(api_settings, stores)
    exchange.start()
    yield exchange
    exchange.stop()


@pytest.fixture(scope="module")
def furnished(api_settings: Settings, stores: Stores) -> Iterator[Exchange]:
    """Yield an engine with accounts, positions and history, for tests that change nothing or do not mind."""
    exchange = Exchange(api_settings, stores)
    exchange.start()
    exchange.mark("BTC-PERP", "50000")
    exchange.mark("ETH-PERP", "3000")
    for account_id, amount in {7: "100000", 8: "5000", 9: "15000"}.items():
        exchange.deposit(account_id, amount)
    exchange.trade(7, "BUY", "0.1", "50000")
    exchange.trade(7, "SELL", "2", "3000", "ETH-PERP")
    exchange.trade(9, "BUY", "1", "50000")
    exchange.mark("BTC-PERP", "38000")
    exchange.mark("BTC-PERP", "50000")
    yield exchange
    exchange.stop()


@pytest.fixture
def unchanged(furnished: Exchange) -> Iterator[Exchange]:
    """Yield the furnished engine, and see to it that the test writes nothing to either store."""
    before = furnished.stores.contents()
    yield furnished
    assert furnished.stores.contents() == before
