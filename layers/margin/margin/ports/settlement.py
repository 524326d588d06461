"""What the settling of shortfalls asks of the stores."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from decimal import Decimal

    from margin.domain.safe_zone import TriggerSide
    from margin.domain.settlement import Place, SettlementStep, Shortfall, Standing
    from margin.ports import SweepPage


class StepOutcome(StrEnum):
    """What became of a planned step."""

    EXECUTED = "executed"
    VOID = "void"
    """It never happens: its account went on without it, or it was given up."""


@dataclasses.dataclass(frozen=True, slots=True)
class InsuranceFund:
    """The fund at one moment, in quote currency: what it has, what liquidated accounts have left unpaid, and which."""

    balance: Decimal
    uncovered: Decimal
    open_shortfalls: tuple[Shortfall, ...]
    as_of_us: int


class SettlementSession(Protocol):
    """The steps of settling, as the one who settles reads and plans them. Only what is in history counts."""

    async def close_steps(self) -> None:
        """Note of planned steps that have happened, or cannot happen any more, what became of them."""

    async def open_steps(self, limit: int) -> list[SettlementStep]:
        """Read the steps of which it is not known what became of them, oldest first."""

    async def open_shortfalls(self, after: Place, limit: int) -> Sequence[Shortfall]:
        """Shortfalls behind a place that are not settled, oldest first."""

    async def place(self) -> Place:
        """Behind which shortfall to begin; the first of all at first."""

    async def note_place(self, place: Place) -> None:
        """Note behind which shortfall the next run is to begin."""

    async def standing(self, account_id: int, liquidation_id: int) -> Standing | None:
        """One of them with the fund of the same moment; None when it is settled."""

    async def plan(self, step: SettlementStep) -> bool:
        """Plan a step; False when any other has been planned since the standing that it was made of."""

    async def outcome(self, step: SettlementStep) -> StepOutcome | None:
        """Read what became of a step; None while history does not say."""

    async def give_up(self, step: SettlementStep) -> StepOutcome | None:
        """Note that a step never happens, which the caller has made sure of, unless it has; what became of it."""

    async def version(self, account_id: int) -> str:
        """Version of an account in history, "" for one that it does not know."""


class SettlementHistory(Protocol):
    """Planned steps, shortfalls and the insurance fund in PostgreSQL."""

    def session(self) -> AbstractAsyncContextManager[SettlementSession | None]:
        """Be the only one who settles, for as long as the context and its connection last; None when another is."""

    async def fund(self, limit: int) -> InsuranceFund:
        """Read the fund with its oldest open shortfalls."""


class HolderIndex(Protocol):
    """Who holds a position, by the index of triggers."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""

    async def holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        """Read some accounts that hold a symbol on one side, those furthest from their trigger first, in pages."""
