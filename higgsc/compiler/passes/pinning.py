"""Pinned weights: a hub model without a commit can change under a running experiment."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir


def pinning(ir: Ir, sink: Sink) -> Ir:
    """Warn about a hub base without a revision."""
    model = ir.spec.model
    if _is_hub_id(model.base) and model.revision is None:
        sink.add(
            Diagnostic(
                "HC412",
                f"`model.revision` is not pinned, so `{model.base}` may change between two runs",
                ir.label("model.base"),
                help="add `revision:` with a commit of the repository",
            )
        )
    return ir


def _is_hub_id(base: str) -> bool:
    """`owner/name`; a local folder is written with a leading `.` or `/`."""
    return not base.startswith((".", "/", "~", "builtin:")) and base.count("/") == 1
