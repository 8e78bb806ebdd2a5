"""Where data may lie besides on this machine: the protocols of fsspec that are known to work, and their packages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PROTOCOLS: Mapping[str, str] = MappingProxyType({"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs"})
"""Protocol, and the package on PyPI that fsspec needs for it."""


def is_remote(name: str) -> bool:
    """Whether a path of a spec is a URL of one of the protocols."""
    protocol, separator, rest = name.partition("://")
    return bool(separator) and protocol in PROTOCOLS and bool(rest)
