"""GET /controls, and PUT /controls/engine, /controls/symbols/{symbol} and /controls/accounts/{account_id}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from margin.domain.controls import ControlState
from margin.http.wire import Answer, Request, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.ports.controls import ControlChange
    from margin.services.controls import ControlOutcome, ControlPage

REASON_LENGTH_MAX = 500
REASON_PATTERN = r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"

StateText = Literal["active", "reduce-only", "paused"]
Reason = Annotated[
    str,
    StringConstraints(pattern=REASON_PATTERN, max_length=REASON_LENGTH_MAX),
    Field(description="Why, for those who find it set: one line of text.", examples=["the oracle sends wrong prices"]),
]


class ControlRequest(Request):
    """What a pause switch is to be."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"state": "paused", "reason": "the oracle sends wrong prices"}]}
    )

    state: StateText
    reason: Reason

    @property
    def control_state(self) -> ControlState:
        """Return the state that the domain knows."""
        return ControlState(self.state)


class ControlAnswer(Answer):
    """The change; `effective` says that no commit after this answer goes past it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "symbol:BTC-PERP",
                    "state": "paused",
                    "reason": "the oracle sends wrong prices",
                    "change_id": 17,
                    "changed_at": "2026-01-31T12:00:00.000000Z",
                    "effective": True,
                }
            ]
        }
    )

    name: str
    state: StateText
    reason: str
    change_id: int
    changed_at: TimestampText
    effective: bool

    @classmethod
    def of(cls, outcome: ControlOutcome) -> ControlAnswer:
        """Answer a change."""
        return cls.model_validate({**_fields(outcome.change), "effective": outcome.effective})


class Control(Answer):
    """A switch that is not active, and the change that made it so; `changed_by` is null where nobody signs requests."""

    name: str
    state: StateText
    reason: str
    change_id: int
    changed_at: TimestampText
    changed_by: str | None


class ControlsAnswer(Answer):
    """One page of the switches that are not active, by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "controls": [
                        {
                            "name": "symbol:BTC-PERP",
                            "state": "paused",
                            "reason": "the oracle sends wrong prices",
                            "change_id": 17,
                            "changed_at": "2026-01-31T12:00:00.000000Z",
                            "changed_by": "arn:aws:iam::123456789012:user/operator",
                        }
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    controls: list[Control]
    next_cursor: str | None

    @classmethod
    def of(cls, page: ControlPage) -> ControlsAnswer:
        """Answer one page."""
        controls = [
            Control.model_validate({**_fields(change), "changed_by": change.subject}) for change in page.changes
        ]
        return cls(controls=controls, next_cursor=page.next_cursor)


def _fields(change: ControlChange) -> dict[str, object]:
    return {
        "name": change.name,
        "state": str(change.state),
        "reason": change.reason,
        "change_id": change.id,
        "changed_at": timestamp(change.changed_at_us),
    }
