"""Servers that run: in a thread of the test's process, or as the command, with the tiny model behind real HTTP."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.serve.app import make_server  # noqa: E402
from higgsc.deploy.serve.settings import Limits, Settings  # noqa: E402
from higgsc.deploy.voice import Voice  # noqa: E402

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "specs/data/quickstart/audio/huda-01.flac"
SAID = "hello there"
LONG = "This sentence belongs to a text that takes a while to be said. " * 30
"""Ten pieces, of two seconds each where a piece has as many."""


@dataclass
class Running:
    """A server, and a client for it."""

    port: int
    client: Any
    stop: Callable[[], None] = lambda: None
    """What SIGTERM does."""

    def speech(self, text: str = "good bye", **fields: Any) -> Any:
        body = {"model": "tiny", "voice": "huda", "input": text, **fields}
        return self.client.post("/v1/audio/speech", json=body)

    def clone(self, audio: bytes, **fields: Any) -> Any:
        data = {"reference_text": SAID, "target_text": "good bye", **fields}
        return self.client.post("/generate_speech", data=data, files={"reference_audio": ("r.wav", audio)})

    def figure(self, name: str) -> float:
        """A metric's value, 0 if it is not there yet."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait_for(self, name: str, value: float, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while self.figure(name) != value:
            assert time.monotonic() < end, f"{name} is {self.figure(name)}, not {value}, after {seconds} s"
            time.sleep(0.05)

    def raw(self, data: bytes, *, timeout: float = 10) -> bytes:
        """Bytes as they are, and all that comes back until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or resets."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    torch.set_num_threads(1)
    return Speaker.load("builtin:tiny", "builtin:tiny")


@pytest.fixture(scope="session")
def voice(speaker: Speaker) -> Voice:
    return speaker.voice(read_mono(CLIP, max_seconds=30)[:24_000], SAID)


@pytest.fixture(scope="session")
def serving(speaker: Speaker, voice: Voice) -> Callable[..., Any]:
    """`with serving(queue=2) as server`: in a thread, with the limits and settings given."""

    @contextmanager
    def start(token: str | None = None, **limits: Any) -> Iterator[Running]:
        small = {"piece_seconds": 2.0, "characters": 2_000, "upload_bytes": 1_000_000, "reference_seconds": 5.0}
        settings = Settings(name="tiny", port=0, token=token, limits=Limits(**{**small, **limits}))
        server = make_server(speaker, {"huda": voice}, settings)
        thread = threading.Thread(target=server.run)

        def stop() -> None:
            server.should_exit = True

        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                yield Running(port, client, stop)
        finally:
            stop()
            thread.join(timeout=30)
            assert not thread.is_alive()

    return start


@dataclass
class Command:
    """`higgsc serve`, as a process of its own."""

    process: subprocess.Popen[str]
    running: Running
    log: Path

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command with further arguments; whatever was started is gone after the test."""
    voices = tmp_path / "voices"
    voices.mkdir()
    (voices / "huda.flac").write_bytes(CLIP.read_bytes())
    (voices / "huda.txt").write_text(SAID)
    started: list[Command] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Command:
        log = tmp_path / f"log-{len(started)}"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "higgsc", "serve", "builtin:tiny", "--audio-tokenizer", "builtin:tiny"),
                    *("--voices", str(voices), "--name", "tiny", "--port", "0", "--max-seconds", "2", *arguments),
                ],
                stderr=stream,
                stdout=stream,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        end = time.monotonic() + 90
        while not (found := re.search(r"running on http://\S+:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        port = int(found.group(1))
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        started.append(Command(process, Running(port, client), log))
        return started[-1]

    yield start
    for one in started:
        one.running.client.close()
        if one.process.poll() is None:
            one.signal(signal.SIGKILL)
        one.process.wait(timeout=10)
