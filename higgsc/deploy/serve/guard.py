"""What every request goes through: who asks, from where, and how much is sent how slowly."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgsc.deploy.serve.errors import RequestError
from higgsc.deploy.serve.metrics import Metrics
from higgsc.deploy.serve.settings import Settings, is_loopback

OPEN_PATHS = ("/", "/health")
"""The page, which holds nothing, and the sign of life."""

UPLOAD_PATHS = ("/generate_speech",)

_LINGER_SECONDS = 2.0
"""How long what a refused client still sends is thrown away, so that it can read why it is refused."""

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics, routes: frozenset[str]) -> None:
        """Args:
        app: What it stands before.
        settings: Limits and token.
        metrics: Counts the answers.
        routes: The paths that there are; others are counted as one.
        """
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._token = None if settings.token is None else _digest(settings.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        try:
            self._admit(scope["path"], Headers(scope=scope))
        except RequestError as error:
            await error.response()(scope, exchange.receive, exchange.send)
            return
        await self._app(scope, exchange.receive, exchange.send)

    def body_limit(self, path: str) -> int:
        """Bytes that a request to a path may have."""
        limits = self._settings.limits
        return limits.upload_bytes if path in UPLOAD_PATHS else limits.json_bytes

    @property
    def body_seconds(self) -> float:
        """Time for a body."""
        return self._settings.limits.body_seconds

    def count(self, path: str, status: int) -> None:
        """An answer."""
        self._metrics.requests.labels(path if path in self._routes else "other", str(status)).inc()

    def _admit(self, path: str, headers: Headers) -> None:
        if self._token is not None:
            if path not in OPEN_PATHS:
                self._check_token(headers.get("authorization", ""))
        else:
            _check_origin(headers)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self.body_limit(path):
            raise too_large(self.body_limit(path))

    def _check_token(self, authorization: str) -> None:
        scheme, _, shown = authorization.partition(" ")
        # Digests of equal length, so that the comparison takes as long whatever is shown.
        if not hmac.compare_digest(_digest(shown.strip()), self._token or b"") or scheme.lower() != "bearer":
            raise RequestError(
                401,
                "show the server's token: Authorization: Bearer …",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _Exchange:
    """One request and its answer, with the body counted and timed."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._path, self._receive, self._send = guard, str(scope["path"]), receive, send
        self._limit = guard.body_limit(self._path)
        self._read = 0
        headers = Headers(scope=scope)
        self._whole = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._deadline = asyncio.get_running_loop().time() + guard.body_seconds

    async def receive(self) -> Message:
        """The next part of the body, or the sign that the client has left.

        Raises:
            RequestError: There is too much of it (413), or it takes too long (408).
        """
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(
                408, f"the body was not there within {self._guard.body_seconds:g} s", headers={"Connection": "close"}
            ) from None
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._limit:
            raise too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer; before the last one, what is still coming in is thrown away for a moment."""
        if message["type"] == "http.response.start":
            self._guard.count(self._path, message["status"])
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            if not self._whole:
                headers["Connection"] = "close"
        elif not self._whole and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._whole:
                    message = await self._receive()
                    self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            self._whole = True


def too_large(limit: int) -> RequestError:
    """What a client is told whose body is too large."""
    return RequestError(
        413, f"a request may have {limit:,} bytes here", code="too_large", headers={"Connection": "close"}
    )


def _check_origin(headers: Headers) -> None:
    """Without a token a server is for this machine alone: no page of another site may use it through a browser.

    Any page can send a form to 127.0.0.1; and its name can be made to resolve to that, which `Host` then shows.
    """
    for name, value in (("Host", headers.get("host", "")), ("Origin", headers.get("origin"))):
        if value is None:
            continue
        try:
            host = urlsplit(value if "//" in value else f"//{value}").hostname or ""
        except ValueError:
            host = ""
        if not is_loopback(host):
            raise RequestError(403, f"{name} is not this machine; a server for others needs a token", code="forbidden")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise RequestError(403, "pages of another origin may not use this server", code="forbidden")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
