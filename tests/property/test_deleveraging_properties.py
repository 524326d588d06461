"""What holds of every deleveraging: money is conserved, shortfalls are paid exactly, nobody is asked for too much."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from margin.domain.account import Account
from margin.domain.decimals import exact, round_down, round_up
from margin.domain.deleveraging import (
    BankruptPosition,
    Deleveraging,
    deleverage,
    deleveraging_rank,
    most_to_deleverage,
)
from margin.domain.deleveraging_shares import (
    quantities_to_deleverage,
    shares_to_deleverage,
)
from margin.domain.funding import settle_funding
from margin.domain.ledger import LedgerAccount
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.risk import assess
from tests.property.strategies import (
    SYMBOLS,
    at_prices,
    magnitudes,
    markets,
    position_at,
    positions,
    prices,
    quantities,
)

if TYPE_CHECKING:
    from margin.domain.market import Market
    from margin.domain.position import Position

UNIT = Fraction(1, 10**8)


@dataclass(frozen=True)
class Bankruptcy:
    market: Market
    closed: tuple[BankruptPosition, ...]
    shortfall: Decimal


@exact
def _with_equity(account: Account, market: Market, equity: Decimal) -> Account:
    return account.with_balance_change(round_down(equity - assess(account, market).equity))


@st.composite
def bankruptcies(draw: st.DrawFn) -> Bankruptcy:
    """A liquidation with a shortfall, of one position or of several."""
    market = draw(markets())
    held = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1))
    account = Account(1, Decimal(0), {symbol: draw(positions(symbol)) for symbol in held})
    bankrupt = settle_funding(_with_equity(account, market, -draw(magnitudes(8))), market).account
    result = liquidate(bankrupt, market, LiquidationPolicy())
    assert result is not None
    assert result.shortfall > 0
    closed = tuple(BankruptPosition(one.symbol, one.quantity, one.price, one.bankruptcy_price) for one in result.closed)
    return Bankruptcy(market, closed, result.shortfall)


@exact
def _winning(lost: BankruptPosition, market: Market, size: Decimal) -> Position:
    """A position against what was closed, entered where nothing that it can be closed at is a loss."""
    worst = lost.closing_price(market.mark_price(lost.symbol))
    entry = worst * 2 if lost.quantity > 0 else worst / 2
    won = position_at(lost.symbol, size if lost.quantity < 0 else -size, entry)
    return replace(won, entry_funding=won.quantity * market.funding_index(lost.symbol))


@st.composite
def counterparties(draw: st.DrawFn, market: Market, closed: tuple[BankruptPosition, ...]) -> list[Account]:
    """Accounts in all states that hold what was liquidated, on either side or as winners, with much money or little."""
    accounts = []
    for account_id in range(2, 2 + draw(st.integers(1, 4))):
        account = Account(account_id, Decimal(0), {})
        for lost in draw(st.lists(st.sampled_from(closed), unique=True, min_size=1)):
            sizes = st.sampled_from([abs(lost.quantity)]) | quantities
            won = lost.bankruptcy_price is not None and draw(st.booleans())
            held = _winning(lost, market, draw(sizes)) if won else draw(positions(lost.symbol))
            account = account.with_position(lost.symbol, held)
        risk = assess(account, market)
        slack = draw(magnitudes(9)) - draw(st.just(Decimal(0)) | magnitudes(7))
        accounts.append(_with_equity(account, market, risk.maintenance_margin + slack))
    return accounts


@exact
def _winner(account_id: int, lost: BankruptPosition, market: Market) -> Account:
    """Somebody on the other side of all that was closed, whose profit and money are beyond what could be asked for."""
    worth = abs(lost.quantity) * (lost.price + (lost.bankruptcy_price or lost.price)) * 10
    return Account(account_id, round_up(worth), {lost.symbol: _winning(lost, market, abs(lost.quantity))})


@exact
def _notional(lost: BankruptPosition) -> Decimal:
    return abs(lost.quantity) * lost.price


@dataclass
class Settled:
    """What became of a shortfall that deleveraging alone pays for."""

    uncovered: Decimal
    fund: Decimal
    taken: list[tuple[Account, Deleveraging]] = field(default_factory=list)


@exact
def settle(bankruptcy: Bankruptcy, accounts: list[Account], fund: Decimal = Decimal(0)) -> Settled:
    """Settle as the service does: the fund first, then whoever ranks highest, until nothing more can be had."""
    market, by_id = bankruptcy.market, {account.account_id: account for account in accounts}
    paid = min(fund, bankruptcy.shortfall)
    settled = Settled(bankruptcy.shortfall - paid, fund - paid)
    done: dict[str, Decimal] = {}
    raised = Decimal(0)
    for _ in range(200):
        found = _next(bankruptcy, by_id, done, settled.uncovered, raised) if settled.uncovered else None
        if found is None:
            return settled
        account, lost, quantity = found
        result = deleverage(account, market, lost, quantity)
        received = result.received
        by_id[account.account_id] = result.account
        settled.taken.append((account, result))
        done[lost.symbol] = done.get(lost.symbol, Decimal(0)) + quantity
        raised += received
        paid = min(settled.fund + received, settled.uncovered)
        settled.fund += received - paid
        settled.uncovered -= paid
    raise AssertionError("deleveraging does not come to an end")


def _next(
    bankruptcy: Bankruptcy, by_id: dict[int, Account], done: dict[str, Decimal], uncovered: Decimal, raised: Decimal
) -> tuple[Account, BankruptPosition, Decimal] | None:
    market, owed = bankruptcy.market, {"uncovered": uncovered, "raised": raised}
    nobody: set[str] = set()
    while True:
        shares = shares_to_deleverage(bankruptcy.closed, done, market, without=nobody, **owed)
        found = {lost.symbol: _highest(market, by_id, lost, wanted) for lost, wanted in shares.quantities}
        able = [one for one in found.values() if one is not None]
        if able and len(able) == len(shares.quantities):
            # A scarce one first.
            return min(able, key=lambda one: _enough(by_id, one[1], dict(shares.quantities)[one[1]], market))
        if not shares.quantities:
            break
        nobody |= {symbol for symbol, one in found.items() if one is None}
    wanted = quantities_to_deleverage(bankruptcy.closed, done, market, **owed)
    return next((one for lost, quantity in wanted if (one := _highest(market, by_id, lost, quantity))), None)


def _highest(
    market: Market, by_id: dict[int, Account], lost: BankruptPosition, quantity: Decimal
) -> tuple[Account, BankruptPosition, Decimal] | None:
    ranks = {number: deleveraging_rank(account, market, lost.symbol) for number, account in by_id.items()}
    for number in sorted(by_id, key=lambda number: (-(ranks[number] or 0), number)):
        most = most_to_deleverage(by_id[number], market, lost, quantity)
        if most > 0:
            return by_id[number], lost, most
    return None


@exact
def _enough(by_id: dict[int, Account], lost: BankruptPosition, quantity: Decimal, market: Market) -> bool:
    accounts = by_id.values()
    return sum(most_to_deleverage(account, market, lost, quantity) for account in accounts) >= quantity


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_deleveraging_conserves_money_and_asks_nobody_for_too_much(data: st.DataObject) -> None:
    bankruptcy = data.draw(bankruptcies())
    moved = data.draw(st.dictionaries(st.sampled_from(SYMBOLS), prices))
    bankruptcy = replace(bankruptcy, market=at_prices(bankruptcy.market, moved))
    accounts = data.draw(counterparties(bankruptcy.market, bankruptcy.closed))
    # As the engine does before it decides anything; what is left of the funding is less than a unit.
    accounts = [settle_funding(one, bankruptcy.market).account for one in accounts]
    settled = settle(bankruptcy, accounts, data.draw(st.just(Decimal(0)) | magnitudes(7)))
    assert settled.uncovered >= 0
    assert settled.fund >= 0
    for before, result in settled.taken:
        lines = {line.ledger_account: Fraction(line.amount) for line in result.ledger_lines}
        assert sum(lines.values()) == 0
        assert lines.get(LedgerAccount.CASH, 0) == Fraction(result.account.balance) - Fraction(before.balance)
        assert lines[LedgerAccount.INSURANCE] == Fraction(result.received) > 0
        assert abs(lines.get(LedgerAccount.ROUNDING, Fraction(0))) <= 2 * UNIT
        position = before.positions[result.symbol]
        profit = position.unrealised_pnl(result.mark_price)
        assert profit > 0
        assert position.quantity * result.quantity > 0
        assert position.quantity == result.quantity + result.remaining
        assert result.before == assess(before, bankruptcy.market)
        assert result.after.equity >= result.after.maintenance_margin
        assert 0 <= Fraction(result.before.equity) - Fraction(result.after.equity) <= Fraction(profit) + UNIT
        assert result.realised_pnl >= 0
    closed = {one.symbol: abs(one.quantity) for one in bankruptcy.closed}
    for symbol, size in closed.items():
        assert sum(abs(result.quantity) for _, result in settled.taken if result.symbol == symbol) <= size


@settings(deadline=None, max_examples=200)
@given(bankruptcies(), st.just(Decimal(0)) | magnitudes(7))
def test_shortfall_is_paid_to_the_last_unit_where_enough_have_won(bankruptcy: Bankruptcy, fund: Decimal) -> None:
    assume(all(one.gap > 0 for one in bankruptcy.closed))
    winners = [_winner(number, lost, bankruptcy.market) for number, lost in enumerate(bankruptcy.closed, start=2)]
    settled = settle(bankruptcy, winners, fund)
    assert settled.uncovered == 0
    # What is raised in excess is less than a lot of each position, and what rounding makes of a price.
    lots = sum(
        Fraction(bankruptcy.market.instrument(one.symbol).lot_size) * Fraction(one.gap) for one in bankruptcy.closed
    )
    sizes = sum(abs(Fraction(one.quantity)) for one in bankruptcy.closed)
    left_before = max(Fraction(0), Fraction(fund) - Fraction(bankruptcy.shortfall))
    assert Fraction(settled.fund) - left_before <= lots + (sizes + 2 * len(bankruptcy.closed)) * UNIT


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_shortfall_is_paid_to_the_last_unit_where_enough_have_won_on_the_other_side_of_one_position(
    data: st.DataObject,
) -> None:
    """However little the others can bring, and whatever price for it is at no loss."""
    bankruptcy = data.draw(bankruptcies())
    payer = data.draw(st.sampled_from(bankruptcy.closed))
    others = tuple(one for one in bankruptcy.closed if one.symbol != payer.symbol)
    alone = payer.sharing(bankruptcy.shortfall, _notional(payer))
    assume(alone.bankruptcy_price is not None and alone.bankruptcy_price > 0)
    winner = _winner(99, alone, bankruptcy.market)
    accounts = [replace(winner, balance=winner.balance + bankruptcy.shortfall)]
    if others:
        accounts += data.draw(counterparties(bankruptcy.market, others))
    fund = data.draw(st.just(Decimal(0)) | magnitudes(7))
    settled = settle(bankruptcy, accounts, fund)
    assert settled.uncovered == 0
    size = abs(payer.quantity)
    assert sum(abs(result.quantity) for _, result in settled.taken if result.symbol == payer.symbol) <= size


@settings(deadline=None, max_examples=200)
@given(bankruptcies())
def test_debt_that_is_shared_anew_among_all_is_shared_at_the_bankruptcy_prices(bankruptcy: Bankruptcy) -> None:
    notional = sum((_notional(one) for one in bankruptcy.closed), start=Decimal(0))
    for lost in bankruptcy.closed:
        anew = lost.sharing(bankruptcy.shortfall, notional).bankruptcy_price
        if lost.bankruptcy_price is not None:
            assert anew is not None
            off = abs(Fraction(anew) - Fraction(lost.bankruptcy_price))
            assert off <= UNIT * (1 + Fraction(lost.price) / Fraction(notional))


@settings(deadline=None, max_examples=200)
@given(bankruptcies())
def test_share_of_each_position_is_in_proportion_to_the_notional_that_was_closed(bankruptcy: Bankruptcy) -> None:
    assume(all(one.gap > 0 for one in bankruptcy.closed))
    shares = quantities_to_deleverage(
        bankruptcy.closed, {}, bankruptcy.market, uncovered=bankruptcy.shortfall, raised=Decimal(0)
    )[: len(bankruptcy.closed)]
    whole = sum(abs(Fraction(one.quantity)) * Fraction(one.price) for one in bankruptcy.closed)
    for lost, quantity in shares:
        size = abs(Fraction(lost.quantity))
        share = Fraction(bankruptcy.shortfall) * size * Fraction(lost.price) / whole
        lot = Fraction(bankruptcy.market.instrument(lost.symbol).lot_size)
        assert 0 < quantity <= size
        assert quantity == size or 0 <= Fraction(quantity) * Fraction(lost.gap) - share < lot * Fraction(lost.gap)


@settings(deadline=None, max_examples=200)
@given(st.data(), quantities)
def test_no_more_could_have_been_asked_for(data: st.DataObject, wanted: Decimal) -> None:
    """Who is passed over has no profit or would lose it; with a lot more others would miss their maintenance margin."""
    bankruptcy = data.draw(bankruptcies())
    account = data.draw(counterparties(bankruptcy.market, bankruptcy.closed))[0]
    for lost in bankruptcy.closed:
        position = account.positions.get(lost.symbol)
        most = most_to_deleverage(account, bankruptcy.market, lost, wanted)
        if position is None or position.quantity * lost.quantity > 0 or lost.gap == 0:
            assert most == 0
            continue
        profit = position.unrealised_pnl(bankruptcy.market.mark_price(lost.symbol))
        more = most + bankruptcy.market.instrument(lost.symbol).lot_size
        assert lost.bankruptcy_price is not None
        loses = position.unrealised_pnl(lost.closing_price(bankruptcy.market.mark_price(lost.symbol))) < 0
        if profit <= 0 or loses or assess(account, bankruptcy.market).liquidatable:
            assert most == 0
        elif more <= min(wanted, abs(position.quantity)):
            assert deleverage(account, bankruptcy.market, lost, more).after.liquidatable


@settings(deadline=None, max_examples=200)
@given(markets(), positions(), magnitudes(9), prices)
def test_rank_is_profit_share_times_leverage(
    market: Market, position: Position, money: Decimal, other: Decimal
) -> None:
    account = Account(1, money, {position.symbol: position})
    price = market.mark_price(position.symbol)
    profit = Fraction(position.quantity) * Fraction(price) - Fraction(position.entry_cost)
    rank = deleveraging_rank(account, market, position.symbol)
    pending = Fraction(position.pending_funding(market.funding_index(position.symbol)))
    equity, entry_notional = Fraction(money) + profit + pending, abs(Fraction(position.entry_cost)) or UNIT
    if profit <= 0 or equity <= 0:
        assert rank is None
        return
    notional = abs(Fraction(position.quantity)) * Fraction(price)
    assert rank == profit / entry_notional * notional / equity
    richer = Account(1, money + other, account.positions)
    assert (deleveraging_rank(richer, market, position.symbol) or 0) < rank
