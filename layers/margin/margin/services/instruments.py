"""Changing the rules of a symbol so that no account is ever judged by rules that its triggers do not guard.

A change is written to history first, which keeps it and gives it a version. Then it is staged beside the rules in force
in every partition: from then on whoever commits or is anchored is anchored to the stricter of both. Then all who hold
the symbol are anchored so, and only then it is put in force. Each step can be repeated and says what is left of it, so
that the schedule completes what a function that died left behind.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

from margin.domain.instrument import InstrumentStatus, default_instrument
from margin.errors import (
    ContentionError,
    HistoryLostError,
    InstrumentChangeUnderWayError,
    InstrumentNotClosableError,
    UnavailableError,
)
from margin.observability import MetricName, count, logger
from margin.ports.instruments import SYMBOLS_MAX, ConfiguredInstrument
from margin.services.cursors import decode_cursor, encode_cursor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.caller import Caller
    from margin.domain.instrument import Instrument
    from margin.ports.instruments import (
        InstrumentChange,
        InstrumentHistory,
        InstrumentState,
        InstrumentStore,
    )
    from margin.services.anchoring import AnchoringService
    from margin.services.liquidation import LiquidationService

CHANGE_BUDGET_S = 4.0
_ATTEMPTS_MAX = 5
_EVALUATED_MAX = 1000
_CLOSABLE_FROM = (InstrumentStatus.REDUCE_ONLY, InstrumentStatus.SETTLING, InstrumentStatus.CLOSED)


@dataclasses.dataclass(frozen=True, slots=True)
class InstrumentOutcome:
    """Rules as they were asked for; ``change`` is None for default ones, ``effective``: all decisions obey them."""

    instrument: Instrument
    change: InstrumentChange | None
    effective: bool


@dataclasses.dataclass(frozen=True, slots=True)
class InstrumentPage:
    """Configured symbols, and the cursor of the next page (None on the last)."""

    instruments: list[ConfiguredInstrument]
    next_cursor: str | None


class InstrumentService:
    """Changes and lists the rules of symbols.

    Parameters
    ----------
    history : InstrumentHistory
        Where versions are kept.
    store : InstrumentStore
        Where they take effect.
    anchoring : AnchoringService
        Anchors those who hold a symbol.
    liquidations : LiquidationService
        Evaluates those whom new rules bring to liquidation.
    """

    def __init__(
        self,
        history: InstrumentHistory,
        store: InstrumentStore,
        anchoring: AnchoringService,
        liquidations: LiquidationService,
    ) -> None:
        self._history = history
        self._store = store
        self._anchoring = anchoring
        self._liquidations = liquidations

    async def get(self, symbol: str) -> ConfiguredInstrument:
        """Read the rules of a symbol, the default ones where it has none of its own.

        Raises
        ------
        PostgresUnavailableError
        """
        return await self._history.configured(symbol)

    async def list(self, *, limit: int = 100, cursor: str | None = None) -> InstrumentPage:
        """List the symbols that were ever configured, by symbol.

        Raises
        ------
        CursorInvalidError, PostgresUnavailableError
        """
        after_symbol = ""
        if cursor is not None:
            (after_symbol,) = decode_cursor("instruments", cursor, str)
        found = await self._history.page(after_symbol, limit + 1)
        more, found = len(found) > limit, found[:limit]
        return InstrumentPage(found, encode_cursor("instruments", found[-1].symbol) if more else None)

    async def put(
        self, instrument: Instrument, caller: Caller, *, budget_s: float = CHANGE_BUDGET_S
    ) -> InstrumentOutcome:
        """Give a symbol rules; the same ones again do no harm.

        Where Redis judges by rules that history has lost, they are a new version, even if history knows the same terms.

        Parameters
        ----------
        instrument : Instrument
            All that is to hold; its version does not matter.
        caller : Caller
            Who asks, for the record.
        budget_s : float
            After this many seconds the rest is left to the schedule.

        Raises
        ------
        InstrumentNotClosableError
            It is to be closed while it trades, or while somebody holds it.
        InstrumentChangeUnderWayError
            An earlier change is not in force everywhere yet.
        LimitExceededError
            There are too many symbols.
        UnavailableError
            Nothing was changed; of an `OutcomeUnknownError` the change may be in history, and takes effect if it is.
            Of a `HistoryLostError`, which needs history to be lost during the call, the same request does the rest.
        """
        until_s = time.monotonic() + budget_s
        symbol = instrument.symbol
        for _ in range(_ATTEMPTS_MAX):
            present = await self._history.configured(symbol)
            if present.under_way is not None:
                earlier = present.under_way
                done = await self._completed_or_replaced(earlier.instrument, until_s)
                if not done and _same_terms(earlier.instrument, instrument):
                    return InstrumentOutcome(earlier.instrument, earlier, effective=False)
                if not done:
                    raise InstrumentChangeUnderWayError(_UNDER_WAY.format(symbol=symbol))
                continue
            states = [await self._store.read(partition, symbol) for partition in range(self._store.partitions)]
            in_force = {state.in_force.version for state in states}
            if _same_terms(present.instrument, instrument) and max(in_force) <= present.last_version:
                # A partition that was put back to an older state can lack what was in force everywhere.
                everywhere = in_force == {present.last_version} or await self._completed(present.instrument, until_s)
                return InstrumentOutcome(present.instrument, present.in_force, effective=everywhere)
            if instrument.status is InstrumentStatus.CLOSED:
                _require_closable(present.instrument, states)
            # Redis can know versions that history has lost; what they stand for must never change.
            version = max(present.last_version, *(state.last_version for state in states)) + 1
            change = await self._history.record(
                dataclasses.replace(instrument, version=version), present.last_version, caller
            )
            if change is None:
                # Another was quicker.
                continue
            logger.warning("instrument_recorded", symbol=symbol, version=version, status=str(instrument.status))
            effective = await self._completed(change.instrument, until_s)
            return InstrumentOutcome(change.instrument, change, effective=effective)
        raise InstrumentChangeUnderWayError(_UNDER_WAY.format(symbol=symbol))

    async def complete(self, budget_s: float = math.inf) -> int:
        """Complete the changes that are under way, whoever began them, as far as time allows; how many that were.

        Where a partition judges by rules that history does not know, nobody can say which are right: that is left to
        whoever restores history, or gives the symbol rules anew. What is only staged, and unknown, is taken away.

        Raises
        ------
        PostgresUnavailableError, RedisUnavailableError, StateNotLoadedError
        """
        until_s = time.monotonic() + budget_s
        # Redis first: what it had by then history had before.
        present = [await self._store.all(partition) for partition in range(self._store.partitions)]
        configured = {one.symbol: one for one in await self._history.page("", SYMBOLS_MAX)}
        completed = left = 0
        for symbol in sorted({*configured, *(symbol for rules in present for symbol in rules)}):
            one = configured.get(symbol) or ConfiguredInstrument(symbol)
            default = (default_instrument(symbol), None)
            for partition, rules in enumerate(present):
                await self._drop_unknown(partition, one, rules.get(symbol, default)[1])
            in_force = {rules.get(symbol, default)[0].version for rules in present}
            # A partition that was put back to an older state can lack what was in force everywhere.
            change = one.under_way or (one.in_force if min(in_force) < one.instrument.version else None)
            try:
                _require_known(one, max(in_force))
                if change is None:
                    continue
                done = time.monotonic() < until_s and await self._completed(change.instrument, until_s)
            except HistoryLostError as error:
                logger.error("instrument_unknown_to_history", symbol=symbol, reason=error.detail)
                done = False
            completed += done
            left += not done
        if left:
            count(MetricName.INSTRUMENTS_NOT_COMPLETED, left)
        return completed

    async def _drop_unknown(self, partition: int, one: ConfiguredInstrument, staged: Instrument | None) -> None:
        """Take rules away that are staged and that history did not know afterwards: nobody will ever complete them."""
        if staged is None or staged.version <= one.last_version:
            return
        state = await self._store.read(partition, one.symbol)
        if state.staged == staged and await self._store.drop_staged(state):
            logger.warning("instrument_dropped", symbol=one.symbol, partition=partition, version=staged.version)

    async def _completed(self, instrument: Instrument, until_s: float) -> bool:
        """Take a change that is in history through what is left of it; False when something remains.

        Raises
        ------
        HistoryLostError
            A later one is in force that history does not know.
        """
        try:
            return await self._complete(instrument, until_s)
        except HistoryLostError:
            raise
        except (ContentionError, UnavailableError) as error:
            logger.warning(
                "instrument_not_completed", symbol=instrument.symbol, version=instrument.version, code=error.code
            )
            return False

    async def _completed_or_replaced(self, instrument: Instrument, until_s: float) -> bool:
        """Complete a change, or note it as done where a later one is in force that history has lost.

        That one was recorded when this one had been in force everywhere: only then are there later ones.
        """
        try:
            return await self._completed(instrument, until_s)
        except HistoryLostError:
            await self._history.set_effective(instrument.symbol, instrument.version)
            return True

    async def _complete(self, instrument: Instrument, until_s: float) -> bool:
        partitions = range(self._store.partitions)
        states = [await self._staged(partition, instrument) for partition in partitions]
        crossed: list[int] = []
        for state in states:
            if state.in_force.version < instrument.version:
                found = await self._anchoring.anchor_holders(state, lambda: time.monotonic() < until_s)
                if found is None:
                    return False
                crossed += found
        if not all([await self._activated(partition, instrument) for partition in partitions]):
            return False
        await self._history.set_effective(instrument.symbol, instrument.version)
        logger.warning(
            "instrument_effective", symbol=instrument.symbol, version=instrument.version, crossed=len(crossed)
        )
        # Those whom the new rules make liquidatable; the triggers of all are crossed, so that the scan finds the rest.
        budget_s = max(0.0, until_s - time.monotonic())
        await self._liquidations.evaluate_quietly(crossed[:_EVALUATED_MAX], budget_s=budget_s)
        return True

    async def _staged(self, partition: int, instrument: Instrument) -> InstrumentState:
        """Stage rules in a partition, where they are not staged or in force already."""
        for _ in range(_ATTEMPTS_MAX):
            state = await self._store.read(partition, instrument.symbol)
            is_staged = state.staged is not None and state.staged.version == instrument.version
            if is_staged or await self._is_through(state, instrument):
                return state
            # In place of any that history does not know. Then read again: whoever is in the index from now on counts.
            await self._store.stage(state, instrument)
        raise ContentionError(_UNDER_WAY.format(symbol=instrument.symbol))

    async def _activated(self, partition: int, instrument: Instrument) -> bool:
        """Put staged rules in force in a partition; False where not all holders are known to be anchored to them."""
        for _ in range(_ATTEMPTS_MAX):
            state = await self._store.read(partition, instrument.symbol)
            if await self._is_through(state, instrument):
                return True
            if state.staged is None or state.staged.version != instrument.version or not state.progress.is_done:
                return False
            await self._store.activate(state)
        return False

    async def _is_through(self, state: InstrumentState, instrument: Instrument) -> bool:
        """Whether a partition has rules of history in force, or later ones that history knows."""
        version = state.in_force.version
        if version > instrument.version:
            _require_known(await self._history.configured(instrument.symbol), version)
        return version >= instrument.version


def _require_known(configured: ConfiguredInstrument, version: int) -> None:
    """Refuse to take rules for right that are in force and that history, read after them, does not know."""
    if version > configured.last_version:
        message = (
            f"Version {version} of the rules of {configured.symbol} is in force, and history does not know it: history"
            " has lost it. To say which rules are right, give the symbol its rules again."
        )
        raise HistoryLostError(message)


def _same_terms(one: Instrument, other: Instrument) -> bool:
    return dataclasses.replace(one, version=0) == dataclasses.replace(other, version=0)


def _require_closable(present: Instrument, states: Sequence[InstrumentState]) -> None:
    """Refuse to close what trades, or is held: a position in a closed symbol could never be got rid of."""
    if present.status not in _CLOSABLE_FROM:
        message = f"{present.symbol} is {present.status}; make it reduce-only or settling before you close it."
        raise InstrumentNotClosableError(message)
    holders = sum(state.holders for state in states)
    if holders:
        message = f"{holders} accounts hold {present.symbol}; it can be closed when none does."
        raise InstrumentNotClosableError(message)


_UNDER_WAY = "An earlier change of {symbol} is not in force everywhere yet; it will be within minutes. Try again."
