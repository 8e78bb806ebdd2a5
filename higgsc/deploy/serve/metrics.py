"""What can be seen of a server from outside, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A registry of its own, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "higgsc_requests", "Answers, by route and HTTP status.", ["route", "status"], registry=self.registry
        )
        self.queued = Gauge("higgsc_queue_length", "Requests that wait for the model.", registry=self.registry)
        self.speaking = Gauge("higgsc_speaking", "1 while the model speaks.", registry=self.registry)
        self.waiting = Histogram(
            "higgsc_wait_seconds", "From the queue to the model.", buckets=_SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "higgsc_first_piece_seconds",
            "From the queue to the first piece of speech.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.generating = Histogram(
            "higgsc_generation_seconds", "Time of the model for a request.", buckets=_SECONDS, registry=self.registry
        )
        self.audio = Counter("higgsc_audio_seconds", "Speech that was made.", registry=self.registry)
        self.pieces = Counter(
            "higgsc_pieces", "Pieces of text that were spoken, by how they ended.", ["end"], registry=self.registry
        )
        self.dropped = Counter(
            "higgsc_dropped",
            "Requests that were taken and not finished: the client left, time ran out, or an error.",
            ["reason"],
            registry=self.registry,
        )

    def follow(self, queue_length: Callable[[], int]) -> None:
        """Ask for the length of the queue when somebody looks."""
        self.queued.set_function(queue_length)

    def text(self) -> bytes:
        """All of it, as `CONTENT_TYPE`."""
        return generate_latest(self.registry)
