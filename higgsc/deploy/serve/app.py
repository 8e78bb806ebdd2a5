"""The server put together, and run until it is told to stop."""

from __future__ import annotations

import logging
import signal
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
from higgsc.deploy.serve.settings import Settings
from higgsc.deploy.serve.voices import load_voices
from higgsc.deploy.serve.worker import Worker
from higgsc.deploy.voice import Voice


def make_app(speaker: Speaker, voices: Mapping[str, Voice], settings: Settings) -> ASGIApp:
    """The application: routes behind the guard, and the thread that speaks while it runs."""
    metrics = Metrics()
    worker = Worker(speaker, settings.limits, metrics)

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
    limits = settings.limits
    return uvicorn.Server(
        uvicorn.Config(
            make_app(speaker, voices, settings),
            host=settings.host,
            port=settings.port,
            http=patient_protocol(limits),
            ws="none",
            loop="asyncio",
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=round(limits.drain_seconds),
            server_header=False,
            proxy_headers=False,
            access_log=False,
            log_level=logging.INFO,
        )
    )


def serve(speaker: Speaker, settings: Settings, *, voices: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C; what waits and is spoken is finished first, within `drain_seconds`.

    A second signal ends it at once.

    Raises:
        StepError: See `load_voices`.
    """
    server = make_server(speaker, {} if voices is None else load_voices(voices, speaker), settings)
    # uvicorn sends itself the signal once more when it is done, for the handler that was there before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _done)
    server.run()


def _done(_signal: int, _frame: Any) -> None:
    """The server has come to its end in good order: the process ends with 0."""
