"""The routes: OpenAI's `/v1/audio/speech`, `/generate_speech` with an upload, and what tells about the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from higgsc.contract.outcome import StepError
from higgsc.deploy.generate import Speaker, Speech
from higgsc.deploy.serve import asks, sound, worker
from higgsc.deploy.serve.errors import RequestError
from higgsc.deploy.serve.metrics import CONTENT_TYPE, Metrics
from higgsc.deploy.serve.page import page
from higgsc.deploy.serve.settings import Settings
from higgsc.deploy.voice import Voice, Wave

Result = TypeVar("Result")

_DECODING_AT_ONCE = 2
"""Recordings that are decoded at the same time: each may take some 50 MB for a moment."""


class Routes:
    """Handlers, with what they share."""

    def __init__(
        self,
        settings: Settings,
        voices: Mapping[str, Voice],
        speaking: worker.Worker,
        speaker: Speaker,
        metrics: Metrics,
    ) -> None:
        self._settings, self._limits = settings, settings.limits
        self._voices, self._worker, self._speaker, self._metrics = voices, speaking, speaker, metrics
        self._decoding = asyncio.Semaphore(_DECODING_AT_ONCE)

    def add_to(self, app: FastAPI) -> None:
        """Register all of them."""
        app.get("/", include_in_schema=False)(self.page)
        app.get("/health")(self.health)
        app.get("/metrics")(self.figures)
        app.get("/v1/models")(self.models)
        app.get("/v1/voices")(self.list_voices)
        app.post("/v1/audio/speech")(self.speech)
        app.post("/generate_speech")(self.generate_speech)
        app.exception_handler(RequestError)(_answer)
        app.exception_handler(HTTPException)(_answer)
        app.exception_handler(ClientDisconnect)(_left)

    async def page(self) -> Response:
        """A page to try the server."""
        text, policy = page()
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})

    async def health(self) -> Response:
        """Whether requests will be spoken."""
        good = self._worker.alive
        return JSONResponse(
            {"status": "ok" if good else "the model's thread has ended", "waiting": self._worker.waiting},
            status_code=200 if good else 503,
        )

    async def figures(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def models(self) -> Response:
        """The one model."""
        model = {"id": self._settings.name, "object": "model", "owned_by": "higgsc"}
        return JSONResponse({"object": "list", "data": [model]})

    async def list_voices(self) -> Response:
        """The registered voices."""
        voices = [{"name": name, "seconds": voice.seconds} for name, voice in self._voices.items()]
        return JSONResponse({"voices": voices})

    async def speech(self, request: Request) -> Response:
        """OpenAI's route: a text in a registered voice."""
        ask = asks.checked(asks.SpeechAsk, await request.body())
        if ask.model != self._settings.name:
            raise RequestError(
                404,
                f"there is no model `{ask.model}` here, but `{self._settings.name}`",
                param="model",
                code="not_found",
            )
        voice = self._registered(ask.voice, "voice")
        return await self._speak(request, ask, self._sayable(ask.input, "input"), lambda: voice, ask.response_format)

    async def generate_speech(self, request: Request) -> Response:
        """A text in the voice of a recording that comes along, or in a registered one."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise RequestError(415, "send a multipart/form-data form", code="unsupported_media_type")
        async with request.form(max_files=1, max_fields=16, max_part_size=self._limits.json_bytes) as form:
            recording = form.get("reference_audio")
            fields = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
            stray = [
                name for name, value in form.items() if isinstance(value, UploadFile) and name != "reference_audio"
            ]
            if stray or isinstance(recording, str):
                raise RequestError(400, "the one file of the form is `reference_audio`", param="reference_audio")
            ask = asks.checked(asks.CloneAsk, fields)
            text = self._sayable(ask.target_text, "target_text")
            if (recording is None) == (ask.speaker_name is None):
                raise RequestError(
                    400,
                    "give either `reference_audio` with `reference_text`, or the `speaker_name` of a registered voice",
                    param="reference_audio",
                )
            if recording is None:
                voice = self._registered(ask.speaker_name or "", "speaker_name")
                source: Callable[[], Voice] = lambda: voice  # noqa: E731
            else:
                if ask.reference_text is None:
                    raise RequestError(400, "`reference_text`: write what the recording says", param="reference_text")
                said = self._sayable(ask.reference_text, "reference_text")
                self._worker.check_room()
                wave = await self._decode(recording)
                source = lambda: self._speaker.voice(wave, said)  # noqa: E731
        return await self._speak(request, ask, text, source, ask.response_format)

    def _registered(self, name: str, param: str) -> Voice:
        if name not in self._voices:
            known = ", ".join(self._voices) or "none is registered; send a recording to /generate_speech"
            raise RequestError(404, f"there is no voice `{name}`: {known}", param=param, code="not_found")
        return self._voices[name]

    def _sayable(self, text: str, param: str) -> str:
        if len(text) > self._limits.characters:
            raise RequestError(
                400,
                f"`{param}` has {len(text):,} characters; at most {self._limits.characters:,} are spoken",
                param=param,
                code="too_long",
            )
        try:
            self._speaker.clean(text)
        except StepError as error:
            raise RequestError(400, f"`{param}`: {error.message}", param=param) from None
        return text

    async def _decode(self, recording: UploadFile) -> Wave:
        async with self._decoding:
            try:
                return await run_in_threadpool(
                    sound.read_upload, recording.file, max_seconds=self._limits.reference_seconds
                )
            except StepError as error:
                raise RequestError(400, error.message, param="reference_audio", code="bad_audio") from None

    async def _speak(
        self, request: Request, ask: asks.SamplingAsk, text: str, voice: Callable[[], Voice], form: sound.Format
    ) -> Response:
        """The answer: PCM piece by piece as it is spoken, a file when all of it is."""
        pieces = self._worker.pieces(
            worker.Request(
                voice=voice,
                text=text,
                seed=ask.seed,
                sampling=ask.sampling(),
                deadline=time.monotonic() + self._limits.request_seconds,
            )
        )
        media_type = sound.MEDIA_TYPES[form]
        if form == "pcm":
            # The status is sent with the first sound: until then an error is still one.
            first = _spoken(await _unless_gone(request, _first(pieces)))
            return StreamingResponse(_stream(first, pieces), media_type=media_type)
        said = await _unless_gone(request, _collect(pieces))
        _spoken(next((piece for piece in said if len(piece.wave)), None))
        finished = all(piece.finished for piece in said)
        body = await run_in_threadpool(sound.encode, np.concatenate([piece.wave for piece in said]), form)
        return Response(body, media_type=media_type, headers={"X-Speech-Finished": str(finished).lower()})


async def _answer(_: Request, error: RequestError | HTTPException) -> Response:
    if isinstance(error, HTTPException):  # no such path, no such method, no such form
        error = RequestError(error.status_code, str(error.detail), headers=error.headers)
    return error.response()


async def _left(_: Request, __: ClientDisconnect) -> Response:
    """While it sent its request."""
    return RequestError(499, "the client has left").response()


async def _first(pieces: AsyncIterator[Speech]) -> Speech | None:
    """The first piece that holds any sound; None if none does."""
    async for piece in pieces:
        if len(piece.wave):
            return piece
    return None


def _spoken(piece: Speech | None) -> Speech:
    """Raises RequestError (500) where nothing was said."""
    if piece is None:
        raise RequestError(500, "the model ended before it said anything; try another seed", code="no_speech")
    return piece


async def _collect(pieces: AsyncIterator[Speech]) -> list[Speech]:
    return [piece async for piece in pieces]


async def _stream(first: Speech, pieces: AsyncGenerator[Speech, None]) -> AsyncIterator[bytes]:
    """Ends early, without the end that HTTP has for it, when something goes wrong in the middle."""
    async with aclosing(pieces):
        yield sound.pcm(first.wave)
        async for piece in pieces:
            yield sound.pcm(piece.wave)


async def _unless_gone(request: Request, result: Coroutine[Any, Any, Result]) -> Result:
    """A result, unless the client leaves before it is there: then nobody goes on with it."""
    task, gone = asyncio.ensure_future(result), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client has left")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
