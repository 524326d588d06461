"""An exchange that is measured: an engine on a Valkey and a database of its own, filled with so many accounts."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from margin.domain.safe_zone import triggers
from margin.ports import SweepProgress
from tests.benchmarks import population
from tests.benchmarks.bulk_load import BulkLoad, chain_hash, version
from tests.benchmarks.index_table import Figures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin.domain.account import Account
    from margin.runtime import Engine

SAMPLE = 200
"""How many accounts are read back after loading."""


@dataclasses.dataclass
class Exchange:
    """An engine with so many accounts."""

    size: int
    engine: Engine
    figures: Figures = dataclasses.field(default_factory=Figures)

    async def used_memory(self) -> int:
        """Bytes that the server's data takes, without the buffers of its clients and its file."""
        memory = await self.engine.accounts.redis.info("memory")
        return int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])


def say(text: str) -> None:
    """Show progress."""
    print(f"index: {text}", file=sys.stderr, flush=True)


async def load(exchange: Exchange) -> None:
    """Open the exchange, fill it, and compare a sample of it, read by the engine, with what was to be loaded."""
    engine, size = exchange.engine, exchange.size
    await engine.opening.open()
    await engine.marks.set_marks(population.MARKS)
    market = await engine.market.market()
    bulk = BulkLoad(
        engine.settings.redis_host, engine.settings.redis_port, market, epoch=await engine.accounts.epoch(0)
    )
    sample: dict[int, Account] = {}

    def accounts() -> Iterator[Account]:
        for account in population.accounts(size):
            if account.account_id % max(1, size // SAMPLE) == 0:
                sample[account.account_id] = account
            yield account

    def progress(loaded: int) -> None:
        if loaded % max(100_000, size // 10) == 0 or loaded == size:
            say(f"{loaded:,} of {size:,} accounts are loaded")

    empty = await exchange.used_memory()
    await bulk.load_state(accounts(), progress=progress)
    without = await exchange.used_memory()
    await bulk.load_index()
    exchange.figures.state_bytes = (without - empty) / size
    exchange.figures.index_bytes = (await exchange.used_memory() - without) / size
    await _compare(exchange, sample)
    # The sweep begins now: nothing of it is due to the calm scans.
    await engine.accounts.note_sweep(0, SweepProgress("0", market.now_us))


async def _compare(exchange: Exchange, sample: dict[int, Account]) -> None:
    engine = exchange.engine
    epoch = await engine.accounts.epoch(0)
    for account_id, account in sample.items():
        view = await engine.accounts.read(account_id)
        assert view.account == account, account
        assert (view.version, view.chain_hash) == (version(account_id, epoch), chain_hash(account_id))
        for trigger in triggers(account, view.market).values():
            name = f"triggers:{trigger.symbol}:{trigger.side}"
            assert await engine.accounts.redis.zscore(name, account_id) == trigger.score, trigger
    assert await engine.accounts.size(0) == exchange.size
