"""For an operator: make the state in Redis anew from history, of one account, one partition or everything.

The payload says what: {"account_id": 42}, {"partition": 3} or {"all": true}. A rebuild that needs more time than one
call has is continued by the same call.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from margin.caller import Caller, operator
from margin.errors import InvalidRequestError, MarginError
from margin.lambda_entry import event_handler
from margin.observability import logger
from margin.runtime import engine
from margin.time_budget import remaining_s

if TYPE_CHECKING:
    from collections.abc import Callable

RESERVE_S = 60.0
"""Time that the last page and the search for what belongs to nobody may still take; with less left it breaks off."""

GOES_ON = "Not complete: the same call goes on where this one stopped."
_WANTED = 'Give one of {"account_id": 42}, {"partition": 3}, {"all": true}.'
_ACCOUNT_ID_MAX = 2**63 - 1


class RebuildError(Exception):
    """A rebuild that failed; the message begins with the code of the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is to be rebuilt: an account, a partition or, without either, everything."""

    account_id: int | None = None
    partition: int | None = None

    @classmethod
    def of(cls, payload: object) -> Target:
        """Read a payload.

        Raises
        ------
        InvalidRequestError
        """
        if not isinstance(payload, dict) or len(payload) != 1:
            raise InvalidRequestError(_WANTED)
        ((name, value),) = payload.items()
        if name == "all" and value is True:
            return cls()
        number = isinstance(value, int) and not isinstance(value, bool)
        if name == "account_id" and number and 0 < value <= _ACCOUNT_ID_MAX:
            return cls(account_id=value)
        if name == "partition" and number and value >= 0:
            return cls(partition=value)
        raise InvalidRequestError(_WANTED)


async def rebuild(event: dict[str, Any]) -> dict[str, Any]:
    """Rebuild what the payload says.

    Raises
    ------
    RebuildError
        The payload is malformed, a store is down, or another process is opening the state at this moment.
    """
    try:
        caller = operator(f"request {logger.get_correlation_id()}")
        return await run(Target.of(event), caller=caller, keep_going=lambda: remaining_s() > RESERVE_S)
    except MarginError as error:
        raise RebuildError(f"{error.code}: {error.detail}") from error


async def run(target: Target, *, caller: Caller, keep_going: Callable[[], bool]) -> dict[str, Any]:
    """Rebuild a target; the answer says how much that was.

    ``rebuilt`` names the account or the partitions that are done, ``accounts`` were looked at, ``loaded`` put back,
    ``dropped`` removed because history does not know them, ``kept`` left as they are because history refuses what they
    have pending. With ``complete`` false the same call goes on.

    Raises
    ------
    MarginError
    """
    logger.info("rebuild_began", **dataclasses.asdict(target))
    if target.account_id is not None:
        version = await engine().rebuilding.rebuild_account(target.account_id, caller=caller)
        return {
            "rebuilt": {"account_id": target.account_id, "version": version},
            "accounts": 1,
            "loaded": int(version != ""),
            "dropped": int(version == ""),
            "kept": 0,
            "complete": True,
        }
    partitions = None if target.partition is None else [target.partition]
    report = await engine().rebuilding.rebuild(partitions, keep_going=keep_going, caller=caller)
    answer = dataclasses.asdict(report)
    return {"rebuilt": {"partitions": answer.pop("opened")}, **answer, **({} if report.complete else {"next": GOES_ON})}


handler = event_handler(rebuild)
