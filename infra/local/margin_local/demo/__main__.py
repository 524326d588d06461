"""`python -m margin_local.demo`: replay prices, report, verify; exit code 0 only when every check passed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from decimal import Decimal
from enum import IntEnum
from typing import TYPE_CHECKING

import psycopg

from margin import observability
from margin.config import SettingError, Settings
from margin.errors import MarginError
from margin_local.__main__ import environment
from margin_local.demo import prices
from margin_local.demo.checks import Check, every_check
from margin_local.demo.engine_client import TOKEN_VARIABLE, EngineClient
from margin_local.demo.engine_process import EngineError, RunningEngine, own_engine, stores_of_environment
from margin_local.demo.evidence import Evidence, collect
from margin_local.demo.mark_path import MarkPath
from margin_local.demo.mark_stamps import MarkStamps
from margin_local.demo.progress import Progress
from margin_local.demo.replay import Replay
from margin_local.demo.report import Summary, ledger_totals, render
from margin_local.demo.traders import Traders
from margin_local.servers import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from margin_local.demo.prices import PriceSeries

ACCOUNTS_MAX = 10_000
ROWS_MAX = 1_000_000
_CROSSED_INLINE_MIN = 100
_FIRST_ACCOUNT = 1_001
_LEFT_OUT = (
    "the stores of the engine are not known. Set REDIS_HOST and POSTGRES_HOST (and what else differs, see "
    "infra/env.example) to those of the engine, or leave out --url."
)


class Exit(IntEnum):
    """What the exit code says."""

    PASSED = 0
    FAILED = 1
    BAD_INPUT = 2
    NOT_CHECKED = 3
    INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; whatever goes wrong is told in one line."""
    options = _parser().parse_args(arguments)
    try:
        series = _series(options)
        observability.configure(publish_metrics=False, log_level="ERROR")
        with _terminable(), _engine(options) as running:
            return _demonstrate(options, series, running)
    except prices.PricesError as error:
        print(f"demo: {error}", file=sys.stderr)
        return Exit.BAD_INPUT
    except (EngineError, EmbeddedServerError, MarginError, SettingError, psycopg.Error) as error:
        print(f"demo: {error}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return Exit.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m margin_local.demo",
        description="Replay prices against an engine with accounts that trade, then verify what the engine recorded.",
        epilog="Exit code: 0 every check passed, 1 one failed or the engine did, 2 bad input, 3 checks were left out.",
    )
    parser.add_argument(
        "--prices",
        action="append",
        metavar="FILE",
        help="CSV with the columns time, open, high, low, close; several for several symbols that go "
        "together, as FILE or SYMBOL=FILE. "
        "Without any, a path with a crash is made of the seed",
    )
    parser.add_argument(
        "--rows", type=_whole(ROWS_MAX), help="replay only so many rows; how many to make, without a file"
    )
    parser.add_argument(
        "--accounts", type=_whole(ACCOUNTS_MAX), default=60, help="how many accounts trade (default 60)"
    )
    parser.add_argument("--seed", type=int, default=7, help="decides what is left to chance (default 7)")
    parser.add_argument(
        "--url",
        help="use the engine that runs there; its mark prices of these symbols are overwritten for everybody. "
        "By default an engine is started, in a temporary directory, and stopped at the end. "
        f"{TOKEN_VARIABLE} in the environment is the token for one that wants it",
    )
    return parser


def _whole(largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not 1 <= number <= largest:
            raise argparse.ArgumentTypeError(f"must be from 1 to {largest}")
        return number

    parse.__name__ = "whole number"
    return parse


def _series(options: argparse.Namespace) -> list[PriceSeries]:
    if not options.prices:
        return [prices.made_series(options.seed, options.rows or prices.MADE_ROWS)]
    every = prices.read_all(options.prices)
    if options.rows is None:
        return every
    return [dataclasses.replace(series, candles=series.candles[: options.rows]) for series in every]


@contextlib.contextmanager
def _engine(options: argparse.Namespace) -> Iterator[RunningEngine]:
    if options.url is not None:
        yield RunningEngine(options.url, stores_of_environment(environment()))
        return
    # The checks ask that everybody is evaluated at the very mark that reached them, however many those are.
    crossed_inline_max = max(_CROSSED_INLINE_MIN, options.accounts)
    with own_engine(environment(), crossed_inline_max=crossed_inline_max) as running:
        yield running


def _demonstrate(options: argparse.Namespace, series: Sequence[PriceSeries], running: RunningEngine) -> int:
    # An engine of its own wants no token, and another's is not for it.
    token = "" if options.url is None else environment().get(TOKEN_VARIABLE, "")
    client = EngineClient(running.url, token)
    client.check_health()
    # An engine that runs already may know accounts of an earlier demo.
    run_id, first = (str(options.seed), _FIRST_ACCOUNT) if options.url is None else _of_now()
    account_ids = range(first, first + options.accounts)
    traders = Traders(account_ids, [one.symbol for one in series], options.seed)
    with contextlib.ExitStack() as stack:
        stamps = None
        if running.stores is not None:
            stamps = stack.enter_context(contextlib.closing(MarkStamps(running.stores)))
        replay = Replay(client, stamps, series, traders, run_id)
        progress = stack.enter_context(Progress(len(series[0].candles)))
        stopped = stack.enter_context(_stop_asked())
        replay.run(progress=progress.show, stopped=stopped)
    evidence, checks = _verify(running.stores, account_ids, replay, settle=options.url is None)
    replay.notice_liquidations()
    fund = client.insurance_fund()
    summary = Summary(
        series=series,
        accounts=options.accounts,
        seed=options.seed,
        engine="its own, for this replay" if options.url is None else running.url,
        result=replay.result,
        ledger=None
        if evidence is None
        else ledger_totals([(line.ledger_account, line.amount) for line in evidence.lines]),
        checks=checks,
        fund=(Decimal(fund["balance"]), Decimal(fund["uncovered"])),
        left_out="" if evidence is not None else _LEFT_OUT,
    )
    print(render(summary), end="")
    return exit_code(summary)


def _verify(
    stores: Settings | None, account_ids: Sequence[int], replay: Replay, *, settle: bool
) -> tuple[Evidence | None, list[Check]]:
    if stores is None:
        return None, []
    evidence = collect(stores, account_ids, settle=settle)
    return evidence, every_check(evidence, MarkPath(replay.result.marks, evidence.instruments))


def exit_code(summary: Summary) -> Exit:
    """Say how it ended; a stop on request is not a success, because not everything was replayed."""
    if not all(check.passed for check in summary.checks):
        return Exit.FAILED
    if summary.result.interrupted:
        return Exit.INTERRUPTED
    return Exit.PASSED if summary.checks else Exit.NOT_CHECKED


def _of_now() -> tuple[str, int]:
    """Run id and first account id that no earlier demo on this engine has used."""
    now_s = int(time.time())
    return str(now_s), now_s * ACCOUNTS_MAX


@contextlib.contextmanager
def _stop_asked() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM ask for a stop, so that the replay ends between two marks; the second ends it."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that nothing is left running."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
