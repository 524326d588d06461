"""Stores in memory that keep the contracts of `margin.ports`: passed to constructors, so that nothing is patched."""

from tests.fakes.exchange import Exchange
from tests.fakes.faults import Clock, Faults
from tests.fakes.history import FakeHistory
from tests.fakes.redis import FakeAccounts, FakeMarket, FakePartitions, FakeRedis

__all__ = [
    "Clock",
    "Exchange",
    "FakeAccounts",
    "FakeHistory",
    "FakeMarket",
    "FakePartitions",
    "FakeRedis",
    "Faults",
]
