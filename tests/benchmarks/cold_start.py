"""How long the built functions take to start, and what they add to a service call.

They run under Lambda's own runtime client and emulator, as plain processes, on real stores that ask for the passwords
in moto's secrets. Two floors run next to them, with the same layer: a handler that does nothing, and FastAPI with
Mangum and one route. Ratios to the second floor are what to compare; a Lambda's own times depend on its memory. Each
start has a start of that floor right before it, so that what else the machine does falls on both.

    python -m tests.benchmarks.cold_start
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_local.servers import EmbeddedPostgres, EmbeddedValkey
from tests.events import api_gateway_event
from tests.runtime import artefact as artefacts
from tests.runtime.aws import Aws
from tests.runtime.deployment import Deployment, event
from tests.runtime.emulator import Emulator
from tests.runtime.machine import Machine, UnfitMachineError, prepare
from tests.runtime.stores import OWNER, USER, Stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.artefact import Artefact

COLD_STARTS = 7
WARM_REQUESTS = 300
WARM_UP = 30

BARE, FLOOR = "bare handler", "FastAPI + Mangum"
FLOORS = Path(__file__).parent / "floors"
FLOOR_HANDLERS = {BARE: "bare_handler.handler", FLOOR: "bare_api.handler"}

# The request that a function is measured with, and the service call in it.
GET_FLOOR = api_gateway_event("GET", "/floor")
ORDER = {"account_id": 1, "symbol": "BTC-PERP", "side": "BUY", "quantity": "0.001", "price": "50000"}
HTTP: dict[str, tuple[dict[str, Any], str]] = {
    "TradeFunction": (api_gateway_event("POST", "/trade", ORDER), "trading.trade"),
    "MarkPriceFunction": (
        api_gateway_event("POST", "/mark-price", {"symbol": "BTC-PERP", "price": "50000"}),
        "marks.set_marks",
    ),
    "FundingFunction": (event("funding"), "funding.pay"),
    "InstrumentsFunction": (event("instruments"), "instruments.list"),
    "PositionsFunction": (api_gateway_event("GET", "/positions/1"), "margin.account_margin"),
    "MarginReportFunction": (event("margin_report"), "report.page"),
    "RiskFunction": (event("risk_ladder"), "stress.ladder"),
    "HistoryFunction": (api_gateway_event("GET", "/trades/1", query={"limit": "10"}), "history.trades"),
    "AccountsFunction": (api_gateway_event("POST", "/accounts/1/deposits", {"amount": "1"}), "funds.deposit"),
    "ControlsFunction": (event("controls"), "controls.list"),
    "StatusFunction": (event("health"), "health.check"),
}
OTHERS: dict[str, dict[str, Any]] = {
    "LiquidationScanFunction": event("liquidation_scan"),
    "JournalDrainFunction": event("journal_drain"),
    "ReconcileFunction": event("reconcile_schedule"),
    "SettleFunction": event("settle"),
    "LiquidateFunction": {**event("liquidate_batch"), "Records": event("liquidate_batch")["Records"][:1]},
}
AT_RELEASE = {"MigrateFunction": {"command": "migrate"}}

COLUMNS = (
    "function",
    "init, ms",
    "init / floor",
    "first request, ms",
    "first with secrets, ms",
    "warm, ms",
    "around the service call, ms",
    "more than the floor, ms",
)
INIT_RATIO_MAX_HTTP = 1.35
INIT_RATIO_MAX_OTHERS = 0.6
OVERHEAD_MAX_MS = 1.5


@dataclasses.dataclass
class Samples:
    """Of one function, in milliseconds."""

    init: list[float] = dataclasses.field(default_factory=list)
    init_to_floor: list[float] = dataclasses.field(default_factory=list)
    first_plain: list[float] = dataclasses.field(default_factory=list)
    first_secret: list[float] = dataclasses.field(default_factory=list)
    warm: list[float] = dataclasses.field(default_factory=list)
    around: list[float] = dataclasses.field(default_factory=list)


class Bench:
    """The functions of a build, on stores of its own.

    Parameters
    ----------
    machine, artefact : Machine, Artefact
        What runs on what.
    directory : Path
        For logs.
    plain, secret : dict of str
        The template's parameters without and with secrets.
    outside : dict of str
        Variables that say where AWS is.
    """

    def __init__(
        self,
        machine: Machine,
        artefact: Artefact,
        directory: Path,
        *,
        plain: dict[str, str],
        secret: dict[str, str],
        outside: dict[str, str],
    ) -> None:
        self._machine = machine
        self._artefact = artefact
        self._directory = directory
        self._parameters = {"plain": plain, "secret": secret}
        self._outside = outside
        self._numbers = iter(range(1, 10**6))
        self.samples = {name: Samples() for name in (*FLOOR_HANDLERS, *HTTP, *OTHERS, *AT_RELEASE)}

    def cold(self) -> None:
        """Start everything again and again, each time right after the floor."""
        for _ in range(COLD_STARTS):
            for name, request in _requests():
                floor_ms, _ = self._start_once(FLOOR, "plain", GET_FLOOR)
                self.samples[FLOOR].init.append(floor_ms)
                for kind in ("plain",) if name in FLOOR_HANDLERS else ("plain", "secret"):
                    init_ms, first_ms = self._start_once(name, kind, request)
                    self.samples[name].init.append(init_ms)
                    self.samples[name].init_to_floor.append(init_ms / floor_ms)
                    getattr(self.samples[name], f"first_{kind}").append(first_ms)

    def _start_once(self, name: str, kind: str, request: dict[str, Any]) -> tuple[float, float]:
        """Return the milliseconds that loading a function and its first request took."""
        emulator = self._start(name, kind)
        try:
            _checked(emulator.invoke(request))
            return emulator.init_ms, emulator.invocations_ms[0]
        finally:
            emulator.stop()

    def warm(self) -> None:
        """Call what serves HTTP many times, and split each invocation into the service call and what is around it."""
        for name, request in _requests():
            if name in OTHERS or name in AT_RELEASE or name == BARE:
                continue
            emulator = self._start(name, "plain", timed=True)
            try:
                for _ in range(WARM_UP + WARM_REQUESTS):
                    _checked(emulator.invoke(request))
                self.samples[name].warm = emulator.invocations_ms[WARM_UP:]
                around = re.findall(r"^AROUND_MS ([0-9.]+)$", emulator.output(), re.MULTILINE)
                self.samples[name].around = [float(text) for text in around[WARM_UP:]]
                assert len(self.samples[name].around) == WARM_REQUESTS
            finally:
                emulator.stop()

    def _start(self, name: str, kind: str, *, timed: bool = False) -> Emulator:
        variables = dict(self._outside)
        if name in FLOOR_HANDLERS:
            folder, handler, timeout_s, memory_mb = FLOORS, FLOOR_HANDLERS[name], 10, 1024
        else:
            properties = self._artefact.functions[name].properties
            folder, handler = self._artefact.folder(name), properties["Handler"]
            timeout_s, memory_mb = properties["Timeout"], properties["MemorySize"]
            variables |= self._artefact.variables(name, self._parameters[kind])
        if timed:
            variables |= {"TIMED_HANDLER": handler, "TIMED_CALL": HTTP[name][1] if name in HTTP else ""}
            variables["PYTHONPATH"] = f"{self._artefact.layer}:{FLOORS}"
            handler = "timed.handler"
        return Emulator(
            self._machine,
            folder=folder,
            layer=self._artefact.layer,
            handler=handler,
            variables=variables,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            log=self._directory / f"{name.replace(' ', '-')}-{next(self._numbers)}.log",
        )


def _requests() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from dict.fromkeys(FLOOR_HANDLERS, GET_FLOOR).items()
    yield from ((name, request) for name, (request, _) in HTTP.items())
    yield from OTHERS.items()
    yield from AT_RELEASE.items()


def _checked(answer: Any) -> None:
    """Stop where a function fails: failing is quick."""
    assert "errorType" not in answer, answer
    assert answer.get("statusCode", 200) == 200, answer


def table(samples: dict[str, Samples]) -> str:
    """Show medians as a table in Markdown, and next to each goal whether it is reached."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    floor_around = statistics.median(samples[FLOOR].around)
    ratios: dict[str, float] = {}
    more: dict[str, float] = {}
    for name, taken in samples.items():
        ratios[name] = statistics.median(taken.init_to_floor)
        cells = [f"{statistics.median(taken.init):.0f}", f"{ratios[name]:.2f}"]
        cells += [f"{statistics.median(s):.0f}" if s else "" for s in (taken.first_plain, taken.first_secret)]
        if taken.around:
            more[name] = statistics.median(taken.around) - floor_around
            cells += [f"{statistics.median(s):.2f}" for s in (taken.warm, taken.around)]
            cells += ["" if name == FLOOR else f"{more[name]:.2f}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {name.removesuffix('Function')} | {' | '.join(cells)} |")
    goals = [
        ("init of HTTP functions / floor", max(ratios[name] for name in HTTP), INIT_RATIO_MAX_HTTP),
        ("init of scheduled and queue functions / floor", max(ratios[name] for name in OTHERS), INIT_RATIO_MAX_OTHERS),
        ("around the service call, more than the floor, ms", max(more[name] for name in HTTP), OVERHEAD_MAX_MS),
    ]
    lines.append("")
    lines += [
        f"- {what}: at most {reached:.2f}, goal {goal} ({'reached' if reached <= goal else 'missed'})"
        for what, reached, goal in goals
    ]
    return "\n".join(lines)


def _furnish(functions: Deployment) -> None:
    """Bring the stores to where the requests succeed."""
    assert functions.warm("MigrateFunction").invoke({"command": "open"})["opened"] == 1
    functions.post("/mark-price", symbol="BTC-PERP", price="50000")
    for account_id in range(1, 11):
        functions.post(f"/accounts/{account_id}/deposits", amount="100000")
        functions.post("/trade", **{**ORDER, "account_id": account_id})


def _folder(directory: Path, name: str) -> Path:
    (directory / name).mkdir()
    return directory / name


def measure(machine: Machine, directory: Path, valkey: EmbeddedValkey, postgres: EmbeddedPostgres, aws: Aws) -> str:
    """Build, run all benchmarks and return the table."""
    artefact = artefacts.build(machine, directory / "build")
    stores = Stores(valkey, postgres)
    aws.put_secret("margin/redis", username=USER, password=stores.redis_password)
    aws.put_secret("margin/postgres", username=USER, password=stores.postgres_password)
    aws.put_secret("margin/owner", username=OWNER, password=stores.owner_password)
    secret = {
        "AWS::StackName": "margin-bench",
        "RedisHost": valkey.host,
        "RedisPort": str(valkey.port),
        "RedisTls": "false",
        "RedisSecretName": "margin/redis",
        "PostgresHost": postgres.host,
        "PostgresPort": str(postgres.port),
        "PostgresUser": USER,
        "PostgresDatabase": USER,
        "PostgresSslMode": "disable",
        "PostgresSecretName": "margin/postgres",
        "PostgresOwner": OWNER,
        "PostgresOwnerSecretName": "margin/owner",
        "LiquidationsQueue": aws.make_queue("liquidations"),
        # Counted, as in a deployment, and never reached: one caller asks for one account as fast as it can.
        **dict.fromkeys(
            ("RateLimitAccountPerS", "RateLimitAccountBurst", "RateLimitTokenPerS", "RateLimitTokenBurst"), "1000000"
        ),
    }
    plain = {**secret, "RedisSecretName": "", "PostgresSecretName": "", "PostgresUser": postgres.user}
    outside = {"AWS_ENDPOINT_URL": aws.url}
    functions = Deployment(machine, artefact, parameters=secret, outside=outside, logs=_folder(directory, "furnish"))
    try:
        _furnish(functions)
    finally:
        functions.end()
        stores.close()
    bench = Bench(machine, artefact, _folder(directory, "bench"), plain=plain, secret=secret, outside=outside)
    bench.cold()
    bench.warm()
    return table(bench.samples)


def main() -> None:
    """Start servers, measure, stop them."""
    try:
        machine = prepare()
    except UnfitMachineError as error:
        print(f"cold starts were not measured: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="margin-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        valkey = EmbeddedValkey(directory / "valkey")
        postgres = EmbeddedPostgres(directory / "postgres")
        aws = Aws(directory / "moto.log")
        try:
            valkey.start()
            postgres.start()
            print(f"median of {COLD_STARTS} cold starts and of {WARM_REQUESTS} warm requests\n")
            print(measure(machine, directory, valkey, postgres, aws))
        finally:
            aws.stop()
            postgres.stop()
            valkey.stop()


if __name__ == "__main__":
    main()
