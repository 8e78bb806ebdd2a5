"""The one thread that speaks, and the bounded queue before it.

Requests are spoken one by one: see `higgsc.deploy.generate` on why a batch would not say what each would alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.generate import Speaker, Speech
from higgsc.deploy.serve.errors import RequestError
from higgsc.deploy.serve.metrics import Metrics
from higgsc.deploy.serve.settings import Limits
from higgsc.deploy.voice import Voice
from higgsc.train.speech.sampling import Sampling

logger = logging.getLogger(__name__)

_END = None
"""After the last piece."""


Ending = Literal["left", "timeout", "shutdown"]
"""Why a request that was taken is not spoken to its end."""


class _DroppedError(Exception):
    """Raised between two rows of codes: nobody waits for this speech any more."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending: Ending = ending


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """A text that waits to be spoken, or is."""

    voice: Callable[[], Voice]
    """Called by the thread that speaks, as it may have to encode a recording."""
    text: str
    seed: int
    sampling: Sampling
    deadline: float
    """On the clock of `time.monotonic`."""
    queued: float = field(default_factory=time.monotonic)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    out: asyncio.Queue[Speech | RequestError | None] = field(default_factory=asyncio.Queue)
    ended: Ending | None = None
    """Set from another thread when nothing more is to be spoken."""

    def check(self) -> None:
        """Called between rows, 25 a second of speech."""
        if self.ended is not None:
            raise _DroppedError(self.ended)
        if time.monotonic() > self.deadline:
            raise _DroppedError("timeout")

    def give(self, item: Speech | RequestError | None) -> None:
        """Hand something over to the event loop, unless that has ended."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)


class Worker:
    """Speaks what is submitted, in the order of arrival."""

    def __init__(self, speaker: Speaker, limits: Limits, metrics: Metrics) -> None:
        self._speaker, self._limits, self._metrics = speaker, limits, metrics
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._average = 1.0
        self._speaking: Request | None = None
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)
        metrics.follow(lambda: len(self._waiting))

    def start(self) -> None:
        """Begin to speak."""
        self._thread.start()

    def give_up(self) -> None:
        """Take nothing more, and tell those who wait or are spoken for that the server ends (503)."""
        with self._changed:
            self._stopping = True
            for request in self._waiting:
                self._end(request, "shutdown")
            self._waiting.clear()
            if self._speaking is not None:
                self._speaking.ended = "shutdown"
            self._changed.notify()

    def stop(self) -> None:
        """`give_up`, and the end of the thread."""
        self.give_up()
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        """Whether the thread is at work; it ends with `stop` only, whatever a request does."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Refuse at once what `submit` would refuse.

        Raises:
            RequestError: The queue is full (429), with the time after which there may be room.
        """
        if len(self._waiting) >= self._limits.queue:
            seconds = min(max(round(self._average * len(self._waiting)), 1), 60)
            raise RequestError(
                429,
                f"{len(self._waiting)} requests are waiting already; try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    def submit(self, request: Request) -> None:
        """Put a request at the end of the queue.

        Raises:
            RequestError: The queue is full (429), or the server is shutting down (503).
        """
        with self._changed:
            if self._stopping:
                raise self._problem("shutdown")
            self.check_room()
            self._waiting.append(request)
            self._changed.notify()

    def drop(self, request: Request) -> None:
        """Nobody waits for a request any more: it leaves the queue, or is stopped within a row of codes."""
        with self._changed:
            request.ended = request.ended or "left"
            if request in self._waiting:
                self._waiting.remove(request)
                self._metrics.dropped.labels(request.ended).inc()

    async def pieces(self, request: Request) -> AsyncGenerator[Speech, None]:
        """What is spoken, as it comes; whoever ends this early drops the request.

        Raises:
            RequestError: See `submit`; and what went wrong while it was spoken.
        """
        self.submit(request)
        try:
            while True:
                try:
                    # A moment longer than the thread has, which looks at the clock between rows.
                    async with asyncio.timeout_at(request.loop.time() + request.deadline - time.monotonic() + 1):
                        item = await request.out.get()
                except TimeoutError:
                    request.ended = "timeout"
                    raise self._problem("timeout") from None
                if isinstance(item, RequestError):
                    raise item
                if item is _END:
                    return
                yield item
        finally:
            self.drop(request)

    def _end(self, request: Request, ending: Ending) -> None:
        """Tell why there will be no more."""
        self._metrics.dropped.labels(ending).inc()
        request.give(self._problem(ending))

    def _problem(self, ending: Ending) -> RequestError:
        if ending == "timeout":
            return RequestError(
                504, f"not finished within {self._limits.request_seconds:g} s, waiting included", code="timeout"
            )
        return RequestError(503, "the server is shutting down", code="shutting_down")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._speaking = None
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                request = self._speaking = self._waiting.popleft()
            start = time.monotonic()
            self._metrics.waiting.observe(start - request.queued)
            with self._metrics.speaking.track_inprogress():
                self._speak(request)
            seconds = time.monotonic() - start
            self._metrics.generating.observe(seconds)
            self._average = 0.8 * self._average + 0.2 * seconds

    def _speak(self, request: Request) -> None:
        """One request; its ending is always told."""
        try:
            request.check()
            pieces = self._speaker.pieces(
                request.voice(),
                request.text,
                seed=request.seed,
                sampling=request.sampling,
                max_seconds=self._limits.piece_seconds,
                after_row=request.check,
            )
            for number, piece in enumerate(pieces):
                if number == 0:
                    self._metrics.first.observe(time.monotonic() - request.queued)
                self._metrics.audio.inc(piece.seconds)
                self._metrics.pieces.labels("finished" if piece.finished else "cut off").inc()
                request.give(piece)
            request.give(_END)
        except _DroppedError as dropped:
            self._end(request, dropped.ending)
        except StepError as error:
            self._metrics.dropped.labels("refused").inc()
            status = 400 if error.code in (ExitCode.USAGE, ExitCode.BAD_DATA) else 500
            request.give(RequestError(status, error.message))
        except Exception:
            logger.exception("a request could not be spoken")
            self._metrics.dropped.labels("error").inc()
            request.give(RequestError(500, "the speech could not be made; the server's log says why", code="internal"))
