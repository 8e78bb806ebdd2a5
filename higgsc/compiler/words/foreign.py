"""Keys that people bring from other tools, and what they are called here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.foreign_keys import ADVICE, ANYWHERE, DEVICES, KEYS, SYNONYMS


@dataclass(frozen=True, slots=True)
class ForeignKey:
    origin: str
    """The tool that the key comes from."""
    instead: str
    """What to write here."""
    path: NodePath | None
    """The key that stands for it, if one does."""


def synonym(parent: NodePath, name: str) -> str | None:
    """The key that an everyday word stands for in the mapping at `parent`, or None."""
    return SYNONYMS.get((_last_word(parent), name.lower()))


def advice(parent: NodePath, name: str, node: Node) -> tuple[str, str | None] | None:
    """What to do about a key whose name alone is not the matter: the help, and the key of ours that is meant."""
    found = ADVICE.get((_last_word(parent), name.lower())) or ADVICE.get(("*", name.lower()))
    return (_filled(found[0], node), found[1]) if found is not None else None


def foreign_key(name: str, node: Node, parent: NodePath, hardware: Node | None) -> ForeignKey | None:
    """What another tool's key is called here, or None for a key that no other tool has.

    Args:
        name: As written; leading dashes and inner hyphens of command-line flags are passed over.
        node: Its value, which goes into the way out where it fits.
        parent: The mapping that it stands in.
        hardware: The spec's `hardware`, if it has one: what counts devices then has nothing to add.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    if plain not in KEYS or not (not parent or "_" in plain or plain in ANYWHERE):
        return None
    origin, instead = KEYS[plain]
    if instead == DEVICES and hardware is not None and hardware.value is not None:
        shape = f": {hardware.value}" if isinstance(hardware.value, str) else ""
        return ForeignKey(origin, f"leave it out: it follows from `hardware{shape}`", None)
    match = re.match(r"`([A-Za-z_.]+)", instead)
    if match is None:
        return ForeignKey(origin, instead, None)
    path = tuple(match[1].split("."))
    *above, last = path
    # A dotted key is none of a spec: say the last word, and the mapping that it goes into.
    key, rest = re.match(r"`[A-Za-z_.]+(.*?`)(.*)", instead).groups()  # type: ignore[union-attr]
    inside = f" in `{'.'.join(above)}`" if above and tuple(above) != parent else ""
    return ForeignKey(origin, _filled(f"write `{last}{key}{inside}{rest}", node), path)


def _last_word(path: NodePath) -> str:
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _filled(text: str, node: Node) -> str:
    """`text` with the written value in the places that are marked for one."""
    return re.sub(r"<([^<>]*)>", lambda match: _fitting(match[1], node), text)


def _fitting(place: str, node: Node) -> str:
    value, written = node.value, node.span.text
    if "|" in place:
        words = place.split("|")
        return str(value) if value in words else words[0]
    kind, _, example = place.partition(":")
    if kind == "names":
        listed = [entry.value for entry in value] if isinstance(value, tuple) else str(value).split(",")
        names = [name.strip() for name in listed if isinstance(name, str)]
        fits = len(names) == len(listed) <= 20 and all(re.fullmatch(r"[A-Za-z_][\w.*]{0,63}", name) for name in names)
        return f"[{', '.join(names)}]" if fits and names and not {"all", "all_linear"} & set(names) else example
    if isinstance(value, bool):
        return example
    if isinstance(value, int | float):
        fits = {
            "int": isinstance(value, int) and 1 <= value <= 10**9,
            "num": 0 < value <= 10**9,
            "share": 0 < value <= 0.5,
        }.get(kind, False)
        return written if fits else example
    if isinstance(value, str):
        form = {"path": r"[A-Za-z0-9./_-]{1,80}", "word": r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"}.get(kind)
        return value if form is not None and re.fullmatch(form, value) else example
    return example
