"""Clients that send or read too slowly: uvicorn's protocol with a time-out for heads and for answers nobody reads."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from higgsc.deploy.serve.settings import Limits


def patient_protocol(limits: Limits) -> type[H11Protocol]:
    """A protocol class that waits as long as the limits say, and then drops the connection.

    uvicorn itself waits for ever, both for the head of a request and for a client that does not read. The bodies of
    requests are timed by `Guard`, which can still answer.
    """

    class PatientProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._await_head()
            elif self._head is not None:
                self._head.cancel()
                self._head = None

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread is None:
                self._await_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head, self._unread):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _await_reader(self) -> None:
            left = self.transport.get_write_buffer_size()
            self._unread = self.loop.call_later(limits.write_seconds, self._not_read, left)

        def _not_read(self, before: int) -> None:
            if self.transport.get_write_buffer_size() < before:  # slowly, but it is read
                self._await_reader()
            else:
                self.transport.abort()

        def _await_head(self) -> None:
            if self._head is None:
                self._head = self.loop.call_later(limits.header_seconds, self._no_head)

        def _no_head(self) -> None:
            self._head = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

    return PatientProtocol
