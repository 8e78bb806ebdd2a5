"""Folders of the run: where it goes when the spec does not say."""

from __future__ import annotations

import posixpath

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir


def folders(ir: Ir, sink: Sink) -> Ir:
    """Derive `output` (default `runs/<name>`), `data.store` (default `<output>/store`) and `data.prepare.cache`
    (default `.codes` beside `output`).

    The points of a sweep share neither of the first two: a given output gets a folder for each of them. They share
    the cache, and so do all runs of a project.
    """
    _refuse_backslash(ir, sink)
    output = ir.spec.output
    if output is None:
        ir = ir.derive("output", f"runs/{ir.spec.name}", "runs/<name>", by="folders", inputs=("name",))
    elif ir.swept:
        folder = f"{output.rstrip('/')}/{ir.spec.name}"
        ir = ir.derive("output", folder, "<output>/<name of the point>", by="folders")
    else:
        ir = ir.derive("output", output.rstrip("/"), "as given", by="folders")
    if (cache := ir.spec.data.prepare.cache) is None:
        beside = posixpath.join(posixpath.dirname(ir.text("output")), ".codes")
        ir = ir.derive("data.prepare.cache", beside, ".codes beside <output>", by="folders", inputs=("output",))
    else:
        ir = ir.derive("data.prepare.cache", cache.rstrip("/"), "as given", by="folders")
    if ir.spec.data.store is None:
        return ir.derive("data.store", f"{ir.text('output')}/store", "<output>/store", by="folders", inputs=("output",))
    return ir.derive("data.store", ir.spec.data.store.rstrip("/"), "as given", by="folders")


def _refuse_backslash(ir: Ir, sink: Sink) -> None:
    """Slurm reads the names of log files, and takes a backslash for an escape."""
    if "\\" in (ir.spec.output or ""):
        sink.add(Diagnostic("HC342", "`output` cannot have a backslash", ir.label("output"), help="write `/`"))
