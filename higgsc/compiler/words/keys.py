"""Keys that the schema does not have at their place: what was meant, and where it belongs."""

from __future__ import annotations

import re
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from higgsc.compiler.diagnostics import Diagnostic, Edit, Label, closest
from higgsc.compiler.reading.position import Span
from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.foreign import advice, foreign_key, synonym
from higgsc.compiler.words.hints_hardware import replaced_shape
from higgsc.compiler.words.spelling import typo_of
from higgsc.spec import Experiment

_EXAMPLES = {
    "apiVersion": "higgsc/v1",
    "name": "arabic",
    "family": "higgs-audio-v2",
    "model": "{family: higgs-audio-v2}",
    "data": "{train: [{path: data/train_chatml.json}]}",
    "train": "[{path: data/train_chatml.json}]",
    "path": "data/train_chatml.json",
    "hardware": "8xH200",
    "gpus_per_node": "8",
    "training": "{epochs: 3, global_batch: {samples: 128}, learning_rate: 1e-4}",
    "global_batch": "{samples: 128}",
    "samples": "128",
    "learning_rate": "1e-4",
    "image": "registry.example.org/higgsc:0.1.0",
    "claim": "project",
}
"""What to write for a key that is missing."""
_MEANINGS = {"claim": "the name of the PersistentVolumeClaim that holds the project"}
"""What the example stands for, where that is not plain."""


_CYRILLIC = dict(zip("асеорхуіѕ", "aceopxyis", strict=True))
"""Cyrillic letters that look like Latin ones."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """What there is to say about an unknown key."""

    diagnostic: Diagnostic
    meant: NodePath | None
    """The path that the key was probably meant for: it is then not missing as well."""


def unknown_key(tree: Node, path: NodePath) -> Unknown:
    """The diagnostic for the unknown key at the end of `path`."""
    node, _ = tree.find(path)
    *above, last = path
    name, parent = str(last), tuple(above)
    known = tuple(model_at(parent).model_fields)
    inside = f" in `{dotted(parent)}`" if parent else ""
    there = Label(node.place)

    def say(
        meant: NodePath | None, help: str | None, *, fix: str | None = None, notes: tuple[str, ...] = ()
    ) -> Unknown:
        edit = Edit(node.key_span, fix) if fix is not None and node.key_span is not None else None
        return Unknown(Diagnostic("HC101", f"unknown key `{name}`{inside}", there, (), notes, help, edit), meant)

    if (glued := re.fullmatch(r"([A-Za-z_]+):(\S.*)", name)) and glued[1] in known and node.value is None:
        spaced = f"{glued[1]}: {glued[2]}"
        return say((*parent, glued[1]), f"a space is missing after the colon: `{spaced}`", fix=spaced)
    if node.value is None and name.isdecimal():
        found_here = "in braces a comma ends a value: write a number without one, `1000`, or with a point, `0.5`"
        return say(None, found_here)
    if len(dots := re.split(r"[.:]", name)) > 1:
        return _dotted_key(tree, tuple(dots), node, parent, say)
    plain = " ".join(unicodedata.normalize("NFKC", name).split())
    if plain != name and plain in known:
        odd = next((c for c in name if unicodedata.normalize("NFKC", c) != c or (c.isspace() and c != " ")), None)
        why = f"the key holds U+{ord(odd):04X}, which only looks like a space or letter" if odd else "without blanks"
        return say((*parent, plain), f"write `{plain}`: {why}" if odd else f"write `{plain}`, {why}")
    if (letters := _lookalike(name)) is not None:
        meant = letters[1] if letters[1] in known else None
        why = f"the key holds U+{ord(letters[0]):04X}"
        return say((*parent, meant) if meant else None, f"write `{meant}`: {why}" if meant else f"take it out: {why}")
    if (equals := re.fullmatch(r"([A-Za-z_]+)\s*=\s*(\S.*)", name)) and equals[1] in known and node.value is None:
        return say((*parent, equals[1]), f"a key is followed by `:`, not by `=`: `{equals[1]}: {equals[2]}`")
    if not parent and name == "base" and str(node.value).endswith((".yaml", ".yml")):
        return say(("extends",), "did you mean `extends`?")
    if (advised := advice(parent, name, node)) is not None:
        return say((*parent, advised[1]) if advised[1] is not None else None, advised[0])
    if (other := synonym(parent, name)) is not None:
        return say((*parent, other), f"did you mean `{other}`?")
    if (known_as := foreign_key(name, node, parent, tree.get("hardware"))) is not None:
        message = f"`{name}` is a key of {known_as.origin}, not of higgsc"
        return Unknown(Diagnostic("HC107", message, there, help=known_as.instead), known_as.path)
    if found := [home for home in homes().get(name, ()) if home[:-1] != _without_indices(parent)]:
        return say(found[0], _belongs(tree, parent, name, found))
    if match := closest(name, known):
        taken = tree.find((*parent, match))[1] == ()
        slip = typo_of(name, known) == match and not taken
        renamed = match if slip and node.key_span is not None and _bare(node.key_span) == name else None
        return say(None if taken else (*parent, match), f"did you mean `{match}`?", fix=renamed)
    if match := closest(name, homes(), cutoff=0.8):
        found = list(homes()[match])
        where = " at the top level" if parent and len(found[0]) == len(found) == 1 else ""
        return say(found[0], f"did you mean {_or_paths(found)}{where}?")
    return say(None, None, notes=(f"known here: {', '.join(known)}",))


def missing_key(tree: Node, path: NodePath, name: str) -> Diagnostic:
    """The diagnostic for a key that the mapping at `path` needs."""
    inside = f" in `{dotted(path)}`" if path else ""
    node, _ = tree.find(path)
    top = _first_key(tree)
    place = node.place if path else top
    if place.source is not top.source and (own := _own_key(tree, path, top)) is not None:
        place = own
    example = f" {_EXAMPLES[name]}" if name in _EXAMPLES else ""
    if name == "name" and not path and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", top.source.path.stem):
        example = f" {top.source.path.stem}"
    help_ = f"add `{name}:{example}`" + (f", {_MEANINGS[name]}" if name in _MEANINGS else "")
    if path == ("hardware",) and node.below is not None and isinstance(node.below.value, str):
        help_ = replaced_shape(node, node.below.value) or help_
    return Diagnostic("HC102", f"missing key `{name}`{inside}", Label(place), help=help_)


def bare_key(word: str, place: Span, *, alone: bool) -> Diagnostic | None:
    """For the first word of a dotted key in a sweep or on the command line: a diagnostic if its path was left out.

    Args:
        word: The word.
        place: Where it stands.
        alone: Whether it is the whole key.
    """
    if not alone or word in Experiment.model_fields:
        return None
    found = homes().get(word, ()) or _everyday(word)
    if not found:
        return None
    fix = Edit(place, dotted(found[0])) if len(found) == 1 else None
    help_ = f"write {_or_paths(list(found))}" if len(found) == 1 else f"did you mean {_or_paths(list(found))}?"
    return Diagnostic("HC101", f"`{word}` is not the whole key", Label(place), help=help_, fix=fix)


def _everyday(word: str) -> tuple[NodePath, ...]:
    """Where an everyday word such as `lr` belongs."""
    found = (
        (*home, other)
        for above in ("model", "data", "lora", "training", "checkpoint", "site")
        for home in homes().get(above, ())
        if (other := synonym(home, word)) is not None
    )
    return tuple(path for path in found if path[:-1] != ("model",))[:1]


@lru_cache
def homes() -> Mapping[str, tuple[NodePath, ...]]:
    """Every key of the schema with all paths at which it stands, entries of lists without their index."""
    found: dict[str, tuple[NodePath, ...]] = {}
    for path in _paths(Experiment, ()):
        found[str(path[-1])] = (*found.get(str(path[-1]), ()), path)
    return types.MappingProxyType(found)


def _paths(model: type[BaseModel], above: NodePath) -> Iterator[NodePath]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        if (inner := _model_in(field.annotation)) is not None:
            yield from _paths(inner, (*above, name))


def _belongs(tree: Node, parent: NodePath, name: str, found: list[NodePath]) -> str:
    if len(found) > 1:
        return f"did you mean {_or_paths(found)}?"
    (home,) = found
    if len(home) == 1:
        return f"`{name}` belongs at the top level: take the indentation away"
    beside, rest = tree.find(home[:-1])
    if not rest and beside.value is None and home[:-2] == parent:
        return f"it belongs to `{home[-2]}`: indent it by two more spaces"
    return f"move it to `{dotted(home[:-1])}`"


def _dotted_key(
    tree: Node, words: tuple[str, ...], node: Node, parent: NodePath, say: Callable[..., Unknown]
) -> Unknown:
    """For a key such as `lora.rank` or `lora:rank` in a file: the same as mappings, if the schema has such a path."""
    path = (*_without_indices(parent), *words)
    if path in homes().get(words[-1], ()):
        return say(path, _nested(tree, parent, words, node))
    if below := [home for home in homes().get(words[-1], ()) if home[: len(path) - 1] == path[:-1]]:
        return say(None, f"did you mean {_or_paths(below)}? keys are nested: write `{_braces(below[0], '…')}`")
    every = {dotted(home): home for homes_of in homes().values() for home in homes_of}
    if (match := closest(dotted(path), every, cutoff=0.85)) is not None:
        return say(None, f"did you mean `{match}`? keys are nested: write `{_braces(every[match], '…')}`")
    return say(None, "keys are nested here, as in `lora: {rank: 16}`")


def _nested(tree: Node, parent: NodePath, words: NodePath, node: Node) -> str:
    """The same in braces, or inside the mapping that the file has already: a key cannot be given twice."""
    value = node.span.text if not isinstance(node.value, Mapping | tuple) and len(node.span.text) < 60 else "…"
    for end in range(len(words), 0, -1):
        found, rest = tree.find((*parent, *words[:end]))
        if rest or found.place.source is not node.place.source:
            continue
        home = dotted((*parent, *words[:end]))
        if end == len(words):
            return f"keys are nested here: `{home}` is given already; change it there, or keep one"
        if isinstance(found.value, Mapping):
            return f"keys are nested here: move it into `{home}` as `{_braces(words[end:], value)}`"
    return f"keys are nested here: write `{_braces(words, value)}`"


def _braces(words: NodePath, value: str) -> str:
    """`lora: {rank: 16}` for a path and a value."""
    return ": {".join(map(str, words)) + f": {value}" + "}" * (len(words) - 1)


def _or_paths(paths: list[NodePath]) -> str:
    return " or ".join(f"`{dotted(path)}`" for path in paths[:3])


def _without_indices(path: NodePath) -> NodePath:
    return tuple(part for part in path if isinstance(part, str))


def _bare(span: Span) -> str:
    return span.text.strip("\"'")


def model_at(path: NodePath) -> type[BaseModel]:
    """The model that describes the mapping at a path of the spec."""
    model: type[BaseModel] = Experiment
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _model_in(field.annotation) or model
    return model


def may_be_null(path: NodePath) -> bool:
    """Whether `null` may stand at a path of the spec."""
    field = model_at(path[:-1]).model_fields.get(str(path[-1])) if path else None
    return field is not None and type(None) in get_args(field.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Source, ...]` or `Merge | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _first_key(tree: Node) -> Span:
    """A short place that stands for the whole spec: its first key, wherever merging has put it."""
    if isinstance(tree.value, Mapping):
        own = [
            child.key_span
            for child in tree.value.values()
            if child.key_span is not None and child.key_span.source is tree.span.source
        ]
        if own:
            return min(own, key=lambda span: span.start)
    return tree.span


def _own_key(tree: Node, path: NodePath, top: Span) -> Span | None:
    """The deepest place along a path in the user's own file, where the value at its end is inherited."""
    for end in range(len(path), 0, -1):
        node, rest = tree.find(path[:end])
        if not rest and node.place.source is top.source:
            return node.place
    return top


def _lookalike(name: str) -> tuple[str, str] | None:
    """A character that cannot be seen or told from a Latin letter, and the key without it."""
    odd = next((c for c in name if unicodedata.category(c) == "Cf" or c in _CYRILLIC), None)
    if odd is None:
        return None
    return odd, "".join(_CYRILLIC.get(c, c) for c in name if unicodedata.category(c) != "Cf")


def dotted(path: NodePath) -> str:
    return ".".join(str(part) for part in path)
