"""A deployed stack on this machine: every function of a build, started when it is first called."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

from tests.events import api_gateway_event
from tests.runtime.emulator import Emulator
from tests.runtime.machine import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.artefact import Artefact
    from tests.runtime.machine import Machine

EVENTS = ROOT / "events"


def event(name: str) -> dict[str, Any]:
    """Read an event of the folder ``events``."""
    return event_of(EVENTS / f"{name}.json")


def event_of(path: Path) -> dict[str, Any]:
    """Read an event."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer of an HTTP function."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Deployment:
    """The functions.

    Parameters
    ----------
    machine, artefact : Machine, Artefact
        What runs on what.
    parameters : dict of str
        Of the template.
    outside : dict of str
        Variables beside the template's: where AWS is.
    logs : Path
        A folder for the functions' logs.
    """

    def __init__(
        self, machine: Machine, artefact: Artefact, *, parameters: dict[str, str], outside: dict[str, str], logs: Path
    ) -> None:
        self.artefact = artefact
        self._machine = machine
        self._parameters = parameters
        self._outside = outside
        self._logs = logs
        self._numbers = itertools.count(1)
        self._kept: dict[str, Emulator] = {}
        self._extra: list[Emulator] = []

    def warm(self, name: str) -> Emulator:
        """Return the function's execution environment that is kept from test to test."""
        if name not in self._kept:
            self._kept[name] = self._start(name)
        return self._kept[name]

    def fresh(
        self, name: str, *, timeout_s: int | None = None, parameters: dict[str, str] | None = None, **changes: str
    ) -> Emulator:
        """Start another execution environment, with some things changed; `end_fresh` ends it."""
        self._extra.append(self._start(name, timeout_s=timeout_s, parameters=parameters, **changes))
        return self._extra[-1]

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Reply:
        """Send a request to the function that the API hands it to."""
        return self.send(api_gateway_event(method, path, body, **options))

    def send(self, request: dict[str, Any], to: Emulator | None = None) -> Reply:
        """Send the API's event for a request, to its function or to one execution environment."""
        http = request["requestContext"]["http"]
        answer = (to or self.warm(self.artefact.function_of(http["method"], http["path"]))).invoke(request)
        assert "statusCode" in answer, answer
        assert answer["isBase64Encoded"] is False
        return Reply(answer["statusCode"], answer["headers"], answer["body"])

    def post(self, path: str, **body: Any) -> Any:
        """Return the answer to a request that is expected to succeed."""
        reply = self.call("POST", path, body)
        assert reply.status == 200, reply.text
        return reply.json

    def get(self, path: str) -> Any:
        """Return the answer to a request that is expected to succeed."""
        reply = self.call("GET", path)
        assert reply.status == 200, reply.text
        return reply.json

    def end_fresh(self) -> None:
        """End what `fresh` started."""
        while self._extra:
            self._extra.pop().stop()

    def end_kept(self) -> None:
        """End what `warm` keeps; it is started anew when it is asked for."""
        while self._kept:
            self._kept.popitem()[1].stop()

    def end(self) -> None:
        """End all."""
        self.end_fresh()
        self.end_kept()

    def _start(
        self, name: str, *, timeout_s: int | None = None, parameters: dict[str, str] | None = None, **changes: str
    ) -> Emulator:
        properties = self.artefact.functions[name].properties
        given = self._parameters | (parameters or {})
        return Emulator(
            self._machine,
            folder=self.artefact.folder(name),
            layer=self.artefact.layer,
            handler=properties["Handler"],
            variables=self.artefact.variables(name, given, **changes) | self._outside,
            timeout_s=timeout_s or properties["Timeout"],
            memory_mb=properties["MemorySize"],
            log=self._logs / f"{name}-{next(self._numbers)}.log",
        )
