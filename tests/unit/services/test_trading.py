"""Trades: accepted, refused, replayed, and with everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control, symbol_control
from margin.domain.instrument import Instrument
from margin.errors import (
    ContentionError,
    HistoryForkError,
    IdempotencyKeyReusedError,
    InsufficientMarginError,
    LimitExceededError,
    NoMarkPriceError,
    NotActiveError,
    OutcomeUnknownError,
    OutsidePriceBandError,
    PostgresUnavailableError,
    RedisRefusedError,
    RedisUnavailableError,
    StateNotLoadedError,
    UnknownAccountError,
)
from margin.observability import MetricName, counted
from margin.services.journal import COMMIT_ATTEMPTS_MAX
from margin.services.trading import SYMBOLS_PER_ACCOUNT_MAX
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOST = RedisUnavailableError("The reply was lost.")
DOWN = RedisUnavailableError("Redis is down.")
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")
REFUSING = RedisRefusedError("Redis is out of memory.")
RESTARTED = StateNotLoadedError("The server was restarted.")


@pytest.fixture
async def exchange() -> Exchange:
    """Return an exchange with one funded account and a mark price."""
    exchange = await Exchange().open()
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    return exchange


def _trades(exchange: Exchange, account_id: int = 1) -> list[str]:
    """Quantities of the trades in history, oldest first."""
    links = exchange.history_store.chains.get(account_id, [])
    return [link.body["detail"]["quantity"] for link in links if link.body["type"] == "TRADE"]


def _quantity(exchange: Exchange, symbol: str = BTC) -> Decimal:
    """Quantity that the account holds in hot state."""
    position = exchange.redis.accounts[1].account.positions.get(symbol)
    return position.quantity if position else Decimal(0)


async def test_trade_that_margin_covers_is_executed_and_final(exchange: Exchange) -> None:
    outcome = await buy(exchange, 1, "0.2", "50000")
    assert (outcome.final, outcome.replayed, outcome.crossed) == (True, False, False)
    assert outcome.result == {
        "success": True,
        "message": "Trade executed",
        "account_id": 1,
        "symbol": BTC,
        "side": "BUY",
        "quantity": "0.2",
        "price": "50000",
        "notional": "10000",
        "realised_pnl": "0",
        "fee": "0",
        "balance": "10000",
        "equity": "10000",
        "initial_margin_required": "2000",
        "maintenance_margin_required": "1000",
        "margin_utilisation_pct": "10",
        "position": {"symbol": BTC, "quantity": "0.2", "entry_price": "50000"},
    }
    assert exchange.history_store.event_ids(1)[-1] == outcome.event_id
    assert exchange.redis.pending == {}


async def test_trade_that_closes_a_position_answers_no_position(exchange: Exchange) -> None:
    await buy(exchange, 1, "0.2", "50000")
    outcome = await sell(exchange, 1, "0.2", "51000")
    assert (outcome.result["position"], outcome.result["realised_pnl"]) == (None, "200")


@pytest.mark.parametrize(
    ("quantity", "price", "error"),
    [
        ("1.00000001", "50000", InsufficientMarginError),
        ("0.1", "60000.00000001", OutsidePriceBandError),
        ("0.1", "39999.99999999", OutsidePriceBandError),
    ],
)
async def test_trade_that_a_rule_refuses_writes_nothing(
    exchange: Exchange, quantity: str, price: str, error: type[Exception]
) -> None:
    before = exchange.redis.save()
    with pytest.raises(error):
        await buy(exchange, 1, quantity, price)
    assert exchange.redis.save() == before
    assert _trades(exchange) == []


async def test_trade_of_an_unknown_account_is_not_found(exchange: Exchange) -> None:
    with pytest.raises(UnknownAccountError):
        await buy(exchange, 2, "0.1", "50000")


async def test_trade_in_a_symbol_without_a_mark_price_is_refused(exchange: Exchange) -> None:
    with pytest.raises(NoMarkPriceError):
        await buy(exchange, 1, "0.1", "2000", symbol=ETH)


async def test_trade_in_one_symbol_too_many_is_refused_but_one_held_already_is_not(exchange: Exchange) -> None:
    for number in range(SYMBOLS_PER_ACCOUNT_MAX):
        await mark(exchange, "1", f"S{number}")
        await buy(exchange, 1, "1", "1", symbol=f"S{number}")
    with pytest.raises(LimitExceededError):
        await buy(exchange, 1, "0.01", "50000")
    assert (await buy(exchange, 1, "1", "1", symbol="S0")).final


async def test_refused_and_executed_trades_are_counted(exchange: Exchange) -> None:
    executed, refused = counted(MetricName.TRADES_EXECUTED), counted(MetricName.TRADES_REFUSED)
    await buy(exchange, 1, "0.1", "50000", key="mine")
    await buy(exchange, 1, "0.1", "50000", key="mine")
    with pytest.raises(InsufficientMarginError):
        await buy(exchange, 1, "5", "50000")
    assert counted(MetricName.TRADES_EXECUTED) - executed == 1
    assert counted(MetricName.TRADES_REFUSED) - refused == 1


# --- idempotency keys


async def test_replay_answers_the_same_result_and_executes_nothing(exchange: Exchange) -> None:
    first = await buy(exchange, 1, "0.1", "50000", key="mine")
    await mark(exchange, "51000")
    await sell(exchange, 1, "0.05", "51000")
    replay = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (replay.event_id, replay.result) == (first.event_id, first.result)
    assert (replay.final, replay.replayed) == (True, True)
    assert _trades(exchange) == ["0.1", "0.05"]


async def test_replay_needs_no_rule_to_hold_any_more(exchange: Exchange) -> None:
    first = await buy(exchange, 1, "1", "50000", key="mine")
    exchange.redis.controls[ENGINE_CONTROL] = ControlState.PAUSED
    assert (await buy(exchange, 1, "1", "50000", key="mine")).event_id == first.event_id


@pytest.mark.parametrize(
    ("quantity", "price", "symbol"), [("0.2", "50000", BTC), ("0.1", "50001", BTC), ("0.1", "50000", ETH)]
)
async def test_key_reused_with_another_body_is_refused(
    exchange: Exchange, quantity: str, price: str, symbol: str
) -> None:
    await mark(exchange, "50000", ETH)
    await buy(exchange, 1, "0.1", "50000", key="mine")
    with pytest.raises(IdempotencyKeyReusedError):
        await buy(exchange, 1, quantity, price, symbol=symbol, key="mine")
    with pytest.raises(IdempotencyKeyReusedError):
        await sell(exchange, 1, "0.1", "50000", key="mine")
    with pytest.raises(IdempotencyKeyReusedError):
        await deposit(exchange, 1, "0.1", key="mine")
    assert _trades(exchange) == ["0.1"]


async def test_same_number_written_otherwise_is_the_same_body(exchange: Exchange) -> None:
    first = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (await buy(exchange, 1, "0.100", "5.0E+4", key="mine")).event_id == first.event_id


async def test_key_is_one_accounts_own(exchange: Exchange) -> None:
    await deposit(exchange, 2, "10000")
    first = await buy(exchange, 1, "0.1", "50000", key="mine")
    second = await buy(exchange, 2, "0.1", "50000", key="mine")
    assert first.event_id != second.event_id
    assert not second.replayed


async def test_refused_trade_leaves_its_key_free(exchange: Exchange) -> None:
    with pytest.raises(InsufficientMarginError):
        await buy(exchange, 1, "2", "50000", key="mine")
    await deposit(exchange, 1, "10000")
    assert not (await buy(exchange, 1, "2", "50000", key="mine")).replayed


# --- conflicts


async def test_conflict_is_decided_again_on_the_fresh_state(exchange: Exchange) -> None:
    exchange.faults.call("accounts.commit.before", lambda: sell(exchange, 1, "0.3", "50000"))
    outcome = await buy(exchange, 1, "0.1", "50000")
    assert outcome.result["position"] == {"symbol": BTC, "quantity": "-0.2", "entry_price": "50000"}
    assert _trades(exchange) == ["0.3", "0.1"]


async def test_conflict_after_which_margin_is_missing_is_refused(exchange: Exchange) -> None:
    exchange.faults.call("accounts.commit.before", lambda: buy(exchange, 1, "0.8", "50000"))
    with pytest.raises(InsufficientMarginError):
        await buy(exchange, 1, "0.3", "50000")
    assert _quantity(exchange) == Decimal("0.8")


async def test_instrument_that_changes_before_the_commit_is_decided_on_anew(exchange: Exchange) -> None:
    async def add_a_fee() -> None:
        exchange.redis.instruments[BTC] = Instrument(BTC, taker_fee=Decimal("0.001"), version=1)

    exchange.faults.call("accounts.commit.before", add_a_fee)
    assert (await buy(exchange, 1, "0.1", "50000")).result["fee"] == "5"


async def test_pause_that_comes_before_the_commit_is_obeyed(exchange: Exchange) -> None:
    exchange.faults.call(
        "accounts.commit.before", lambda: exchange.redis.controls.update({ENGINE_CONTROL: ControlState.PAUSED})
    )
    with pytest.raises(NotActiveError):
        await buy(exchange, 1, "0.1", "50000")
    assert _trades(exchange) == []


async def test_contention_ends_after_sixteen_attempts_with_nothing_written(exchange: Exchange) -> None:
    def disturb() -> None:
        version = exchange.redis.accounts[1].version
        exchange.redis.accounts[1].version = f"{version}0"

    exchange.faults.call("accounts.commit.before", disturb, times=COMMIT_ATTEMPTS_MAX)
    commits = exchange.faults.calls["accounts.commit"]
    with pytest.raises(ContentionError):
        await buy(exchange, 1, "0.1", "50000")
    assert exchange.faults.calls["accounts.commit"] - commits == COMMIT_ATTEMPTS_MAX == 16
    assert _quantity(exchange) == 0


async def test_attempt_before_the_last_still_executes(exchange: Exchange) -> None:
    def disturb() -> None:
        n, _, event_id = exchange.redis.accounts[1].version.partition(":")
        exchange.redis.accounts[1].version = f"{n}:{event_id}0"

    version = exchange.redis.accounts[1].version
    exchange.faults.call("accounts.commit.before", disturb, times=COMMIT_ATTEMPTS_MAX - 1)
    # Back to the version that history knows, so that the last attempt can be stored.
    exchange.faults.skip("accounts.read.before", times=COMMIT_ATTEMPTS_MAX - 1)
    exchange.faults.call("accounts.read.before", lambda: setattr(exchange.redis.accounts[1], "version", version))
    assert (await buy(exchange, 1, "0.1", "50000")).final


# --- lost replies and stores that are down


@pytest.mark.parametrize("key", [None, "mine"])
async def test_lost_commit_reply_is_settled_by_asking_and_executed_once(exchange: Exchange, key: str | None) -> None:
    exchange.faults.fail("accounts.commit.after", LOST)
    outcome = await buy(exchange, 1, "0.1", "50000", key=key)
    assert outcome.final
    assert outcome.result["position"] == {"symbol": BTC, "quantity": "0.1", "entry_price": "50000"}
    assert _trades(exchange) == ["0.1"]
    assert _quantity(exchange) == Decimal("0.1")


@pytest.mark.parametrize("key", [None, "mine"])
async def test_lost_commit_is_sent_again_and_executed_once(exchange: Exchange, key: str | None) -> None:
    exchange.faults.fail("accounts.commit.before", LOST)
    outcome = await buy(exchange, 1, "0.1", "50000", key=key)
    assert (outcome.final, outcome.replayed) == (True, False)
    assert _trades(exchange) == ["0.1"]


@pytest.mark.parametrize("step", ["accounts.commit.before", "accounts.commit.after"])
@pytest.mark.parametrize("answer", [DOWN, pytest.param(RESTARTED, id="restarted")])
async def test_commit_that_cannot_be_asked_for_is_unknown_and_names_the_key_that_finds_out(
    exchange: Exchange, step: str, answer: Exception
) -> None:
    exchange.faults.fail(step, LOST)
    exchange.faults.skip("accounts.read.before")
    exchange.faults.fail("accounts.read.before", answer)
    with pytest.raises(OutcomeUnknownError) as caught:
        await buy(exchange, 1, "0.1", "50000")
    key = caught.value.detail.rpartition(" ")[2]
    assert (await buy(exchange, 1, "0.1", "50000", key=key)).replayed is (step == "accounts.commit.after")
    assert _trades(exchange) == ["0.1"]


async def test_callers_own_key_is_named_when_the_outcome_is_unknown(exchange: Exchange) -> None:
    exchange.faults.fail("accounts.commit.after", LOST)
    exchange.faults.skip("accounts.read.before")
    exchange.faults.fail("accounts.read.before", DOWN)
    with pytest.raises(OutcomeUnknownError, match=r"Idempotency-Key: mine$"):
        await buy(exchange, 1, "0.1", "50000", key="mine")


async def _move_out_of_the_band(exchange: Exchange) -> None:
    await exchange.market.set_marks({BTC: Decimal(70000)}, crossed_max=0)


async def _take_the_money_away(exchange: Exchange) -> None:
    hot = exchange.redis.accounts[1]
    hot.account = hot.account.with_balance_change(Decimal(-9999))


async def _pause(exchange: Exchange) -> None:
    exchange.redis.controls[ENGINE_CONTROL] = str(ControlState.PAUSED)


async def _forget_the_account(exchange: Exchange) -> None:
    del exchange.redis.accounts[1]


@pytest.mark.parametrize("change", [_move_out_of_the_band, _take_the_money_away, _pause, _forget_the_account])
async def test_refusal_after_a_lost_commit_is_unknown_because_that_may_still_arrive(
    exchange: Exchange, change: Callable[[Exchange], Awaitable[None]]
) -> None:
    exchange.faults.fail("accounts.commit.before", LOST)
    exchange.faults.skip("accounts.read.before", times=2)
    exchange.faults.call("accounts.read.before", lambda: change(exchange))
    with pytest.raises(OutcomeUnknownError, match=r"Idempotency-Key: mine$"):
        await buy(exchange, 1, "0.1", "50000", key="mine")


@pytest.mark.parametrize(
    ("step", "passes", "error"),
    [
        ("accounts.read.before", 2, DOWN),
        pytest.param("accounts.read.before", 2, RESTARTED),
        pytest.param("accounts.commit.before", 0, REFUSING),
        pytest.param("accounts.commit.before", 0, RESTARTED),
    ],
    ids=["down", "restarted", "refusing the commit", "restarted at the commit"],
)
async def test_store_that_fails_after_a_lost_commit_leaves_it_unknown(
    exchange: Exchange, step: str, passes: int, error: Exception
) -> None:
    exchange.faults.fail("accounts.commit.before", LOST)
    exchange.faults.skip(step, times=passes)
    exchange.faults.fail(step, error)
    with pytest.raises(OutcomeUnknownError, match=r"Idempotency-Key: mine$"):
        await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (await buy(exchange, 1, "0.1", "50000", key="mine")).final
    assert _trades(exchange) == ["0.1"]


async def test_contention_after_a_lost_commit_is_unknown(exchange: Exchange) -> None:
    def disturb() -> None:
        version = exchange.redis.accounts[1].version
        exchange.redis.accounts[1].version = f"{version}0"

    exchange.faults.call("accounts.commit.before", disturb)
    exchange.faults.fail("accounts.commit.before", LOST)
    exchange.faults.call("accounts.commit.before", disturb, times=COMMIT_ATTEMPTS_MAX - 2)
    commits = exchange.faults.calls["accounts.commit"]
    with pytest.raises(OutcomeUnknownError, match=r"Idempotency-Key: mine$"):
        await buy(exchange, 1, "0.1", "50000", key="mine")
    assert exchange.faults.calls["accounts.commit"] - commits == COMMIT_ATTEMPTS_MAX


async def test_commit_that_redis_refuses_is_refused_at_once_and_writes_nothing(exchange: Exchange) -> None:
    before = exchange.redis.save()
    exchange.faults.fail("accounts.commit.before", REFUSING)
    commits = exchange.faults.calls["accounts.commit"]
    with pytest.raises(RedisRefusedError):
        await buy(exchange, 1, "0.1", "50000")
    assert exchange.faults.calls["accounts.commit"] - commits == 1
    assert exchange.redis.save() == before


async def test_redis_down_before_the_commit_writes_nothing(exchange: Exchange) -> None:
    exchange.faults.take_down("accounts", DOWN)
    with pytest.raises(RedisUnavailableError):
        await buy(exchange, 1, "0.1", "50000")
    assert _quantity(exchange) == 0


async def test_state_that_is_not_loaded_writes_nothing(exchange: Exchange) -> None:
    exchange.redis.markers.clear()
    with pytest.raises(StateNotLoadedError):
        await buy(exchange, 1, "0.1", "50000")
    assert _quantity(exchange) == 0


async def test_state_that_was_loaded_anew_between_read_and_commit_writes_nothing(exchange: Exchange) -> None:
    async def open_anew() -> None:
        exchange.redis.markers.clear()
        await exchange.opening.open()

    exchange.faults.call("accounts.commit.before", open_anew)
    with pytest.raises(StateNotLoadedError):
        await buy(exchange, 1, "0.1", "50000")
    assert _quantity(exchange) == 0


async def test_history_down_before_the_commit_writes_nothing(exchange: Exchange) -> None:
    before = exchange.redis.save()
    exchange.faults.take_down("history", NO_HISTORY)
    with pytest.raises(PostgresUnavailableError):
        await buy(exchange, 1, "0.1", "50000")
    assert exchange.redis.save() == before


async def test_both_stores_down_is_one_error_and_no_stray_task(exchange: Exchange) -> None:
    exchange.faults.take_down("history", NO_HISTORY)
    exchange.faults.take_down("accounts", DOWN)
    tasks = asyncio.all_tasks()
    with pytest.raises(PostgresUnavailableError):
        await buy(exchange, 1, "0.1", "50000")
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("step", ["history.append.before", "history.append.after"])
async def test_history_down_after_the_commit_is_executed_but_not_final(exchange: Exchange, step: str) -> None:
    exchange.faults.fail(step, NO_HISTORY)
    outcome = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert not outcome.final
    assert [event.event_id for event in exchange.redis.pending[1]] == [outcome.event_id]
    replay = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (replay.event_id, replay.final, replay.replayed) == (outcome.event_id, True, True)
    assert _trades(exchange) == ["0.1"]
    assert exchange.redis.pending == {}


async def test_replay_while_history_is_down_is_not_final(exchange: Exchange) -> None:
    exchange.faults.fail("history.append.before", NO_HISTORY, times=2)
    await buy(exchange, 1, "0.1", "50000", key="mine")
    replay = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (replay.final, replay.replayed) == (False, True)


async def test_later_trade_stores_the_pending_ones_before_it(exchange: Exchange) -> None:
    exchange.faults.fail("history.append.before", NO_HISTORY, times=2)
    for quantity in ("0.1", "0.2"):
        assert not (await buy(exchange, 1, quantity, "50000")).final
    assert (await buy(exchange, 1, "0.3", "50000")).final
    assert _trades(exchange) == ["0.1", "0.2", "0.3"]
    assert exchange.redis.pending == {}


@pytest.mark.parametrize("error", [LOST, pytest.param(RESTARTED, id="restarted")])
async def test_event_in_history_is_final_though_it_could_not_be_taken_off_the_pending_list(
    exchange: Exchange, error: Exception
) -> None:
    exchange.faults.fail("accounts.forget_pending.before", error)
    outcome = await buy(exchange, 1, "0.1", "50000")
    assert outcome.final
    assert (await exchange.drain.drain()).stored == 1
    assert _trades(exchange) == ["0.1"]
    assert exchange.redis.pending == {}


async def test_replay_of_an_event_behind_two_hundred_pending_ones_is_not_final(exchange: Exchange) -> None:
    exchange.faults.fail("history.append.before", NO_HISTORY, times=202)
    for number in range(202):
        await buy(exchange, 1, "0.001", "50000", key=f"k{number}")
    replay = await buy(exchange, 1, "0.001", "50000", key="k201")
    assert replay.final is (replay.event_id in exchange.history_store.event_ids(1))
    assert (await buy(exchange, 1, "0.001", "50000", key="k201")).final


# --- history that disagrees


async def _fork(exchange: Exchange) -> None:
    """Put Redis back to before a trade that history has."""
    saved = exchange.redis.save()
    sequence = exchange.redis.sequences.copy()
    await buy(exchange, 1, "0.2", "50000", key="kept")
    sequence.update({0: 1})
    exchange.redis.restore({**saved, "sequences": sequence})


async def test_fork_heals_the_account_and_asks_for_a_retry_which_executes_once(exchange: Exchange) -> None:
    forks = counted(MetricName.HISTORY_FORKS)
    await _fork(exchange)
    with pytest.raises(HistoryForkError):
        await buy(exchange, 1, "0.3", "50000", key="mine")
    assert _quantity(exchange) == Decimal("0.2")
    assert exchange.redis.pending == {}
    assert counted(MetricName.HISTORY_FORKS) - forks == 1
    retried = await buy(exchange, 1, "0.3", "50000", key="mine")
    assert (retried.final, retried.replayed) == (True, False)
    assert _trades(exchange) == ["0.2", "0.3"]
    assert _quantity(exchange) == Decimal("0.5")


async def test_fork_gives_back_the_keys_that_history_remembers(exchange: Exchange) -> None:
    await _fork(exchange)
    with pytest.raises(HistoryForkError):
        await buy(exchange, 1, "0.3", "50000")
    replay = await buy(exchange, 1, "0.2", "50000", key="kept")
    assert replay.replayed
    assert _trades(exchange) == ["0.2"]


async def test_fork_under_a_key_that_history_remembers_answers_what_the_key_did(exchange: Exchange) -> None:
    await _fork(exchange)
    assert (await buy(exchange, 1, "0.2", "50000", key="kept")).replayed
    assert _trades(exchange) == ["0.2"]


async def test_key_that_redis_forgot_after_its_time_is_recalled_and_nothing_executed(exchange: Exchange) -> None:
    first = await buy(exchange, 1, "0.1", "50000", key="mine")
    exchange.clock.advance(3600)
    again = await buy(exchange, 1, "0.1", "50000", key="mine")
    assert (again.event_id, again.replayed, again.final) == (first.event_id, True, True)
    exchange.clock.advance(3600)
    with pytest.raises(IdempotencyKeyReusedError):
        await buy(exchange, 1, "0.2", "50000", key="mine")
    assert _trades(exchange) == ["0.1"]
    assert _quantity(exchange) == Decimal("0.1")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("history.account.before", NO_HISTORY),
        pytest.param("accounts.load.before", LOST),
        pytest.param("accounts.versions.before", RESTARTED),
    ],
)
async def test_fork_that_cannot_be_healed_now_is_not_final_and_healed_by_the_drain(
    exchange: Exchange, step: str, error: Exception
) -> None:
    await _fork(exchange)
    exchange.faults.fail(step, error)
    outcome = await buy(exchange, 1, "0.3", "50000", key="mine")
    assert not outcome.final
    await exchange.drain.drain()
    assert _quantity(exchange) == Decimal("0.2")
    assert exchange.redis.pending == {}
    assert not (await buy(exchange, 1, "0.3", "50000", key="mine")).replayed
    assert _trades(exchange) == ["0.2", "0.3"]


async def test_event_that_history_rejects_stays_pending_and_its_successors_wait(exchange: Exchange) -> None:
    blocked = counted(MetricName.HISTORY_BLOCKED)
    exchange.history_store.rejected_keys.add("bad")
    outcomes = [await buy(exchange, 1, "0.1", "50000", key=key) for key in ("bad", "next")]
    assert [outcome.final for outcome in outcomes] == [False, False]
    assert [event.event_id for event in exchange.redis.pending[1]] == [outcome.event_id for outcome in outcomes]
    assert _trades(exchange) == []
    assert counted(MetricName.HISTORY_BLOCKED) - blocked == 2


async def test_gap_in_history_leaves_the_event_pending(exchange: Exchange) -> None:
    await buy(exchange, 1, "0.1", "50000")
    exchange.history_store.chains[1].pop()
    outcome = await buy(exchange, 1, "0.2", "50000")
    assert not outcome.final
    assert [event.event_id for event in exchange.redis.pending[1]] == [outcome.event_id]
    assert _quantity(exchange) == Decimal("0.3")


# --- marks that move meanwhile


async def test_trade_whose_trigger_is_crossed_at_the_commit_is_evaluated_at_once(exchange: Exchange) -> None:
    exchange.faults.call(
        "accounts.commit.before", lambda: exchange.market.set_marks({BTC: Decimal(44000)}, crossed_max=0)
    )
    outcome = await buy(exchange, 1, "1", "50000")
    assert (outcome.crossed, outcome.final) == (True, True)
    types = [link.body["type"] for link in exchange.history_store.chains[1]]
    assert types == ["DEPOSIT", "TRADE", "LIQUIDATION"]


@pytest.mark.parametrize("asked", [True, False], ids=["by asking", "by sending it again"])
async def test_trade_whose_reply_was_lost_and_whose_trigger_is_crossed_is_evaluated_at_once(
    exchange: Exchange, asked: bool
) -> None:
    exchange.faults.call(
        "accounts.commit.before", lambda: exchange.market.set_marks({BTC: Decimal(44000)}, crossed_max=0)
    )
    exchange.faults.fail("accounts.commit.after", LOST)
    if not asked:
        # The record of the key is not to be seen yet: as if the commit had been on its way meanwhile.
        records = exchange.redis.keys
        exchange.faults.skip("accounts.read.before")
        exchange.faults.call("accounts.read.before", lambda: setattr(exchange.redis, "keys", {}))
        exchange.faults.call("accounts.read.before", lambda: setattr(exchange.redis, "keys", records))
    outcome = await buy(exchange, 1, "1", "50000")
    assert (outcome.crossed, outcome.final) == (True, True)
    types = [link.body["type"] for link in exchange.history_store.chains[1]]
    assert types == ["DEPOSIT", "TRADE", "LIQUIDATION"]


async def test_trade_is_answered_though_the_evaluation_after_it_fails(exchange: Exchange) -> None:
    exchange.faults.call(
        "accounts.commit.before", lambda: exchange.market.set_marks({BTC: Decimal(44000)}, crossed_max=0)
    )
    exchange.faults.skip("accounts.read.before")
    exchange.faults.fail("accounts.read.before", DOWN)
    outcome = await buy(exchange, 1, "1", "50000")
    assert (outcome.crossed, outcome.final) == (True, True)
    assert (await exchange.scans.scan()).liquidated == [1]


# --- pause switches

SWITCHES = [ENGINE_CONTROL, account_control(1), symbol_control(BTC)]


@pytest.mark.parametrize("switch", SWITCHES)
async def test_paused_switch_refuses_every_trade(exchange: Exchange, switch: str) -> None:
    await buy(exchange, 1, "0.2", "50000")
    exchange.redis.controls[switch] = ControlState.PAUSED
    for trade in (buy, sell):
        with pytest.raises(NotActiveError):
            await trade(exchange, 1, "0.1", "50000")


@pytest.mark.parametrize("switch", SWITCHES)
async def test_reduce_only_switch_lets_reductions_through_and_nothing_else(exchange: Exchange, switch: str) -> None:
    await buy(exchange, 1, "0.2", "50000")
    exchange.redis.controls[switch] = ControlState.REDUCE_ONLY
    for trade, quantity in ((buy, "0.1"), (sell, "0.20000001")):
        with pytest.raises(NotActiveError):
            await trade(exchange, 1, quantity, "50000")
    assert (await sell(exchange, 1, "0.15", "50000")).final
    assert (await sell(exchange, 1, "0.05", "50000")).final


@pytest.mark.parametrize("switch", SWITCHES)
async def test_active_switch_lets_everything_through(exchange: Exchange, switch: str) -> None:
    exchange.redis.controls[switch] = ControlState.ACTIVE
    assert (await buy(exchange, 1, "0.1", "50000")).final


@pytest.mark.parametrize("switch", [account_control(2), symbol_control(ETH)])
async def test_switch_of_another_account_or_symbol_concerns_nobody_else(exchange: Exchange, switch: str) -> None:
    exchange.redis.controls[switch] = ControlState.PAUSED
    assert (await buy(exchange, 1, "0.1", "50000")).final
