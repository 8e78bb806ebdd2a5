"""Kubernetes objects as text: names that the API takes, YAML that a person can review."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one, as it stands in the file."""

MAX_NAME = 40
"""Characters of a name that leave room in the 63 of a pod's, `<name>-train-node-0-<index>-<5 random ones>`."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def object_name(name: str) -> str:
    """The name of a plan as an RFC 1035 label: itself if it is one, or made into one with a hash against mix-ups."""
    if _LABEL.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    suffix = sha256(name.encode("utf-8")).hexdigest()[:8]
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}"
    return f"{plain[: MAX_NAME - len(suffix) - 1].rstrip('-')}-{suffix}"


def manifests(head: Iterable[str], objects: Sequence[Manifest]) -> str:
    """A YAML file: comments, then the objects as documents."""
    import yaml

    text = "".join(f"# {line}\n" for line in head)
    for document in objects:
        text += "---\n" + yaml.dump(
            document, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=1000, default_flow_style=False
        )
    return text


def _dumper() -> Any:
    """PyYAML's safe dumper, without anchors, with lists indented, with strings that read back as they were."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # PyYAML writes U+0085 as it is and reads it back as a line end, unless it stands in double quotes.
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')

    Dumper.add_representer(str, text)
    return Dumper
