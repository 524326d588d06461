"""`python -m margin_local.instruments`: give an engine the rules of many symbols, from a JSON file.

The file holds ``{"instruments": [{"symbol": "BTC-PERP", "tiers": [...]}, ...]}``, or that list alone; each entry has
the fields of ``PUT /instruments/{symbol}``. The whole file is checked before anything is sent. Importing it again
changes nothing. MARGIN_TOKEN is the token for an engine that wants one. The exit status is 0 when the engine has all
of it, 1 when it refused something or does not answer, 2 when the file is not right and nothing was sent, 130 when it
was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from margin import exact_json
from margin.contract.instruments import InstrumentRequest
from margin.domain.decimals import plain
from margin.errors import MarginError
from margin.http.wire import SYMBOL_PATTERN
from margin_local.__main__ import environment
from margin_local.demo.engine_client import TOKEN_VARIABLE, EngineClient
from margin_local.demo.engine_process import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_local.demo.engine_client import Answer

DONE, REFUSED, BAD_FILE, STOPPED = 0, 1, 2, 130
URL = "http://127.0.0.1:8000"
FILE_BYTES_MAX = 16 * 1024 * 1024
INSTRUMENTS_MAX = 1000
_UNDER_WAY_TRIES_MAX = 10
_UNDER_WAY_WAIT_S = 1.0
_SYMBOL = re.compile(SYMBOL_PATTERN)
_OF_THE_CHANGE = {"symbol", "version", "changed_at", "changed_by", "effective", "effective_at", "pending"}


class FileError(Exception):
    """The file is not one of instruments."""


def read_instruments(path: Path) -> dict[str, dict[str, Any]]:
    """Read and check a file; the terms by symbol, decimals as strings.

    Raises
    ------
    FileError
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise FileError(f"{path} is longer than {FILE_BYTES_MAX} bytes")
    try:
        document = exact_json.loads(raw)
    except MarginError as error:
        raise FileError(f"{path} is not JSON: {error.detail}") from error
    listed = document.get("instruments") if isinstance(document, dict) else document
    if not isinstance(listed, list) or not 0 < len(listed) <= INSTRUMENTS_MAX:
        raise FileError(f'{path} must hold a list of 1 to {INSTRUMENTS_MAX} instruments, or have one as "instruments"')
    terms: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(listed):
        symbol, rules = _checked(f"{path}, instrument {number + 1}", entry)
        if symbol in terms:
            raise FileError(f"{path} has {symbol} twice")
        terms[symbol] = rules
    return terms


def _checked(place: str, entry: object) -> tuple[str, dict[str, Any]]:
    symbol = entry.get("symbol") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not (isinstance(symbol, str) and _SYMBOL.fullmatch(symbol)):
        raise FileError(f"{place}: it must be an object with a symbol, such as BTC-PERP")
    rules = {name: value for name, value in entry.items() if name != "symbol"}
    try:
        InstrumentRequest.model_validate(rules).instrument(symbol)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise FileError(f"{place} ({symbol}): {field}: {first['msg']}") from error
    except MarginError as error:
        raise FileError(f"{place} ({symbol}): {error.detail}") from error
    return symbol, {name: _as_text(value) for name, value in rules.items()}


def _as_text(value: Any) -> Any:
    """Write decimals as strings, so that no digit is lost on the way."""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return {name: _as_text(one) for name, one in value.items()} if isinstance(value, dict) else value


def import_instruments(client: EngineClient, instruments: Mapping[str, Mapping[str, Any]]) -> int:
    """Send instruments one after the other, and say of each what became of it; how many were refused.

    Raises
    ------
    EngineError
        The engine does not answer, or cannot work.
    """
    refused = 0
    for number, (symbol, rules) in enumerate(instruments.items(), start=1):
        before = client.instrument(symbol)
        answer = _sent(client, symbol, rules)
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise EngineError(f"{symbol}: {client.url} answers 503 {answer.code}: {answer.body.get('detail', '')}")
        refused += not answer.accepted
        print(f"[{number}/{len(instruments)}] {symbol}: {_became(before, answer)}", flush=True)
    return refused


def _sent(client: EngineClient, symbol: str, rules: Mapping[str, Any]) -> Answer:
    for _ in range(_UNDER_WAY_TRIES_MAX):
        answer = client.set_instrument(symbol, rules)
        if answer.code != "INSTRUMENT_CHANGE_UNDER_WAY":
            break
        time.sleep(_UNDER_WAY_WAIT_S)
    return answer


def _became(before: Mapping[str, Any], answer: Answer) -> str:
    after = answer.body
    if not answer.accepted:
        return f"REFUSED, {answer.status} {answer.code}: {after.get('detail', '')}"
    if after["version"] == before["version"]:
        return f"unchanged, version {after['version']}"
    changed = [name for name in after if name not in _OF_THE_CHANGE and after[name] != before.get(name)]
    when = "in force" if after["effective"] else "in force within minutes"
    return f"version {after['version']}, {when}; changed: {', '.join(changed) or 'nothing'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the file that the command line names."""
    parser = argparse.ArgumentParser(prog="margin_local.instruments", description=__doc__)
    parser.add_argument("--file", type=Path, required=True, metavar="PATH", help="JSON file of instruments")
    parser.add_argument("--url", default=URL, metavar="URL", help=f"where the engine answers (default {URL})")
    given = parser.parse_args(arguments)
    try:
        instruments = read_instruments(given.file)
        token = environment().get(TOKEN_VARIABLE, "")
        with contextlib.closing(EngineClient(given.url, token)) as client:
            refused = import_instruments(client, instruments)
    except FileError as error:
        print(f"margin: {error}; nothing was sent", file=sys.stderr)
        return BAD_FILE
    except EngineError as error:
        print(f"margin: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    if refused:
        print(f"margin: {refused} of {len(instruments)} instruments were refused", file=sys.stderr)
        return REFUSED
    print(f"{len(instruments)} instruments are as in {given.file}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
