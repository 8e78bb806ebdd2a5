"""What all parts of a spec have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints


class SpecModel(BaseModel):
    """A part of the spec: immutable, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_ENVIRONMENT_NAME = r"^[A-Z_][A-Z0-9_]{0,63}$"
_PATH = r"^[^\x00-\x1f\x7f]+$"
_TIME_LIMIT = r"^([0-9]{1,3}-)?[0-9]{1,3}:[0-5][0-9](:[0-5][0-9])?$"

PATTERNS = {
    _NAME: "a name has letters, digits, `.`, `_` and `-`, starts with a letter or digit, and has 64 characters at most",
    _ENVIRONMENT_NAME: "the name of an environment variable has capital letters, digits and `_`",
    _PATH: "a path has at least one character and no control characters",
    _TIME_LIMIT: "a time limit is `[days-]hours:minutes[:seconds]`, such as `24:00:00` or `2-12:00`",
}
"""What each pattern means, for messages."""

Name = Annotated[str, StringConstraints(pattern=_NAME)]
"""A name that is safe in a path, a job name and a shell."""

EnvironmentName = Annotated[str, StringConstraints(pattern=_ENVIRONMENT_NAME)]
"""The name of an environment variable."""

FilePath = Annotated[str, StringConstraints(pattern=_PATH)]
"""A path, absolute or relative to the project root."""

TimeLimit = Annotated[str, StringConstraints(pattern=_TIME_LIMIT)]
"""A duration in Slurm's notation."""


def seconds_of(limit: TimeLimit) -> int:
    """Seconds of a time limit: `2-12:00` is 216,000, `00:30:00` is 1,800."""
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
