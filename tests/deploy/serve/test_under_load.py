"""More than can be spoken, clients that leave, and the ways that a server ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx2")
pytest.importorskip("fastapi")

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.generate import Speech  # noqa: E402
from higgsc.deploy.serve.app import serve  # noqa: E402
from higgsc.deploy.serve.settings import Settings  # noqa: E402

ROOT = Path(__file__).parents[3]
LONG = "This sentence belongs to a text that takes a while to be said. " * 30


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any]) -> Iterator[Any]:
    with serving(queue=2, request_seconds=60.0) as running:
        yield running


def leaving(server: Any, form: str) -> Callable[[], None]:
    """Ask for a long speech; the function that is returned leaves."""
    client = httpx.Client(base_url=server.client.base_url, timeout=60)
    body = {"model": "tiny", "voice": "huda", "input": LONG, "response_format": form}

    def ask() -> None:
        try:
            with client.stream("POST", "/v1/audio/speech", json=body) as answer:
                for _ in answer.iter_bytes():
                    pass
        except httpx.HTTPError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def leave() -> None:
        # What a closed laptop does: the connection is gone, whatever it was doing.
        for connection in client._transport._pool.connections:
            connection._connection._network_stream.get_extra_info("socket").shutdown(2)
        thread.join(timeout=10)
        client.close()

    return leave


@pytest.mark.parametrize("form", ["wav", "pcm"])
def test_who_leaves_is_not_spoken_for(server: Any, form: str) -> None:
    before = server.figure('higgsc_dropped_total{reason="left"}')
    leave = leaving(server, form)
    server.wait_for("higgsc_speaking", 1)
    start = time.monotonic()
    leave()
    server.wait_for("higgsc_speaking", 0, seconds=5)
    assert time.monotonic() - start < 5, "the rest would have taken longer"
    assert server.figure('higgsc_dropped_total{reason="left"}') == before + 1
    assert server.speech().status_code == 200


def test_a_full_queue_says_when_to_come_again_and_who_leaves_it_makes_room(server: Any) -> None:
    leave = [leaving(server, "wav")]
    server.wait_for("higgsc_speaking", 1)
    leave += [leaving(server, "wav"), leaving(server, "pcm")]
    server.wait_for("higgsc_queue_length", 2)
    for answer in (server.speech(), server.clone((ROOT / "specs/data/quickstart/audio/huda-01.flac").read_bytes())):
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["type"] == "rate_limit_error"
    # What can be answered without the model still is.
    assert server.client.get("/health").json() == {"status": "ok", "waiting": 2}
    leave[2]()
    server.wait_for("higgsc_queue_length", 1)
    leave[0]()
    leave[1]()
    server.wait_for("higgsc_speaking", 0)
    assert server.speech().status_code == 200


def test_a_request_that_takes_too_long_is_ended(
    serving: Callable[..., Any], speaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Any] = []

    def endless(*_: Any, after_row: Callable[[], None], **__: Any) -> Iterator[Any]:
        yield from first
        while True:
            after_row()
            time.sleep(0.02)

    monkeypatch.setattr(speaker, "pieces", endless)
    with serving(request_seconds=0.5) as server:
        start = time.monotonic()
        answer = server.speech()
        assert answer.status_code == 504
        assert time.monotonic() - start < 5
        server.wait_for("higgsc_speaking", 0, seconds=5)
        # A stream that has begun ends without its end, which clients take for the error that it is.
        first.append(Speech(wave=np.zeros(960, np.float32), codes=np.zeros((1, 8), np.uint16), finished=True))
        with pytest.raises(httpx.RemoteProtocolError):
            server.speech(response_format="pcm")
        server.wait_for('higgsc_dropped_total{reason="timeout"}', 2)


def test_an_error_of_the_model_is_that_of_one_request(
    serving: Callable[..., Any], speaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        monkeypatch.setattr(speaker, "pieces", lambda *_, **__: 1 // 0)
        answer = server.speech()
        assert answer.status_code == 500
        assert "division" not in answer.text
        monkeypatch.undo()
        assert server.speech().status_code == 200
        assert server.figure('higgsc_dropped_total{reason="error"}') == 1


@pytest.mark.parametrize("form", ["wav", "pcm"])
def test_a_take_that_is_nothing_is_an_error_in_a_stream_too(
    serving: Callable[..., Any], speaker: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The status waits for the first sound, so that nothing at all is no 200 with an empty body."""

    def piece(frames: int) -> Speech:
        return Speech(
            wave=np.full(960 * frames, 0.5, np.float32), codes=np.zeros((frames, 8), np.uint16), finished=True
        )

    told: list[Speech] = [piece(0), piece(0)]
    monkeypatch.setattr(speaker, "pieces", lambda *_, **__: iter(told))
    with serving() as server:
        answer = server.speech(response_format=form)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "no_speech")
        server.wait_for("higgsc_speaking", 0)
        told += [piece(2), piece(0), piece(1)]
        answer = server.speech(response_format=form)
        assert answer.status_code == 200
        assert len(answer.content) == 3 * 960 * 2 + (44 if form == "wav" else 0)


def test_many_clients_with_good_and_bad_requests(server: Any) -> None:
    def ask(number: int) -> int:
        with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
            if number % 3 == 0:
                return int(client.post("/generate_speech", content=b"\0" * 300_000).status_code)
            text = "hi" if number % 3 == 1 else ""
            body = {"model": "tiny", "voice": "huda", "input": text}
            return int(client.post("/v1/audio/speech", json=body).status_code)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    assert set(answers[0::3]) == {415}
    assert set(answers[2::3]) == {400}
    assert set(answers[1::3]) <= {200, 429}
    assert 200 in answers[1::3]


def test_a_server_that_ends_finishes_what_it_took(serving: Callable[..., Any]) -> None:
    with serving(queue=4) as server, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.speech, "A text of some words, to be said.", seed=seed) for seed in range(3)]
        server.wait_for("higgsc_queue_length", 2)
        server.stop()
        assert [answer.result().status_code for answer in asked] == [200] * 3


def test_a_server_that_ends_tells_those_that_it_cannot_finish_for(serving: Callable[..., Any]) -> None:
    with serving(queue=4, drain_seconds=0.5) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.speech, LONG) for _ in range(2)]
        server.wait_for("higgsc_queue_length", 1)
        server.stop()
        answers = [answer.result() for answer in asked]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert "shutting down" in answers[0].text


def test_a_port_that_is_taken(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StepError, match="cannot listen") as raised:
            serve(speaker, Settings(name="tiny", port=taken.getsockname()[1]), voices=None)
    assert raised.value.code == ExitCode.IO


@pytest.mark.slow
def test_kill_9_and_a_new_start_and_sigterm(command: Callable[..., Any]) -> None:
    token = "correct-horse-battery-staple"
    one = command(environment={"HIGGSC_SERVE_TOKEN": token})
    shown = {"Authorization": f"Bearer {token}"}
    body = {"model": "tiny", "voice": "huda", "input": "hi", "seed": 1}
    said = one.running.client.post("/v1/audio/speech", json=body, headers=shown).content
    assert said.startswith(b"RIFF")
    assert token.encode() not in Path(f"/proc/{one.process.pid}/cmdline").read_bytes()
    one.signal(signal.SIGKILL)
    one.process.wait(timeout=10)

    two = command("--port", str(one.running.port))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(two.running.client.post, "/v1/audio/speech", json=body)
        two.running.wait_for("higgsc_speaking", 1)
        two.signal(signal.SIGTERM)
        assert asked.result().content == said
    assert two.process.wait(timeout=60) == 0, two.log.read_text()
    assert "Traceback" not in two.log.read_text()
    with pytest.raises(httpx.ConnectError):
        two.running.client.get("/health")


@pytest.mark.slow
def test_the_load_script_finds_nothing_but_429() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/serve.py", "--clients", "60", "--seconds", "8", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(result.stdout)
    assert set(figures["answers"]) == {"200", "429"}
