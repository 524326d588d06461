"""POST /accounts/{account_id}/deposits, /withdrawals and /insurance-contributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict

from margin.http.wire import Amount, Answer, DecimalText, Request

if TYPE_CHECKING:
    from margin.services.journal import Outcome


class MoneyRequest(Request):
    """Money to move."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"amount": "2500.50"}, {"amount": 10000}]})

    amount: Amount


class MoneyAnswer(Answer):
    """The account after the movement; equity and withdrawable are null while a position has no mark price."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "account_id": 2,
                    "balance": "7500.5",
                    "equity": "7500.5",
                    "withdrawable": "7500.5",
                    "entry_id": 4294967303,
                }
            ]
        }
    )

    account_id: int
    balance: DecimalText
    equity: DecimalText | None
    withdrawable: DecimalText | None
    entry_id: int

    @classmethod
    def of(cls, moved: Outcome) -> MoneyAnswer:
        """Answer a deposit or a withdrawal; the entry's id is the event's."""
        return cls.model_validate({"entry_id": moved.event_id, **moved.result})
