"""Whether the stores can be used."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from margin.errors import UnavailableError

if TYPE_CHECKING:
    from margin.ports.history import History
    from margin.ports.opening import PartitionStore


class HealthService:
    """Asks every store.

    Parameters
    ----------
    partitions, history : PartitionStore, History
        The stores.
    """

    def __init__(self, partitions: PartitionStore, history: History) -> None:
        self._partitions = partitions
        self._history = history

    async def check(self) -> None:
        """Ask all stores at once.

        Raises
        ------
        UnavailableError
            The first store that cannot be used, with the names of all that cannot.
        """
        answers = await asyncio.gather(self._partitions.check(), self._history.check(), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, UnavailableError)]
        for answer in answers:
            if isinstance(answer, BaseException) and answer not in failures:
                raise answer
        if failures:
            raise type(failures[0])(" ".join(failure.detail for failure in failures))
