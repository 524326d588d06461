"""What must be true after a replay. Each check is a pure function of what was recorded, and says what it counted.

Margins are recomputed with the engine's own domain functions, but from history alone: from the rows of PostgreSQL and
the mark prices that were posted, never from what the engine says about itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.chain import Head, Mismatch, follow, ledger_of
from margin.domain.decimals import exact, plain, quotient_nearest
from margin.domain.event import EventType, ledger_entries, version_of
from margin.domain.order import Order, execute_order
from margin.domain.position import Side
from margin.domain.risk import assess
from margin.errors import MarginError
from margin_local.demo.evidence import steps
from margin_local.demo.liquidation_checks import judge_liquidation
from margin_local.demo.settlement_checks import judge_deleveraging, judge_settlement, overpaid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.risk import AccountRisk
    from margin_local.demo.evidence import Evidence, RecordedEvent, RecordedLine, Step
    from margin_local.demo.mark_path import MarkPath

__all__ = [
    "Check",
    "chains_are_unbroken",
    "every_check",
    "ledger_sums_to_zero",
    "liquidations_were_due",
    "none_was_missed",
    "shortfalls_were_paid_by_the_rules",
    "stores_agree",
    "trades_follow_the_rules",
]

_CHANGES_NOTHING = frozenset({"MARGIN_WARNING"})
"""Types of events that change neither balance nor positions, whenever they come."""


@dataclass(frozen=True, slots=True)
class Check:
    """A verdict.

    Parameters
    ----------
    title : str
        What is claimed.
    figures : str
        What was counted and compared.
    failures : tuple of str
        What contradicts the claim, one sentence each; none when it holds.
    """

    title: str
    figures: str
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        return not self.failures


def every_check(evidence: Evidence, path: MarkPath) -> list[Check]:
    """All checks of a replay."""
    return [
        ledger_sums_to_zero(evidence),
        stores_agree(evidence),
        liquidations_were_due(evidence, path),
        none_was_missed(evidence, path),
        shortfalls_were_paid_by_the_rules(evidence),
        trades_follow_the_rules(evidence, path),
        chains_are_unbroken(evidence),
    ]


@exact
def ledger_sums_to_zero(evidence: Evidence) -> Check:
    """Add up the double-entry ledger: zero as a whole and for each event; each account's cash is its balance."""
    events: dict[tuple[int, int], Decimal] = defaultdict(Decimal)
    cash: dict[int, Decimal] = defaultdict(Decimal)
    for line in evidence.lines:
        events[line.account_id, line.event_id] += line.amount
        if line.ledger_account == "cash":
            cash[line.account_id] += line.amount
    total = sum(events.values(), start=Decimal(0))
    failures = [f"all lines together add up to {plain(total)}"] if total != 0 else []
    failures += [
        f"lines of event {event_id} of account {account_id} add up to {plain(amount)}"
        for (account_id, event_id), amount in events.items()
        if amount != 0
    ]
    failures += [
        f"account {account_id} has a balance of {plain(held.account.balance)}, but cash of {plain(cash[account_id])}"
        for account_id, held in evidence.history.items()
        if held.account.balance != cash[account_id]
    ]
    figures = f"{len(evidence.lines):,} lines of {len(events):,} events add up to {plain(total)}"
    return Check("The ledger sums to zero, whole and event by event", figures, tuple(failures))


def stores_agree(evidence: Evidence) -> Check:
    """Compare version, balance and positions of every account in Redis and PostgreSQL; no event waits."""
    failures = []
    if evidence.waiting_accounts:
        failures.append(f"events of {evidence.waiting_accounts} accounts are not in PostgreSQL")
    for account_id in sorted({*evidence.redis, *evidence.history, *evidence.chains}):
        here, there = evidence.redis.get(account_id), evidence.history.get(account_id)
        if here is None or there is None:
            failures.append(f"account {account_id} is not in {'Redis' if here is None else 'PostgreSQL'}")
        elif here.version != there.version:
            failures.append(f"account {account_id} is at {here.version} in Redis, at {there.version} in PostgreSQL")
        elif here.account != there.account:
            failures.append(
                f"account {account_id} is {_shown(here.account)} in Redis, {_shown(there.account)} in PostgreSQL"
            )
    positions = sum(len(held.account.positions) for held in evidence.history.values())
    figures = f"{len(evidence.history):,} accounts with {positions:,} positions compared"
    return Check("Redis equals PostgreSQL", figures, tuple(failures))


def liquidations_were_due(evidence: Evidence, path: MarkPath) -> Check:
    """Recompute every liquidation at the marks that were posted: it was due, went far enough and no further."""
    failures: list[str] = []
    recomputed: list[AccountRisk] = []
    count = partial = 0
    for step in _steps_of(evidence, EventType.LIQUIDATION):
        count += 1
        partial += bool(step.after.positions)
        judged = judge_liquidation(step, path, evidence.policy)
        failures += _told(step, judged.problem)
        if judged.before is not None:
            recomputed.append(judged.before)
    counted = f"{len(recomputed):,} of {count:,} recomputed, {partial:,} partial, {count - partial:,} whole"
    title = "Every liquidation was due, and closed what was needed and no more"
    return Check(title, f"{counted}{_closest(recomputed)}", tuple(failures))


def none_was_missed(evidence: Evidence, path: MarkPath) -> Check:
    """Follow each account between its events: liquidatable at no mark, unless it was liquidated at that very mark."""
    failures = []
    judged = open_at_end = 0
    for chain in evidence.chains.values():
        folded = [step for step in steps(chain) if step.event.type not in _CHANGES_NOTHING]
        liquidated_at = {
            path.number_at(step.event.body["at_us"]) for step in folded if step.event.type == EventType.LIQUIDATION
        }
        for number, step in enumerate(folded):
            following = folded[number + 1].event if number + 1 < len(folded) else None
            if not step.after.positions:
                continue
            start, stop = path.number_at(step.event.body["at_us"]), _stop(path, following, liquidated_at)
            judged += max(0, stop - start)
            open_at_end += following is None
            try:
                missed = path.first_liquidatable(step.after, start, stop)
            except MarginError as error:
                failures.append(f"account {step.event.account_id} after event {step.event.event_id}: {error.detail}")
                continue
            if missed is not None:
                failures.append(_missed(step.after, path, missed, following))
    scan = evidence.scan
    found = [account_id for account_id in scan.liquidated if account_id in evidence.chains]
    failures += [f"account {account_id} was left to the scan after the last mark price" for account_id in found]
    failures += [f"the index could have missed account {account_id}" for account_id in scan.missed]
    if not scan.complete or scan.failed:
        failures.append(f"the scan after the last mark price did not see all accounts, or failed on {scan.failed}")
    figures = (
        f"{judged:,} pairs of open account and step of marks, {open_at_end:,} accounts open at the end; "
        f"the last scan swept {scan.swept:,}, found {len(found):,}"
    )
    return Check("No other account was liquidatable, ever", figures, tuple(failures))


def shortfalls_were_paid_by_the_rules(evidence: Evidence) -> Check:
    """Judge settlements and deleveragings: the first move no account's money, the second close at bankruptcy prices."""
    events = (event for chain in evidence.chains.values() for event in chain)
    liquidations = {event.event_id: event for event in events if event.type == EventType.LIQUIDATION}
    failures = overpaid(evidence)
    settled = deleveraged = 0
    for step in _steps_of(evidence, EventType.SETTLEMENT):
        settled += 1
        failures += _told(step, judge_settlement(step))
    for step in _steps_of(evidence, EventType.DELEVERAGING):
        deleveraged += 1
        failures += _told(step, judge_deleveraging(step, liquidations, evidence.chains))
    figures = f"{settled:,} settlements from the insurance fund, {deleveraged:,} deleveragings"
    return Check("What liquidated accounts left unpaid was paid by the rules", figures, tuple(failures))


def trades_follow_the_rules(evidence: Evidence, path: MarkPath) -> Check:
    """Execute every recorded trade again, at the mark in force: it is accepted and leaves the same state and ledger."""
    failures: list[str] = []
    count = 0
    for step in _steps_of(evidence, EventType.TRADE):
        count += 1
        failures += _told(step, _judge_trade(step, path))
    title = "Every trade was allowed, and did what the rules say"
    return Check(title, f"{count:,} executed again at the mark price in force", tuple(failures))


def chains_are_unbroken(evidence: Evidence) -> Check:
    """Follow each chain: events count from 1, each names id and hash of the one before, and its own hash is true."""
    failures = []
    booked: dict[tuple[int, int], list[RecordedLine]] = defaultdict(list)
    for line in evidence.lines:
        booked[line.account_id, line.event_id].append(line)
    for account_id in sorted({*evidence.chains, *evidence.history}):
        chain = evidence.chains.get(account_id, ())
        problem = _broken_link(account_id, chain) or _wrong_head(evidence, account_id, chain)
        problem = problem or _unbooked(chain, booked)
        if problem:
            failures.append(f"account {account_id}: {problem}")
    count = sum(len(chain) for chain in evidence.chains.values())
    figures = f"{count:,} hashes recomputed in {len(evidence.chains):,} chains"
    return Check("The chain of every account is unbroken", figures, tuple(failures))


def _told(step: Step, problem: str) -> list[str]:
    return [f"account {step.event.account_id}, event {step.event.event_id}: {problem}"] if problem else []


def _steps_of(evidence: Evidence, event_type: EventType) -> Iterator[Step]:
    for chain in evidence.chains.values():
        for step in steps(chain):
            if step.event.type == event_type:
                yield step


@exact
def _closest(recomputed: Sequence[AccountRisk]) -> str:
    """Write the liquidation nearest to the line: how much of its maintenance margin its equity still was."""
    shares = [
        quotient_nearest(risk.equity * 100, risk.maintenance_margin, 3)
        for risk in recomputed
        if risk.maintenance_margin
    ]
    return f"; the closest had {plain(max(shares))} % of its maintenance margin" if shares else ""


def _judge_trade(step: Step, path: MarkPath) -> str:
    """Say what is wrong with a trade, "" for nothing."""
    event, detail = step.event, step.event.body["detail"]
    number = path.number_at(event.body["at_us"])
    in_force = path.price(detail["symbol"], number)
    if in_force != Decimal(detail["mark_price"]):
        return f"it was decided at mark price {detail['mark_price']}, in force was {_text(in_force)}"
    quantity, price = Decimal(detail["quantity"]), Decimal(detail["price"])
    order = Order(event.account_id, detail["symbol"], Side(detail["side"]), quantity, price)
    try:
        trade = execute_order(step.before, order, path.market(number))
    except MarginError as error:
        return f"the rules refuse it: {error.detail}"
    if trade.account != step.after:
        return f"it left {_shown(step.after)}, by the rules it is {_shown(trade.account)}"
    if ledger_entries(trade.ledger_lines) != [tuple(entry) for entry in event.body["ledger"]]:
        return "its ledger lines are not those of the rules"
    return ""


def _stop(path: MarkPath, following: RecordedEvent | None, liquidated_at: Collection[int]) -> int:
    """Find the number before which an account had to be healthy, given its next event.

    It had to be at the very marks of that event too, unless a liquidation came at these, with it or after it.
    """
    if following is None:
        return len(path)
    number = path.number_at(following.body["at_us"])
    return number if number in liquidated_at else number + 1


def _missed(account: Account, path: MarkPath, number: int, following: RecordedEvent | None) -> str:
    risk = assess(account, path.market(number))
    marks = ", ".join(f"{symbol} {_text(path.price(symbol, number))}" for symbol in sorted(account.positions))
    after = "nothing followed" if following is None else f"what followed was {following.type} {following.event_id}"
    return (
        f"account {account.account_id} was liquidatable at {marks} ({path.steps[number].label}): equity "
        f"{plain(risk.equity)}, maintenance margin {plain(risk.maintenance_margin)}; {after}"
    )


def _broken_link(account_id: int, chain: Sequence[RecordedEvent]) -> str:
    """Say where a chain is broken, "" for nowhere."""
    head = Head.unopened(account_id)
    for event in chain:
        followed = follow(head, event.link)
        if isinstance(followed, Mismatch):
            return followed.what
        head = followed
    return ""


def _wrong_head(evidence: Evidence, account_id: int, chain: Sequence[RecordedEvent]) -> str:
    """Say how the account's row differs from what its events come to, "" for nothing."""
    held = evidence.history.get(account_id)
    if held is None or not chain:
        return "it has no row" if held is None else "it has no events"
    last = chain[-1]
    if (held.version, held.chain_hash) != (version_of(last.n, last.event_id), last.hash):
        return f"its row is at {held.version}, its last event is {version_of(last.n, last.event_id)}"
    *_, folded = steps(chain)
    if folded.after != held.account:
        return f"its row is {_shown(held.account)}, its events come to {_shown(folded.after)}"
    return ""


def _unbooked(chain: Sequence[RecordedEvent], booked: Mapping[tuple[int, int], Sequence[RecordedLine]]) -> str:
    """Say which event has other ledger lines than its body, "" for none."""
    for event in chain:
        lines = booked.get((event.account_id, event.event_id), ())
        stated = sorted(ledger_of(event.body))
        if sorted((line.ledger_account, line.amount) for line in lines) != stated:
            return f"event {event.n} has other ledger lines than its body"
    return ""


def _shown(account: Account) -> str:
    positions = ", ".join(
        f"{symbol} {plain(position.quantity)} for {plain(position.entry_cost)}"
        for symbol, position in sorted(account.positions.items())
    )
    return f"{plain(account.balance)} with {positions or 'no position'}"


def _text(price: Decimal | None) -> str:
    return "none" if price is None else plain(price)
