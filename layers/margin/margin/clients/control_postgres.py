"""Pause switches in PostgreSQL: every change that was ever made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.clients.postgres_pool import PostgresPool, Row
from margin.domain.controls import ControlState
from margin.errors import OutcomeUnknownError, PostgresUnavailableError
from margin.ports.controls import ControlChange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.caller import Caller
    from margin.config import Settings

_ONE_AT_A_TIME = 7_305_461_211
"""Advisory lock of the one that writes a change down, or skips ids in `skip_control_ids`; no other lock has it."""

# Ids are taken under a lock that is held until the change is visible: whoever sees one sees all before it.
_RECORD = """
    with turn as materialized (select pg_advisory_xact_lock(%(lock)s))
    insert into control_changes (name, state, reason, subject, source_ip)
    select %(name)s::text, %(state)s::text, %(reason)s::text, %(subject)s::text, %(source_ip)s::text
    from turn
    returning id, name, state, reason, subject, (extract(epoch from changed_at) * 1000000)::bigint as changed_at_us
"""
# The role may not set the sequence itself; this sets it no further than history can have lost changes.
_SKIP_IDS = "select skip_control_ids(%(up_to)s::bigint)"
_IN_FORCE = """
    select id, name, state, reason, subject, (extract(epoch from changed_at) * 1000000)::bigint as changed_at_us
    from control_changes as change
    where {wanted} and not exists (
        select from control_changes as newer where newer.name = change.name and newer.id > change.id
    )
    order by {order}
    limit %(limit)s
"""
_CHANGES = _IN_FORCE.format(wanted="id > %(after)s", order="id")
_NEWEST = _IN_FORCE.format(wanted="name = %(name)s", order="id desc")
_NOT_ACTIVE = _IN_FORCE.format(wanted="name > %(after)s and state <> 'active'", order="name")


class ControlPostgresClient:
    """Implements `margin.ports.controls.ControlHistory`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    async def record(self, name: str, state: ControlState, reason: str, caller: Caller) -> ControlChange:
        """Write a change down.

        Raises
        ------
        PostgresUnavailableError
            Nothing was written.
        OutcomeUnknownError
            It may have been.
        """
        parameters = {
            "lock": _ONE_AT_A_TIME,
            "name": name,
            "state": str(state),
            "reason": reason,
            "subject": caller.subject,
            "source_ip": caller.source_ip,
        }
        async with self._pool.lease() as lease:
            try:
                (row,) = await lease.fetch(_RECORD, parameters)
            except PostgresUnavailableError as error:
                message = (
                    "PostgreSQL did not say whether the change was written down; if it was, it takes effect within"
                    " minutes. Set the switch again: that does no harm."
                )
                raise OutcomeUnknownError(message) from error
        return _change(row)

    async def changes(self, after_id: int, limit: int) -> list[ControlChange]:
        """Read the changes after one, by id, without those that a newer one of the same name has replaced.

        Raises
        ------
        PostgresUnavailableError
        """
        return [_change(row) for row in await self._pool.query(_CHANGES, {"after": after_id, "limit": limit})]

    async def in_force(self, after_name: str, limit: int) -> list[ControlChange]:
        """Read the switches that are not active, by name.

        Raises
        ------
        PostgresUnavailableError
        """
        return [_change(row) for row in await self._pool.query(_NOT_ACTIVE, {"after": after_name, "limit": limit})]

    async def newest(self, name: str) -> ControlChange:
        """Read the newest change of a name that has one.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_NEWEST, {"name": name, "limit": 1})
        if not rows:
            message = "PostgreSQL lost the change of a pause switch that it had written down."
            raise PostgresUnavailableError(message)
        return _change(rows[0])

    async def known(self, names: Sequence[str]) -> set[str]:
        """Tell which of some names were ever changed.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query("select distinct name from control_changes where name = any(%s)", [list(names)])
        return {row["name"] for row in rows}

    async def last_id(self, at_most: int) -> int:
        """Read the highest id of a change up to one; 0 when there is none.

        Raises
        ------
        PostgresUnavailableError
        """
        (row,) = await self._pool.query("select max(id) as id from control_changes where id <= %s", [at_most])
        return int(row["id"] or 0)

    async def skip_ids(self, up_to: int) -> None:
        """Give no change an id up to this one any more; those that have one are visible to whoever looks next.

        Raises
        ------
        PostgresUnavailableError
            That as well where this id is more than 2^24 ahead of every change: no exchange has lost so many.
        """
        await self._pool.query(_SKIP_IDS, {"up_to": up_to})


def _change(row: Row) -> ControlChange:
    return ControlChange(
        id=row["id"],
        name=row["name"],
        state=ControlState(row["state"]),
        reason=row["reason"],
        subject=row["subject"],
        changed_at_us=row["changed_at_us"],
    )
