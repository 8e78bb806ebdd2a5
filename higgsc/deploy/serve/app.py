"""The server put together, and run until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

from higgsc.deploy.generate import Speaker
from higgsc.deploy.serve.guard import Guard
from higgsc.deploy.serve.metrics import Metrics
from higgsc.deploy.serve.patience import patient_protocol
from higgsc.deploy.serve.routes import Routes
from higgsc.deploy.serve.settings import Settings, cannot_listen
from higgsc.deploy.serve.voices import load_voices
from higgsc.deploy.serve.worker import Worker
from higgsc.deploy.voice import Voice

_LAST_RESORT_SECONDS = 10
"""After those who wait have been told, until connections are cut."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which tells those whose speech cannot be finished in time."""

    def __init__(self, config: uvicorn.Config, worker: Worker, drain_seconds: float) -> None:
        super().__init__(config)
        self._worker, self._drain_seconds = worker, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, finish what there is, end the rest."""
        timer = asyncio.get_running_loop().call_later(self._drain_seconds, self._worker.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _app(
    speaker: Speaker, voices: Mapping[str, Voice], settings: Settings, worker: Worker, metrics: Metrics
) -> ASGIApp:
    """The application: routes behind the guard, and the thread that speaks while it runs."""

    @asynccontextmanager
    async def at_work(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    # Its pages of documentation would load scripts from another site.
    app = FastAPI(title="higgsc", lifespan=at_work, docs_url=None, redoc_url=None, openapi_url=None)
    Routes(settings, voices, worker, speaker, metrics).add_to(app)
    known = frozenset(route.path for route in app.routes if isinstance(route, Route))
    return Guard(app, settings=settings, metrics=metrics, routes=known)


def make_server(speaker: Speaker, voices: Mapping[str, Voice], settings: Settings) -> uvicorn.Server:
    """The application with all that uvicorn has to know."""
    limits, metrics = settings.limits, Metrics()
    worker = Worker(speaker, limits, metrics)
    return DrainingServer(
        uvicorn.Config(
            _app(speaker, voices, settings, worker, metrics),
            host=settings.host,
            port=settings.port,
            http=patient_protocol(limits),
            ws="none",
            loop="asyncio",
            limit_concurrency=limits.connections + 1,  # it counts the one that it answers
            timeout_keep_alive=round(limits.idle_seconds),
            timeout_graceful_shutdown=round(limits.drain_seconds) + _LAST_RESORT_SECONDS,
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_level=logging.INFO,
        ),
        worker,
        limits.drain_seconds,
    )


def serve(speaker: Speaker, settings: Settings, *, voices: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C; what waits and is spoken is finished first, within `drain_seconds`.

    A second signal ends it at once.

    Raises:
        StepError: See `load_voices`; or the address is taken or not this machine's (74).
    """
    server = make_server(speaker, {} if voices is None else load_voices(voices, speaker), settings)
    # uvicorn sends itself the signal once more when it is done, for the handler that was there before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _done)
    try:
        server.run()
    except SystemExit as end:  # after a line that says why
        raise cannot_listen(settings) from end


def _done(_signal: int, _frame: Any) -> None:
    """The server has come to its end in good order: the process ends with 0."""
