"""The queue of accounts to evaluate, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fakes.faults import Faults


class FakeQueue:
    """Implements `margin.ports.LiquidationQueue`."""

    def __init__(self, faults: Faults) -> None:
        self.sent: list[int] = []
        self._faults = faults

    async def send(self, account_ids: Sequence[int]) -> None:
        await self._faults.before("queue.send")
        self.sent += account_ids
