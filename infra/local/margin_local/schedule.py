"""What runs beside the server: the scheduled functions on a timer, and the watch over the stores."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import journal_drain_handler
import liquidation_scan_handler
import reconcile_handler
import settle_handler
from margin import time_budget
from margin.errors import MarginError, UnavailableError
from margin.observability import flush_metrics, logger
from margin_local.servers import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from margin.runtime import Engine
    from margin_local.stores import LocalStores

FUNCTION_TIMEOUT_S = 30.0
SCHEDULED: Mapping[str, tuple[float, Callable[[dict[str, Any]], Awaitable[object]]]] = {
    "liquidation_scan": (10.0, liquidation_scan_handler.scan),
    "journal_drain": (5.0, journal_drain_handler.drain),
    "reconcile": (60.0, reconcile_handler.reconcile),
    "settle": (10.0, settle_handler.settle),
}
WATCH_EVERY_S = 0.5


def _told_to_stop() -> bool:
    """Whether the task was cancelled; a driver may swallow that on the way, and the loop would go on for ever."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def run_scheduled(name: str, every_s: float, function: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
    """Call a scheduled function until cancelled, as its schedule would; an error is logged and does not end that."""
    while not _told_to_stop():
        await asyncio.sleep(every_s)
        try:
            async with asyncio.timeout(FUNCTION_TIMEOUT_S):
                time_budget.start(FUNCTION_TIMEOUT_S)
                await function({})
        except (MarginError, TimeoutError) as error:
            logger.warning("scheduled_function_failed", function=name, reason=str(error))
        except Exception:  # noqa: BLE001 - a schedule goes on whatever one call did
            logger.exception("scheduled_function_failed", function=name)
        finally:
            flush_metrics()


async def watch(stores: LocalStores, engine: Engine) -> None:
    """Start dead servers again, and open the state again when Redis is not the one that it was loaded into."""
    healthy = True
    while not _told_to_stop():
        await asyncio.sleep(WATCH_EVERY_S)
        try:
            # A server starts in well under a second and must be the main thread's child, so the loop waits for it.
            for name in stores.restart_dead():
                logger.warning("store_restarted", store=name)
            await engine.opening.open()
            healthy = True
        except (UnavailableError, EmbeddedServerError) as error:
            if healthy:
                logger.warning("stores_unavailable", reason=str(error))
            healthy = False
        except Exception:  # noqa: BLE001 - the watch goes on whatever one look did
            logger.exception("watch_failed")
