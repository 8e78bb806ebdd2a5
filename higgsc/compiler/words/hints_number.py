"""The way out where a number belongs."""

from __future__ import annotations

import re
import unicodedata

from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.hint import Hint

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def as_number(value: str, *, whole: bool, quoted: bool, example: str) -> Hint:
    """The number in a string that people take for one."""
    text = "".join(str(unicodedata.digit(c)) if c.isdigit() and c.isdecimal() else c for c in value.strip())
    text = re.sub("[‐‑‒–—−]", "-", text)
    if _NUMBER.fullmatch(text):
        if whole and not re.fullmatch(r"[-+]?[0-9]+", text):
            return Hint("write a whole number")
        if text == value:
            return Hint(f"remove the quotes: `{text}`", text) if quoted else Hint()
        return Hint(f"write `{text}` in plain digits and signs", text)
    if re.fullmatch(r"[0-9]{1,3}([,_' \u00a0\u202f][0-9]{3})+", text) and (whole or text[0] != "0"):
        plain = re.sub(r"[^0-9]", "", text)
        return Hint(f"write `{plain}`, without separators", plain if whole else None)
    if re.fullmatch(r"[0-9]+,[0-9]+", text) and not whole:
        return Hint(f"write `{text.replace(',', '.')}`, with a point", text.replace(",", "."))
    if not whole and (match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?%", text)):
        return Hint(f"write a share, not per cent: `{as_share(float(match[1]))}`")
    if match := re.fullmatch(r"([0-9]+)k", text.lower()):
        return Hint(f"write `{match[1]}000`", f"{match[1]}000")
    if not whole and (match := re.fullmatch(r"([0-9.]+) ?[*x×·] ?10\^?(-[0-9]+)", text)):
        return Hint(f"write `{match[1]}e{match[2]}`")
    return Hint("write a whole number such as `100`" if whole else f"write a number such as `{example}`")


def as_share(per_cent: float) -> str:
    """Per cent as the share that is written here."""
    return f"{per_cent / 100:g}"


def one_of_several(node: Node, path: NodePath) -> Hint:
    """For a list where one number belongs: several values are tried in a sweep."""
    assert isinstance(node.value, tuple)
    values = [entry.span.text for entry in node.value]
    if len(values) == 1:
        return Hint(f"write `{values[0]}`, without the brackets")
    if not values or len(node.span.text) > 60 or not all(isinstance(key, str) for key in path):
        return Hint("write one number")
    axis = f"{'.'.join(map(str, path))}: [{', '.join(values)}]"
    return Hint(f"a training takes one; to try each of them, write `sweep: {{{axis}}}` instead")


def share_of_steps(share: float, written: str, tree: Node) -> str:
    """The warm-up in steps that is a share of the training, as far as the spec says how long that is."""
    steps, epochs, batch = (_whole(tree, key) for key in ("steps", "epochs", "global_batch.samples"))
    if steps is not None:
        return f"write steps, not a share: `{max(1, round(share * steps))}` is {written} of {steps:,}"
    if epochs is None or batch is None:
        return "write optimizer steps, a whole number such as `100`"
    samples = 10_000
    found = max(1, round(share * epochs * samples / batch))
    return (
        f"write steps, not a share: {written} of {epochs} epochs are {written} x {epochs} x samples / {batch}, "
        f"which is `{found}` for {samples:,} samples"
    )


def _whole(tree: Node, key: str) -> int | None:
    """A positive whole number of `training`, if the spec gives it."""
    node = tree.at(f"training.{key}")
    return node.value if node is not None and type(node.value) is int and node.value > 0 else None
