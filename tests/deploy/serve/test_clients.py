"""Real clients against a server that runs: the `openai` package, curl, and what they are told."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("fastapi")

from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.voice import Voice  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402

CLIP = Path(__file__).parents[3] / "specs/data/quickstart/audio/huda-01.flac"
TWO_PIECES = (
    "A first sentence of some length, which says nothing. " * 3 + "A second one of that kind follows at once. " * 2
)


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any]) -> Iterator[Any]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused", max_retries=0)


def said(speaker: Speaker, voice: Voice, text: str, **options: Any) -> np.ndarray:
    """What the model says without a server in between, in 16 bits."""
    sampling = Sampling(temperature=options.pop("temperature", 0.7))
    wave = speaker.speak(voice, text, sampling=sampling, max_seconds=2, **options).wave
    return (np.clip(wave, -1, 1) * 32767).astype("<i2")


def test_openai_gets_the_speech_of_the_model(client: Any, server: Any, speaker: Speaker, voice: Voice) -> None:
    speech = client.audio.speech.create(model="tiny", voice="huda", input="good bye", extra_body={"seed": 3})
    assert speech.response.headers["content-type"] == "audio/wav"
    wave, rate = soundfile.read(io.BytesIO(speech.content), dtype="int16")
    assert rate == 24_000
    expected = said(speaker, voice, "good bye", seed=3)
    assert np.abs(wave.astype(int) - expected).max() <= 2  # libsndfile scales and rounds a little differently
    # Greedy, as FLAC: the fields that OpenAI does not have do what they say.
    flac = client.audio.speech.create(
        model="tiny", voice="huda", input="good bye", response_format="flac", extra_body={"temperature": 0}
    )
    wave, _ = soundfile.read(io.BytesIO(flac.content), dtype="int16")
    assert np.abs(wave.astype(int) - said(speaker, voice, "good bye", temperature=0)).max() <= 2


def test_openai_streams_a_long_text_sentence_by_sentence(
    client: Any, server: Any, speaker: Speaker, voice: Voice
) -> None:
    before = server.figure("higgsc_generation_seconds_count")
    counts = []
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="huda", input=TWO_PIECES, response_format="pcm", extra_body={"seed": 5}
    ) as answer:
        parts = []
        for part in answer.iter_bytes():
            parts.append(part)
            counts.append(server.figure("higgsc_generation_seconds_count"))
    assert counts[0] == before, "the first piece is there before the whole request has been spoken"
    assert np.array_equal(np.frombuffer(b"".join(parts), "<i2"), said(speaker, voice, TWO_PIECES, seed=5))


@pytest.mark.parametrize(
    "change,error,word",
    [
        ({"voice": "nobody"}, "NotFoundError", "huda"),
        ({"model": "gpt-4o-mini-tts"}, "NotFoundError", "tiny"),
        ({"response_format": "mp3"}, "BadRequestError", "wav"),
        ({"speed": 1.5}, "BadRequestError", "speed"),
        ({"instructions": "shout"}, "BadRequestError", "instructions"),
        ({"stream_format": "sse"}, "BadRequestError", "stream_format"),
        ({"input": " "}, "BadRequestError", "empty"),
        ({"input": "a <|eot_id|>"}, "BadRequestError", "control token"),
        ({"input": "a" * 2_001}, "BadRequestError", "2,000"),
        ({"extra_body": {"seed": -1}}, "BadRequestError", "seed"),
        ({"extra_body": {"temperature": 9}}, "BadRequestError", "temperature"),
        ({"extra_body": {"voice_url": "http://169.254.169.254/"}}, "BadRequestError", "voice_url"),
    ],
)
def test_openai_is_told_what_is_wrong(client: Any, change: dict[str, Any], error: str, word: str) -> None:
    arguments = {"model": "tiny", "voice": "huda", "input": "good bye", **change}
    with pytest.raises(getattr(openai, error)) as raised:
        client.audio.speech.create(**arguments)
    assert word in raised.value.body["message"]


def test_curl_speaks_and_clones(server: Any, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.port}"
    speech = '{"model": "tiny", "voice": "huda", "input": "مرحبا"}'
    for arguments in (
        ("-H", "Content-Type: application/json", "-d", speech, f"{url}/v1/audio/speech"),
        (
            *("-F", f"reference_audio=@{CLIP}", "-F", "reference_text=hello there", "-F", "target_text=good bye"),
            f"{url}/generate_speech",
        ),
        ("-F", "speaker_name=huda", "-F", "target_text=good bye", "-F", "seed=4", f"{url}/generate_speech"),
    ):
        out = tmp_path / "out.wav"
        subprocess.run(["curl", "--fail-with-body", "-sS", "-o", out, *arguments], check=True, timeout=60)
        assert soundfile.info(out).samplerate == 24_000
        assert soundfile.info(out).frames > 0


def test_an_upload_is_the_voice_that_it_would_be_as_a_file(server: Any, speaker: Speaker) -> None:
    answer = server.clone(CLIP.read_bytes(), seed="9", response_format="pcm")
    voice = speaker.voice(CLIP, "hello there")
    assert np.array_equal(np.frombuffer(answer.content, "<i2"), said(speaker, voice, "good bye", seed=9))


def test_what_it_tells_about_itself(server: Any) -> None:
    assert server.client.get("/health").json() == {"status": "ok", "waiting": 0}
    assert server.client.get("/v1/voices").json() == {"voices": [{"name": "huda", "seconds": 1.0}]}
    assert server.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    before = server.figure("higgsc_audio_seconds_total")
    answer = server.speech()
    seconds = (len(answer.content) - 44) / 48_000
    assert server.figure("higgsc_audio_seconds_total") - before == pytest.approx(seconds)
    assert server.figure('higgsc_requests_total{route="/v1/audio/speech",status="200"}') >= 1
    assert server.figure("process_resident_memory_bytes") > 1e7
    assert answer.headers["x-content-type-options"] == "nosniff"
    # Another path is counted as one of many, so that nobody can fill the memory with names.
    assert server.client.get("/etc/passwd").status_code == 404
    assert server.client.get("/docs").status_code == 404
    assert server.figure('higgsc_requests_total{route="other",status="404"}') >= 2
