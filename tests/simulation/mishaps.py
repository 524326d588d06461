"""What can go wrong at a call of a store, and how often."""

from __future__ import annotations

import dataclasses
from enum import StrEnum, unique
from typing import TYPE_CHECKING

from tests.faults.points import FaultPoint

if TYPE_CHECKING:
    import random


@unique
class Mishap(StrEnum):
    """What goes wrong.

    ``LATE``: no answer comes, and the call is executed when others have moved on. ``TWICE``: it is executed twice, the
    second time at once or late. ``REFUSED``: the store answers that it does not do it.
    """

    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"
    KILLED_LATE = "killed, delivered late"
    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"
    LATE = "delivered late"
    TWICE = "delivered twice"
    REFUSED = "refused"


POINTS = {
    "accounts.read": (FaultPoint.BEFORE_READ, FaultPoint.AFTER_READ),
    "accounts.commit": (FaultPoint.BEFORE_COMMIT, FaultPoint.AFTER_COMMIT),
    "writer.append": (FaultPoint.BEFORE_HISTORY, FaultPoint.AFTER_HISTORY),
    "accounts.forget_pending": (FaultPoint.BEFORE_CLEANUP, None),
}
"""The fault points of the write path, by the call that they are around."""

MARKS = frozenset({"market.set_marks"})
MUTATING = frozenset(
    {
        *("accounts.commit", "accounts.forget_pending", "accounts.anchor", "accounts.load", "accounts.load_all"),
        *("accounts.note_blocked", "accounts.hold", "accounts.release", "accounts.drop", "accounts.forget_keys"),
        "accounts.note_sweep",
        "writer.append",
        *("funding.set_funding", "funding.restore_funding", "funding_records.record", "funding_records.applied"),
        *("partitions.begin", "partitions.note", "partitions.finish"),
        *("switches.put", "switches.align", "switches.forget", "market.set_marks", "market.restore_marks"),
    }
)
"""What may be executed late, or twice, and make a difference."""

_ANYWHERE = (
    *(Mishap.KILLED_BEFORE, Mishap.KILLED_AFTER, Mishap.REQUEST_LOST, Mishap.REPLY_LOST, Mishap.REPLY_LOST),
    Mishap.REFUSED,
)
_UNANSWERED = (Mishap.REQUEST_LOST, Mishap.REPLY_LOST, Mishap.LATE)
_WHERE_IT_CHANGES = (*_ANYWHERE, Mishap.LATE, Mishap.LATE, Mishap.TWICE, Mishap.TWICE, Mishap.KILLED_LATE)


@dataclasses.dataclass(frozen=True, slots=True)
class Weather:
    """How much goes wrong: chances for each call, and for each step.

    ``outage``: a store is down for some steps. ``restart``: Redis comes back with another run_id, older or not.
    ``rewind``: it comes back older under the same run_id. ``flush``: it is emptied. ``leap``: much time passes.
    ``append``: history does not answer an append. ``rejections``: how many events of a run history rejects for ever.
    """

    call: float = 0.0
    outage: float = 0.0
    restart: float = 0.0
    rewind: float = 0.0
    flush: float = 0.0
    leap: float = 0.0
    append: float = 0.0
    rejections: int = 0

    def draw(self, step: str, chance: random.Random) -> Mishap | None:
        """Choose what goes wrong at a call; None where all goes well."""
        if step == "writer.append" and chance.random() < self.append:
            return chance.choice(_UNANSWERED)
        rate = self.call if step in POINTS else self.call / 5
        if chance.random() >= rate:
            return None
        return chance.choice(_WHERE_IT_CHANGES if step in MUTATING else _ANYWHERE)


CALM = Weather()
WEATHERS = {
    "calm": CALM,
    "showers": Weather(call=0.01, outage=0.0005, restart=0.0003, leap=0.0002),
    "storm": Weather(call=0.04, outage=0.001, restart=0.0006, flush=0.0002, leap=0.0003, rejections=3),
    "time machine": Weather(call=0.02, outage=0.0005, restart=0.0003, rewind=0.0008, flush=0.0002, leap=0.0003),
    "flickering history": Weather(call=0.005, append=0.35, restart=0.0015, rewind=0.0002, flush=0.0002),
    "bad events": Weather(call=0.02, outage=0.0005, restart=0.0005, rejections=12),
}
"""By name, from what a good day is to Redis going back in time without anyone noticing."""
