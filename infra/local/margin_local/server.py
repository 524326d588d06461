"""The local engine: stores, migrations, the demo's accounts, HTTP, and the scheduled functions, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import signal
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from margin import observability, runtime
from margin.errors import UnavailableError
from margin_local import access, demo_accounts, schedule
from margin_local.application import make_application
from margin_local.stores import LocalStores
from migrate_schema import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin.config import Settings
    from margin.http import Authenticator

# Standard output holds one line, the one that says where the engine answers.
_LOGGING = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
_LOGGING["handlers"]["access"]["stream"] = "ext://sys.stderr"

SHUTDOWN_S = 5
OPENING_TIMEOUT_S = 30.0


class PortTakenError(Exception):
    """Another program listens on the port already."""


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything else is started.

    Raises
    ------
    PortTakenError
        It is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, the server's sockets are known as TCP and answers are sent without waiting for
    # acknowledgements.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        message = (
            f"cannot listen on {host}:{port} ({error.strerror}); set PORT to a free one, for example PORT=8001 make run"
        )
        raise PortTakenError(message) from error
    return listener


class _Server(uvicorn.Server):
    """A server that stops when it is told to, tells when it answers, and leaves signals to us."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


async def serve(
    settings: Settings,
    stores: LocalStores,
    listener: socket.socket,
    authenticate: Authenticator,
    make_engine: Callable[[Settings], runtime.Engine] = runtime.Engine,
) -> None:
    """Run the engine until SIGINT or SIGTERM.

    Parameters
    ----------
    settings : Settings
        With the addresses of the stores.
    stores : LocalStores
        Watched, and started again when they die.
    listener : socket
        Where to serve; bound already.
    authenticate : Authenticator
        Says who sent a request.
    make_engine : callable
        Composes the engine.
    """
    engine = make_engine(settings)
    runtime.use(engine)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        make_application(title=settings.app_name, version=settings.app_version, authenticate=authenticate),
        log_level="info" if settings.debug else "warning",
        access_log=settings.debug,
        log_config=_LOGGING,
        lifespan="off",
        # Nobody stands in front of it who could say where a request came from: whoever says so is the caller.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    server = _Server(config, lambda: print(f"ready http://{host}:{port}", flush=True))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop, server)
    beside: list[asyncio.Task[None]] = []
    try:
        await _open(engine)
        await demo_accounts.seed(engine)
        beside = [
            asyncio.create_task(schedule.watch(stores, engine)),
            *(
                asyncio.create_task(schedule.run_scheduled(name, every_s, function))
                for name, (every_s, function) in schedule.SCHEDULED.items()
            ),
        ]
        if not server.should_exit:
            await server.serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await engine.close()
        runtime.use(None)


def run(
    settings: Settings,
    environment: dict[str, str],
    make_engine: Callable[[Settings], runtime.Engine] = runtime.Engine,
) -> None:
    """Start everything, serve, stop everything; ``make_engine`` composes the engine.

    Raises
    ------
    SettingError, PortTakenError, EmbeddedServerError, MarginError
        Nothing is left running.
    """
    authenticate = access.authenticator(settings)
    observability.configure(publish_metrics=False, log_level=_log_level(settings, environment), stream=sys.stderr)
    stores = LocalStores(settings, environment)
    with contextlib.closing(bind(settings.host, settings.port)) as listener:
        access.refuse_strangers(settings, listener.getsockname()[0])
        try:
            settings = stores.start()
            migrate(stores.owner(settings))
            access.warn(settings, environment)
            asyncio.run(serve(settings, stores, listener, authenticate, make_engine))
        finally:
            stores.stop()


async def _open(engine: runtime.Engine) -> None:
    """Open the state; another process may be doing it, or a store given from outside may just be starting."""
    deadline_s = asyncio.get_running_loop().time() + OPENING_TIMEOUT_S
    while True:
        try:
            await engine.opening.open()
        except UnavailableError as error:
            if not error.retryable or asyncio.get_running_loop().time() > deadline_s:
                raise
            await asyncio.sleep(0.2)
        else:
            return


def _stop(server: uvicorn.Server) -> None:
    """Finish what is under way and stop; asked a second time, do not wait for it."""
    server.force_exit = server.should_exit
    server.should_exit = True


def _log_level(settings: Settings, environment: dict[str, str]) -> str:
    """On a laptop only what is wrong, unless somebody asked for more."""
    if settings.debug:
        return "DEBUG"
    return settings.log_level if "LOG_LEVEL" in environment else "WARNING"
