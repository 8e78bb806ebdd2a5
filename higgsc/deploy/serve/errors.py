"""What a client is told when something is wrong, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request cannot be answered, for a reason that its sender is told.

    Args:
        status: HTTP status.
        message: What is wrong and what would be right; no path of this machine, no secret.
        param: The field at fault.
        code: A word for programs.
        headers: Further headers, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)
