"""Reading a spec file; for a path to none, the file that was probably meant."""

from __future__ import annotations

import os
from pathlib import Path

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink, closest
from higgsc.compiler.reading.position import SourceFile, Span

MAX_BYTES = 1 << 20
"""Largest spec that is read; specs are written by hand."""


def read_source(
    path: Path, name: str, sink: Sink, *, asked_at: Span | None = None, root: Path | None = None
) -> SourceFile | None:
    """Read a spec file.

    Args:
        path: The file.
        name: How it is called in messages and artifacts.
        sink: Takes the diagnostic when it cannot be read (then the result is None).
        asked_at: Where another spec names the file, if one does.
        root: The project root, to recognise a path that starts there.
    """

    def refuse(reason: str, help: str | None = None) -> None:
        label = Label(asked_at) if asked_at else Label(Span(SourceFile(path, name, ""), 0, 0))
        sink.add(Diagnostic("HC001", f"cannot read `{name}`: {reason}", label, help=help))

    try:
        if not path.exists():
            refuse("no such file", _file_instead(path, asked_at, root))
            return None
        if not path.is_file():
            found = "it is a directory" if path.is_dir() else "it is not a regular file"
            refuse(found, "name a spec, a `.yaml` file")
            return None
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # not all of it: files in /proc have no size, and no end
        if len(content) > MAX_BYTES:
            refuse(f"it is larger than the {MAX_BYTES:,} bytes that a spec may have")
            return None
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"byte {error.start} is not UTF-8", help="save the file as UTF-8")
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        refuse(str(getattr(error, "strerror", None) or error).lower())
        return None
    return SourceFile(path, name, text.removeprefix("\ufeff"))


def _file_instead(path: Path, asked_at: Span | None, root: Path | None) -> str | None:
    """The file that was probably meant by a path to none."""
    if asked_at is not None and root is not None:
        written = asked_at.text.strip("'\"")
        if (root / written).is_file():
            there = os.path.relpath(root / written, asked_at.source.path.parent)
            return f"paths in `extends` start at the file that holds them: `{there}`"
    if "=" in path.name:
        return f"write `--set {path.name}`"
    if asked_at is None:
        for other in (path.with_name(f"{path.name}.yaml"), path.parent / "specs" / f"{path.stem}.yaml"):
            if other.is_file() and path.suffix in ("", ".yaml", ".yml"):
                return f"did you mean `{os.path.relpath(other, root or path.parent)}`?"
    stems = {other.stem: other for other in sorted(path.parent.glob("*.y*ml"))} if path.parent.is_dir() else {}
    match = (
        path.name if path.name in stems else path.stem if path.stem in stems else closest(path.stem, stems, cutoff=0.75)
    )
    found = stems[match] if match is not None else None
    if found is None and asked_at is not None and path.parent.is_dir():
        found = next(iter(sorted(path.parent.glob(f"*/{path.name}"))), None)
    if found is None and asked_at is not None and root is not None:
        if os.path.isabs(asked_at.text.strip("'\"")):
            return None  # the message has it all
        return _nothing_there(path, asked_at.source.path.parent)
    if found is None:
        return None
    start = asked_at.source.path.parent if asked_at is not None else root or path.parent
    return f"did you mean `{os.path.relpath(found, start)}`?"


def _nothing_there(path: Path, start: Path) -> str:
    """What there is not, of a path in `extends` that nothing is like.

    Args:
        path: The path, which does not exist.
        start: The folder of the file that names it.
    """
    rule = "paths in `extends` start at the folder of this file"
    missing = next((folder for folder in reversed(path.parents) if not folder.is_dir()), None)
    if missing is not None:
        name = os.path.relpath(missing, start)
        beside = " beside it" if missing.parent == start else ""
        return f"{rule}: there is no folder `{name}`{beside}"
    others = sorted(other.name for other in path.parent.glob("*.y*ml"))[:5] if path.parent != start else []
    folder = f"in `{os.path.relpath(path.parent, start)}`" if path.parent != start else "beside it"
    return f"{rule}: there is no `{path.name}` {folder}" + (f", only {', '.join(others)}" if others else "")
