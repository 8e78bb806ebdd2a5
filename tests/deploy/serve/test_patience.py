"""How long a client may take to read its answer: as long as it reads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")

from higgsc.deploy.serve.patience import patient_protocol  # noqa: E402
from higgsc.deploy.serve.settings import Limits  # noqa: E402

SIZE = 24_000_000
"""Bytes of the answer, more than kernels keep for one connection."""


async def large(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer is handed over at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % SIZE)]})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


@contextmanager
def asked() -> Iterator[socket.socket]:
    """A connection whose answer is on its way, to a server that waits for half a second."""
    config = uvicorn.Config(
        large, port=0, http=patient_protocol(Limits(write_seconds=0.5)), lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            yield connection
    finally:
        server.should_exit = True
        thread.join()


def read(connection: socket.socket, *, pause: float) -> int:
    """Bytes until the connection ends, a little before each pause."""
    total = 0
    try:
        while piece := connection.recv(1 << 20):
            total += len(piece)
            time.sleep(pause)
    except ConnectionResetError:
        pass
    return total


def test_who_reads_slowly_gets_everything() -> None:
    with asked() as connection:
        began = time.monotonic()
        assert read(connection, pause=0.1) > SIZE
        assert time.monotonic() - began > 1


def test_who_does_not_read_is_dropped() -> None:
    with asked() as connection:
        time.sleep(2)
        assert read(connection, pause=0) < SIZE
