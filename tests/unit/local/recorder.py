"""Records events as the engine would, without stores: what the demo's checks are tried on, and then tampered with."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.account import Account
from margin.domain.cash import deposit
from margin.domain.decimals import plain
from margin.domain.event import Event, EventType, digest, ledger_entries, position_changes, version_of
from margin.domain.liquidation import liquidate
from margin.domain.market import Mark, Market
from margin.domain.order import Order, execute_order
from margin.domain.position import Side
from margin.ports import AccountRow
from margin.ports.history import HistoryAccount
from margin.services.scan import ScanReport
from margin_local.demo.evidence import Evidence, RecordedEvent, RecordedLine
from margin_local.demo.mark_path import MarkPath, PostedMark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin.domain.ledger import LedgerLine

BTC = "BTC-PERP"


class Recorder:
    """A market with accounts; everything happens a microsecond after the other."""

    def __init__(self) -> None:
        self.marks: list[PostedMark] = []
        self.accounts: dict[int, Account] = {}
        self.chains: dict[int, list[RecordedEvent]] = {}
        self._now_us = 0

    def mark(self, price: str, symbol: str = BTC) -> None:
        self.marks.append(PostedMark(self._tick(), symbol, Decimal(price), f"mark {len(self.marks)}"))

    def deposit(self, account_id: int, amount: str) -> None:
        account = self.accounts.get(account_id, Account(account_id, Decimal(0), {}))
        result = deposit(account, Decimal(amount), self._market())
        self._record(EventType.DEPOSIT, result.account, result.ledger_lines, {"amount": amount})

    def trade(self, account_id: int, quantity: str, price: str, symbol: str = BTC) -> None:
        """Buy a positive quantity, sell a negative one."""
        side = Side.BUY if Decimal(quantity) > 0 else Side.SELL
        order = Order(account_id, symbol, side, abs(Decimal(quantity)), Decimal(price))
        market = self._market()
        trade = execute_order(self.accounts[account_id], order, market)
        detail = {
            "symbol": symbol,
            "side": str(side),
            "quantity": plain(order.quantity),
            "price": plain(order.price),
            "mark_price": plain(market.mark_price(symbol)),
        }
        self._record(EventType.TRADE, trade.account, trade.ledger_lines, detail)

    def liquidate(self, account_id: int, *, at: str | None = None) -> None:
        """Liquidate at the marks in force, or at another price, as an engine with a defect would."""
        market = self._market()
        if at is not None:
            market = Market(dict.fromkeys(market.marks, Mark(Decimal(at), 1)), {}, 1)
        result = liquidate(self.accounts[account_id], market)
        assert result is not None
        closed = [
            {"symbol": one.symbol, "quantity": plain(one.quantity), "price": plain(one.price)} for one in result.closed
        ]
        detail = {
            "equity": plain(result.equity),
            "maintenance_margin": plain(result.maintenance_margin),
            "positions": closed,
            "shortfall": plain(result.shortfall),
        }
        self._record(EventType.LIQUIDATION, result.account, result.ledger_lines, detail)

    def evidence(self) -> Evidence:
        heads = {account_id: chain[-1] for account_id, chain in self.chains.items()}
        versions = {account_id: version_of(head.n, head.event_id) for account_id, head in heads.items()}
        return Evidence(
            chains={account_id: tuple(chain) for account_id, chain in self.chains.items()},
            lines=tuple(
                RecordedLine(event.account_id, event.event_id, ledger_account, Decimal(amount))
                for chain in self.chains.values()
                for event in chain
                for ledger_account, amount in event.body["ledger"]
            ),
            history={
                account_id: HistoryAccount(versions[account_id], heads[account_id].hash, account)
                for account_id, account in self.accounts.items()
            },
            redis={
                account_id: AccountRow(versions[account_id], account) for account_id, account in self.accounts.items()
            },
            waiting_accounts=0,
            instruments={},
            scan=ScanReport(swept=len(self.accounts)),
        )

    def path(self) -> MarkPath:
        return MarkPath(self.marks, {})

    def _tick(self) -> int:
        self._now_us += 1
        return self._now_us

    def _market(self) -> Market:
        return Market({mark.symbol: Mark(mark.price, mark.stamp_us) for mark in self.marks}, {}, self._now_us)

    def _record(
        self, event_type: EventType, account: Account, lines: Sequence[LedgerLine], detail: dict[str, Any]
    ) -> None:
        chain = self.chains.setdefault(account.account_id, [])
        previous = chain[-1] if chain else None
        at_us = self._tick()
        event = Event(
            type=event_type,
            account_id=account.account_id,
            n=len(chain) + 1,
            previous_event_id=previous.event_id if previous else 0,
            previous_hash=previous.hash if previous else "",
            at_us=at_us,
            key=f"key-{at_us}",
            request_hash="",
            subject=None,
            source_ip=None,
            balance=plain(account.balance),
            positions=position_changes(self.accounts.get(account.account_id), account),
            ledger=ledger_entries(lines),
            detail=detail,
            result={},
        )
        body = event.body()
        chain.append(
            RecordedEvent(
                account_id=event.account_id,
                n=event.n,
                event_id=1000 + at_us,
                previous_event_id=event.previous_event_id,
                hash=digest(body),
                type=event.type,
                body=json.loads(body),
            )
        )
        self.accounts[account.account_id] = account


def with_event(
    evidence: Evidence, account_id: int, n: int, change: Callable[[RecordedEvent], RecordedEvent]
) -> Evidence:
    """Replace one event of an account and leave everything else as it is."""
    chain = tuple(change(event) if event.n == n else event for event in evidence.chains[account_id])
    return dataclasses.replace(evidence, chains={**evidence.chains, account_id: chain})


def with_detail(event: RecordedEvent, **fields: object) -> RecordedEvent:
    """Change fields of an event's detail."""
    return dataclasses.replace(event, body={**event.body, "detail": {**event.body["detail"], **fields}})
