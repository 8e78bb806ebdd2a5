"""What a server may do: its limits, where it listens, and the token that it asks for."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError

TOKEN_VARIABLE = "HIGGSC_SERVE_TOKEN"
"""Environment variable that may hold the token."""

SHORTEST_TOKEN = 16
"""Characters of a token that cannot be guessed."""

_OF_OTHERS = 0o077
"""Permissions of the group and of everybody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of everything."""

    queue: int = 16
    """Requests that wait while one is spoken; one more is answered 429."""
    connections: int = 512
    """Open connections; one more is answered 503."""
    json_bytes: int = 65_536
    """Body of a request without a recording."""
    upload_bytes: int = 16_000_000
    """Body of a request with a recording; counted as it is read."""
    characters: int = 4_096
    """Text to be spoken."""
    reference_seconds: float = 30.0
    """Recording of a voice."""
    piece_seconds: float = 30.0
    """Where a piece of some 200 characters is cut off that does not end by itself."""
    request_seconds: float = 300.0
    """From when a request has been read, its recording decoded, to the end of its speech, waiting included."""
    header_seconds: float = 10.0
    """For a client to send the head of a request."""
    body_seconds: float = 30.0
    """For a client to send the body."""
    write_seconds: float = 30.0
    """For a client to take anything of what is ready for it."""
    idle_seconds: float = 20.0
    """For a connection between two requests: longer than clients keep one (httpx 5 s, browsers more), as a request that
    crosses its closing is lost."""
    drain_seconds: float = 120.0
    """After SIGTERM, for what waits and is spoken to be finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve. A host that others can reach takes a token.

    Raises:
        StepError: There is no token, and the host is not this machine's own (2).
    """

    name: str
    """What clients call the model."""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise StepError(
                f"others can reach {self.host}, and there is no token that they would have to know",
                code=ExitCode.USAGE,
                help=f"set {TOKEN_VARIABLE} or --token-file, or serve on 127.0.0.1 behind a proxy",
            )


def check_address(settings: Settings) -> None:
    """Look whether one can listen there, before a model is loaded for it.

    Raises:
        StepError: See `cannot_listen`.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise cannot_listen(settings) from error


def cannot_listen(settings: Settings) -> StepError:
    """The address is taken, or not this machine's (74)."""
    return StepError(
        f"cannot listen on {settings.host}, port {settings.port}",
        code=ExitCode.IO,
        help="name another --port, or end what listens there",
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine; a name other than `localhost` is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None) -> str | None:
    """The token that clients have to show: from a file, or from `HIGGSC_SERVE_TOKEN`; None if neither is there.

    Raises:
        StepError: The file is missing (66), others may read it, or the token is too short or not plain ASCII (2).
    """
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE)
        return None if token is None else _checked(token, TOKEN_VARIABLE)
    try:
        if file.stat().st_mode & _OF_OTHERS:
            raise StepError(
                "others can read or change the file, which holds a secret",
                code=ExitCode.USAGE,
                path=file,
                help="chmod 600 it; a token that others have seen is better replaced",
            )
        return _checked(file.read_text("ascii"), str(file))
    except OSError as error:
        raise StepError(f"cannot read the token: {error.strerror}", code=ExitCode.MISSING_INPUT, path=file) from error
    except UnicodeDecodeError as error:
        raise StepError("the token is not plain ASCII", code=ExitCode.USAGE, path=file) from error


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise StepError(
            f"the token in {where} has to be at least {SHORTEST_TOKEN} printable ASCII characters without a space",
            code=ExitCode.USAGE,
            help="make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return token
