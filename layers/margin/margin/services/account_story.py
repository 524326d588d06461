"""What happened to one account, told in lines: what, by whom, from where. For people; nothing is decided by it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from margin.domain.chain import shown
from margin.ports.audit import ChangeChain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.change_chain import Change
    from margin.ports.audit import AuditedEvent


@dataclasses.dataclass(frozen=True, slots=True)
class StoryLine:
    """One thing that happened: when (microseconds since the epoch), what, which event or change, by whom, from where.

    ``subject`` and ``source_ip`` are "-" where none is recorded.
    """

    at_us: int
    what: str
    reference: str
    subject: str
    source_ip: str


_MOMENTS = {ChangeChain.CONTROLS: "changed_at", ChangeChain.REBUILDS: "rebuilt_at"}


def line_of_event(event: AuditedEvent) -> StoryLine:
    """Tell an event by its body; by its columns what that does not say, for it may have been tampered with."""
    body = event.link.body if isinstance(event.link.body, dict) else {}
    return StoryLine(
        at_us=_whole(event.columns.get("at_us")),
        what=f"{shown(body.get('type', '?'))} {_told(body)}".strip(),
        reference=f"event {event.link.n} id {event.link.event_id}",
        subject=_known(body.get("subject")),
        source_ip=_known(body.get("source_ip")),
    )


def line_of_change(chain: ChangeChain, change: Change) -> StoryLine:
    """Tell a switch that was set, or a rebuild."""
    fields = change.fields
    if chain is ChangeChain.CONTROLS:
        what = f"SWITCH {fields['state']}: {shown(fields['reason'])}"
    else:
        what = f"REBUILT in Redis: {fields['dropped'] or 'nothing'} replaced by {fields['restored'] or 'nothing'}"
    return StoryLine(
        at_us=_whole(fields[_MOMENTS[chain]]),
        what=what,
        reference=f"{chain} id {change.n}",
        subject=_known(fields["subject"]),
        source_ip=_known(fields["source_ip"]),
    )


def _told(body: Mapping[str, Any]) -> str:
    """Say in a few words what an event did; its balance afterwards in any case."""
    detail = body.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    words: list[str] = []
    if "side" in detail:
        words = [f"{detail.get(name)}" for name in ("side", "quantity", "symbol")] + [f"at {detail.get('price')}"]
    elif "positions" in detail:
        words = [_closed(one) for one in detail["positions"]] if isinstance(detail["positions"], list) else []
        words.append(f"shortfall {detail.get('shortfall')}")
    elif "amount" in detail:
        words = [str(detail["amount"])]
    elif "margin_utilisation_pct" in detail:
        words = [f"margin utilisation {detail['margin_utilisation_pct']} %"]
    return shown(", ".join([" ".join(words), f"balance {body.get('balance')}"]).removeprefix(", "))


def _closed(position: object) -> str:
    if not isinstance(position, dict):
        return "?"
    return f"{position.get('quantity')} {position.get('symbol')} closed at {position.get('price')},"


def _known(value: object) -> str:
    return "-" if value is None else shown(value)


def _whole(value: object) -> int:
    try:
        return int(str(value).partition(".")[0])
    except ValueError:
        return 0
