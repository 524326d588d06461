"""The insurance fund: what it has, and what it has to pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from margin.ports.settlement import InsuranceFund, SettlementHistory

SHORTFALLS_MAX = 100
"""How many open shortfalls are shown; the balance and what is uncovered count them all."""


class InsuranceFundService:
    """Reads the fund.

    Parameters
    ----------
    history : SettlementHistory
        Only what is final counts.
    """

    def __init__(self, history: SettlementHistory) -> None:
        self._history = history

    async def fund(self) -> InsuranceFund:
        """Read the fund with its oldest open shortfalls, all of one moment.

        Raises
        ------
        PostgresUnavailableError
        """
        return await self._history.fund(SHORTFALLS_MAX)
