"""Paths that can be none: nothing expands, downloads or lists, and a folder of that very name would be made."""

from __future__ import annotations

import posixpath
import re
import unicodedata

from higgsc.catalog.remote import PROTOCOLS, is_remote
from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir

_SHELL = re.compile(r"^~[^/]*|\$\{?[A-Za-z_][A-Za-z0-9_]*\}?")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
_TAKEN = ("specs", "data", "generated", ".git")
"""Folders of the project that no run should be written into."""


def paths(ir: Ir, sink: Sink) -> Ir:
    """Report paths with `~`, `$NAME`, globs, URLs and the like, outputs over the project's own folders, and data
    that are given twice."""
    spec = ir.spec
    given = {
        "output": spec.output,
        "data.store": spec.data.store,
        "data.prepare.cache": spec.data.prepare.cache,
        **{f"data.roots.{index}": folder for index, folder in enumerate(spec.data.roots)},
        "model.base": spec.model.base,
        "model.audio_tokenizer": spec.model.audio_tokenizer,
        "model.whisper.encoder": None if spec.model.whisper is None else spec.model.whisper.encoder,
        "evaluate.recogniser": None if spec.evaluate is None else spec.evaluate.recogniser,
        "evaluate.similarity": None if spec.evaluate is None else spec.evaluate.similarity,
        "lora.start": None if spec.lora is None else spec.lora.start,
        **{f"data.train.{index}.path": source.path for index, source in enumerate(spec.data.train)},
    }
    for at, path in given.items():
        found = _wrong(at, path) if path is not None else None
        if found is not None:
            sink.add(Diagnostic("HC106", found[0], ir.label(at), help=found[1]))
    _refuse_twice(ir, sink)
    return ir


def _wrong(at: str, path: str) -> tuple[str, str] | None:
    """What is wrong with a path, and the way out; None for one that may exist."""
    if (shell := _SHELL.search(path)) is not None:
        message = f"`{shell[0]}` in `{at}` is not expanded: a spec means the same for everybody"
        out = "write the path out"
        return message, out if "train" in at else f"{out}, or let the shell do it: `--set {at}={shell[0]}/…`"
    odd = next((c for c in path if unicodedata.category(c) == "Cf" or (c.isspace() and c != " ")), None)
    if odd is not None:
        return f"`{at}` holds U+{ord(odd):04X}, which cannot be seen", "take it out"
    if path != path.strip():
        return f"`{at}` starts or ends with a space", f"write `{path.strip()}`"
    if _DRIVE.match(path) and at != "output":  # of a backslash in `output`, `folders` says more
        return f"`{at}` is a Windows path", "write it as Linux sees it, with `/`: `/mnt/c/…`, or below the project"
    if (url := _URL.match(path)) is not None:
        if is_remote(path) and at.startswith(("data.train", "data.roots", "data.store")):
            return None
        return f"`{at}` starts with `{url[0]}`, but nothing is downloaded from there", _instead_of_url(at, path)
    if at.startswith("data.train"):
        if re.search(r"[*?]|\[[^\]]*\]", path):
            return (
                f"`{at}` is a pattern, and is not expanded",
                "give each file an entry: `[{path: a.json}, {path: b.json}]`",
            )
        if path.lower().endswith(_AUDIO):
            return f"`{at}` is a recording", "name the file that lists the samples, such as `data/train_chatml.json`"
    if at in ("output", "data.store", "data.prepare.cache"):
        plain = posixpath.normpath(path)
        if plain in ("/", ".", "..") or plain in _TAKEN or plain.startswith("../.."):
            return (
                f"`{at}: {path}` is no folder for a run alone",
                f"write a folder of its own: `{at.split('.')[-1]}: runs/arabic`",
            )
    return None


def _instead_of_url(at: str, path: str) -> str:
    hub = re.fullmatch(r"(?:https?://huggingface\.co/|hf://)([\w.-]+/[\w.-]+)/?(?:tree/[\w.-]+/?)?", path)
    if hub is not None and at.startswith(("model.", "evaluate.")):
        return f"write the id alone: `{hub[1]}`"
    if at.startswith(("data.train", "data.roots", "data.store")):
        known = ", ".join(f"`{protocol}://`" for protocol in PROTOCOLS)
        return f"copy it to this machine or the cluster, or to one of {known}"
    return "copy it to this machine or the cluster, and name the file there"


def _refuse_twice(ir: Ir, sink: Sink) -> None:
    first: dict[str, int] = {}
    for index, source in enumerate(ir.spec.data.train):
        other = first.setdefault(posixpath.normpath(source.path), index)
        if other != index:
            sink.add(
                Diagnostic(
                    "HC364",
                    f"`{source.path}` is given twice",
                    ir.label(f"data.train.{index}.path", "again here"),
                    secondary=(ir.label(f"data.train.{other}.path", "first here"),),
                    help="keep one of the two",
                )
            )
