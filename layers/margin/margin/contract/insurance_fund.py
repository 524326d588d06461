"""GET /insurance-fund."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict

from margin.http.wire import Answer, DecimalText, TimestampText, timestamp

if TYPE_CHECKING:
    from margin.domain.settlement import Shortfall
    from margin.ports.settlement import InsuranceFund


class OpenShortfall(Answer):
    """What a liquidation left unpaid: `settled` is what the fund has paid of it, `uncovered` what is still unpaid."""

    account_id: int
    liquidation_id: int
    shortfall: DecimalText
    settled: DecimalText
    uncovered: DecimalText

    @classmethod
    def of(cls, shortfall: Shortfall) -> OpenShortfall:
        """Answer one."""
        return cls.model_validate(
            {name: getattr(shortfall, name) for name in ("account_id", "liquidation_id", "shortfall", "settled")}
            | {"uncovered": shortfall.uncovered}
        )


class InsuranceFundAnswer(Answer):
    """The insurance fund in quote currency, as history has it.

    `uncovered` is what liquidated accounts have left unpaid, all together; the oldest 100 of it are listed.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "balance": "0",
                    "uncovered": "1500",
                    "open_shortfalls": [
                        {
                            "account_id": 3,
                            "liquidation_id": 4294967302,
                            "shortfall": "5000",
                            "settled": "3500",
                            "uncovered": "1500",
                        }
                    ],
                    "as_of": "2026-01-31T12:00:00.000000Z",
                }
            ]
        }
    )

    balance: DecimalText
    uncovered: DecimalText
    open_shortfalls: list[OpenShortfall]
    as_of: TimestampText

    @classmethod
    def of(cls, fund: InsuranceFund) -> InsuranceFundAnswer:
        """Answer the fund."""
        return cls(
            balance=fund.balance,
            uncovered=fund.uncovered,
            open_shortfalls=[OpenShortfall.of(one) for one in fund.open_shortfalls],
            as_of=timestamp(fund.as_of_us),
        )
