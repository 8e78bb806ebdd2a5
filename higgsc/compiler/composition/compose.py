"""One spec out of several files: `extends`, deep merge, every value still knowing its file and line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from higgsc.compiler.composition.override import apply_overrides
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink, did_you_mean
from higgsc.compiler.reading.files import read_source
from higgsc.compiler.reading.position import SourceFile, Span
from higgsc.compiler.reading.secrets import refuse_secrets
from higgsc.compiler.reading.source import Node, parse
from higgsc.spec import Experiment
from higgsc.spec.site import Site

MAX_FILES = 100
"""Files that a spec may extend, directly and through others."""


SITE_OPTION = "--site"
"""How the option is called where other diagnostics name their file."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A spec with everything that it extends."""

    tree: Node
    sources: tuple[SourceFile, ...]
    """Every file that was read, the spec itself first."""


def project_root(spec: Path) -> Path:
    """Where relative paths of a spec start: the folder above `specs/`, or the spec's own folder.

    Depends on the path alone, so that a build is the same on every machine.
    """
    spec = Path(os.path.abspath(spec))
    for folder in spec.parents:
        if folder.name == "specs":
            return folder.parent
    return spec.parent


def compose(
    spec: Path, root: Path, sink: Sink, *, site: str | None = None, overrides: tuple[str, ...] = ()
) -> Composed | None:
    """Read a spec with all that it extends, its site and the command line's overrides.

    Later layers win: extended files in their order, the spec, `overrides`; the site's file lies below what the spec
    itself says about the site. Problems go to `sink`, and then the result is None.
    """
    sources: list[SourceFile] = []
    tree = _Loader(root, sink, sources).load(Path(os.path.abspath(spec)), asked_at=None)
    if tree is None:
        return None
    if len(sources) == 1 and _is_part(Path(os.path.abspath(spec)), tree, sink):
        return None
    if site is not None:
        if (unknown := _unknown_site(site, _sites_folder(spec, root))) is not None:
            sink.add(unknown)
            return None
        overrides = (*overrides, f"site.profile={site}")
        if (given := tree.get("site")) is not None and not isinstance(given.value, Mapping):
            overrides = (*overrides[:-1], f"site={site}")
    tree = apply_overrides(tree, overrides, sink)
    tree = with_site(tree, _sites_folder(spec, root), root, sink, sources)
    refuse_secrets(tree, sink)  # of the command line; those of files have been found while reading
    return Composed(tree, tuple(sources)) if sink.error_count == 0 else None


def _is_part(spec: Path, tree: Node, sink: Sink) -> bool:
    """Whether the file is a site, or a part that specs extend, and no spec; one message then says so."""
    if not isinstance(tree.value, Mapping) or "apiVersion" in tree.value:
        return False
    place = Label(tree.span if not tree.value else min((node.place for node in tree.value.values()), key=_start))
    if spec.parent.name == "sites" and set(tree.value) <= set(Site.model_fields):
        help_ = f"choose it with `site: {spec.stem}` in a spec, or with `--site {spec.stem}`"
        sink.add(
            Diagnostic("HC102", "this is a site, not a spec: `apiVersion` and `name` are missing", place, help=help_)
        )
        return True
    if "name" not in tree.value and set(tree.value) <= set(Experiment.model_fields) and len(tree.value) > 1:
        help_ = "compile a spec that `extends` it, or add `apiVersion: higgsc/v1` and `name`"
        sink.add(Diagnostic("HC102", "this is a part of specs: `apiVersion` and `name` are missing", place, help=help_))
        return True
    return False


def _start(span: Span) -> int:
    return span.start


def _unknown_site(name: str, folder: Path) -> Diagnostic | None:
    """For a `--site` that names no file; its place is the option itself."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in known:
        return None
    place = Label(Span(SourceFile(Path(SITE_OPTION), SITE_OPTION, name), 0, len(name)))
    stem = Path(name).stem
    help_ = f"write `--site {stem}`" if stem in known else did_you_mean(name, known)
    help_ = help_ if name else "name one, or leave `--site` out"
    there = f"known: {', '.join(known)}" if known else "there is no file in `sites`"
    return Diagnostic("HC204", f"no site `{name}`", place, notes=(there,), help=help_)


def _site_as_mapping(tree: Node) -> Node:
    """`site: NAME` is short for `site: {profile: NAME}`: as such it adds to what is inherited."""
    site = tree.get("site")
    if site is None or not isinstance(site.value, str) or not isinstance(tree.value, Mapping):
        return tree
    return replace(tree, value={**tree.value, "site": replace(site, value={"profile": site})})


def with_site(tree: Node, folder: Path, root: Path, sink: Sink, sources: list[SourceFile]) -> Node:
    """The tree with the chosen site's file merged in below the spec's own words about the site."""
    given = tree.get("site")
    if given is None or given.value is None or not isinstance(tree.value, Mapping):
        return tree
    if isinstance(given.value, Mapping):
        chosen = given.value.get("profile")
    else:
        chosen = given
        given = replace(given, value={"profile": given})
    if chosen is None or not isinstance(chosen.value, str):
        return replace(tree, value={**tree.value, "site": given})  # what is wrong with it, the schema says
    path = folder / f"{chosen.value}.yaml"
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if chosen.value not in known:
        there = f"known: {', '.join(known)}" if known else f"there is no file in {os.path.relpath(folder, root)}"
        help_ = did_you_mean(chosen.value, known)
        sink.add(Diagnostic("HC204", f"no site `{chosen.value}`", Label(chosen.span), notes=(there,), help=help_))
        return tree
    profile = _Loader(root, sink, sources).load(path, asked_at=chosen.span)
    if profile is None:
        return tree
    if (wrapped := profile.get("site")) is not None:
        message = "a site file holds the keys of a site themselves"
        help_ = "take `site:` out, and the indentation of what is below it"
        sink.add(Diagnostic("HC101", message, Label(wrapped.place), help=help_))
        return tree
    return replace(tree, value={**tree.value, "site": _merge(profile, given)})


def _sites_folder(spec: Path, root: Path) -> Path:
    return (root / "specs" if "specs" in Path(os.path.abspath(spec)).parts else root) / "sites"


class _Loader:
    """Reads files with what they extend; each once, however many extend it."""

    def __init__(self, root: Path, sink: Sink, sources: list[SourceFile]) -> None:
        self.root = root
        self.sink = sink
        self.sources = sources
        self.loaded: dict[Path, Node | None] = {}
        self.left = MAX_FILES + 1
        self.too_many = False

    def load(self, path: Path, *, asked_at: Span | None, chain: tuple[Path, ...] = ()) -> Node | None:
        """The tree of a file merged over what it extends, or None with the reason in the sink.

        Args:
            path: The file.
            asked_at: Where another file names it.
            chain: The files that led here.
        """
        if path in chain and asked_at is not None:
            names = [self._name(link) for link in (*chain[chain.index(path) :], path)]
            self.sink.add(
                Diagnostic(
                    "HC201",
                    f"`extends` goes in a circle: {' → '.join(names)}",
                    Label(asked_at),
                    help="take this one out, or another of the chain",
                )
            )
            return None
        if path not in self.loaded:
            if self.left == 0 and asked_at is not None:
                found = f"the spec extends more than {MAX_FILES} files"
                self.sink.add(Diagnostic("HC006", found, Label(asked_at), help="put what they share into one"))
                self.too_many = True
                return None
            self.left -= 1
            self.loaded[path] = self._read(path, asked_at, chain)
        return self.loaded[path]

    def _read(self, path: Path, asked_at: Span | None, chain: tuple[Path, ...]) -> Node | None:
        source = read_source(path, self._name(path), self.sink, asked_at=asked_at, root=self.root)
        if source is None:
            return None
        self.sources.append(source)
        tree = parse(source, self.sink)
        if tree is None:
            return None
        tree = _site_as_mapping(tree)
        refuse_secrets(tree, self.sink)
        merged: Node | None = None
        sound = True
        for entry in _bases(tree, self.sink):
            base_path = Path(os.path.normpath(path.parent / str(entry.value)))
            base = self.load(base_path, asked_at=entry.span, chain=(*chain, path))
            if base is None:
                sound = False
                if self.too_many:
                    break  # the others would only say the same
                continue
            merged = base if merged is None else _merge(merged, base)
        if not sound:
            return None
        return tree if merged is None else _merge(merged, tree)

    def _name(self, path: Path) -> str:
        if os.path.commonpath([path, self.root]) == os.path.sep:
            return path.as_posix()  # nothing in common: steps up to the root of the disk would say less
        return Path(os.path.relpath(path, self.root)).as_posix()


def _bases(tree: Node, sink: Sink) -> tuple[Node, ...]:
    node = tree.get("extends")
    if node is None or node.value is None:
        return ()
    nodes = node.value if isinstance(node.value, tuple) else (node,)
    for entry in nodes:
        if not isinstance(entry.value, str):
            message = "`extends` takes a path or a list of paths"
            sink.add(Diagnostic("HC103", message, Label(entry.span), help="write `extends: base/voice-cloning.yaml`"))
            return ()
    return nodes


def _merge(below: Node, above: Node) -> Node:
    """Mappings are merged key by key; anything else in `above` replaces what is below."""
    if not isinstance(below.value, Mapping) or not isinstance(above.value, Mapping):
        return replace(above, below=below)
    entries = dict(below.value)
    for key, node in above.value.items():
        if key != "extends":
            entries[key] = _merge(entries[key], node) if key in entries else node
    entries.pop("extends", None)
    return replace(above, value=entries)
