"""What makes a chain of changes sound: of a pause switch, the rules of a symbol, its funding, and others.

The hash of a change is the SHA-256 of the hash before it, a line feed, and its own text; the store computes it when a
change is inserted. It is recomputed here from what is stored, by nothing but that rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from margin.domain.chain import Mismatch, shown
from margin.domain.event import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Change", "ChangeHead", "chained_hash", "chained_text", "follow_change", "unended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change as it is recorded: the chain that it belongs to, its place, and what can never change of it.

    ``fields`` are columns and their values as text, in the order in which they are hashed; None for null.
    """

    name: str
    n: int
    fields: Mapping[str, str | None]
    previous_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class ChangeHead:
    """Where a chain ends by a record of its own, and how many changes it has."""

    name: str
    n: int
    hash: str
    changes: int


def chained_text(fields: Mapping[str, str | None]) -> str:
    r"""Write fields so that no two different sets are the same text.

    Examples
    --------
    >>> chained_text({"name": "engine", "reason": "a=b", "subject": None})
    'name=6:engine\nreason=3:a=b\n'
    """
    return "".join(f"{name}={len(value.encode())}:{value}\n" for name, value in fields.items() if value is not None)


def chained_hash(previous_hash: str, fields: Mapping[str, str | None]) -> str:
    """Hash of a change behind another one; ``previous_hash`` is "" for the first of its chain."""
    return digest(f"{previous_hash}\n{chained_text(fields)}")


def follow_change(previous_hash: str, change: Change) -> Mismatch | None:
    """Say what is wrong with a change behind one of this hash; None when nothing is."""
    recomputed = chained_hash(change.previous_hash, change.fields)
    if recomputed != change.hash:
        return Mismatch("it does not have the hash of what it says", recomputed, shown(change.hash))
    if change.previous_hash != previous_hash:
        what = "it does not name the one before it" if previous_hash else "the ones before it are missing"
        return Mismatch(what, previous_hash or "nothing", shown(change.previous_hash or "nothing"))
    return None


def unended(last: Change, changes: int, head: ChangeHead | None) -> Mismatch | None:
    """Say in what the end of a chain is not the one that its head names, after so many changes."""
    if head is None:
        return Mismatch("nothing says where this chain ends", f"{last.n} {last.hash}", "nothing")
    if (head.n, head.hash) != (last.n, last.hash):
        return Mismatch("the end of this chain is missing", f"{head.n} {shown(head.hash)}", f"{last.n} {last.hash}")
    if head.changes != changes:
        return Mismatch("this chain has another number of changes", str(head.changes), str(changes))
    return None
