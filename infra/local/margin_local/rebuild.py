"""`python -m margin_local.rebuild`: make the state in Redis anew from PostgreSQL.

On the stores that the environment names, else on the embedded ones of DATA_DIR, whether an engine runs on them at this
moment or not. Progress goes to standard error, the report as one JSON object to standard output. The exit status is 0
when all is done, 1 when it failed, 130 when it was stopped before the end; the same command goes on then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import json
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from margin import observability, runtime
from margin.caller import operator
from margin.config import SettingError, Settings
from margin.errors import MarginError
from margin_local.__main__ import environment
from margin_local.servers import EmbeddedServerError
from margin_local.stores import LocalStores
from migrate_schema import migrate
from rebuild_handler import Target, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DONE, FAILED, STOPPED = 0, 1, 130


class LayoutError(Exception):
    """The state was loaded for another number of partitions."""


def target_of(arguments: Sequence[str] | None) -> Target:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="margin_local.rebuild", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--account", type=int, metavar="ID", help="one account")
    what.add_argument("--partition", type=int, metavar="NUMBER", help="all accounts of one partition")
    what.add_argument("--all", action="store_true", help="everything")
    given = parser.parse_args(arguments)
    payload = {"account_id": given.account, "partition": given.partition, "all": given.all or None}
    return Target.of({name: value for name, value in payload.items() if value is not None})


async def rebuild(settings: Settings, target: Target) -> dict[str, Any]:
    """Rebuild on the stores that the settings name, until it is done or a signal comes.

    Raises
    ------
    LayoutError, MarginError
    """
    engine = runtime.Engine(settings)
    runtime.use(engine)
    stopped = asyncio.Event()
    working = asyncio.ensure_future(_work(engine, target, stopped))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, stopped, working)
    try:
        return await working
    finally:
        await engine.close()
        runtime.use(None)


async def _work(engine: runtime.Engine, target: Target, stopped: asyncio.Event) -> dict[str, Any]:
    loaded_for = await engine.history_store.last_partitions()
    if loaded_for not in {None, engine.settings.partitions}:
        given = engine.settings.partitions
        message = f"the state was loaded for PARTITIONS={loaded_for}, this command has {given}: give it the same"
        raise LayoutError(message)
    caller = operator(f"{getpass.getuser()}@{socket.gethostname()}")
    return await run(target, caller=caller, keep_going=lambda: not stopped.is_set())


def _stop(stopped: asyncio.Event, working: asyncio.Future[dict[str, Any]]) -> None:
    """Stop after the page that is under way; asked a second time, do not wait for it."""
    if stopped.is_set():
        working.cancel()
    stopped.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild what the command line says; what fails is said in one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(target_of(arguments), environment())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return STOPPED
    except MarginError as error:
        print(f"margin: {error.code}: {error}", file=sys.stderr)
    except (SettingError, EmbeddedServerError, LayoutError) as error:
        print(f"margin: {error}", file=sys.stderr)
    return FAILED


def _main(target: Target, variables: Mapping[str, str]) -> int:
    settings = Settings.from_environment(variables)
    observability.configure(publish_metrics=False, log_level=settings.log_level, stream=sys.stderr)
    stores = LocalStores(settings, variables)
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(stores.stop)
        settings = stores.start_or_join()
        if stores.started_postgres:
            migrate(stores.owner(settings))
        report = asyncio.run(rebuild(settings, target))
    print(json.dumps(report))
    return DONE if report["complete"] else STOPPED


if __name__ == "__main__":
    sys.exit(main())
