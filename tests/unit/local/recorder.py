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
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced, fill_lines
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.liquidation_record import liquidation_record
from margin.domain.market import Mark, Market
from margin.domain.order import Order, execute_order
from margin.domain.position import Side, apply_fill
from margin.domain.settlement import settlement_lines
from margin.ports import AccountRow
from margin.ports.history import HistoryAccount
from margin.services.scan import ScanReport
from margin_local.demo.evidence import Evidence, RecordedEvent, RecordedLine
from margin_local.demo.mark_path import MarkPath, PostedMarks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BTC = "BTC-PERP"
DEFAULT_POLICY = LiquidationPolicy()


class Recorder:
    """A market with accounts; everything happens a microsecond after the other."""

    def __init__(self) -> None:
        self.marks: list[PostedMarks] = []
        self.accounts: dict[int, Account] = {}
        self.chains: dict[int, list[RecordedEvent]] = {}
        self._now_us = 0

    def mark(self, price: str, symbol: str = BTC) -> None:
        self.mark_all({symbol: price})

    def mark_all(self, prices: Mapping[str, str]) -> None:
        """Post prices of one moment together."""
        at_us = self._tick()
        marks = {symbol: Mark(Decimal(price), at_us) for symbol, price in prices.items()}
        self.marks.append(PostedMarks(marks, f"step {len(self.marks)}"))

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

    def liquidate(self, account_id: int, *, at: str | None = None, policy: LiquidationPolicy = DEFAULT_POLICY) -> None:
        """Liquidate at the marks in force, or at another price or policy, as an engine with a defect would."""
        market = self._market()
        if at is not None:
            stamps = {symbol: mark.stamp_us for symbol, mark in market.marks.items()}
            marks = {symbol: Mark(Decimal(at), stamp_us) for symbol, stamp_us in stamps.items()}
            market = dataclasses.replace(market, marks=marks)
        account = self.accounts[account_id]
        result = liquidate(account, market, policy)
        assert result is not None
        detail = liquidation_record(account, market, policy, result)
        self._record(EventType.LIQUIDATION, result.account, result.ledger_lines, detail)

    def deleverage(self, account_id: int, *, against: int, quantity: str, received: str) -> None:
        """Close some of a position at the bankruptcy price of another's, who was liquidated last."""
        liquidation = self.chains[against][-1]
        (bankrupt,) = liquidation.body["detail"]["positions"]
        price = Decimal(bankrupt["bankruptcy_price"])
        held = self.accounts[account_id].positions[bankrupt["symbol"]]
        side = Side.BUY if held.quantity < 0 else Side.SELL
        fill = apply_fill(held, held.symbol, side, Decimal(quantity), price, funding_index=Decimal(0))
        closed = held.quantity - (fill.position.quantity if fill.position else 0)
        detail = {
            "positions": [{"symbol": held.symbol, "quantity": plain(closed), "price": plain(price)}],
            "liquidation_id": liquidation.event_id,
            "liquidated_account_id": against,
            "mark_price": bankrupt["price"],
        }
        account = self.accounts[account_id].with_position(held.symbol, fill.position)
        lines = [
            *fill_lines(fill),
            LedgerLine(LedgerAccount.HOUSE_PNL, -Decimal(received)),
            LedgerLine(LedgerAccount.INSURANCE, Decimal(received)),
        ]
        after = account.with_balance_change(fill.realised_pnl)
        self._record(EventType.DELEVERAGING, after, balanced(lines), detail)

    def settle(self, account_id: int, amount: str) -> None:
        """Pay some of what an account's last liquidation left unpaid."""
        liquidation = next(event for event in reversed(self.chains[account_id]) if event.type == EventType.LIQUIDATION)
        lines = settlement_lines(Decimal(amount))
        detail = {"liquidation_id": liquidation.event_id, "amount": amount}
        self._record(EventType.SETTLEMENT, self.accounts[account_id], lines, detail)

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
            policy=DEFAULT_POLICY,
        )

    def path(self) -> MarkPath:
        return MarkPath(self.marks, {})

    def _tick(self) -> int:
        self._now_us += 1
        return self._now_us

    def _market(self) -> Market:
        marks = {symbol: mark for step in self.marks for symbol, mark in step.marks.items()}
        return Market(marks, {}, self._now_us)

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


def with_body(event: RecordedEvent, **fields: object) -> RecordedEvent:
    """Change fields of an event's body."""
    return dataclasses.replace(event, body={**event.body, **fields})


def with_detail(event: RecordedEvent, **fields: object) -> RecordedEvent:
    """Change fields of an event's detail."""
    return with_body(event, detail={**event.body["detail"], **fields})
