"""What a Kubernetes site needs: secrets by reference, and a run that outlasts its containers."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir


def kubernetes(ir: Ir, sink: Sink) -> Ir:
    """Check that secrets can be found in the cluster and that results are written to the claim."""
    site = ir.spec.site.kubernetes
    if site is None:
        return ir
    if ir.spec.secrets and site.secret_name is None:
        sink.add(
            Diagnostic(
                "HC351",
                "`site.kubernetes` names no Secret that holds `secrets`",
                ir.label("site.kubernetes"),
                secondary=(ir.label("secrets", ", ".join(ir.spec.secrets)),),
                help="add `secret_name:` with the name of a Secret of the namespace that has these keys",
            )
        )
    for path in ("output", "data.store"):
        folder = posixpath.normpath(posixpath.join(site.mount, ir.text(path)))
        if ir.given(path) and not PurePosixPath(folder).is_relative_to(posixpath.normpath(site.mount)):
            sink.add(
                Diagnostic(
                    "HC352",
                    f"`{folder}` is not on the claim, which is mounted at `{site.mount}`",
                    ir.label(path),
                    help="give it relative to the project root",
                )
            )
    return ir
