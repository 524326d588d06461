"""How far the reconciling has got: a cycle goes once through everything, in as many runs as it takes."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from margin.ports.audit import BEFORE_ALL

_MICROSECONDS_PER_S = 1_000_000


class Stage(StrEnum):
    """What a cycle goes through, in this order."""

    ACCOUNTS = "accounts"
    PARTITIONS = "partitions"
    STRANGERS = "strangers"
    LEDGER = "ledger"
    SETTLEMENT = "settlement"
    STEPS = "steps"
    CHANGES = "changes"
    DONE = "done"


_PLACES = {
    Stage.ACCOUNTS: (BEFORE_ALL, 0),
    Stage.PARTITIONS: (0,),
    Stage.STRANGERS: (0, BEFORE_ALL),
    Stage.LEDGER: (BEFORE_ALL, 0, 0),
    Stage.SETTLEMENT: (BEFORE_ALL, 0),
    Stage.STEPS: (BEFORE_ALL,),
    Stage.CHANGES: (0,),
    Stage.DONE: (),
}


@dataclasses.dataclass(slots=True)
class Cycle:
    """One cycle.

    Parameters
    ----------
    started_us : int
        When it began, by Redis' clock.
    verified_us : int or None
        When the last complete cycle before it began: everything was looked at since then. None when there was none.
    stage : Stage
        What it is at.
    place : tuple of int
        Where in that: the last account that is done and the last of all (0 until it is known), the next partition, the
        table that is walked through and the last account in it, the last ledger line that is counted, the last
        liquidation whose settlement is looked at, the last step of settling, or the next kind of changes.
    total : Decimal
        Sum of the ledger lines that are counted.
    """

    started_us: int
    verified_us: int | None = None
    stage: Stage = Stage.ACCOUNTS
    place: tuple[int, ...] = _PLACES[Stage.ACCOUNTS]
    total: Decimal = Decimal(0)

    @classmethod
    def resume(cls, text: str, now_us: int) -> Cycle:
        """Read what was saved; a cycle that is done, or that cannot be read, is followed by a new one."""
        try:
            saved = json.loads(text)
            place = tuple(int(number) for number in saved["place"])
            total = Decimal(saved["total"])
            verified_us = None if saved["verified_us"] is None else int(saved["verified_us"])
            cycle = cls(int(saved["started_us"]), verified_us, Stage(saved["stage"]), place, total)
        except (ValueError, TypeError, KeyError, InvalidOperation, RecursionError):
            return cls(now_us)
        if cycle.stage is Stage.DONE:
            return cls(now_us, cycle.started_us)
        return cycle if len(place) == len(_PLACES[cycle.stage]) else cls(now_us)

    def enter(self, stage: Stage) -> None:
        """Begin the next stage."""
        self.stage = stage
        self.place = _PLACES[stage]

    def text(self) -> str:
        """Write it down."""
        return json.dumps({**dataclasses.asdict(self), "total": str(self.total)})

    def age_s(self, now_us: int) -> float:
        """Since when everything was looked at, in seconds; before the first complete cycle, since when it is tried."""
        since_us = self.started_us if self.stage is Stage.DONE or self.verified_us is None else self.verified_us
        return (now_us - since_us) / _MICROSECONDS_PER_S
