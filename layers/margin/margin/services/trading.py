"""Trades under a pre-trade margin check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.controls import allow_trade
from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.domain.order import Liquidity, Order, TradeResult, execute_order
from margin.errors import LimitExceededError, RefusedError, UnknownAccountError
from margin.observability import MetricName, count, logger
from margin.services.journal import Decision, Journal, Outcome, WriteRequest

if TYPE_CHECKING:
    from margin.caller import Caller
    from margin.ports import AccountView
    from margin.services.liquidation import LiquidationService

SYMBOLS_PER_ACCOUNT_MAX = 100


class TradingService:
    """Executes trades.

    Parameters
    ----------
    journal : Journal
        The write path.
    liquidations : LiquidationService
        Evaluates an account that a mark price crossed while its trade was being committed.
    """

    def __init__(self, journal: Journal, liquidations: LiquidationService) -> None:
        self._journal = journal
        self._liquidations = liquidations

    async def trade(self, order: Order, *, key: str | None, caller: Caller) -> Outcome:
        """Execute a trade if the account can carry it.

        Parameters
        ----------
        order : Order
            Account, symbol, side, quantity and price.
        key : str or None
            The caller's idempotency key.
        caller : Caller
            Who asks, for the record.

        Returns
        -------
        Outcome
            ``result`` is the answer of POST /trade without the trade's id, which is the event's.

        Raises
        ------
        RefusedError
            A rule refuses the trade: status, size, price, limits, mark price, margin, pause.
        UnknownAccountError, ConflictError, UnavailableError
        """
        request = WriteRequest(
            account_id=order.account_id,
            fields={
                "operation": "trade",
                "account_id": str(order.account_id),
                "symbol": order.symbol,
                "side": str(order.side),
                "quantity": plain(order.quantity),
                "price": plain(order.price),
                **({"reduce_only": "true"} if order.reduce_only else {}),
                **_options(order),
            },
            key=key,
            symbol=order.symbol,
            caller=caller,
        )
        try:
            outcome = await self._journal.execute(request, lambda view: decide_trade(order, view))
        except RefusedError as refusal:
            count(MetricName.TRADES_REFUSED)
            logger.info("trade_refused", account_id=order.account_id, symbol=order.symbol, code=refusal.code)
            raise
        if outcome is None:
            raise AssertionError("a trade is executed or refused")
        if not outcome.replayed:
            count(MetricName.TRADES_EXECUTED)
        logger.info(
            "trade_executed",
            account_id=order.account_id,
            symbol=order.symbol,
            trade_id=outcome.event_id,
            final=outcome.final,
            replayed=outcome.replayed,
        )
        if outcome.crossed:
            await self._liquidations.evaluate_quietly([order.account_id])
        return outcome


def decide_trade(order: Order, view: AccountView) -> Decision:
    """Test an order against an account as it is: what POST /trade commits, and POST /trade/preview only answers.

    Raises
    ------
    RefusedError, UnknownAccountError
    """
    account = view.account
    if account is None:
        raise UnknownAccountError(order.account_id)
    allow_trade(view.controls, account, order)
    if order.symbol not in account.positions and len(account.positions) >= SYMBOLS_PER_ACCOUNT_MAX:
        message = f"An account holds positions in at most {SYMBOLS_PER_ACCOUNT_MAX} symbols; close one first."
        raise LimitExceededError(message)
    trade = execute_order(account, order, view.market)
    return Decision(
        type=EventType.TRADE,
        account=trade.account,
        ledger_lines=trade.ledger_lines,
        detail={
            "symbol": order.symbol,
            "side": str(order.side),
            "quantity": plain(order.quantity),
            "price": plain(order.price),
            "notional": plain(order.notional),
            "realised_pnl": plain(trade.fill.realised_pnl),
            "fee": plain(trade.fee),
            "mark_price": plain(view.market.mark_price(order.symbol)),
            "liquidity": str(order.liquidity),
            "client_order_id": order.client_order_id,
            **_restriction(order),
        },
        result=_result(order, trade),
    )


def _restriction(order: Order) -> dict[str, bool]:
    """Return that an order may only reduce, and nothing of one that may do more."""
    return {"reduce_only": True} if order.reduce_only else {}


def _options(order: Order) -> dict[str, str]:
    """Return what an order says of itself beyond the least, and nothing that it leaves out.

    A release that does not know these fields, before this one or beside it, has the same hash of the same request and
    can answer the same result.
    """
    options: dict[str, str] = {}
    if order.liquidity is not Liquidity.TAKER:
        options["liquidity"] = str(order.liquidity)
    if order.client_order_id is not None:
        options["client_order_id"] = order.client_order_id
    return options


def _result(order: Order, trade: TradeResult) -> dict[str, object]:
    position = trade.fill.position
    utilisation = trade.risk.utilisation_pct
    return {
        "success": True,
        "message": "Trade executed",
        "account_id": order.account_id,
        "symbol": order.symbol,
        "side": str(order.side),
        "quantity": plain(order.quantity),
        "price": plain(order.price),
        "notional": plain(order.notional),
        "realised_pnl": plain(trade.fill.realised_pnl),
        "fee": plain(trade.fee),
        "balance": plain(trade.account.balance),
        "equity": plain(trade.risk.equity),
        "initial_margin_required": plain(trade.risk.initial_margin),
        "maintenance_margin_required": plain(trade.risk.maintenance_margin),
        "margin_utilisation_pct": None if utilisation is None else plain(utilisation),
        "position": None
        if position is None
        else {
            "symbol": order.symbol,
            "quantity": plain(position.quantity),
            "entry_price": plain(position.entry_price),
        },
        **_restriction(order),
        **_options(order),
    }
