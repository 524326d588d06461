"""`python -m margin_local.verify`: whether history is what was written, and what happened to an account.

It reads PostgreSQL alone: the one that the environment names, else the embedded one of DATA_DIR, whether an engine runs
on it at this moment or not. Every break goes to standard output with where it is and what was expected, then one line
that sums up; progress to standard error. The exit status is 0 when there is no break, 1 when there is one or it failed,
130 when it was stopped before the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import signal
import sys
import time
from typing import TYPE_CHECKING

from margin import observability, runtime
from margin.config import SettingError, Settings
from margin.errors import MarginError
from margin_local.__main__ import environment
from margin_local.servers import EmbeddedServerError
from margin_local.stores import LocalStores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.services.account_story import StoryLine
    from margin.services.verification import Break, VerificationReport

DONE, FAILED, STOPPED = 0, 1, 130

_PROGRESS_EVERY_S = 2.0
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_ACCOUNT_ID_MAX = 2**63 - 1


class _Progress:
    """Says now and then on standard error how far it has got."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def __call__(self, report: VerificationReport) -> None:
        if time.monotonic() - self._told_s >= _PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            print(f"so far {_sizes(report)}: {_breaks(report)}", file=sys.stderr, flush=True)


def _account_id(text: str) -> int:
    number = int(text)
    if not 0 < number <= _ACCOUNT_ID_MAX:
        raise ValueError(text)
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="margin_local.verify", description=__doc__)
    parser.add_argument("--account", type=_account_id, metavar="ID", help="one account; everything without")
    parser.add_argument("--show", action="store_true", help="tell first what happened to the account")
    given = parser.parse_args(arguments)
    if given.show and given.account is None:
        parser.error("--show tells of one account: give --account too")
    return given


async def verify(settings: Settings, account_id: int | None, *, show: bool) -> tuple[VerificationReport, bool]:
    """Verify the history that the settings name, until it is done or a signal comes; whether one came.

    Raises
    ------
    MarginError
    """
    engine = runtime.Engine(settings)
    stopped = asyncio.Event()
    working = asyncio.ensure_future(_work(engine, account_id, stopped, show=show))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, stopped, working)
    try:
        return await working, stopped.is_set()
    finally:
        await engine.close()


async def _work(
    engine: runtime.Engine, account_id: int | None, stopped: asyncio.Event, *, show: bool
) -> VerificationReport:
    if show and account_id is not None:
        async for line in engine.verification.story(account_id):
            if stopped.is_set():
                break
            print(_printable(_told(line)))
    return await engine.verification.verify(
        account_id=account_id, found=_print_break, keep_going=lambda: not stopped.is_set(), progress=_Progress()
    )


def _stop(stopped: asyncio.Event, working: asyncio.Future[VerificationReport]) -> None:
    """Stop after the page that is under way; asked a second time, do not wait for it."""
    if stopped.is_set():
        working.cancel()
    stopped.set()


def _told(line: StoryLine) -> str:
    moment = (_EPOCH + dt.timedelta(microseconds=line.at_us)).isoformat(timespec="microseconds")
    return f"{moment.removesuffix('+00:00')}Z  {line.what}  [{line.reference}]  by {line.subject} from {line.source_ip}"


def _print_break(one: Break) -> None:
    for line in (f"BREAK {one.where}: {one.what}", f"  expected {one.expected}", f"  found    {one.found}"):
        print(_printable(line))


def _printable(line: str) -> str:
    """Keep to one line, and to signs that are seen, what whoever wrote into history may have chosen."""
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _sizes(report: VerificationReport) -> str:
    return f"{report.events} events of {report.accounts} accounts, {report.changes} changes"


def _breaks(report: VerificationReport) -> str:
    return {0: "no break", 1: "1 break"}.get(report.breaks, f"{report.breaks} breaks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify what the command line says; what fails is said in one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(parse(arguments), environment())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return STOPPED
    except MarginError as error:
        print(f"margin: {error.code}: {error}", file=sys.stderr)
    except (SettingError, EmbeddedServerError) as error:
        print(f"margin: {error}", file=sys.stderr)
    return FAILED


def _main(given: argparse.Namespace, variables: Mapping[str, str]) -> int:
    settings = Settings.from_environment(variables)
    observability.configure(publish_metrics=False, log_level=settings.log_level, stream=sys.stderr)
    stores = LocalStores(settings, variables, history_alone=True)
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(stores.stop)
        settings = stores.start_or_join()
        report, stopped = asyncio.run(verify(settings, given.account, show=given.show))
    if stopped and not report.complete:
        print(f"stopped after {_sizes(report)}: {_breaks(report)} so far")
        return STOPPED
    print(f"verified {_sizes(report)}: {_breaks(report)}")
    return FAILED if report.breaks else DONE


if __name__ == "__main__":
    sys.exit(main())
