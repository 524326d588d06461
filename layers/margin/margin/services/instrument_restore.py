"""Gives a partition that is being opened the rules of symbols that history has, before accounts are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.instrument import default_instrument
from margin.observability import logger
from margin.ports.instruments import SYMBOLS_MAX, ConfiguredInstrument
from margin.services.layout import require_ours

if TYPE_CHECKING:
    from margin.domain.instrument import Instrument
    from margin.ports.instruments import InstrumentHistory, InstrumentRestore
    from margin.ports.opening import Opening


class InstrumentRestoreService:
    """Restores instruments.

    Parameters
    ----------
    history : InstrumentHistory
        What is right.
    store : InstrumentRestore
        Redis, whatever its markers say.
    """

    def __init__(self, history: InstrumentHistory, store: InstrumentRestore) -> None:
        self._history = history
        self._store = store

    async def restore(self, opening: Opening) -> None:
        """Put the rules that history has in force where the partition has others.

        A change that is under way stays as far as it has got. Where triggers were made by other rules, the opening
        begins anew and loads every account.

        Raises
        ------
        StateNotLoadedError
            Another has taken the opening over.
        PostgresUnavailableError, RedisUnavailableError
        """
        known = {one.symbol: one for one in await self._history.page("", SYMBOLS_MAX)}
        present = await self._store.all(opening.partition)
        wrong: dict[str, Instrument] = {}
        reload = False
        for symbol in {**known, **present}:
            configured = known.get(symbol) or ConfiguredInstrument(symbol)
            in_force, staged = present.get(symbol, (default_instrument(symbol), None))
            if not _is_right(configured, in_force, staged):
                wrong[symbol] = configured.instrument
                reload = reload or in_force.maintenance_lines != configured.instrument.maintenance_lines
        if not wrong:
            return
        logger.warning("instruments_restored", partition=opening.partition, symbols=len(wrong), reload=reload)
        require_ours(await self._store.restore(opening, wrong, reload=reload))
        if reload:
            opening.begin_anew()


def _is_right(configured: ConfiguredInstrument, in_force: Instrument, staged: Instrument | None) -> bool:
    """Whether a partition can have these rules: those of history, or further on the way to what is under way."""
    under_way = None if configured.under_way is None else configured.under_way.instrument
    return in_force in (configured.instrument, under_way) and staged in (None, under_way)
