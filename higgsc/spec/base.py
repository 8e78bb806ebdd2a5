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
_LIST = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}(,[A-Za-z0-9][A-Za-z0-9._:-]{0,63}){0,63}$"
_NODES = r"^[A-Za-z][A-Za-z0-9._,\[\]-]{0,1023}$"
_FEATURES = r"^[A-Za-z0-9(\[][A-Za-z0-9._:&|*,()\[\]-]{0,255}$"
_MODULE = r"^[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}$"
_MAIL = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9][A-Za-z0-9.-]{0,127}$"
_IMAGE = r"^[A-Za-z0-9./][A-Za-z0-9._:/#@+-]{0,511}$"
_MOUNT = r"^/[A-Za-z0-9._/+@ -]{0,255}(:/[A-Za-z0-9._/+@ -]{0,255})?(:ro)?$"
_LANGUAGE = r"^[a-z]{2,3}$"
_VALUE = r"^[^\x00-\x1f\x7f]*$"
_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_REFERENCE = r"^[a-z0-9][A-Za-z0-9._:/@-]{0,254}$"
_LABEL_KEY = r"^([a-z0-9][a-z0-9.-]{0,252}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"
_ABSOLUTE_PATH = r"^/[^\x00-\x1f\x7f:]*$"
_RELATIVE_PATH = r"^[^\x00-\x1f\x7f:/.][^\x00-\x1f\x7f:]*$"

PATTERNS = {
    _NAME: "a name has letters, digits, `.`, `_` and `-`, starts with a letter or digit, and has 64 characters at most",
    _ENVIRONMENT_NAME: "the name of an environment variable has capital letters, digits and `_`",
    _PATH: "a path has at least one character and no control characters",
    _TIME_LIMIT: "a time limit is `[days-]hours:minutes[:seconds]`, such as `24:00:00` or `2-12:00`",
    _LIST: "names with letters, digits, `.`, `_`, `:` and `-`, with commas and no spaces between them",
    _NODES: "nodes are listed as Slurm does, such as `node07,node[10-12]`",
    _FEATURES: "features are joined as Slurm does, such as `h100&ib` or `[rack1|rack2]`, without spaces",
    _MODULE: "a module is a name with a version, such as `cuda/12.8`",
    _MAIL: "a mail address has a form such as `ada@example.org`",
    _IMAGE: "an image is a path or a name such as `docker://org/image:tag`, without spaces",
    _MOUNT: "a mount is a folder such as `/data`, `/host:/inside` or `/host:/inside:ro`",
    _LANGUAGE: "a language is given by its code of two or three small letters, such as `ar`",
    _VALUE: "the value of an environment variable has no control characters",
    _DNS_LABEL: "a Kubernetes name has small letters, digits and `-`, starts and ends with a letter or digit, and has "
    "63 characters at most",
    _REFERENCE: "an image is `registry/name:tag` or `registry/name@sha256:digest`",
    _LABEL_KEY: "the key of a label is `name` or `domain/name`",
    _LABEL_VALUE: "the value of a label has letters, digits, `.`, `_` and `-`, and 63 characters at most",
    _ABSOLUTE_PATH: "a path inside a container starts with `/` and has no colon and no control characters",
    _RELATIVE_PATH: "a path inside a claim starts with a letter or digit and has no colon and no control characters",
}
"""What each pattern means, for messages."""

Name = Annotated[str, StringConstraints(pattern=_NAME)]
"""A name that is safe in a path, a job name and a shell."""

EnvironmentName = Annotated[str, StringConstraints(pattern=_ENVIRONMENT_NAME)]
"""The name of an environment variable."""

Language = Annotated[str, StringConstraints(pattern=_LANGUAGE)]
"""A language by its code (ISO 639)."""

FilePath = Annotated[str, StringConstraints(pattern=_PATH)]
"""A path, absolute or relative to the project root."""

TimeLimit = Annotated[str, StringConstraints(pattern=_TIME_LIMIT)]
"""A duration in Slurm's notation."""

DnsLabel = Annotated[str, StringConstraints(pattern=_DNS_LABEL)]
"""The name of a Kubernetes object (RFC 1123)."""

ImageReference = Annotated[str, StringConstraints(pattern=_REFERENCE)]
"""A container image."""

LabelKey = Annotated[str, StringConstraints(pattern=_LABEL_KEY)]
"""The key of a Kubernetes label."""

LabelValue = Annotated[str, StringConstraints(pattern=_LABEL_VALUE)]
"""The value of a Kubernetes label."""

AbsolutePath = Annotated[str, StringConstraints(pattern=_ABSOLUTE_PATH)]
"""A path inside a container."""

RelativePath = Annotated[str, StringConstraints(pattern=_RELATIVE_PATH)]
"""A path inside a volume."""


def seconds_of(limit: TimeLimit) -> int:
    """Seconds of a time limit: `2-12:00` is 216,000, `00:30:00` is 1,800."""
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


WordList = Annotated[str, StringConstraints(pattern=_LIST)]
"""Names with commas between them."""

NodeList = Annotated[str, StringConstraints(pattern=_NODES)]
"""Host names in Slurm's notation."""

NodeFeatures = Annotated[str, StringConstraints(pattern=_FEATURES)]
"""Features of nodes, joined as in `--constraint`."""

ModuleName = Annotated[str, StringConstraints(pattern=_MODULE)]
"""A name for `module load`."""

MailAddress = Annotated[str, StringConstraints(pattern=_MAIL)]
"""A mail address."""

ImageName = Annotated[str, StringConstraints(pattern=_IMAGE)]
"""A container image: a file or a name in a registry."""

Mount = Annotated[str, StringConstraints(pattern=_MOUNT)]
"""A folder of the host, where it appears in a container, and `ro` for read-only."""

EnvironmentValue = Annotated[str, StringConstraints(pattern=_VALUE)]
"""The value of an environment variable."""
