"""Everything that comes in has a limit, whatever it says about itself."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("fastapi")

HEAD = b"POST /generate_speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="reference_audio"; filename="r.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any]) -> Iterator[Any]:
    with serving(body_seconds=1.0, header_seconds=1.0, write_seconds=1.0) as running:
        yield running


@pytest.fixture(autouse=True)
def still_speaks_afterwards(server: Any) -> Iterator[None]:
    yield
    assert server.client.get("/health").json() == {"status": "ok", "waiting": 0}
    assert server.speech().status_code == 200


def sound(seconds: float, *, rate: int = 24_000, channels: int = 1, form: str = "WAV", level: float = 0.1) -> bytes:
    samples = level * np.random.default_rng(0).standard_normal((int(seconds * rate), channels)).clip(-1, 1)
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form)
    return stream.getvalue()


def test_an_upload_beyond_the_limit(server: Any) -> None:
    answer = server.clone(b"RIFF" + bytes(1_500_000))
    assert answer.status_code == 413
    assert "1,000,000 bytes" in answer.json()["error"]["message"]
    # It is refused by what it says it will send, before it has sent anything.
    assert server.raw(HEAD + b"Content-Length: 9000000000\r\n\r\n").startswith(b"HTTP/1.1 413")
    assert server.raw(HEAD + b"Content-Length: -5\r\n\r\n").startswith(b"HTTP/1.1 4")
    body = {"model": "tiny", "voice": "huda", "input": "a" * 100_000}
    assert server.client.post("/v1/audio/speech", json=body).status_code == 413


def test_an_upload_that_says_nothing_or_something_false_about_its_length(server: Any) -> None:
    # Chunked, without end: what is read is counted.
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(PART), PART))
        chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
        for _ in range(200):
            try:
                connection.sendall(chunk)
            except OSError:
                break
        connection.settimeout(5)
        try:
            answer = connection.recv(65_536)
        except ConnectionResetError:
            pytest.fail("the refusal could not be read")
        assert answer.startswith(b"HTTP/1.1 413")
    # Less than announced: it is waited for as long as a body may take.
    start = time.monotonic()
    assert server.raw(HEAD + b"Content-Length: 5000\r\n\r\n--x\r\n").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 5
    # More than announced: what is beyond is no part of the request.
    answer = server.raw(HEAD + b"Content-Length: 5\r\nConnection: close\r\n\r\n--x--" + bytes(100_000))
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "audio,word",
    [
        (sound(3_600, level=0, form="FLAC", rate=8_000), "more than 5 s"),
        (sound(0.2), "0.20 s"),
        (sound(2, level=0), "silent"),
        (sound(1, channels=8, rate=8_000), "8 channels"),
        (sound(1, rate=4_000), "4000 Hz"),
        (sound(1)[:44], "0.00 s|empty"),
        (sound(1)[:20], "no audio|not audio"),
        (b"\x1aE\xdf\xa3" + bytes(2_000), "no audio"),
        (b"", "no audio|`reference_audio`"),
        (b"<?xml version='1.0'?><!DOCTYPE a SYSTEM 'file:///etc/passwd'>", "no audio"),
    ],
    ids=["bomb", "short", "silent", "channels", "rate", "header only", "half a header", "webm", "empty", "xml"],
)
def test_recordings_that_are_none(server: Any, audio: bytes, word: str) -> None:
    assert len(audio) < 1_000_000
    answer = server.clone(audio)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert any(part in message for part in word.split("|")), message
    assert "/tmp" not in message


def test_a_forged_sample_rate_and_length(server: Any) -> None:
    honest = bytearray(sound(4))
    for rate, length in ((8_000, None), (192_000, None), (24_000, 0xFFFFFFF0)):
        forged = bytearray(honest)
        forged[24:28] = rate.to_bytes(4, "little")
        if length is not None:
            forged[40:44] = length.to_bytes(4, "little")
        answer = server.clone(bytes(forged))
        # 12 s at the lower rate; a shorter clip at the higher; with the length, what there is.
        assert answer.status_code == (400 if rate == 8_000 else 200), answer.text


def test_forms_and_bodies_of_another_kind(server: Any) -> None:
    post, audio = server.client.post, {"reference_audio": ("r.wav", sound(1))}
    fields = {"reference_text": "hello", "target_text": "good bye"}
    assert post("/generate_speech", json={}).status_code == 415
    assert post("/generate_speech", content=b"junk", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert post("/v1/audio/speech", content=b"[[[[" * 10_000).status_code == 400
    assert post("/v1/audio/speech", content=b"\xff\xfe").status_code == 400
    assert post("/v1/audio/speech", json=[1]).status_code == 400
    assert server.client.get("/v1/audio/speech").status_code == 405
    for data, files, word in (
        ({**fields, "reference_audio": "http://169.254.169.254/x.wav"}, {}, "reference_audio"),
        (fields, {}, "reference_audio"),
        ({"target_text": "good bye"}, audio, "reference_text"),
        ({"reference_text": "hello"}, audio, "target_text"),
        ({**fields, "speaker_name": "huda"}, audio, "either"),
        ({**fields, "speaker_name": "../huda"}, {}, "no voice"),
        ({**fields, "colour": "red"}, audio, "colour"),
        ({**fields, "seed": "x"}, audio, "seed"),
        (fields, {"other": ("r.wav", sound(1))}, "reference_audio"),
        (fields, [("reference_audio", ("a", sound(1))), ("reference_audio", ("b", sound(1)))], "Too many files"),
    ):
        answer = post("/generate_speech", data=data, files=files or {"": ("", b"")})
        assert answer.status_code in (400, 404), answer.text
        assert word in answer.json()["error"]["message"], answer.text


def test_slow_clients(server: Any) -> None:
    start = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
    slow[0].sendall(b"GET /health HT")  # a head that does not end
    slow[1].sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + PART)
    slow[2].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # one that stays after its answer
    answer = b""
    while not answer.endswith(b"}"):  # head and body may come apart
        answer += slow[2].recv(10_000)
    slow[2].sendall(b"GET /hea")
    for _ in range(15):  # a byte now and then does not help it
        time.sleep(0.1)
        try:
            slow[1].sendall(b"x")
        except OSError:
            break
    assert slow[0].recv(10_000) == b""
    answers = []
    for connection in slow[1:]:
        try:
            answers.append(connection.recv(10_000))
        except ConnectionResetError:
            answers.append(b"")
    assert answers[0].startswith(b"HTTP/1.1 408")
    assert answers[1] == b""
    assert time.monotonic() - start < 8
    for connection in slow:
        connection.close()


def test_a_client_that_leaves_while_it_sends_is_no_error_of_the_server(server: Any) -> None:
    name = 'higgsc_requests_total{route="/v1/audio/speech",status="%d"}'
    left, failed = server.figure(name % 499), server.figure(name % 500)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
    server.wait_for(name % 499, left + 1)
    assert server.figure(name % 500) == failed


def test_a_client_that_does_not_read_is_dropped_and_nothing_more_is_spoken_for_it(server: Any) -> None:
    dropped = server.figure('higgsc_dropped_total{reason="left"}')
    body = (
        '{"model":"tiny","voice":"huda","response_format":"pcm","input":"'
        + "A sentence of no meaning at all. " * 55
        + '"}'
    ).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        # Some audio fits into the buffers of the kernel; leaving is seen either way.
        time.sleep(1)
    server.wait_for('higgsc_dropped_total{reason="left"}', dropped + 1)
    server.wait_for("higgsc_speaking", 0)


@pytest.mark.parametrize(
    "headers,status",
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "[::1]:1", "Origin": "http://127.0.0.1:1"}, 200),
    ],
)
def test_pages_of_other_sites_have_no_business_here(server: Any, headers: dict[str, str], status: int) -> None:
    assert server.client.get("/v1/voices", headers=headers).status_code == status
