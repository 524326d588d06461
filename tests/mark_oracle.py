"""Which price is the mark and which waits, told from the rules alone: what the stores are compared with.

Rational numbers and one message at a time, without stamps, scripts or the code of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal

_SECOND_US = 1_000_000


@dataclass(frozen=True)
class Message:
    """A price, when it came, and when it was observed, if its sender says so; microseconds."""

    price: Decimal
    came_us: int
    said_us: int | None = None

    @property
    def observed_us(self) -> int:
        return self.came_us if self.said_us is None else self.said_us

    @property
    def counted_us(self) -> int:
        """A clock that is ahead counts as the moment of arrival."""
        return min(self.observed_us, self.came_us)

    def is_near(self, other: Message, bound: Fraction) -> bool:
        return abs(Fraction(self.price) / Fraction(other.price) - 1) <= bound

    def is_again(self, first: Message) -> bool:
        if self.said_us is None:
            return self.price == first.price and self.came_us - first.came_us < _SECOND_US
        return self.said_us == first.observed_us

    def is_idle_beside(self, waiting: Message) -> bool:
        """Whether it changes nothing: it is older than the one that waits, or nobody knows that it is another."""
        if self.is_again(waiting):
            return self.said_us is None
        return self.observed_us < waiting.counted_us


@dataclass
class MarkOracle:
    """The mark of one symbol with a guard."""

    bound: Fraction
    mark: Message | None = None
    waiting: Message | None = None

    def take(self, sent: Message) -> bool | None:
        """Take one message: whether it is the mark now, None where it is refused as older than the mark."""
        mark, waiting = self.mark, self.waiting
        if mark is not None and sent.said_us is not None and sent.said_us < mark.observed_us:
            return None
        if mark is None or sent.is_near(mark, self.bound):
            self.mark = sent
            is_outdated = waiting is None or waiting.counted_us <= sent.observed_us
            self.waiting = None if is_outdated else self._beyond(waiting, sent)
            return True
        if waiting is None or self._counts_once(sent, waiting):
            self.waiting = waiting if waiting is not None and sent.is_idle_beside(waiting) else sent
            return False
        if sent.is_near(waiting, self.bound):
            self.mark, self.waiting = sent, None
            return True
        return self._agreed(mark, waiting, sent)

    def _counts_once(self, sent: Message, waiting: Message) -> bool:
        return sent.is_again(waiting) or sent.observed_us <= waiting.counted_us

    def _agreed(self, mark: Message, waiting: Message, sent: Message) -> bool:
        """Two that are far from each other: they may agree on the side."""
        if (sent.price < mark.price) != (waiting.price < mark.price):
            self.waiting = sent
            return False
        nearer, further = sorted((waiting, sent), key=lambda one: abs(one.price - mark.price))
        not_before_us = nearer.observed_us if nearer is sent else max(nearer.observed_us, mark.observed_us)
        self.mark = replace(nearer, said_us=not_before_us)
        self.waiting = self._beyond(further, nearer)
        return nearer is sent

    def _beyond(self, waiting: Message | None, mark: Message) -> Message | None:
        return None if waiting is None or waiting.is_near(mark, self.bound) else waiting
