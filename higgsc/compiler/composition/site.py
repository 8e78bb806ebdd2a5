"""A site by itself, without a spec: for `higgsc doctor`."""

from __future__ import annotations

import os
from pathlib import Path

from higgsc.compiler.composition.compose import Composed, with_site
from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.reading.position import SourceFile, Span
from higgsc.compiler.reading.source import Node
from higgsc.compiler.schema import validate_site
from higgsc.spec.site import Site


def load_site(name: str, folder: Path, root: Path, sink: Sink) -> tuple[Site, Composed] | None:
    """Read `<folder>/<name>.yaml`.

    Args:
        name: Of the site.
        folder: Where the sites are, `specs/sites`.
        root: The project root, which file names are shown from.
        sink: Where problems go; the result is None then.

    Returns:
        The site, and a tree in which its values stand below `site`.
    """
    source = SourceFile(Path("--site"), "--site", name)
    span = Span(source, 0, len(name))
    sources: list[SourceFile] = []
    tree = with_site(Node({"site": Node(name, span, span)}, span), Path(os.path.abspath(folder)), root, sink, sources)
    if sink.error_count:
        return None
    site = validate_site(tree, sink)
    return None if site is None else (site, Composed(tree, tuple(sources)))
