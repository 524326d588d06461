"""Shortfalls, the insurance fund and the planned steps of settling, in PostgreSQL."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients.postgres_pool import PostgresPool
from margin.domain.deleveraging import BankruptPosition
from margin.domain.event import EventType, version_of
from margin.domain.settlement import Fence, MoneyRaised, Place, SettlementStep, Shortfall, Standing
from margin.errors import PostgresUnavailableError
from margin.ports.settlement import InsuranceFund, StepOutcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from margin.clients.postgres_pool import Lease, Row
    from margin.config import Settings

_SETTLEMENT_LOCK = 7_305_461_213
"""Advisory lock of the one who settles; any constant that no other lock of the project has."""

# What is settled is what the account's chain says: a plan that was lost with a standby pays nothing twice.
_SHORTFALLS = """
    select liquidation.account_id, liquidation.id as liquidation_id, liquidation.shortfall,
        liquidation.positions as closed, payments.settled, raised, is_open,
        greatest(planned_number, settled_number) as last_number,
        (extract(epoch from liquidation.occurred_at) * 1000000)::bigint as at_us,
        (
            select jsonb_object_agg(symbol, quantity::text) from (
                select symbol, sum(quantity) as quantity
                from settlement_outcomes as step
                where (step.account_id, step.liquidation_id) = (liquidation.account_id, liquidation.id)
                    and type = 'DELEVERAGING' and outcome = 'executed'
                group by symbol
            ) as by_symbol
        ) as deleveraged,
        (
            select jsonb_build_object(
                'number', step.number, 'account_id', step.executed_on, 'event_id', step.event_id,
                'amount', step.amount::text
            )
            from settlement_outcomes as step
            where (step.account_id, step.liquidation_id) = (liquidation.account_id, liquidation.id)
                and type = 'DELEVERAGING' and outcome = 'executed' and not exists (
                    select from settlement_outcomes as payment
                    where (payment.account_id, payment.liquidation_id) = (step.account_id, step.liquidation_id)
                        and payment.source_number = step.number and payment.outcome = 'executed'
                )
            order by step.number limit 1
        ) as unsettled
    from liquidations as liquidation
    cross join lateral (
        select coalesce(sum(paid.amount), 0) as settled,
            coalesce(max(substring(events.key from ':([0-9]{{1,9}})$')::integer), 0) as settled_number
        from events
        left join ledger_lines as paid
            on (paid.account_id, paid.event_id, paid.ledger_account)
                = (events.account_id, events.event_id, 'uncovered')
        where events.account_id = liquidation.account_id and type = 'SETTLEMENT'
            and body -> 'detail' ->> 'liquidation_id' = liquidation.id::text
    ) as payments
    cross join lateral (
        select coalesce(sum(amount) filter (where type = 'DELEVERAGING' and outcome = 'executed'), 0) as raised,
            coalesce(max(number), 0) as planned_number,
            coalesce(bool_or(outcome is null), false) as is_open
        from settlement_outcomes as step
        where (step.account_id, step.liquidation_id) = (liquidation.account_id, liquidation.id)
    ) as steps
    where liquidation.shortfall > 0 and not liquidation.settled and payments.settled < liquidation.shortfall
        and {wanted}
    order by liquidation.occurred_at, liquidation.id
    limit %(limit)s
"""
_OPEN_SHORTFALLS = _SHORTFALLS.format(
    wanted="(liquidation.occurred_at, liquidation.id)"
    " > (timestamptz 'epoch' + %(at_us)s * interval '1 microsecond', %(liquidation_id)s)"
)
# One statement, so that the shortfall, the fund and the last step are of one moment. What is raised for another
# shortfall, and what is going to be paid, is not there to be given.
_ONE_SHORTFALL = _SHORTFALLS.format(
    wanted="(liquidation.account_id, liquidation.id) = (%(account_id)s, %(liquidation_id)s)"
)
_STANDING = f"""
    select shortfall.*,
        (select coalesce(max(id), 0) from settlement_steps) as last_step_id,
        (select coalesce(sum(amount), 0) from ledger_lines where ledger_account = 'insurance')
        - (
            select coalesce(sum(amount), 0)
            from settlement_outcomes
            where type = 'SETTLEMENT' and noted is null and outcome is null
        )
        - (
            select coalesce(sum(amount), 0)
            from settlement_outcomes as step
            where type = 'DELEVERAGING' and not spent and outcome = 'executed'
                and (account_id, liquidation_id) <> (%(account_id)s, %(liquidation_id)s) and not exists (
                    select from settlement_outcomes as payment
                    where (payment.account_id, payment.liquidation_id) = (step.account_id, step.liquidation_id)
                        and payment.source_number = step.number and payment.outcome is distinct from 'void'
                )
        ) as available
    from ({_ONE_SHORTFALL}) as shortfall
"""  # noqa: S608 - of this module's own texts
_FUND = f"""
    select totals.*, shortfall.*
    from (
        select coalesce(sum(amount) filter (where ledger_account = 'insurance'), 0) as balance,
            coalesce(-sum(amount) filter (where ledger_account = 'uncovered'), 0) as uncovered,
            (extract(epoch from now()) * 1000000)::bigint as as_of_us
        from ledger_lines where ledger_account in ('insurance', 'uncovered')
    ) as totals
    left join ({_SHORTFALLS.format(wanted="true")}) as shortfall on true
    order by at_us, liquidation_id
"""  # noqa: S608
_STEP_COLUMNS = """
    id, account_id, liquidation_id, number, type, key, executed_on, after_n, after_event_id, epoch, hold, amount,
    uncovered, symbol, bankrupt_quantity, liquidation_price, bankruptcy_price, quantity, shared_notional, source_number
"""
_PLAN = f"""
    insert into settlement_steps ({_STEP_COLUMNS})
    values (
        %(id)s, %(account_id)s, %(liquidation_id)s, %(number)s, %(type)s, %(key)s, %(executed_on)s, %(after_n)s,
        %(after_event_id)s, %(epoch)s, %(hold)s, %(amount)s, %(uncovered)s, %(symbol)s, %(bankrupt_quantity)s,
        %(liquidation_price)s, %(bankruptcy_price)s, %(quantity)s, %(shared_notional)s, %(source_number)s
    )
    on conflict do nothing
    returning id
"""  # noqa: S608
_OPEN_STEPS = """
    select step.*, source.executed_on as source_account_id, source.event_id as source_event_id,
        source.amount as source_amount
    from settlement_outcomes as step
    left join settlement_outcomes as source
        on (source.account_id, source.liquidation_id, source.number)
            = (step.account_id, step.liquidation_id, step.source_number)
    where step.noted is null and step.outcome is null
    order by step.id
    limit %(limit)s
"""
_CLOSE_STEPS = """
    update settlement_steps as step
    set outcome = case when event.key = step.key then 'executed' else 'void' end,
        event_id = case when event.key = step.key then event.event_id end
    from events as event
    where step.outcome is null and event.account_id = step.executed_on and event.n = step.after_n + 1
"""
_NOTE_SPENT = """
    update settlement_steps as step
    set spent = true
    where type = 'DELEVERAGING' and not spent and (outcome = 'void' or exists (
        select from settlement_steps as payment
        where (payment.account_id, payment.liquidation_id) = (step.account_id, step.liquidation_id)
            and payment.source_number = step.number and payment.outcome = 'executed'
    ))
"""
_NOTE_SETTLED = """
    update liquidations as liquidation
    set settled = true
    where shortfall > 0 and not settled and shortfall = (
        select sum(paid.amount)
        from events
        join ledger_lines as paid
            on (paid.account_id, paid.event_id, paid.ledger_account)
                = (events.account_id, events.event_id, 'uncovered')
        where events.account_id = liquidation.account_id and type = 'SETTLEMENT'
            and body -> 'detail' ->> 'liquidation_id' = liquidation.id::text
    )
"""
_PLACE = "select at_us, liquidation_id from settlement_place"
_NOTE_PLACE = """
    insert into settlement_place (at_us, liquidation_id) values (%(at_us)s, %(liquidation_id)s)
    on conflict (only_one) do update set at_us = excluded.at_us, liquidation_id = excluded.liquidation_id
"""
_GIVE_UP = """
    update settlement_steps as step
    set outcome = 'void'
    where id = %(id)s and outcome is null and not exists (
        select from events where account_id = step.executed_on and n = step.after_n + 1
    )
"""
_OUTCOME = "select outcome from settlement_steps where id = %(id)s"
_VERSION = "select n, event_id from accounts where account_id = %(account_id)s"


class SettlementPostgresClient:
    """Implements `margin.ports.settlement.SettlementHistory`."""

    def __init__(self, settings: Settings) -> None:
        self._pool = PostgresPool(settings)

    async def close(self) -> None:
        """Close the kept connections."""
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[SettlementPostgresSession | None]:
        """Be the only one who settles, for as long as the context and its connection last; None when another is.

        Raises
        ------
        PostgresUnavailableError
        """
        async with self._pool.lease() as lease:
            (row,) = await lease.fetch("select pg_try_advisory_lock(%s) as taken", [_SETTLEMENT_LOCK])
            try:
                yield SettlementPostgresSession(lease) if row["taken"] else None
            finally:
                if row["taken"] and not lease.connection.closed:
                    # A server takes its time to notice that a session has ended, and the next run may come at once.
                    with contextlib.suppress(PostgresUnavailableError):
                        await lease.fetch("select pg_advisory_unlock(%s)", [_SETTLEMENT_LOCK])
                # The lock is the session's: it goes with the connection, whatever state that is in.
                lease.discard()

    async def fund(self, limit: int) -> InsuranceFund:
        """Read the fund with its oldest open shortfalls, all of one moment.

        Raises
        ------
        PostgresUnavailableError
        """
        rows = await self._pool.query(_FUND, {"limit": limit})
        open_shortfalls = tuple(_shortfall(row) for row in rows if row["liquidation_id"] is not None)
        return InsuranceFund(rows[0]["balance"], rows[0]["uncovered"], open_shortfalls, rows[0]["as_of_us"])


class SettlementPostgresSession:
    """Implements `margin.ports.settlement.SettlementSession` on the connection that holds the lock.

    A connection that breaks takes the lock with it, and nothing more is planned on it.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    async def close_steps(self) -> None:
        """Note of planned steps that have happened, or cannot happen any more, what became of them.

        Raises
        ------
        PostgresUnavailableError
        """
        for statement in (_CLOSE_STEPS, _NOTE_SPENT, _NOTE_SETTLED):
            await self._lease.fetch(statement)

    async def open_steps(self, limit: int) -> list[SettlementStep]:
        """Read the steps of which it is not known what became of them, oldest first.

        Raises
        ------
        PostgresUnavailableError
        """
        return [_step(row) for row in await self._lease.fetch(_OPEN_STEPS, {"limit": limit})]

    async def open_shortfalls(self, after: Place, limit: int) -> list[Shortfall]:
        """Shortfalls behind a place that are not settled, oldest first.

        Raises
        ------
        PostgresUnavailableError
        """
        parameters = {"at_us": after.at_us, "liquidation_id": after.liquidation_id, "limit": limit}
        return [_shortfall(row) for row in await self._lease.fetch(_OPEN_SHORTFALLS, parameters)]

    async def standing(self, account_id: int, liquidation_id: int) -> Standing | None:
        """Read a shortfall with the fund of the same moment; None when it is settled.

        Raises
        ------
        PostgresUnavailableError
        """
        parameters = {"account_id": account_id, "liquidation_id": liquidation_id, "limit": 1}
        for row in await self._lease.fetch(_STANDING, parameters):
            return Standing(_shortfall(row), row["available"], row["last_step_id"])
        return None

    async def place(self) -> Place:
        """Behind which shortfall to begin.

        Raises
        ------
        PostgresUnavailableError
        """
        for row in await self._lease.fetch(_PLACE):
            return Place(row["at_us"], row["liquidation_id"])
        return Place()

    async def note_place(self, place: Place) -> None:
        """Note behind which shortfall the next run is to begin.

        Raises
        ------
        PostgresUnavailableError
        """
        await self._lease.fetch(_NOTE_PLACE, {"at_us": place.at_us, "liquidation_id": place.liquidation_id})

    async def plan(self, step: SettlementStep) -> bool:
        """Plan a step; False when any other has been planned since the standing that it was made of.

        Raises
        ------
        PostgresUnavailableError
            It may have been planned: whoever settles next finds it.
        """
        fence, bankrupt = step.fence, step.bankrupt
        parameters = {
            "id": step.id,
            "account_id": step.account_id,
            "liquidation_id": step.liquidation_id,
            "number": step.number,
            "type": str(step.type),
            "key": step.key,
            "executed_on": fence.account_id,
            "after_n": fence.n,
            "after_event_id": fence.event_id,
            "epoch": fence.epoch,
            "hold": fence.hold,
            "amount": step.amount,
            "uncovered": step.uncovered,
            "symbol": bankrupt and bankrupt.symbol,
            "bankrupt_quantity": bankrupt and bankrupt.quantity,
            "liquidation_price": bankrupt and bankrupt.price,
            "bankruptcy_price": bankrupt and bankrupt.bankruptcy_price,
            "quantity": bankrupt and step.quantity,
            "shared_notional": step.shared_notional,
            "source_number": step.source and step.source.number,
        }
        return bool(await self._lease.fetch(_PLAN, parameters))

    async def outcome(self, step: SettlementStep) -> StepOutcome | None:
        """Read what became of a step; None while history does not say.

        Raises
        ------
        PostgresUnavailableError
        """
        await self._lease.fetch(_CLOSE_STEPS)
        (row,) = await self._lease.fetch(_OUTCOME, {"id": step.id})
        return None if row["outcome"] is None else StepOutcome(row["outcome"])

    async def give_up(self, step: SettlementStep) -> StepOutcome | None:
        """Note that a step never happens, unless it has; what became of it.

        Raises
        ------
        PostgresUnavailableError
        """
        await self._lease.fetch(_GIVE_UP, {"id": step.id})
        return await self.outcome(step)

    async def version(self, account_id: int) -> str:
        """Version of an account in history, "" for one that it does not know.

        Raises
        ------
        PostgresUnavailableError
        """
        for row in await self._lease.fetch(_VERSION, {"account_id": account_id}):
            return version_of(row["n"], row["event_id"])
        return ""


def _shortfall(row: Row) -> Shortfall:
    unsettled = row["unsettled"]
    return Shortfall(
        account_id=row["account_id"],
        liquidation_id=row["liquidation_id"],
        shortfall=row["shortfall"],
        settled=row["settled"],
        # The engine's first version recorded no bankruptcy price: the fund alone pays for what it closed.
        positions=tuple(_bankrupt(fields) for fields in row["closed"] if "bankruptcy_price" in fields),
        deleveraged={symbol: Decimal(quantity) for symbol, quantity in (row["deleveraged"] or {}).items()},
        raised=row["raised"],
        last_number=row["last_number"],
        unsettled=None if unsettled is None else MoneyRaised(**{**unsettled, "amount": Decimal(unsettled["amount"])}),
        is_open=row["is_open"],
        at_us=row["at_us"],
    )


def _bankrupt(fields: dict[str, Any]) -> BankruptPosition:
    price = fields["bankruptcy_price"]
    return BankruptPosition(
        fields["symbol"],
        Decimal(fields["quantity"]),
        Decimal(fields["price"]),
        None if price is None else Decimal(price),
    )


def _step(row: Row) -> SettlementStep:
    source = None
    if row["source_number"] is not None:
        source = MoneyRaised(
            row["source_number"], row["source_account_id"], row["source_event_id"], row["source_amount"]
        )
    bankrupt = None
    if row["symbol"] is not None:
        bankrupt = BankruptPosition(
            row["symbol"], row["bankrupt_quantity"], row["liquidation_price"], row["bankruptcy_price"]
        )
    return SettlementStep(
        id=row["id"],
        account_id=row["account_id"],
        liquidation_id=row["liquidation_id"],
        number=row["number"],
        type=EventType(row["type"]),
        fence=Fence(row["executed_on"], row["after_n"], row["after_event_id"], row["epoch"], row["hold"]),
        amount=row["amount"],
        uncovered=row["uncovered"],
        bankrupt=bankrupt,
        quantity=row["quantity"] or Decimal(0),
        shared_notional=row["shared_notional"],
        source=source,
    )
