"""Vulnerabilities that somebody decided to live with, why, and until when.

They stand in `infra/local/accepted-vulnerabilities.toml`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from margin_local.supply_chain.entries import ListError, read_entries

if TYPE_CHECKING:
    from pathlib import Path

    from margin_local.supply_chain.advisories import Vulnerability

DAYS_MAX = 180
"""Longer than this nobody decides ahead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Acceptance:
    """One vulnerability of one package that does not fail the audit."""

    id: str
    package: str
    reason: str
    expires: dt.date
    """The last day."""

    def covers(self, vulnerability: Vulnerability, today: dt.date) -> bool:
        """Say whether the vulnerability is accepted today."""
        return today <= self.expires and self.is_about(vulnerability)

    def is_about(self, vulnerability: Vulnerability) -> bool:
        """Say whether the vulnerability is the one that was accepted, under any of its names."""
        return self.package == canonicalize_name(vulnerability.package) and self.id in vulnerability.names


def read_acceptances(path: Path, today: dt.date) -> list[Acceptance]:
    """Read the list.

    Raises
    ------
    ListError
        It is no such list, an entry lacks a field or a reason, or ends further ahead than `DAYS_MAX`.
    """
    return [_read(entry, place, today) for place, entry in read_entries(path, "accepted")]


def _read(entry: Any, place: str, today: dt.date) -> Acceptance:
    fields = {"id": str, "package": str, "reason": str, "expires": dt.date}
    if not isinstance(entry, dict) or entry.keys() != fields.keys():
        raise ListError(f"{place} must have exactly: {', '.join(fields)}.")
    for name, kind in fields.items():
        if type(entry[name]) is not kind or not entry[name] or (kind is str and not entry[name].strip()):
            raise ListError(f"{place}: {name} must be {'a date' if kind is dt.date else 'a text'}.")
    if entry["expires"] > today + dt.timedelta(days=DAYS_MAX):
        raise ListError(f"{place} ends more than {DAYS_MAX} days ahead: decide again before that.")
    return Acceptance(entry["id"], canonicalize_name(entry["package"]), entry["reason"], entry["expires"])
